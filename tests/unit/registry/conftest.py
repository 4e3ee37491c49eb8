"""Fixtures of the registry's tests: each test of `catalog` runs over both databases."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from registry.catalog import Catalog
from tests.support import postgres
from tests.support.debian import must_be_there
from tests.support.records import open_catalog

_numbers = count()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A server with a database `ready` that has the catalog's schema; yields its URL."""
    programs = postgres.find_server()
    if programs is None:
        why = "no PostgreSQL server; apt-get install postgresql"
        pytest.fail(why) if must_be_there() else pytest.skip(why)
    with postgres.running_server(programs) as url:
        postgres.execute(url, "CREATE DATABASE ready")
        Catalog.open(f"{url}/ready").close()
        yield url


@pytest.fixture
def postgres_catalog(postgres_server: str) -> Iterator[Catalog]:
    """An empty catalog in a database of its own."""
    name = f"catalog_{next(_numbers)}"
    postgres.execute(postgres_server, f"CREATE DATABASE {name} TEMPLATE ready")
    catalog = Catalog.open(f"{postgres_server}/{name}")
    yield catalog
    catalog.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Catalog:
    """An empty catalog."""
    if request.param == "sqlite":
        return open_catalog(tmp_path)
    return request.getfixturevalue("postgres_catalog")
