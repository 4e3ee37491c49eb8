"""Fixtures of the registry's tests."""

from pathlib import Path

import pytest

from registry.catalog import Catalog
from tests.support.records import open_catalog


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return open_catalog(tmp_path)
