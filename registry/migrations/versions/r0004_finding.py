"""What the search needs: trigger words a line each, indexes of words and filters, tags to count."""

import json
import unicodedata

import sqlalchemy as sa
from alembic import op

from registry import fulltext

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

FACTS = ["trashed_at", "family", "method", "origin", "rank", "rating", "favourite", "file_state", "size",
         "created_at", "base_id", "preview", "licence"]  # fmt: skip
ADAPTERS = sa.table(
    "adapters", sa.column("id", sa.Text), sa.column("search", sa.Text), sa.column("trigger_lines", sa.Text),
    sa.column("trigger_words", sa.JSON),
)  # fmt: skip


def fold(text: str) -> str:
    """As `registry.tables.fold_line` was at this revision."""
    return unicodedata.normalize("NFKC", text.replace("\0", " ")).casefold().replace("\n", " ")


def upgrade() -> None:
    """Derived columns are filled before the indexes are made of them."""
    op.add_column("adapters", sa.Column("trigger_lines", sa.Text(), nullable=False, server_default="\n\n"))
    connection = op.get_bind()
    for id, words in connection.execute(sa.select(ADAPTERS.c.id, ADAPTERS.c.trigger_words)).all():
        lines = "\n".join(["", *map(fold, words if isinstance(words, list) else json.loads(words)), ""])
        connection.execute(sa.update(ADAPTERS).where(ADAPTERS.c.id == id).values(trigger_lines=lines))
    connection.execute(sa.update(ADAPTERS).values(search=ADAPTERS.c.search + "\n\n"))
    op.create_index("ix_adapters_facts", "adapters", FACTS)
    if connection.dialect.name == "postgresql":
        op.alter_column("adapters", "sort_name", type_=sa.Text(collation="C"))
        _trigrams(connection)
    fulltext.create(connection)


def _trigrams(connection: sa.Connection) -> None:
    """PostgreSQL's own index of letter runs, where it may be made; the answers are the same without it."""
    known = sa.text("SELECT 1 FROM pg_available_extensions WHERE name = 'pg_trgm'")
    if connection.execute(known).scalar() is None:
        return
    try:
        with connection.begin_nested():
            connection.execute(sa.text("CREATE EXTENSION IF NOT EXISTS pg_trgm"))
            index = "CREATE INDEX ix_adapters_search ON adapters USING gin (search gin_trgm_ops)"
            connection.execute(sa.text(index))
    except sa.exc.DBAPIError:  # no right to make an extension
        return


def downgrade() -> None:
    """Without them."""
    fulltext.drop(op.get_bind())
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP INDEX IF EXISTS ix_adapters_search")
    op.drop_index("ix_adapters_facts", "adapters")
    op.drop_column("adapters", "trigger_lines")
    op.execute("UPDATE adapters SET search = substr(search, 1, length(search) - 2)")
