"""A base that two processes hold together (gloo): the same run as with whole ones, with half of the weights.

Launches of two ranks are dear, so each trains several runs.
"""

import json
import os
import subprocess
import time
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file

from registry.errors import BadInput
from tests.support.forked import Forked
from tests.support.runs import draw_pictures, environment, recipe, resume, write_run
from tests.support.sharing_ranks import held
from trainers.base_weights import Keeping
from trainers.fitting import check_recipe, first_sharing, shared_part
from trainers.ladder import Rungs, first_rungs, next_rung, read_rungs
from trainers.loop import passes
from trainers.recipe_fields import TrainSection
from trainers.rundir import RunDir
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
    whole, shared = pairs["sd15"]  # at whose skips gradients are added in another order
    theirs = load_file(shared.adapter)
    assert all((theirs[key] - value).abs().max() < 1e-6 for key, value in load_file(whole.adapter).items())


def test_in_16_bits_with_half_of_the_blocks_checkpointed_it_is_the_same_run(tmp_path, tiny_flux1, seven):
    """Layers compute with stand-ins, which no process shares."""
    changes = CHANGES | {"train.max_steps": 4, "train.precision": "bf16", "adapter.dropout": 0.0}
    changes |= {"train.gradient_checkpointing": True, "train.checkpointed_blocks": 0.5}
    whole, shared = (
        write_run(tmp_path / way, tiny_flux1, seven, changes | {"train.base_sharding": way}, family="flux1")
        for way in ("off", "on")
    )
    assert start_ranks(whole, shared).wait(240) == 0, whole.file("log.txt").read_text()
    theirs = load_file(shared.adapter)
    assert all(torch.equal(theirs[key], value) for key, value in load_file(whole.adapter).items())
    assert figures(whole) == figures(shared)


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


def test_what_ends_the_run_of_one_rank_ends_it_for_both(tmp_path, tiny_sd15, seven):
    long = CHANGES | {"train.max_steps": 100000, "checkpoints.every": 50000}
    runs = (("damaged", CHANGES), ("nan", CHANGES), ("asked", long), ("short", long))
    damaged, nan, asked, short = (
        write_run(tmp_path / name, tiny_sd15, seven, changes) for name, changes in runs
    )
    (damaged.path / "damaged-1").touch()
    (nan.path / "nan-1").touch()
    (short.path / "short-1").touch()
    launcher = start_ranks(damaged, nan, asked, short)
    while len(asked.read_metrics()) < 3 and launcher.poll() is None:
        time.sleep(0.01)
    psutil.Process(launcher.pid).children()[1].terminate()
    assert launcher.wait(240) != 0
    said = damaged.file("log.txt").read_text()
    status = damaged.read_status()
    assert (status.kind, status.reason) == ("input", "unet: cannot be loaded. check the base."), said
    assert (nan.read_status().state, nan.read_status().kind) == ("failed", "nan"), said
    status = asked.read_status()
    assert status.state == "stopped", said
    assert [int(folder.name[5:]) for folder in asked.checkpoints()] == [status.step]
    assert short.read_status().kind == "killed"
    assert "the largest batch does not fit into memory; when resumed, gradient checkpointing is on" in said
    assert json.loads(short.file("memory.json").read_text())["checkpointing"]


def setting(**changes) -> SimpleNamespace:
    changes = {"train.processes": 2, "train.gradient_checkpointing": True} | changes
    found = recipe({**changes, "train.batch_size": 1}, "flux1")
    return SimpleNamespace(recipe=found, family=SimpleNamespace(device=torch.device("cpu")))


def test_a_base_is_shared_before_it_is_rounded():
    kept, rungs, here = [], Rungs(optimizer="adamw8bit"), setting()
    while (step := next_rung(rungs, here, fresh=True)) is not None:
        rungs, said = step
        kept.append((rungs.keeping(here), said))
    words = [said for _, said in kept]
    assert words[0] == "the base's weights are shared by the 2 processes (steps take longer)"
    ways = [Keeping(sharded=True), Keeping("int8"), Keeping("nf4"), Keeping("nf4", streamed=True)]
    assert [keeping for keeping, _ in kept] == ways
    whole = setting(**{"train.base_weights": "whole", "train.base_streaming": "off"})
    assert next_rung(Rungs(optimizer="adamw8bit", sharded=True), whole, fresh=True) is None
    alone = setting(**{"train.processes": 1})
    assert Rungs(sharded=True).keeping(alone) == Keeping()  # a branch with one process
    assert next_rung(Rungs(optimizer="adamw8bit"), alone, fresh=True)[0].base == "int8"


@pytest.mark.parametrize("checkpointing", [True, False])
def test_it_is_said_and_kept_for_later_attempts(tmp_path, monkeypatch, checkpointing):
    monkeypatch.setattr("trainers.ladder.choose", lambda *_: Keeping(sharded=True))
    monkeypatch.setattr("trainers.ladder.parameters", lambda *_: 0)  # a GPU is made up, and it asks for none
    said, here = [], setting(**{"train.gradient_checkpointing": checkpointing})
    here.family.denoiser_name, here.rundir, here.writes = "transformer", RunDir(tmp_path), True
    here.reporter = SimpleNamespace(warn=said.append)
    rungs = first_rungs(here)
    assert rungs.keeping(here) == Keeping(sharded=True)
    assert bool(rungs.checkpointing) != checkpointing
    more = "" if checkpointing else ", and gradient checkpointing is on"
    why = "the GPU has no room for the whole base: "
    assert said == [f"{why}its weights are shared by the 2 processes{more} (steps take longer)"]
    assert read_rungs(here.rundir) == rungs == first_rungs(here)
    assert len(said) == 1


def test_it_is_shared_from_the_start_where_only_a_share_leaves_room():
    def first(gigabytes: int, processes: int, **changes) -> bool:
        train = TrainSection(processes=processes, **changes)
        return first_sharing(train, 12 * 10**9, 2, gigabytes * 10**9)  # 24 GB of weights

    assert shared_part(4) == pytest.approx(0.35)
    assert [first(24, count) for count in (1, 2, 4)] == [False, True, True]
    assert [first(12, count) for count in (2, 3, 4)] == [False, False, True]
    assert not first(80, 4)
    assert first(80, 4, base_sharding="on")
    for other in ({"base_sharding": "off"}, {"base_weights": "int8"}, {"base_streaming": "on"}):
        assert not first(24, 2, **other)
    assert first(24, 2, base_weights="whole")


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"train.processes": 1}, "there is one process .*train.processes to 2"),
        ({"adapter.method": "full"}, "weights that learn are whole"),
        ({"train.base_weights": "nf4"}, "train.base_weights is nf4.*base_weights to whole"),
        ({"train.base_streaming": "on"}, "so is train.base_streaming"),
    ],
)
def test_what_cannot_be_shared_is_refused(changes, wrong):
    asked = {"train.base_sharding": "on", "train.processes": 2}
    check_recipe(recipe(asked))
    with pytest.raises(BadInput, match=f"train.base_sharding: is on.*{wrong}"):
        check_recipe(recipe(asked | changes))


def test_every_process_makes_as_many_passes():
    assert [share for _, share in passes(1, 3, even=True)] == [1.0, 0.0, 0.0]
    assert [share for _, share in passes(3, 2, even=True)] == [1 / 3, 2 / 3]
    assert len(passes(1, 3, even=False)) == 1


def test_what_fails_for_the_first_process_keeps_it_from_no_pass():
    def fails():
        raise OSError("disk")

    told = []
    assert Together(shared=True).alone(fails, told.append) is None
    assert str(told[0]) == "disk"
    assert Together(writes=False, shared=True).alone(fails, told.append) is None
    with pytest.raises(OSError, match="disk"):
        Together().alone(fails, told.append)
    assert Together().alone(lambda: 3, told.append) == 3
