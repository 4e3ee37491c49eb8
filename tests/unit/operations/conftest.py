"""A workspace with two adapters, of which one has more to be inherited."""

import pytest

from registry.records import Adapter
from studio.workspace import Workspace
from tests.support.sampling import ALL_MODULES, add_adapter


@pytest.fixture
def ws(tmp_path):
    return Workspace.open(tmp_path / "home")


@pytest.fixture
def ink(ws):
    record = add_adapter(ws, "ink", ALL_MODULES, seed=1, alpha=2.0)
    return ws.catalog.update(
        Adapter, record.id, licence="CC BY 4.0", consent="Ann agreed", trigger_words=("inkstyle",),
        tags=("drawing",),
    )  # fmt: skip


@pytest.fixture
def wash(ws):
    record = add_adapter(ws, "wash", ALL_MODULES, seed=2, rank=6)
    return ws.catalog.update(
        Adapter, record.id, licence="no commercial use", consent="Ann agreed",
        trigger_words=("washstyle", "inkstyle"), tags=("wet", "drawing"),
    )  # fmt: skip
