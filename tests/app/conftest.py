"""Workspaces for page tests, empty and filled, and the app opened on one of them."""

import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from streamlit import config
from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest

from studio.app import state, theme
from studio.app.server import options
from studio.workspace import Workspace
from tests.app.filled import fill

Open = Callable[..., AppTest]


@pytest.fixture(scope="session", autouse=True)
def _installed_once() -> Iterator[None]:
    """Every AppTest reads what each installed package says of itself: 0.2 s, more than most pages take."""
    with pytest.MonkeyPatch.context() as patch:
        known = cache(manifest_scanner.scan_component_manifests)
        patch.setattr(manifest_scanner, "scan_component_manifests", known)
        yield


@pytest.fixture(autouse=True)
def _main_stays() -> Iterator[None]:
    """A script that AppTest ran stays as `__main__`, which processes started later would run again."""
    ours = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = ours


@pytest.fixture
def empty(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "workspace")


@pytest.fixture(scope="session")
def _filled_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("filled") / "workspace"
    workspace = Workspace.open(home)
    fill(workspace)
    workspace.catalog.close()
    return home


@pytest.fixture
def filled(_filled_once: Path, tmp_path: Path) -> Workspace:
    return Workspace.open(Path(shutil.copytree(_filled_once, tmp_path / "workspace")))


@pytest.fixture
def open_page() -> Iterator[Open]:
    """`open_page(workspace, "runs", run=id)` -> the page, drawn with the server's way to run scripts."""
    for name, value in options(8501, "127.0.0.1").items():
        if name.startswith("runner."):
            config.set_option(name, value)

    def opener(workspace: Workspace, page: str = "home", **params: str) -> AppTest:
        state.use(workspace)
        at = AppTest.from_file(str(theme.HERE / "streamlit_app.py"), default_timeout=60)
        if page != "home":
            at.switch_page(f"app_pages/{page}.py")
        for key, value in params.items():
            at.query_params[key] = value
        return at.run()

    yield opener
    state.use(None)
