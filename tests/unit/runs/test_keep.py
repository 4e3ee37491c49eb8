"""Keeping a checkpoint, and which one a run says is best: by its probe, by evidence, by a person."""

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry.errors import BadInput, NotFound
from registry.hashing import sha256_file
from registry.records import Adapter, Base, Checkpoint, Dataset, Run, RunState
from studio.runs import checkpoints
from studio.runs.checks import check_run
from studio.runs.follow import _Progress
from studio.runs.keep import keep, pick_by_probe
from studio.runs.launch import anew, branch
from studio.runs.ranking import ranking_of
from studio.sampling.chosen import checkpoint_of, steps_of
from studio.workspace import Workspace
from tests.support.cli import Studio
from tests.support.fake_trainer import Script
from tests.support.supervision import make_run, make_worker
from trainers.checkpoints import Store
from trainers.recipe import apply_sets, preset, thaw
from trainers.rundir import ADAPTER, METRICS, checkpoint_name, write_manifest


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one finished run of 20 steps, checkpoints at 5, 10, 15 and 20; do not change it."""
    home = tmp_path_factory.mktemp("kept") / "home"
    ws = Workspace.open(home)
    make_run(ws, Script(probes=True))
    make_worker(ws).run(once=True)
    ws.catalog.close()
    return home


@pytest.fixture
def ws(finished: Path, tmp_path: Path) -> Workspace:
    return Workspace.open(shutil.copytree(finished, tmp_path / "home"))


@pytest.fixture
def studio(ws: Workspace) -> Studio:
    return Studio(ws.home)


def the_run(ws: Workspace) -> Run:
    return ws.catalog.get(Run, "ink")


def test_a_finished_run_says_which_of_its_checkpoints_is_best(ws: Workspace):
    run = the_run(ws)
    assert (run.pick_step, run.pick_by) == (10, "probe")
    assert run.pick_reason == "Its loss on held-out pictures is the lowest, 0.5000."
    row = next(row for row in ws.catalog.list(Checkpoint, run_id=run.id) if row.step == 10)
    assert row.metrics == {"loss": 0.1, "probe_loss": 0.1, "probe_held_out": 0.5, "probe_prior": 0.01}
    assert anew(run, thaw(run.recipe), "again").pick_by == ""


def test_a_kept_checkpoint_is_an_adapter_like_that_of_a_finished_run(ws: Workspace, studio: Studio):
    (end,) = ws.catalog.list(Adapter)
    said = studio("runs", "keep", "ink@15")
    kept, run = ws.catalog.get(Adapter, said["id"]), the_run(ws)
    assert (kept.name, kept.step, kept.run_id, kept.origin) == ("ink step 15", 15, run.id, "run")
    own = (
        "id",
        "created_at",
        "name",
        "step",
        "path",
        "tensor_sha256",
        "file_sha256",
        "mtime_ns",
        "checked_at",
    )
    assert replace(kept, **{name: getattr(end, name) for name in own}) == end
    assert ws.resolve(kept.path).read_bytes() == checkpoint(ws, 15).joinpath(ADAPTER).read_bytes()
    assert (run.pick_step, run.pick_by) == (15, "you")
    assert run.pick_reason.startswith("Past its best: its loss on held-out pictures is 10.0% above step 10.")
    assert said["kept"] == {"run": run.id, "step": 15, "new": True}
    shutil.rmtree(checkpoint(ws, 15))  # it may be pruned
    assert studio("adapters", "verify", kept.name)["state"] == "ok"


def test_the_same_weights_are_one_adapter(ws: Workspace, studio: Studio):
    first = studio("runs", "keep", "ink@10", "--name", "ink, light")
    assert first["name"] == "ink, light"
    said = studio("runs", "keep", f"{the_run(ws).id}@10", "--name", "another", text=True)
    assert said == f"Checkpoint ink@10 was in the library already, as adapter ink, light ({first['id']}).\n"
    last = studio("runs", "keep", "ink@20")  # the result of the run
    assert (last["name"], last["kept"]["new"]) == ("ink", False)
    assert ws.catalog.count(Adapter) == 2
    assert the_run(ws).pick_step == 20


def checkpoint(ws: Workspace, step: int) -> Path:
    return ws.run_dir(the_run(ws).id).path / "checkpoints" / checkpoint_name(step)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("ink", "names no step of a run. write RUN@STEP"),
        ("ink@x", "names no step of a run"),
        ("ink@7", "does not exist. there are 5, 10, 15, 20"),
        ("nobody@5", "run 'nobody': does not exist"),
        ("ink@5", "is incomplete or was changed after it was written"),
    ],
)
def test_what_cannot_be_kept_says_so_in_one_line(ws: Workspace, studio: Studio, key: str, why: str):
    checkpoint(ws, 5).joinpath(ADAPTER).write_bytes(b"cut off")
    said = studio("runs", "keep", key, code=2)
    assert why in said
    assert said.count("\n") == 1
    assert the_run(ws).pick_by == "probe"
    assert ws.catalog.count(Adapter) == 1


def test_a_whole_model_a_taken_name_and_the_trash(ws: Workspace, studio: Studio):
    assert "'ink': exists already" in studio("runs", "keep", "ink@10", "--name", "ink", code=2)
    kept = studio("runs", "keep", "ink@10")
    studio("adapters", "trash", kept["id"])
    assert "is adapter ink step 10, which lies in the trash" in studio("runs", "keep", "ink@10", code=2)
    folder = checkpoint(ws, 15)
    folder.joinpath(ADAPTER).unlink()
    sign(folder, ws)
    said = studio("runs", "keep", "ink@15", code=2)
    assert "holds no adapter: the run trains a whole model" in said


def sign(folder: Path, ws: Workspace) -> None:
    folder.joinpath("manifest.json").unlink()
    write_manifest(folder, int(folder.name[-6:]), ws.key)


def test_a_persons_pick_stays(ws: Workspace):
    run = the_run(ws)
    seen = ws.catalog.pick(run.id, 15, "Draws what is asked.", "evidence")
    assert pick_by_probe(ws, run) == seen  # evidence counts for more
    mine = keep(ws, "ink@5").run
    assert (mine.pick_step, mine.pick_by) == (5, "you")
    assert pick_by_probe(ws, run) == mine
    assert ws.catalog.pick(run.id, 15, "Draws what is asked.", "evidence") == mine
    assert keep(ws, "ink@20").run.pick_step == 20


def test_runs_show_ranks_checkpoints(ws: Workspace, studio: Studio):
    found: dict[str, Any] = studio("runs", "show", "ink")
    assert [row["step"] for row in found["ranking"]["checkpoints"]] == [10, 5, 15, 20]
    assert found["ranking"]["by"] == "probe"
    assert (found["pick_step"], found["pick_by"]) == (10, "probe")
    assert found["checkpoints"] == [5, 10, 15, 20]
    text = studio("runs", "show", "ink", text=True)
    assert "other prompts" in text
    assert "Past its best" in text


def test_a_ranking_outlives_the_files_of_its_run(ws: Workspace):
    run = the_run(ws)
    ws.run_dir(run.id).file("metrics.jsonl").write_text("{broken\n")
    ws.run_dir(run.id).file("status.json").write_text("[]")
    assert ranking_of(ws, run).best.step == 10


def test_a_branch_does_not_hold_out_what_was_trained_on(ws: Workspace):
    run = the_run(ws)
    with pytest.raises(BadInput, match=r"checkpoints.held_out: names pictures that the run trained on"):
        branch(ws, run, 10, ["train.max_steps=30", "checkpoints.held_out=1"])
    assert branch(ws, run, 10, ["train.max_steps=30"]).parent_step == 10


def test_who_trains_is_told_what_is_held_out(ws: Workspace):
    base, dataset = ws.catalog.get(Base, "pocket"), ws.catalog.get(Dataset, "shapes")
    usual = preset("sd15", "style", "pocket")
    assert not any("held out" in remark for remark in check_run(ws, usual, base, dataset))
    asked = apply_sets(usual, ["checkpoints.held_out=1"])
    assert check_run(ws, asked, base, dataset)[0].startswith("1 picture is held out, to judge checkpoints by")
    with pytest.raises(BadInput, match=r"checkpoints.held_out: is 2 of 3 different pictures, more than half"):
        check_run(ws, apply_sets(usual, ["checkpoints.held_out=2"]), base, dataset)


def test_who_waits_for_a_run_is_advised_once(ws: Workspace):
    run = ws.catalog.update(Run, the_run(ws).id, state=RunState.RUNNING)
    held = [0.2, 0.15, 0.13, 0.131, 0.14, 0.15, 0.16, 0.17]
    lines = [{"step": n, "probe_loss": 0.1, "probe_held_out": loss} for n, loss in enumerate(held, 1)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    ws.run_dir(run.id).file(METRICS).write_text(text)
    for row in ws.catalog.list(Checkpoint, run_id=run.id):
        ws.catalog.update(Checkpoint, row.id, metrics={})
    said: list[str] = []
    progress = _Progress(ws, run.id, said.append)
    for _ in range(2):
        progress.ended()
        progress._said_at = float("-inf")
    advised = [line for line in said if "stopping now loses nothing" in line]
    assert len(advised) == 1
    assert advised[0].startswith(
        "ink: The loss on held-out pictures has risen since step 3 (0.1300, now 0.1700)"
    )


def test_a_look_up_reads_again_what_has_changed_and_nothing_else(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
):
    run, read = the_run(ws), list[Path]()

    def counted(path: Path) -> str:
        read.append(path)
        return sha256_file(path)

    monkeypatch.setattr(checkpoints, "sha256_file", counted)
    assert steps_of(ws, run) == [5, 10, 15, 20]
    once, file = len(read), ws.run_dir(run.id).checkpoints()[1] / ADAPTER
    assert once == len(set(read)) > 4
    assert steps_of(ws, run) == [5, 10, 15, 20]
    assert checkpoint_of(ws, run, 10).step == 10
    assert len(read) == once
    file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))
    os.utime(file, ns=(time.time_ns(), file.stat().st_mtime_ns + 1))
    assert steps_of(ws, run) == [5, 15, 20]
    with pytest.raises(BadInput, match="was changed after it was written"):
        checkpoint_of(ws, run, 10)
    assert read[once:] == [file]


def test_nothing_goes_on_from_a_checkpoint_that_only_looks_unchanged(ws: Workspace):
    """Damage that keeps the size and the time of a file, as a bad disk does."""
    run = the_run(ws)
    assert steps_of(ws, run)[-1] == 20
    folder = ws.run_dir(run.id).checkpoints()[-1]
    file = folder / ADAPTER
    before = file.stat()
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert checkpoints.verified(folder, ws.key)  # for who looks
    assert Store(ws.run_dir(run.id), ws.key, keep=9).latest() == folder.with_name(checkpoint_name(15))
    with pytest.raises(NotFound, match="no checkpoint at step 20 that verifies"):
        branch(ws, run, 20, ["train.max_steps=30"])
