"""A trainer whose worker died and got no successor: wishes from a terminal are obeyed all the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.records import Adapter, Run, RunState
from studio.runs import launch
from studio.workspace import Workspace
from tests.support.cli import Studio, call_here
from tests.support.fake_trainer import Script
from tests.support.supervision import WorkerProcess, make_run, starts, state_of, trainers_alive, until

pytestmark = pytest.mark.fault
LONG = ("train.max_steps=2000", "checkpoints.every=2000")


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "home")


@pytest.fixture
def orphan(ws: Workspace) -> Iterator[Run]:
    """A run that trains while no worker holds the workspace."""
    run = make_run(ws, Script(step_seconds=0.05), *LONG)
    worker = WorkerProcess(ws)
    until(lambda: ws.catalog.get(Run, run.id).step > 1, 60)
    worker.kill()
    yield ws.catalog.get(Run, run.id)
    until(lambda: not trainers_alive(ws, run))


@pytest.mark.parametrize(("wish", "state"), [("stop", RunState.STOPPED), ("pause", RunState.PAUSED)])
def test_a_wish_is_obeyed_and_nothing_else_begun(ws: Workspace, orphan: Run, wish: str, state: RunState):
    waits = make_run(ws, name="waits")
    said = call_here(ws.home, "runs", wish, orphan.id)
    assert (said.code, said.stdout) == (0, f"ink: {state}\n")
    assert "No worker is running: waiting here until ink has saved where it is." in said.stderr
    run = ws.catalog.get(Run, orphan.id)
    assert (run.state, trainers_alive(ws, run)) == (state, [])
    kept = [f"ink step {run.step}"] if wish == "stop" else []
    assert [adapter.name for adapter in ws.catalog.list(Adapter, run_id=run.id)] == kept
    assert (state_of(ws, waits), starts(ws, waits)) == (RunState.QUEUED, [])
    assert Studio(ws.home)("runs", "resume", run.id)["state"] == "queued"


def test_a_stop_that_nobody_obeyed_is_obeyed_when_it_is_said_again(ws: Workspace, orphan: Run):
    launch.stop(ws, orphan)
    assert Studio(ws.home)("runs", "stop", orphan.id)["state"] == "stopped"
    assert trainers_alive(ws, orphan) == []


def test_a_run_that_goes_on_says_which_can_be_resumed(ws: Workspace, orphan: Run):
    said = Studio(ws.home)("runs", "resume", orphan.id, code=1)
    assert "only a paused, stopped, interrupted or failed run can be resumed" in said
    launch.stop(ws, orphan)
    Studio(ws.home)("runs", "stop", orphan.id)
