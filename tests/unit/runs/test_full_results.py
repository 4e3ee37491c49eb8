"""A finished full fine-tune becomes a base of the workspace, once, and can be trained on."""

import shutil
from pathlib import Path

import pytest

from registry.errors import NotFound
from registry.records import Adapter, Base, Run, RunState
from studio.runs import launch
from studio.runs.follow import follow
from studio.runs.forecast import adapter_parameters
from studio.runs.full_results import register_run_base
from studio.workspace import Workspace
from tests.support.fake_trainer import Script
from tests.support.supervision import ENDED, make_dataset, make_run, make_worker
from trainers.recipe import Recipe, apply_sets, preset
from trainers.rundir import MODEL


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "home")


def recipe(*sets: str) -> Recipe:
    fixed = ["adapter.method=full", "optimizer.lr=1e-6", "train.max_steps=2", "preview.every=0"]
    return apply_sets(preset("sd15", "style", "pocket"), [*fixed, *sets])


def test_a_base_is_registered_once_and_comes_back_when_it_was_lost(ws: Workspace):
    pocket = ws.catalog.get(Base, "pocket")
    run = launch.launch(ws, recipe(), pocket, make_dataset(ws), "pocket")
    rundir = ws.run_dir(run.id)
    with pytest.raises(NotFound, match="was not written by the trainer"):
        register_run_base(ws, run, rundir)
    shutil.copytree(ws.resolve(pocket.location), rundir.file(MODEL))
    base = register_run_base(ws, run, rundir)
    assert (base.name, base.family, base.kind) == ("pocket 2", "sd15", "folder")  # the name was taken
    assert ws.resolve(base.location) == ws.home / "bases" / run.id
    assert register_run_base(ws, run, rundir) == base
    shutil.rmtree(ws.resolve(base.location))
    assert register_run_base(ws, run, rundir) == base
    assert (ws.resolve(base.location) / "model_index.json").is_file()
    launch.launch(ws, recipe(), base, make_dataset(ws, "more"), "again")


def test_a_run_ends_with_a_base_and_no_adapter(ws: Workspace):
    base, dataset = ws.catalog.get(Base, "pocket"), make_dataset(ws)
    run = follow(ws, launch.launch(ws, recipe(), base, dataset, "dreamt"), None)
    assert run.state is RunState.FINISHED, run.reason
    assert ws.catalog.count(Adapter) == 0
    made = ws.catalog.get(Base, "dreamt")
    assert made.weight_hash != base.weight_hash


def test_the_forecast_counts_all_weights(ws: Workspace):
    base = ws.catalog.get(Base, "pocket")
    full, source = adapter_parameters(ws, recipe(), base)
    both, _ = adapter_parameters(ws, recipe("adapter.train_text_encoder=true"), base)
    lora, _ = adapter_parameters(ws, recipe("adapter.method=lora"), base)
    assert lora < full < both
    assert "all weights" in source


def test_a_trainer_that_wrote_no_model_has_failed_and_a_stopped_run_says_how_to_get_it(ws: Workspace):
    run = make_run(ws, None, "adapter.method=full")
    make_worker(ws).run(once=True)
    run = ws.catalog.get(Run, run.id)
    assert run.state is RunState.FAILED
    assert "the result was not registered" in run.reason

    slow = make_run(ws, Script(step_seconds=0.2), "adapter.method=full", name="slow")
    asked: list[Run] = []

    def look() -> bool:
        if not asked and ws.catalog.get(Run, slow.id).step >= 6:
            asked.append(launch.stop(ws, slow))
        return ws.catalog.get(Run, slow.id).state in ENDED

    make_worker(ws).run(until=look)
    slow = ws.catalog.get(Run, slow.id)
    assert (slow.state, slow.reason) == (
        RunState.STOPPED,
        "the new base is written at the last step; resume the run",
    )
    assert ws.catalog.count(Adapter) == 0
