"""The worker that an app keeps: replaced when it is gone, one line when it cannot start."""

import os
import signal
import threading
from pathlib import Path

import psutil
import pytest

from registry.errors import StudioError
from studio.app import server, state
from studio.runs.background import ensure_worker
from studio.workspace import Workspace
from tests.support.supervision import until

pytestmark = pytest.mark.fault


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "home")


def worker_of(ws: Workspace) -> int:
    """The pid of who holds the workspace; 0 while nobody does, or has not written it yet."""
    return int((ws.holder() or {"pid": 0})["pid"])


def test_the_worker_does_not_get_the_password(ws: Workspace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STUDIO_PASSWORD", "correct horse")
    pid = ensure_worker(ws)
    try:
        variables = psutil.Process(pid).environ()
    finally:
        os.kill(pid, signal.SIGTERM)
    assert "PATH" in variables
    assert not any("correct horse" in value for value in variables.values())
    until(lambda: ws.holder() is None)
    assert "correct horse" not in (ws.home / "cache" / "worker.log").read_text()


def test_an_app_replaces_a_worker_that_is_gone(ws: Workspace, monkeypatch: pytest.MonkeyPatch):
    """Also one that was another process's and has ended: whoever held the workspace when the app began."""
    monkeypatch.setattr(server, "WATCH_SECONDS", 0.1)
    ended = threading.Event()
    state.use(ws, works=True)
    watch = threading.Thread(target=server.keep_worker, args=(ended.is_set,), daemon=True)
    watch.start()
    try:
        until(lambda: worker_of(ws) > 0)
        first = worker_of(ws)
        os.kill(first, signal.SIGKILL)
        until(lambda: worker_of(ws) not in {0, first}, 60)
    finally:
        ended.set()
        watch.join(30)
        state.use(None)
        for child in psutil.Process().children():
            if "studio.runs.background" in child.cmdline():
                child.kill()
    until(lambda: ws.holder() is None)


def test_a_worker_that_cannot_write_its_log_is_one_line(ws: Workspace):
    (ws.home / "cache" / "worker.log").mkdir(parents=True)
    with pytest.raises(StudioError, match=r"worker\.log: cannot be written \(is a directory\)"):
        ensure_worker(ws)
