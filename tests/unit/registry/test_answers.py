"""What a connection remembers: the same answers as without, whoever writes in between."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from threading import Thread

import pytest
from sqlalchemy import event

from registry import answers, journal
from registry.catalog import Catalog
from registry.errors import StudioError
from registry.records import Adapter
from registry.tables import ROWS
from tests.support import records
from tests.support.records import open_catalog

ANOTHER_PROCESS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("UPDATE adapters SET family = 'sdxl'")
connection.commit()
"""


@pytest.fixture
def kept(tmp_path):
    """A catalog that has been asked, and the path of its file."""
    catalog = open_catalog(tmp_path)
    catalog.add_all([records.adapter(n, name=f"wash {n}", family="sd15", tags=("ink",)) for n in range(5)])
    assert asked(catalog) == ({"sd15": 5}, {"ink": 5}, 5)
    return catalog, tmp_path / "catalog.sqlite"


def asked(catalog):
    facets = catalog.adapter_facets("wash")
    return facets.family, facets.tag, catalog.count_adapters("wash")


def statements(catalog, work):
    """The statements of some work."""
    seen = []

    @event.listens_for(catalog._engine, "before_cursor_execute")
    def see(_connection, _cursor, statement, *_):
        if not statement.startswith("PRAGMA"):
            seen.append(statement)

    work()
    event.remove(catalog._engine, "before_cursor_execute", see)
    return seen


def test_the_same_is_not_looked_for_twice(kept):
    catalog, _ = kept
    assert statements(catalog, lambda: asked(catalog)) == ["BEGIN", "BEGIN"]
    assert len(statements(catalog, lambda: catalog.adapter_facets("wash", family="sd15"))) > 1


def test_whether_others_have_written_is_asked_once_in_a_transaction(kept):
    catalog, _ = kept
    seen = []
    event.listen(catalog._engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
    for _ in range(2):
        catalog.search_adapters("wash 1", favourite=False)
    assert seen.count("PRAGMA data_version") == 2


def test_what_others_lock_is_busy_and_no_error_of_the_database(kept, monkeypatch):
    catalog, path = kept
    catalog.close()
    monkeypatch.setattr(journal, "BUSY_SECONDS", 0.1)
    catalog = Catalog.open(f"sqlite:///{path}")
    assert catalog.count_adapters("wash") == 5
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for work in (catalog.count_adapters, catalog.search_adapters, catalog.adapter_facets):
            with pytest.raises(StudioError, match="is busy"):
                work("wash")


def test_labels_keep_their_codes_whatever_statement_writes(kept):
    catalog, path = kept
    with closing(sqlite3.connect(path)) as other:
        other.execute("UPDATE OR REPLACE adapters SET note = 'x', rating = 3 WHERE name = 'wash 1'")
        other.commit()
    assert asked(catalog) == ({"sd15": 5}, {"ink": 5}, 5)


def test_odd_letters_in_tags_and_words(kept):
    catalog, _ = kept
    odd, twice = "a\ue000b", "\u00df\u0301x"
    catalog.add(records.adapter(9, name=twice, tags=(odd,), favourite=True))
    assert catalog.count_adapters(tags=(odd,)) == 1
    assert catalog.adapter_facets(twice).tag == {"a b": 1}
    assert catalog.count_adapters(twice, favourite=True) == catalog.count_adapters("s\u015bx") == 1


def test_what_this_process_writes_is_noticed(kept):
    catalog, _ = kept
    catalog.add(records.adapter(9, name="wash 9", family="sdxl"))
    assert asked(catalog) == ({"sd15": 5, "sdxl": 1}, {"ink": 5}, 6)
    catalog.tag_adapters(catalog.adapter_ids(family="sdxl"), add=["new"])
    assert asked(catalog) == ({"sd15": 5, "sdxl": 1}, {"ink": 5, "new": 1}, 6)
    catalog.delete(Adapter, catalog.adapter_ids(family="sdxl")[0])
    assert asked(catalog) == ({"sd15": 5}, {"ink": 5}, 5)


def test_what_another_thread_writes_is_noticed(kept):
    catalog, _ = kept
    some = catalog.adapter_ids()[:2]
    with catalog._engine.connect():  # so that the thread gets another connection
        change = {"family": "flux1"}
        writer = Thread(target=catalog.update_many, args=(Adapter, some), kwargs=change)
        writer.start()
        writer.join()
    assert asked(catalog) == ({"sd15": 3, "flux1": 2}, {"ink": 5}, 5)


def test_what_another_process_writes_is_noticed(kept):
    catalog, path = kept
    subprocess.run([sys.executable, "-c", ANOTHER_PROCESS, str(path)], check=True)
    assert asked(catalog) == ({"sdxl": 5}, {"ink": 5}, 5)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE adapters SET family = 'sd35'")
        assert asked(catalog)[0] == {"sdxl": 5}, "not written yet"
        connection.commit()
    assert asked(catalog)[0] == {"sd35": 5}


def test_what_is_read_while_writing_is_not_remembered(kept):
    catalog, _ = kept

    def written_and_taken_back():
        with catalog._write() as session:
            session.add(ROWS[Adapter].of(records.adapter(9, id="x", name="wash 9")))
            session.flush()
            assert answers.remembered(session, "question", lambda: "while writing") == "while writing"
            raise LookupError

    with pytest.raises(LookupError):
        written_and_taken_back()
    assert asked(catalog) == ({"sd15": 5}, {"ink": 5}, 5)
    with catalog._read() as session:
        assert answers.remembered(session, "question", lambda: "after") == "after"


def test_only_the_latest_answers_are_kept(kept, monkeypatch):
    monkeypatch.setattr(answers, "KEPT", 2)
    catalog, _ = kept
    with catalog._read() as session:
        given = [answers.remembered(session, n, lambda n=n: n) for n in range(4)]
        assert given == [0, 1, 2, 3]
        assert answers.remembered(session, 3, lambda: "asked again") == 3
        assert answers.remembered(session, 0, lambda: "asked again") == "asked again"


def test_a_catalog_on_a_server_is_asked_each_time(postgres_catalog):
    postgres_catalog.add(records.adapter(1, name="wash 1", family="sd15"))
    assert postgres_catalog.adapter_facets("wash").family == {"sd15": 1}
    assert len(statements(postgres_catalog, lambda: postgres_catalog.adapter_facets("wash"))) > 1


def test_a_walk_goes_along_the_index_of_its_order(kept):
    """SQLAlchemy leaves hints out for SQLite, unless it is told to write them."""
    catalog, _ = kept
    walk = statements(catalog, lambda: catalog.search_adapters(sort="size"))[-1]
    assert "adapters INDEXED BY ix_adapters_by_size" in walk
