"""Opening a catalog: new, older, newer, foreign, damaged, empty, gone."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from registry import fulltext, journal, schema
from registry.catalog import Catalog
from registry.errors import BadInput, Damaged, StudioError
from registry.migrations import HEAD
from registry.records import Adapter, Base, Checkpoint, Dataset, Image, Run, now
from registry.tables import AdapterRow, Schema
from tests.support import records
from tests.support.records import open_catalog

DERIVED = (
    "adapters_fts",
    "adapters_terms",
    "adapter_tags",
    "adapter_facts",
    "adapter_labels",
    "adapter_words",
)  # tables of registry.fulltext
NEXT = f'''"""A column more."""

import sqlalchemy as sa
from alembic import op

revision = "9000"
down_revision = "{HEAD}"


def upgrade():
    with op.batch_alter_table("bases") as table:
        table.add_column(sa.Column("added", sa.Text(), nullable=False, server_default="new"))
        table.alter_column("variant", existing_type=sa.Text(), type_=sa.String(50))
'''


def sql(path: Path, statement: str) -> list[tuple]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(statement).fetchall()


def damage(path: Path, pages: slice) -> None:
    data = bytearray(path.read_bytes())
    for page in range(*pages.indices(len(data) // 4096)):
        data[page * 4096 : (page + 1) * 4096] = b"\xff" * 4096
    path.write_bytes(data)


@pytest.mark.filterwarnings("ignore:.*expression-based index")
def test_the_migrations_add_up_to_the_tables(tmp_path):
    open_catalog(tmp_path)
    engine = journal.open_engine(journal.parse_url(f"sqlite:///{tmp_path / 'catalog.sqlite'}"))
    with engine.connect() as connection:
        ours = {"include_name": lambda name, kind, _: kind != "table" or not name.startswith(DERIVED)}
        context = MigrationContext.configure(connection, opts={"compare_type": True, **ours})
        assert compare_metadata(context, Schema.metadata) == []
        (identity,) = connection.exec_driver_sql(
            "SELECT sql FROM sqlite_master WHERE name='ix_adapters_identity'"
        ).scalars()
        assert "UNIQUE" in identity
        assert "coalesce" in identity


def test_head_is_the_newest_revision():
    assert ScriptDirectory(str(schema._SCRIPTS)).get_heads() == [HEAD]


def test_a_new_catalog_is_sound_and_has_the_right_journal(tmp_path):
    catalog = open_catalog(tmp_path)
    assert catalog.check() == "ok"
    assert not catalog.read_only
    mode = sql(tmp_path / "catalog.sqlite", "PRAGMA journal_mode")[0][0]
    assert mode == ("wal" if journal.wal_is_safe() else "delete")


@pytest.mark.parametrize(
    ("version", "safe"),
    [((3, 40, 1), False), ((3, 44, 5), False), ((3, 44, 6), True), ((3, 45, 0), False), ((3, 50, 6), False),
     ((3, 50, 7), True), ((3, 51, 2), False), ((3, 51, 3), True), ((3, 52, 0), True), ((4, 0, 0), True)],
)  # fmt: skip
def test_wal_only_where_its_race_is_fixed(version, safe):
    assert journal.wal_is_safe(version) is safe


def test_connections_keep_the_rules(tmp_path):
    catalog = open_catalog(tmp_path)
    with catalog._engine.connect() as connection:

        def pragma(name):
            return connection.exec_driver_sql(f"PRAGMA {name}").scalar()

        assert (pragma("foreign_keys"), pragma("synchronous"), pragma("busy_timeout")) == (1, 2, 5000)


def test_no_connection_crosses_a_fork(tmp_path):
    import os

    catalog = open_catalog(tmp_path)
    catalog.add(records.base())
    before = catalog._engine.pool
    child = os.fork()
    if child == 0:
        fresh = catalog._engine.pool is not before and catalog.count(Base) == 1
        os._exit(0 if fresh else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert catalog._engine.pool is before
    assert catalog.count(Base) == 1


def test_a_migration_is_preceded_by_a_backup(tmp_path, monkeypatch):
    catalog = open_catalog(tmp_path)
    run = catalog.add(records.run(catalog.add(records.base(name="kept")).id))
    catalog.close()
    scripts = tmp_path / "migrations"
    shutil.copytree(schema._SCRIPTS, scripts)
    (scripts / "versions" / "r9000_next.py").write_text(NEXT)
    monkeypatch.setattr(schema, "_SCRIPTS", scripts)
    monkeypatch.setattr(schema, "HEAD", "9000")

    again = open_catalog(tmp_path)
    assert again.get(Base, "kept").name == "kept"
    assert again.get(type(run), run.id) == run, "references survive the rebuilding of a table"
    assert sql(tmp_path / "catalog.sqlite", "SELECT added FROM bases") == [("new",)]
    (backup,) = (tmp_path / "backups").iterdir()
    assert backup.name.endswith("-before-9000.sqlite")
    assert sql(backup, "SELECT version_num FROM alembic_version") == [(HEAD,)]
    assert sql(backup, "SELECT name FROM bases") == [("kept",)]
    open_catalog(tmp_path)
    assert len(list((tmp_path / "backups").iterdir())) == 1, "only a migration makes one"


def test_the_first_schema_comes_up_to_date_with_its_content(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(schema, "HEAD", "0001")
        path = tmp_path / "catalog.sqlite"
        schema.upgrade(journal.parse_url(f"sqlite:///{path}"), None)
        sql(path, "INSERT INTO datasets VALUES ('d', '2026-01-01 00:00:00', 'cats', '', '', 'kept', 1)")
        sql(path, "INSERT INTO images VALUES ('i', 'd', 0, 'b', 'p', '0.png', 64, 48, 'a cat', '', '[]', '')")
    catalog = open_catalog(tmp_path)
    (image,) = catalog.list(Image)
    assert (image.caption, image.repeats, image.weight) == ("a cat", 1, 1.0)
    assert catalog.get(Dataset, "cats").content_hash == "kept"


def test_runs_of_a_catalog_without_picks_have_none(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(schema, "HEAD", "0010")
        path = tmp_path / "catalog.sqlite"
        schema.upgrade(journal.parse_url(f"sqlite:///{path}"), None)
        base = "'b', '2026-01-01 00:00:00', 'b', 'sd15', '', 'l', 'folder', '', '', '', 0, '{}', ''"
        sql(path, f"INSERT INTO bases VALUES ({base})")
        values = (
            "'r', '2026-01-01 00:00:00', 'old', 'finished', '', 'sd15', '', 'b', 'd', '{}', '', '', '', 0, 9"
        )
        sql(path, f"INSERT INTO runs VALUES ({values}, 9, '', 0, '{{}}', NULL, NULL, NULL)")
        sql(path, "INSERT INTO checkpoints VALUES ('c', '2026-01-01 00:00:00', 'r', 9, 'p', NULL, '{}')")
    catalog = open_catalog(tmp_path)
    run = catalog.get(Run, "old")
    assert (run.pick_step, run.pick_reason, run.pick_by) == (0, "", "")
    assert catalog.count(Checkpoint, run_id="r") == 1


OLD_ADAPTER = """INSERT INTO adapters (id, created_at, name, sort_name, search, tag_lines, tensor_sha256,
    file_sha256, path, size, family, method, rank, alpha, targets, trigger_words, recommended_weight, tags,
    note, rating, origin, step, parents, preview, metadata)
    VALUES ('a', '2026-01-01 00:00:00', 'Wash', 'wash', 'wash' || char(10) || 'ink' || char(10) || 'zibbo',
    char(10) || 'ink' || char(10), 't', 'f', 'p', 1, 'sd15', 'lora', 4, 4.0, '[]', '["Zibbo"]', 1.0,
    '["Ink"]', '', 0, 'run', 0, '[]', '', '{}')"""


def test_adapters_of_an_older_catalog_are_found(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(schema, "HEAD", "0003")
        path = tmp_path / "catalog.sqlite"
        schema.upgrade(journal.parse_url(f"sqlite:///{path}"), None)
        sql(path, OLD_ADAPTER)
    catalog = open_catalog(tmp_path)
    for query in ("ash", "bo", "o", "INK zib"):
        assert catalog.search_adapters(query).total == catalog.count_adapters(query) == 1, query
    assert catalog.search_adapters(trigger="zibbo", tags=("ink",)).total == 1
    assert catalog.adapter_facets("wash").tag == {"ink": 1}


def test_adapters_of_a_catalog_without_a_table_of_facts_are_counted(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(schema, "HEAD", "0007")
        url = journal.parse_url(f"sqlite:///{tmp_path / 'catalog.sqlite'}")
        schema.upgrade(url, None)
        with journal.migration_engine(url).begin() as connection:
            fulltext.drop(connection, "facts")
            connection.exec_driver_sql("CREATE INDEX ix_adapter_tags_adapter ON adapter_tags (adapter, tag)")
            connection.exec_driver_sql(OLD_ADAPTER)
    catalog = open_catalog(tmp_path)
    facets = catalog.adapter_facets("wash")
    assert (facets.family, facets.tag) == ({"sd15": 1}, {"ink": 1})
    catalog.update(Adapter, "a", family="sdxl", tags=("new",))
    facets = catalog.adapter_facets("wash")
    assert (facets.family, facets.tag) == ({"sdxl": 1}, {"new": 1})
    indexes = sql(tmp_path / "catalog.sqlite", "SELECT name FROM sqlite_master WHERE type = 'index'")
    assert ("ix_adapter_tags_adapter",) not in indexes


def test_the_facts_stay_those_of_the_adapters(tmp_path):
    catalog = open_catalog(tmp_path)
    made = catalog.add_all(
        [records.adapter(n, tags=("Ink", f"t{n}"), family="sd15", rating=n) for n in range(6)]
    )
    catalog.update(Adapter, made[0].id, favourite=True, tags=('a "quoted", tag', "\\", "ink"))
    catalog.update_many(Adapter, [made[1].id, made[2].id], licence="cc0", trashed_at=now())
    catalog.delete(Adapter, made[3].id)
    path = tmp_path / "catalog.sqlite"
    names = ", ".join(column.name for column in fulltext.FACTS.c if column.name in AdapterRow.__table__.c)
    facts, adapters = f"SELECT adapter, {names} FROM adapter_facts", f"SELECT rowid, {names} FROM adapters"
    assert sorted(sql(path, facts), key=repr) == sorted(sql(path, adapters), key=repr)
    assert catalog.adapter_facets().tag == {'a "quoted", tag': 1, "\\": 1, "ink": 3, "t4": 1, "t5": 1}
    assert catalog.adapter_facets().family == {"sd15": 3}


def test_a_migration_that_fails_changes_nothing(tmp_path, monkeypatch):
    open_catalog(tmp_path).add(records.base(name="kept"))
    scripts = tmp_path / "migrations"
    shutil.copytree(schema._SCRIPTS, scripts)
    (scripts / "versions" / "r9000_next.py").write_text(NEXT + "    op.execute('SELECT nonsense')\n")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "_SCRIPTS", scripts)
        patch.setattr(schema, "HEAD", "9000")
        with pytest.raises(StudioError, match=r"no such column: nonsense"):
            open_catalog(tmp_path)
    assert sql(tmp_path / "catalog.sqlite", "SELECT version_num FROM alembic_version") == [(HEAD,)]
    assert open_catalog(tmp_path).get(Base, "kept")


def test_a_newer_catalog_is_refused_and_left_alone(tmp_path):
    open_catalog(tmp_path).close()
    path = tmp_path / "catalog.sqlite"
    sql(path, "UPDATE alembic_version SET version_num='9999'")
    before = path.read_bytes()
    with pytest.raises(
        BadInput, match=r"catalog.sqlite: was written by a newer version \(schema 9999\). update"
    ):
        open_catalog(tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"hello", b"\0" * 8192, b"PK\x03\x04" + b"x" * 100])
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(content)
    with pytest.raises(
        BadInput, match=r"catalog.sqlite: is not a catalog \(no SQLite database\). move it away"
    ):
        open_catalog(tmp_path)
    assert path.read_bytes() == content


def test_the_database_of_another_program_is_refused(tmp_path):
    sql(tmp_path / "catalog.sqlite", "CREATE TABLE bookmarks (url)")
    with pytest.raises(BadInput, match=r"is the database of another program"):
        open_catalog(tmp_path)
    assert sql(tmp_path / "catalog.sqlite", "SELECT name FROM sqlite_master") == [("bookmarks",)]


def test_a_folder_in_its_place_is_refused(tmp_path):
    (tmp_path / "catalog.sqlite").mkdir()
    with pytest.raises(BadInput, match=r"is a folder, not a catalog"):
        open_catalog(tmp_path)


@pytest.mark.parametrize("state", ["missing", "empty"])
def test_a_lost_catalog_is_not_replaced_by_a_new_one_while_there_are_backups(tmp_path, state):
    catalog = open_catalog(tmp_path)
    backup = catalog.backup(tmp_path / "backups" / schema.backup_name())
    catalog.close()
    path = tmp_path / "catalog.sqlite"
    path.unlink() if state == "missing" else path.write_bytes(b"")
    with pytest.raises(Damaged, match=f"is {state}, though there are backups of it. copy {backup} to"):
        open_catalog(tmp_path)
    shutil.copy(backup, path)
    assert open_catalog(tmp_path).check() == "ok"


def test_a_damaged_catalog_opens_read_only_and_names_the_newest_backup(tmp_path, caplog):
    catalog = open_catalog(tmp_path)
    made = catalog.add(records.base(name="kept"))
    backup = catalog.backup(tmp_path / "backups" / schema.backup_name())
    catalog.add_all([records.adapter(n, note="x" * 500) for n in range(300)])
    catalog.close()
    damage(tmp_path / "catalog.sqlite", slice(60, 70))

    again = open_catalog(tmp_path)
    assert again.read_only
    assert f"was opened read-only. restore the newest backup: copy {backup} to" in again.reason
    assert again.reason in caplog.text
    assert again.get(Base, "kept") == made, "what is sound can still be read"
    assert again.check() != "ok"
    with pytest.raises(StudioError, match=r"is read-only"):
        again.add(records.base(name="new"))
    with pytest.raises(Damaged, match=r"no backup was made of it. restore the newest"):
        again.backup(tmp_path / "backups" / schema.backup_name())
    assert list((tmp_path / "backups").iterdir()) == [backup]


def test_a_catalog_whose_schema_is_damaged_names_the_newest_backup(tmp_path):
    catalog = open_catalog(tmp_path)
    backup = catalog.backup(tmp_path / "backups" / schema.backup_name())
    catalog.close()
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 8000)
    with pytest.raises(Damaged, match=f"catalog.sqlite: is damaged .* copy {backup} to"):
        open_catalog(tmp_path)


def test_damage_that_shows_later_is_one_line_too(tmp_path):
    catalog = open_catalog(tmp_path)
    catalog.add_all([records.adapter(n, note="x" * 500) for n in range(300)])
    catalog.close()
    catalog = open_catalog(tmp_path)
    damage(tmp_path / "catalog.sqlite", slice(50, None))
    with pytest.raises(Damaged, match=r"is damaged"):
        catalog.list(Adapter)


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("nonsense", "is not a database URL"),
        ("sqlite://", "is neither an SQLite file nor PostgreSQL"),
        ("mysql://me:secret@host/x", r"mysql://me:\*\*\*@host/x is neither"),
    ],
)
def test_other_databases_are_refused_without_showing_the_password(url, wrong):
    with pytest.raises(BadInput, match=wrong) as caught:
        Catalog.open(url)
    assert "secret" not in str(caught.value)


def test_backups_are_copies_that_pass_their_check(tmp_path):
    catalog = open_catalog(tmp_path)
    catalog.add(records.base(name="kept"))
    made = catalog.backup(tmp_path / "copy.sqlite")
    catalog.add(records.base(name="later"))
    assert sql(made, "SELECT name FROM bases") == [("kept",)]
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_old_backups_go_but_not_those_before_a_migration(tmp_path):
    for name in ("catalog-1.sqlite", "catalog-2-before-9000.sqlite", "catalog-3.sqlite", "catalog-4.sqlite"):
        (tmp_path / name).touch()
    schema.prune_backups(tmp_path, keep=2)
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["catalog-2-before-9000.sqlite", "catalog-3.sqlite", "catalog-4.sqlite"]
