"""What a terminal says while it waits for a run."""

from pathlib import Path

import pytest

from registry.records import Run, RunState
from studio.runs.follow import follow
from studio.workspace import Workspace
from tests.support.supervision import make_run, make_worker


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "home")


def test_a_run_that_was_over_before_the_first_look_is_told_once(ws: Workspace):
    run = make_run(ws)
    make_worker(ws).run(once=True)
    lines: list[str] = []
    ended = follow(ws, run, lines.append)
    assert ended.state is RunState.FINISHED
    assert lines == [f"{run.name}: finished at step 20 of 20"]


def test_a_failed_run_says_why(ws: Workspace):
    run = ws.catalog.move_run(make_run(ws).id, RunState.FAILED, expect={RunState.QUEUED}, reason="no base")
    lines: list[str] = []
    assert follow(ws, ws.catalog.get(Run, run.id), lines.append).reason == "no base"
    assert lines == [f"{run.name}: failed at step 0 of 20 (no base)"]


def test_nobody_has_to_listen(ws: Workspace):
    run = make_run(ws)
    make_worker(ws).run(once=True)
    assert follow(ws, run).state is RunState.FINISHED
