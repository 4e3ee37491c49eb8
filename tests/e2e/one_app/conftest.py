"""One app and its workspace for all that use it in a browser or over the API, one after the other."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from studio.workspace import Workspace
from tests.support.browser import browser
from tests.support.serving import running_app

TOKEN = "sixteen-characters-long"  # of the API


@pytest.fixture(scope="package")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.open(tmp_path_factory.mktemp("app") / "workspace")


@pytest.fixture(scope="package")
def address(workspace: Workspace) -> Iterator[str]:
    """Where the app answers."""
    with running_app(workspace.home, STUDIO_API_TOKEN=TOKEN) as address:
        yield address


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """One browser for all walks; each has a page, with cookies and storage, of its own."""
    with browser() as chromium:
        yield chromium
