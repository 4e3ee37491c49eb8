"""The workspace this process serves: set once by the server, read by pages and routes."""

import threading

from studio.workspace import Workspace

_lock = threading.Lock()
_workspace: Workspace | None = None


def use(workspace: Workspace) -> None:
    """Serve `workspace` from now on."""
    global _workspace
    with _lock:
        _workspace = workspace


def current() -> Workspace:
    """The workspace in use; opens the one the environment names when none was set."""
    global _workspace
    with _lock:
        if _workspace is None:
            _workspace = Workspace.open()
        return _workspace
