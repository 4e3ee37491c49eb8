"""What SQLite finds adapters by, kept in step with them by triggers: one transaction writes both.

- `adapters_fts`: FTS5 over runs of three letters (trigrams) of the folded texts, so a word is found wherever
  it stands. It has no content of its own; its rows are those of `adapters`, by rowid.
- `adapters_terms`: the runs that occur. A word of one or two letters is any run that begins with it.
- `adapter_words`: the words that occur, cut at `SEPARATORS`, but for those of ideographs only;
  `adapter_words_fts` finds them by their runs of letters, `adapter_words_terms` counts how many have a run
  (`registry.vocabulary`). Words that nobody has any more stay: they can only make a search slower.
- `adapter_tags`: a row for each tag of an adapter, to find by.
- `adapter_facts`: what filters ask for and facets count, in narrow rows that lie as those of `adapters` do:
  to look up one hit after another takes a tenth of what it takes there. A code has eight digits, so that
  those of many rows are one text, which is counted without being read.
- `adapter_labels`: what the codes mean. Labels that nobody has any more stay.

All of it follows from `adapters`: `drop` and `create` make it anew. A migration that rebuilds that table
loses its triggers and changes its rowids, so it has to call both.
"""

import sqlite3
import string
from functools import reduce

from sqlalchemy import ColumnElement, Connection, Integer, Text, column, literal_column, select, table, text
from sqlalchemy.orm import Session

from registry.answers import remembered
from registry.tables import SEPARATOR, AdapterRow

FTS = table("adapters_fts", column("rowid", Integer))
_FACTS = (
    *("trashed_at", "family", "method", "origin", "rating", "favourite", "rank", "size", "file_state"),
    *("licence", "preview", "base_id", "created_at", "trigger_lines"),
)
TAGS = table("adapter_tags", column("tag", Text), column("adapter", Integer))
FACTS = table(
    "adapter_facts",
    *(column("adapter", Integer), column("kind_code", Text), column("tag_codes", Text)),
    *(column(name, AdapterRow.__table__.c[name].type) for name in _FACTS),
)
LABELS = table("adapter_labels", column("code", Integer), column("label", Text))
SEPARATORS = " \n-_.,:/()" + string.digits  # another choice needs a migration; SQLite nests 24 calls at most
LAST_LETTER = "\u2e7f"  # of words in that list; scripts after it write whole sentences without a blank
KINDS = ("family", "method", "origin")  # one label for all three
BETWEEN = "\x1f"  # them
PARTS = {
    "tags": ("adapters_tags", "adapter_tags"),
    "facts": ("adapters_facts", "adapter_facts", "adapter_labels"),
    "words": ("adapters_fts", "adapters_fts", "adapters_terms"),
    "vocabulary": ("adapters_words", "adapter_words", "adapter_words_terms", "adapter_words_fts"),
}  # the name that its triggers begin with, and its tables
MAX_TERMS = 400  # runs of letters in one query; a letter that begins more of them is in nearly every text

_TERMS = table("adapters_terms", column("term", Text))
_LAST = "\U0010ffff"
_TRIGRAMS = (3, 34)  # the first SQLite that has them
_SEPARATOR = f"char({ord(SEPARATOR)})"
_INDEXED = ("search", "trigger_lines")


def available(connection: Connection) -> bool:
    """Whether this SQLite can make the index; without it the search compares every text."""
    if connection.dialect.name != "sqlite" or sqlite3.sqlite_version_info < _TRIGRAMS:
        return False
    return bool(connection.exec_driver_sql("SELECT sqlite_compileoption_used('ENABLE_FTS5')").scalar())


def create(connection: Connection, *parts: str) -> None:
    """Make tables and triggers of all `PARTS` or of some, and fill them. Not on SQLite: nothing."""
    if connection.dialect.name != "sqlite":
        return
    for part in parts or PARTS:
        if part not in {"words", "vocabulary"} or available(connection):
            for statement in _MAKE[part]():
                connection.exec_driver_sql(statement)


def drop(connection: Connection, *parts: str) -> None:
    """Remove tables and triggers."""
    if connection.dialect.name != "sqlite":
        return
    for part in parts or PARTS:
        triggers, *tables = PARTS[part]
        for event in ("insert", "delete", "update"):
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {triggers}_{event}")
        for name in tables:
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {name}")


def _tag_rows(lines: str) -> str:
    """The tags of '\\na\\nb\\n' as rows with a `value`."""
    quoted = f"json_quote(replace(trim({lines}, char(10)), char(10), {_SEPARATOR}))"
    return f"json_each('[' || replace({quoted}, {_SEPARATOR}, '\",\"') || ']')"


def _tag_statements() -> list[str]:
    def insert(rowid: str, lines: str, source: str = "") -> str:
        return (
            f"INSERT OR IGNORE INTO adapter_tags(tag, adapter) "
            f"SELECT value, {rowid} FROM {source}{_tag_rows(lines)} WHERE value != ''"
        )

    delete = "DELETE FROM adapter_tags WHERE adapter = old.rowid AND tag IN (SELECT value FROM {})"
    remove = delete.format(_tag_rows("old.tag_lines"))
    add = insert("new.rowid", "new.tag_lines")
    return [
        "CREATE TABLE adapter_tags (tag TEXT NOT NULL, adapter INTEGER NOT NULL, PRIMARY KEY (tag, adapter)) "
        "WITHOUT ROWID",
        insert("a.rowid", "a.tag_lines", "adapters AS a, "),
        *_triggers("tags", ("tag_lines",), add, remove),
    ]


def _fact_statements() -> list[str]:
    columns = ", ".join(("kind_code", "tag_codes", *_FACTS))

    def add(row: str, source: str) -> list[str]:
        """Labels, then facts, of one row or of all that a source has."""
        kinds = " || char(31) || ".join(f"{row}.{name}" for name in KINDS)
        tags = _tag_rows(f"{row}.tag_lines")
        label = "INSERT INTO adapter_labels(label) SELECT DISTINCT"
        new = "NOT IN (SELECT label FROM adapter_labels)"  # OR IGNORE would give way to the outer statement
        digits, known = "printf('%08x', code)", "FROM adapter_labels WHERE label"
        of_tags = f"SELECT group_concat({digits}, '') {known} IN (SELECT value FROM {tags})"
        values = ", ".join(f"{row}.{name}" for name in _FACTS)
        return [
            f"{label} {kinds} FROM {source} WHERE {kinds} {new}",
            f"{label} value FROM {source}, {tags} WHERE value != '' AND value {new}",
            f"INSERT INTO adapter_facts(adapter, {columns}) "
            f"SELECT {row}.rowid, (SELECT {digits} {known} = {kinds}), ({of_tags}), {values} FROM {source}",
        ]

    remove = "DELETE FROM adapter_facts WHERE adapter = old.rowid"
    return [
        "CREATE TABLE adapter_labels (code INTEGER PRIMARY KEY, label TEXT NOT NULL UNIQUE)",
        f"CREATE TABLE adapter_facts (adapter INTEGER PRIMARY KEY, {columns})",
        *add("a", "adapters AS a"),
        *_triggers("facts", (*_FACTS, "tag_lines"), "; ".join(add("new", "(SELECT 1)")), remove),
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


def _vocabulary_statements() -> list[str]:
    def add(row: str, source: str = "") -> str:
        cut = reduce(lambda text, sign: f"replace({text}, char({ord(sign)}), {_SEPARATOR})", SEPARATORS, row)
        parts = f"json_each('[' || replace(json_quote({cut}), {_SEPARATOR}, '\",\"') || ']')"
        new = "value NOT IN (SELECT word FROM adapter_words)"  # OR IGNORE: see the labels
        return (
            f"INSERT INTO adapter_words(word) SELECT DISTINCT value FROM {source}{parts} "
            f"WHERE length(value) > 2 AND {new} AND value GLOB '*[' || char(1) || '-{LAST_LETTER}]*'"
        )

    return [
        "CREATE TABLE adapter_words (id INTEGER PRIMARY KEY, word TEXT NOT NULL UNIQUE)",
        "CREATE VIRTUAL TABLE adapter_words_fts USING fts5(word, content='adapter_words', "
        "content_rowid='id', columnsize=0, detail=none, tokenize='trigram case_sensitive 1')",
        "CREATE VIRTUAL TABLE adapter_words_terms USING fts5vocab('adapter_words_fts', 'row')",
        "CREATE TRIGGER adapter_words_insert AFTER INSERT ON adapter_words BEGIN "
        "INSERT INTO adapter_words_fts(rowid, word) VALUES (new.id, new.word); END",
        add("a.search", "adapters AS a, "),
        *_triggers("words", ("search",), add("new.search"), remove="SELECT 1"),
    ]


def _triggers(name: str, columns: tuple[str, ...], add: str, remove: str) -> list[str]:
    changed = " OR ".join(f"old.{column} IS NOT new.{column}" for column in columns)
    return [
        f"CREATE TRIGGER adapters_{name}_insert AFTER INSERT ON adapters BEGIN {add}; END",
        f"CREATE TRIGGER adapters_{name}_delete AFTER DELETE ON adapters BEGIN {remove}; END",
        f"CREATE TRIGGER adapters_{name}_update AFTER UPDATE OF {', '.join(columns)} ON adapters "
        f"WHEN {changed} BEGIN {remove}; {add}; END",
    ]


_MAKE = {
    "tags": _tag_statements,
    "facts": _fact_statements,
    "words": _word_statements,
    "vocabulary": _vocabulary_statements,
}


def present(session: Session) -> bool:
    """Whether the database behind `session` has the index of words."""
    if session.get_bind().dialect.name != "sqlite":
        return False
    found = text("SELECT 1 FROM sqlite_master WHERE name = 'adapters_fts'")
    return remembered(session, "index of words", lambda: session.scalar(found) is not None)


def phrase(words: str, column: str = "") -> str:
    """`words` as they stand, three letters or more, as an expression that FTS5 cannot misread.

    Without a `column` in any of them: a word without a blank is in `search` wherever else it is, and FTS5 is
    a quarter faster when it need not look which column it is in.
    """
    quoted = words.replace('"', '""')
    return f'{column} : "{quoted}"' if column else f'"{quoted}"'


def runs_of(session: Session, word: str) -> list[str]:
    """The runs of three letters that begin with `word`, which has one or two; at most `MAX_TERMS` + 1."""
    term = _TERMS.c.term
    query = select(term).where(term >= word, term < word + 3 * _LAST).limit(MAX_TERMS + 1)
    return list(session.scalars(query))


def any_of(runs: list[str]) -> str:
    """Texts that hold one of these runs, as an expression."""
    return " OR ".join(phrase(run) for run in runs)


def having(expressions: list[str]) -> ColumnElement[bool]:
    """`adapters_fts` rows that meet all expressions; the condition of a query of `FTS`."""
    match = " AND ".join(f"({expression})" for expression in expressions)
    return literal_column("adapters_fts").op("MATCH", is_comparison=True)(match)
