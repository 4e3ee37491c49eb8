"""A page with what a dialog shows alone: AppTest closes dialogs at each run."""

from streamlit.testing.v1 import AppTest

from registry.records import Adapter, Run
from studio.app import state
from studio.workspace import Workspace


def form_of(module: str, function: str, kind: str, id: str) -> None:
    """The script of that page."""
    from importlib import import_module

    from registry import records
    from studio.app import shell

    show = getattr(import_module(f"studio.app.components.{module}"), function)
    show(shell.workspace().catalog.get(getattr(records, kind), id))


def open_form(workspace: Workspace, module: str, function: str, about: Adapter | Run) -> AppTest:
    """What a dialog of an adapter or a run shows."""
    state.use(workspace)
    kwargs = {"module": module, "function": function, "kind": type(about).__name__, "id": about.id}
    return AppTest.from_function(form_of, kwargs=kwargs, default_timeout=60).run()
