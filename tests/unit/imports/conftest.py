"""An empty workspace, and a folder to take in."""

import pytest

from studio.workspace import Workspace


@pytest.fixture
def ws(tmp_path):
    return Workspace.open(tmp_path / "home")


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "loras"
    made.mkdir()
    return made
