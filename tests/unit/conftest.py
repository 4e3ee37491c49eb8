"""Fixtures that several folders of unit tests share."""

import shutil
from pathlib import Path

import pytest

from studio.workspace import Workspace
from tests.support.provenance import whole_chain


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a data set, a run, its adapter and samples; do not change it."""
    home = tmp_path_factory.mktemp("chain") / "home"
    whole_chain(home)
    return home


@pytest.fixture
def chained(chain: Path, tmp_path: Path) -> Workspace:
    """A copy of it to work in."""
    return Workspace.open(shutil.copytree(chain, tmp_path / "home"))
