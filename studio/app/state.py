"""The workspace this process serves: set once by the server, read by pages and routes."""

import threading

from studio.workspace import Workspace

_lock = threading.Lock()
_waking = threading.Lock()  # two that find no worker must not both start one
_workspace: Workspace | None = None
_works = False


def use(workspace: Workspace | None, *, works: bool = False) -> None:
    """Serve `workspace` from now on; None = the one that the environment names.

    Args:
        workspace: What pages show.
        works: Whether this process sees to it that a worker runs. Pages under test and screenshots do not.
    """
    global _workspace, _works
    with _lock:
        _workspace, _works = workspace, works


def wake_worker() -> None:
    """See to it that somebody does what was just put into the queue; costs nothing while a worker runs.

    Raises:
        StudioError: no worker could be started; says why.
    """
    if _works:
        from studio.runs.background import ensure_worker

        with _waking:
            ensure_worker(current())


def current() -> Workspace:
    """The workspace in use; opens the one the environment names when none was set."""
    global _workspace
    with _lock:
        if _workspace is None:
            _workspace = Workspace.open()
        return _workspace
