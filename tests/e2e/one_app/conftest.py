"""One app and its workspace for all that use it in a browser or over the API, one after the other."""

from collections.abc import Iterator

import pytest

from studio.workspace import Workspace
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
