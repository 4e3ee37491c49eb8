"""The worker with a fake trainer: every way a run can go, and what the catalog says afterwards."""

import json
from pathlib import Path

import pytest

from registry.errors import BadInput, StudioError, WorkspaceBusy
from registry.records import Adapter, Base, Checkpoint, Job, JobState, Run, RunState
from studio.runs import launch, speed
from studio.runs.executors import LocalExecutor
from studio.workspace import Workspace
from tests.support.fake_trainer import Script
from tests.support.supervision import ENDED, make_run, make_worker, starts, state_of, trainers_alive
from trainers.recipe import thaw


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "home")


def finish(ws: Workspace, script: Script | None = None, *sets: str) -> Run:
    run = make_run(ws, script, *sets)
    make_worker(ws).run(once=True)
    return ws.catalog.get(Run, run.id)


def job_of(ws: Workspace, run: Run) -> Job:
    return ws.catalog.list(Job, subject_id=run.id, limit=1)[0]


def test_a_run_ends_as_one_adapter_with_its_checkpoints(ws: Workspace):
    run = finish(ws)
    assert (run.state, run.step, run.steps, run.reason) == (RunState.FINISHED, 20, 20, "")
    assert run.started_at is not None
    assert run.ended_at is not None
    assert [a.step for a in ws.catalog.list(Adapter, run_id=run.id)] == [20]
    rows = ws.catalog.list(Checkpoint, run_id=run.id, order="step")
    assert [row.step for row in rows] == [5, 10, 15, 20]
    assert rows[0].loss == pytest.approx(1 / 5)
    assert all(ws.resolve(row.path).is_dir() for row in rows)
    assert job_of(ws, run).state is JobState.DONE
    assert len(starts(ws, run)) == 1


def test_speed_is_remembered_for_the_next_forecast(ws: Workspace):
    run = finish(ws)
    (seen,) = speed.near(ws, run.base_hash, thaw(run.recipe))
    assert (seen.seconds, seen.memory, seen.run) == (0.01, 1 << 20, run.id)


@pytest.mark.parametrize(
    ("fault", "state", "word", "adapters"),
    [
        ("nan", RunState.FAILED, "not finite", [5]),
        ("hang", RunState.FAILED, "no sign of life", []),
        ("137", RunState.FAILED, "train.batch_size", []),
        ("oom", RunState.FAILED, "out of memory", []),
        ("crash", RunState.INTERRUPTED, "signal 11", []),
        ("bad-adapter", RunState.FAILED, "was not registered", []),
        ("no-adapter", RunState.FAILED, "without writing an adapter", []),
    ],
)
@pytest.mark.fault
def test_every_fault_gets_its_name(
    ws: Workspace, fault: str, state: RunState, word: str, adapters: list[int]
):
    run = finish(ws, Script(fault=fault, at=8))
    assert run.state is state
    assert word in run.reason
    assert "\n" not in run.reason
    assert [a.step for a in ws.catalog.list(Adapter, run_id=run.id)] == adapters
    assert job_of(ws, run).state is JobState.FAILED
    assert trainers_alive(ws, run) == []


def test_the_adapter_kept_after_nan_says_where_it_is_from(ws: Workspace):
    run = finish(ws, Script(fault="nan", at=8))
    (adapter,) = ws.catalog.list(Adapter, run_id=run.id)
    assert "step 5" in adapter.note
    assert adapter.name == "ink step 5"


@pytest.mark.fault
def test_a_trainer_that_dies_twice_at_start_is_not_started_again(ws: Workspace):
    run = finish(ws, Script(fault="die-at-start"))
    assert run.state is RunState.FAILED
    assert "libfoo.so.1" in run.reason
    assert len(starts(ws, run)) == 2


@pytest.mark.fault
def test_processes_that_share_a_base_start_again_with_what_they_found_out_about_memory(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
):
    real = LocalExecutor.spawn
    monkeypatch.setattr(LocalExecutor, "spawn", lambda self, rundir, _: real(self, rundir, 1))
    run = make_run(ws, Script(rungs=3), "train.processes=2")
    make_worker(ws).run(once=True)
    assert state_of(ws, run) is RunState.FINISHED
    assert len(starts(ws, run)) == 4
    alone = make_run(ws, Script(rungs=3), name="alone")
    make_worker(ws).run(once=True)
    assert state_of(ws, alone) is RunState.FAILED
    assert len(starts(ws, alone)) == 1
    topmost = make_run(ws, Script(rungs=3, top=True), "train.processes=2", name="topmost")
    make_worker(ws).run(once=True)
    assert state_of(ws, topmost) is RunState.FAILED
    assert len(starts(ws, topmost)) == 1  # with the savings that it kept it would fail again
    frail = make_run(ws, Script(rungs=2, fault="die-at-start"), "train.processes=2", name="frail")
    make_worker(ws).run(once=True)
    assert "libfoo.so.1" in ws.catalog.get(Run, frail.id).reason
    assert len(starts(ws, frail)) == 4  # two that found savings, and as many as any run has


@pytest.mark.fault
def test_the_queue_goes_on_after_a_failure(ws: Workspace):
    first = make_run(ws, Script(fault="oom"), name="first")
    second = make_run(ws, name="second")
    make_worker(ws).run(once=True)
    assert (state_of(ws, first), state_of(ws, second)) == (RunState.FAILED, RunState.FINISHED)


def wish_at(ws: Workspace, run: Run, step: int, *wishes: object):
    """Whether the run has ended; makes the wishes one after the other once it is at `step`."""
    left = list(wishes)

    def ended() -> bool:
        now = ws.catalog.get(Run, run.id)
        if left and now.step >= step:
            left.pop(0)(ws, now)  # type: ignore[operator]
        return now.state in ENDED

    return ended


def test_stop_keeps_the_checkpoint_as_an_adapter_and_resume_goes_on(ws: Workspace):
    run = make_run(ws, Script(step_seconds=0.03))
    make_worker(ws).run(until=wish_at(ws, run, 7, launch.stop))
    stopped = ws.catalog.get(Run, run.id)
    assert stopped.state is RunState.STOPPED
    assert 7 <= stopped.step < 20
    assert [a.step for a in ws.catalog.list(Adapter, run_id=run.id)] == [stopped.step]
    launch.resume(ws, stopped)
    make_worker(ws).run(once=True)
    assert state_of(ws, run) is RunState.FINISHED
    steps = [line["step"] for line in ws.run_dir(run.id).read_metrics()]
    assert steps == list(range(1, 21))
    attempts = [job.result["seconds"] for job in ws.catalog.list(Job, subject_id=run.id)]
    assert len(attempts) == 2
    assert speed.taken(ws, ws.catalog.get(Run, run.id)) == pytest.approx(sum(attempts))
    status = ws.run_dir(run.id).read_status()
    assert status is not None
    assert status.begun == stopped.step
    names = {a.step: a.name for a in ws.catalog.list(Adapter, run_id=run.id)}
    assert names == {
        stopped.step: f"ink step {stopped.step}",
        20: "ink",
    }  # the finished one has the run's name


def test_pause_leaves_nothing_behind_and_resume_finishes(ws: Workspace):
    run = make_run(ws, Script(step_seconds=0.03))
    make_worker(ws).run(until=wish_at(ws, run, 7, launch.pause))
    assert state_of(ws, run) is RunState.PAUSED
    assert ws.catalog.list(Adapter, run_id=run.id) == []
    launch.resume(ws, run)
    make_worker(ws).run(once=True)
    assert state_of(ws, run) is RunState.FINISHED


@pytest.mark.fault
def test_a_deaf_trainer_is_killed_after_the_grace(ws: Workspace):
    run = make_run(ws, Script(fault="deaf", step_seconds=0.3))
    make_worker(ws).run(until=wish_at(ws, run, 2, launch.stop))
    stopped = ws.catalog.get(Run, run.id)
    assert stopped.state is RunState.STOPPED
    assert "did not stop within 1 s" in stopped.reason
    assert trainers_alive(ws, run) == []


@pytest.mark.fault
def test_a_second_stop_kills(ws: Workspace):
    from dataclasses import replace

    from tests.support.supervision import QUICK

    run = make_run(ws, Script(fault="deaf", step_seconds=0.3))
    patient = make_worker(ws, replace(QUICK, stop_grace=60.0))
    patient.run(until=wish_at(ws, run, 2, launch.stop, launch.stop))
    stopped = ws.catalog.get(Run, run.id)
    assert (stopped.state, stopped.reason) == (RunState.STOPPED, "killed on a second request")


def test_a_queued_run_is_cancelled_at_once_and_never_started(ws: Workspace):
    run = make_run(ws)
    assert launch.stop(ws, run).state is RunState.STOPPED
    assert job_of(ws, run).state is JobState.CANCELLED
    make_worker(ws).run(once=True)
    assert state_of(ws, run) is RunState.STOPPED
    assert starts(ws, run) == []


@pytest.mark.parametrize("wish", [launch.stop, launch.pause, launch.resume])
def test_a_finished_run_refuses_every_wish_in_one_line(ws: Workspace, wish: object):
    run = finish(ws)
    with pytest.raises(StudioError, match="is finished") as refused:
        wish(ws, run)  # type: ignore[operator]
    assert "\n" not in str(refused.value)


def test_a_branch_starts_from_its_own_copy_of_the_checkpoint(ws: Workspace):
    run = finish(ws)
    with pytest.raises(BadInput, match="no checkpoint at step 7"):
        launch.branch(ws, run, 7, [])
    with pytest.raises(BadInput, match="shape of the adapter"):
        launch.branch(ws, run, 10, ["adapter.rank=4"])
    with pytest.raises(BadInput, match="max_steps"):
        launch.branch(ws, run, 10, ["train.max_steps=10"])
    for sets, wrong in (
        ('tokens.words=["zork"]', "changes the words"),
        ("preservation.mode=class_pictures", "class_prompt: is empty"),
        ("family=sdxl", "is for sdxl"),
    ):
        with pytest.raises(BadInput, match=wrong):
            launch.branch(ws, run, 10, [sets])
    branch = launch.branch(ws, run, 10, ["optimizer.lr=5e-5", "train.max_steps=30"])
    assert (branch.state, branch.parent_run_id, branch.parent_step) == (RunState.QUEUED, run.id, 10)
    rundir = ws.run_dir(branch.id)
    parent = rundir.resolve(rundir.read_env().parent)
    assert parent.is_relative_to(rundir.path)
    original = ws.resolve(ws.catalog.list(Checkpoint, run_id=run.id, step=10)[0].path)
    assert {f.name: f.read_bytes() for f in parent.iterdir()} == {
        f.name: f.read_bytes() for f in original.iterdir()
    }
    assert rundir.read_manifest() == ws.run_dir(run.id).read_manifest()


def test_a_branch_begins_with_the_savings_of_memory_its_parent_needed(ws: Workspace):
    run = finish(ws)
    needed = {"checkpointing": True, "optimizer": "adamw8bit", "pieces": 1, "base": "int8", "streamed": False}
    assert not ws.run_dir(launch.branch(ws, run, 10, ["train.max_steps=30"]).id).file("memory.json").exists()
    ws.run_dir(run.id).file("memory.json").write_text(json.dumps(needed))
    for sets, optimizer in (([], "adamw8bit"), (["optimizer.name=prodigy"], "")):
        branch = launch.branch(ws, run, 10, ["train.max_steps=30", *sets], f"branch {len(sets)}")
        kept = json.loads(ws.run_dir(branch.id).file("memory.json").read_text())
        assert kept == needed | {"optimizer": optimizer}


def test_a_branch_that_wants_compiled_blocks_does_not_inherit_that_they_are_not(ws: Workspace):
    run = finish(ws)
    for compiled, wanted, expected in ((False, "on", None), (False, "auto", False), (True, "on", True)):
        ws.run_dir(run.id).file("memory.json").write_text(json.dumps({"compiled": compiled}))
        sets = ["train.max_steps=30", f"train.compile={wanted}"]
        branch = launch.branch(ws, run, 10, sets, f"{compiled} {wanted}")
        assert json.loads(ws.run_dir(branch.id).file("memory.json").read_text()) == {"compiled": expected}


def test_a_damaged_checkpoint_is_not_offered(ws: Workspace):
    run = finish(ws)
    folder = ws.run_dir(run.id).checkpoints()[-1]
    file = folder / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(BadInput, match="there is: 5, 10, 15"):
        launch.branch(ws, run, 20, [])


def test_a_second_worker_is_refused(ws: Workspace):
    with ws.hold("worker"), pytest.raises(WorkspaceBusy):
        make_worker(ws).run(once=True)


def test_the_manifest_names_pictures_by_paths_that_survive_a_move(ws: Workspace, tmp_path: Path):
    run = make_run(ws)
    moved = tmp_path / "elsewhere"
    ws.catalog.close()
    ws.home.rename(moved)
    rundir = Workspace.open(moved).run_dir(run.id)
    assert all(rundir.resolve(item.image).is_file() for item in rundir.read_manifest())
    assert rundir.resolve(rundir.read_env().cache) == moved / "cache"


def test_the_manifest_has_masks_repeats_and_weights(ws: Workspace):
    from dataclasses import replace

    from registry.records import Dataset, Image
    from tests.support.supervision import make_dataset
    from trainers.recipe import apply_sets, preset

    dataset = make_dataset(ws)
    first, *rest = ws.catalog.list(Image, dataset_id=dataset.id, order="position")
    mask = ws.blobs.put(b"a mask")
    changed = replace(first, repeats=3, weight=0.5, mask=mask)
    dataset = ws.catalog.replace_images(dataset.id, [changed, *rest])
    recipe, base = preset("sd15", "style", "pocket"), ws.catalog.get(Base, "pocket")
    rundir = ws.run_dir(launch.launch(ws, recipe, base, dataset).id)
    one, *others = rundir.read_manifest()
    assert (one.repeats, one.weight, rundir.resolve(one.mask)) == (3, 0.5, ws.blobs.path(mask))
    assert {(item.repeats, item.weight, item.mask) for item in others} == {(1, 1.0, "")}
    ws.blobs.path(mask).unlink()
    with pytest.raises(BadInput, match=r"mask of .*: has lost its file"):
        launch.launch(ws, recipe, base, ws.catalog.get(Dataset, dataset.id))
    assert launch.launch(ws, apply_sets(recipe, ["data.masks=false"]), base, dataset)


def test_a_base_that_is_gone_is_refused_before_anything_is_written(ws: Workspace, tmp_path: Path):
    from tests.support.supervision import make_dataset
    from trainers.recipe import preset

    base = ws.catalog.add(Base(name="lost", family="sd15", location=str(tmp_path / "lost"), kind="folder"))
    with pytest.raises(BadInput, match="is missing"):
        launch.launch(ws, preset("sd15", "style"), base, make_dataset(ws))
    assert list((ws.home / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["train.resolution=72"], "multiples of 16"),
        (["train.resolutions=[40]"], r"train\.resolutions: is 40, sides are multiples of 16"),
        (["data.require_captions=true"], "without a caption"),
    ],
)
def test_what_cannot_work_is_refused(ws: Workspace, sets: list[str], message: str):
    from dataclasses import replace

    from registry.records import Dataset, Image
    from tests.support.supervision import make_dataset
    from trainers.recipe import apply_sets, preset

    dataset = make_dataset(ws)
    images = ws.catalog.list(Image, dataset_id=dataset.id)
    ws.catalog.replace_images(dataset.id, [replace(images[0], caption=" "), *images[1:]])
    recipe = apply_sets(preset("sd15", "style", "pocket"), sets)
    with pytest.raises(BadInput, match=message):
        launch.launch(ws, recipe, ws.catalog.get(Base, "pocket"), ws.catalog.get(Dataset, dataset.id))
    with pytest.raises(BadInput, match="recipe: is for sd21"):
        launch.launch(ws, preset("sd21", "style"), ws.catalog.get(Base, "pocket"), dataset)
