"""A base that two processes hold together (gloo): the same run as with whole ones, with half of the weights.

Launches of two ranks are dear, so each trains several runs.
"""

import json
import os
import subprocess
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.support.forked import Forked
from tests.support.runs import draw_pictures, environment, resume, write_run
from tests.support.sharing_ranks import held
from trainers.fitting import first_sharing, shared_part
from trainers.ladder import Rungs, next_rung
from trainers.recipe_fields import TrainSection
from trainers.sharing import Together

CHANGES = {
    "train.max_steps": 8,
    "train.batch_size": 2,
    "train.processes": 2,
    "train.base_sharding": "on",
    "train.dry_run": "on",
    "adapter.dropout": 0.1,  # keeps the plain run from computing weight first, which rounds otherwise
    "checkpoints.every": 4,
}
FLUX = {
    "train.gradient_checkpointing": True,
    "preview.every": 4,
    "preservation.mode": "base_prediction",
    "preservation.class_prompt": "a disc",
}


def start_ranks(*rundirs) -> Forked:
    """Two ranks that train one run after the other; what they say goes to the first one's log."""
    words = ["--standalone", "--nproc_per_node", "2", "-m", "tests.support.sharing_ranks"]
    with rundirs[0].file("log.txt").open("ab") as log:
        return Forked(
            "tests.support.launcher",
            [*words, *(str(rundir.path) for rundir in rundirs)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | environment(),
            start_new_session=True,
        )


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    """Seven pictures: of the last batch of an epoch one process has two, the other one."""
    return draw_pictures(tmp_path_factory.mktemp("seven"), 7)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, tiny_flux1, tiny_sd15, seven):
    """By family: the run of two whole bases, and the same with one that is shared. Four pieces a batch, which
    the smaller share of the last one cannot be cut into."""
    folder, found = tmp_path_factory.mktemp("pairs"), {}
    for family, base, more in (("flux1", tiny_flux1, FLUX), ("sd15", tiny_sd15, {"train.max_steps": 4})):
        for sharing in ("off", "on"):
            changes = CHANGES | more | {"train.base_sharding": sharing}
            rundir = write_run(folder / f"{family}-{sharing}", base, seven, changes, family=family)
            rundir.file("memory.json").write_text(json.dumps({"pieces": 4}))
            found.setdefault(family, []).append(rundir)
    runs = [rundir for pair in found.values() for rundir in pair]
    assert start_ranks(*runs).wait(240) == 0, runs[0].file("log.txt").read_text()
    return found


def figures(rundir) -> list[dict]:
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "peak_memory")}
        for line in rundir.read_metrics()
    ]


def test_ranks_that_share_the_base_learn_what_ranks_with_whole_ones_do(pairs):
    whole, shared = pairs["flux1"]
    theirs = load_file(shared.adapter)
    assert all(torch.equal(theirs[key], value) for key, value in load_file(whole.adapter).items())
    assert figures(whole) == figures(shared)  # probes included
    shown = [
        {line["file"]: (r.path / line["file"]).read_bytes() for line in r.previews()} for r in (whole, shared)
    ]
    assert shown[0] == shown[1]
    assert len(shown[0]) == 2 + 3 * 2
    whole, shared = pairs["sd15"]  # whose convolutions round otherwise where weights lie otherwise
    theirs = load_file(shared.adapter)
    assert all((theirs[key] - value).abs().max() < 1e-6 for key, value in load_file(whole.adapter).items())


@pytest.mark.parametrize("family", ["flux1", "sd15"])
def test_each_holds_half_of_it_between_steps(pairs, family):
    whole, shared = pairs[family]
    assert [held(whole, rank) for rank in (0, 1)] == [1, 1]
    assert all(0.49 < held(shared, rank) < 0.52 for rank in (0, 1))


def test_one_is_killed_and_the_run_resumes_to_the_bit(pairs, tmp_path, tiny_flux1, seven):
    broken = write_run(tmp_path / "broken", tiny_flux1, seven, CHANGES | FLUX, family="flux1")
    broken.file("memory.json").write_text(json.dumps({"pieces": 4}))
    launcher = start_ranks(broken)
    while len(broken.read_metrics()) < 5:
        time.sleep(0.01)
    ranks = psutil.Process(launcher.pid).children()
    ranks[1].kill()
    assert launcher.wait(240) != 0
    status = broken.read_status()
    assert (status.state, status.kind) == ("failed", "killed")
    assert len(broken.read_metrics()) < 8
    resume(broken)
    assert start_ranks(broken).wait(240) == 0, broken.file("log.txt").read_text()
    theirs = load_file(broken.adapter)
    assert all(torch.equal(theirs[key], value) for key, value in load_file(pairs["flux1"][1].adapter).items())


def test_nan_a_wish_to_stop_and_memory_of_one_rank_end_the_run_for_both(tmp_path, tiny_sd15, seven):
    long = CHANGES | {"train.max_steps": 100000, "checkpoints.every": 50000}
    nan = write_run(
        tmp_path / "nan", tiny_sd15, seven, CHANGES | {"optimizer.lr": 10.0, "train.max_grad_norm": 0.0}
    )
    asked, short = (write_run(tmp_path / name, tiny_sd15, seven, long) for name in ("asked", "short"))
    (short.path / "short-1").touch()
    launcher = start_ranks(nan, asked, short)
    while len(asked.read_metrics()) < 3 and launcher.poll() is None:
        time.sleep(0.01)
    psutil.Process(launcher.pid).children()[1].terminate()
    assert launcher.wait(240) != 0
    said = nan.file("log.txt").read_text()
    assert (nan.read_status().state, nan.read_status().kind) == ("failed", "nan"), said
    status = asked.read_status()
    assert status.state == "stopped", said
    assert [int(folder.name[5:]) for folder in asked.checkpoints()] == [status.step]
    assert short.read_status().kind == "killed"
    assert "the largest batch does not fit into memory; when resumed, gradient checkpointing is on" in said
    assert json.loads(short.file("memory.json").read_text())["checkpointing"]
