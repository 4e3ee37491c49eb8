"""Fixtures that several folders of unit tests share."""

import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from studio.workspace import Workspace
from tests.support.provenance import whole_chain

# How long an example takes on a busy machine proves nothing: 0.3 s were seen for one of 0.5 ms.
settings.register_profile("studio", deadline=None)
settings.load_profile("studio")


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
