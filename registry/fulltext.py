"""SQLite's index of the words of adapters, kept in step by triggers: one transaction writes both.

- `adapters_fts`: FTS5 over runs of three letters (trigrams) of the folded texts, so a word is found wherever
  it stands. It has no content of its own; its rows are those of `adapters`, by rowid.
- `adapters_terms`: the runs that occur. A word of one or two letters is any run that begins with it.
- `adapter_tags`: a row for each tag of an adapter, for counting.

All of it follows from `adapters`: `drop` and `create` make it anew. A migration that rebuilds that table
loses its triggers and changes its rowids, so it has to call both.
"""

import sqlite3

from sqlalchemy import ColumnElement, Connection, Integer, Text, column, literal_column, select, table, text
from sqlalchemy.orm import Session

FTS = table("adapters_fts", column("rowid", Integer))
TAGS = table("adapter_tags", column("tag", Text), column("adapter", Integer))
BY_ADAPTER = "ix_adapter_tags_adapter"
TABLES = ("adapters_fts", "adapters_terms", "adapter_tags")
MAX_TERMS = 400  # runs of letters in one query; a letter that begins more of them is in nearly every text

_TERMS = table("adapters_terms", column("term", Text))
_LAST = "\U0010ffff"
_TRIGRAMS = (3, 34)  # the first SQLite that has them
_SEPARATOR = "char(57344)"  # for private use: stands in no tag
_INDEXED = ("search", "trigger_lines")


def available(connection: Connection) -> bool:
    """Whether this SQLite can make the index; without it the search compares every text."""
    if connection.dialect.name != "sqlite" or sqlite3.sqlite_version_info < _TRIGRAMS:
        return False
    return bool(connection.exec_driver_sql("SELECT sqlite_compileoption_used('ENABLE_FTS5')").scalar())


def create(connection: Connection) -> None:
    """Make tables and triggers, and fill them from `adapters`. On another database than SQLite: nothing."""
    if connection.dialect.name != "sqlite":
        return
    statements = _tag_statements()
    if available(connection):
        statements += _word_statements()
    for statement in statements:
        connection.exec_driver_sql(statement)


def drop(connection: Connection) -> None:
    """Remove tables and triggers."""
    if connection.dialect.name != "sqlite":
        return
    for name in ("fts", "tags"):
        for event in ("insert", "delete", "update"):
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS adapters_{name}_{event}")
    for name in TABLES:
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {name}")


def _tag_statements() -> list[str]:
    def rows(lines: str) -> str:
        """'\\na\\nb\\n' as rows a and b."""
        quoted = f"json_quote(replace(trim({lines}, char(10)), char(10), {_SEPARATOR}))"
        return f"json_each('[' || replace({quoted}, {_SEPARATOR}, '\",\"') || ']')"

    def insert(rowid: str, lines: str, source: str = "") -> str:
        return (
            f"INSERT OR IGNORE INTO adapter_tags(tag, adapter) "
            f"SELECT value, {rowid} FROM {source}{rows(lines)} WHERE value != ''"
        )

    delete = "DELETE FROM adapter_tags WHERE adapter = old.rowid AND tag IN (SELECT value FROM {})"
    remove = delete.format(rows("old.tag_lines"))
    add = insert("new.rowid", "new.tag_lines")
    return [
        "CREATE TABLE adapter_tags (tag TEXT NOT NULL, adapter INTEGER NOT NULL, PRIMARY KEY (tag, adapter)) "
        "WITHOUT ROWID",
        f"CREATE INDEX {BY_ADAPTER} ON adapter_tags (adapter, tag)",
        insert("a.rowid", "a.tag_lines", "adapters AS a, "),
        *_triggers("tags", ("tag_lines",), add, remove),
    ]


def _word_statements() -> list[str]:
    columns = ", ".join(_INDEXED)
    new, old = (", ".join(f"{row}.{name}" for name in _INDEXED) for row in ("new", "old"))
    add = f"INSERT INTO adapters_fts(rowid, {columns}) VALUES (new.rowid, {new})"
    remove = f"INSERT INTO adapters_fts(adapters_fts, rowid, {columns}) VALUES ('delete', old.rowid, {old})"
    return [
        f"CREATE VIRTUAL TABLE adapters_fts USING fts5({columns}, content='adapters', columnsize=0, "
        "tokenize='trigram case_sensitive 1')",
        "CREATE VIRTUAL TABLE adapters_terms USING fts5vocab('adapters_fts', 'row')",
        "INSERT INTO adapters_fts(adapters_fts) VALUES ('rebuild')",
        *_triggers("fts", _INDEXED, add, remove),
    ]


def _triggers(name: str, columns: tuple[str, ...], add: str, remove: str) -> list[str]:
    changed = " OR ".join(f"old.{column} IS NOT new.{column}" for column in columns)
    return [
        f"CREATE TRIGGER adapters_{name}_insert AFTER INSERT ON adapters BEGIN {add}; END",
        f"CREATE TRIGGER adapters_{name}_delete AFTER DELETE ON adapters BEGIN {remove}; END",
        f"CREATE TRIGGER adapters_{name}_update AFTER UPDATE OF {', '.join(columns)} ON adapters "
        f"WHEN {changed} BEGIN {remove}; {add}; END",
    ]


def present(session: Session) -> bool:
    """Whether the database behind `session` has the index of words."""
    if session.get_bind().dialect.name != "sqlite":
        return False
    found = text("SELECT 1 FROM sqlite_master WHERE name = 'adapters_fts'")
    return session.scalar(found) is not None


def phrase(words: str, columns: str) -> str:
    """`words` as they stand, three letters or more, as an expression that FTS5 cannot misread."""
    quoted = words.replace('"', '""')
    return f'{columns} : "{quoted}"'


def runs_of(session: Session, word: str) -> list[str]:
    """The runs of three letters that begin with `word`, which has one or two; at most `MAX_TERMS` + 1."""
    term = _TERMS.c.term
    query = select(term).where(term >= word, term < word + _LAST).limit(MAX_TERMS + 1)
    return list(session.scalars(query))


def any_of(runs: list[str]) -> str:
    """Texts that hold one of these runs, as an expression."""
    return " OR ".join(f"({phrase(run, 'search')})" for run in runs)


def having(expressions: list[str]) -> ColumnElement[bool]:
    """`adapters_fts` rows that meet all expressions; the condition of a query of `FTS`."""
    match = " AND ".join(f"({expression})" for expression in expressions)
    return literal_column("adapters_fts").op("MATCH", is_comparison=True)(match)
