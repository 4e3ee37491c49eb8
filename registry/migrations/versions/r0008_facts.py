"""What filters ask for and facets count, in a table of its own instead of an index (SQLite)."""

from alembic import op

from registry import fulltext

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

FACTS = ["trashed_at", "family", "method", "origin", "rank", "rating", "favourite", "file_state", "size",
         "created_at", "base_id", "preview", "licence", "tag_lines"]  # fmt: skip


def upgrade() -> None:
    """A catalog from before 0004 has the table already. PostgreSQL keeps its index of 0004."""
    connection = op.get_bind()
    if connection.dialect.name == "sqlite":
        op.drop_index("ix_adapters_facts", "adapters")
        op.execute("DROP INDEX IF EXISTS ix_adapter_tags_adapter")  # nobody asks for the tags of one adapter
        fulltext.drop(connection, "facts")
        fulltext.create(connection, "facts")


def downgrade() -> None:
    """As it was."""
    connection = op.get_bind()
    if connection.dialect.name == "sqlite":
        fulltext.drop(connection, "facts")
        op.execute("CREATE INDEX ix_adapter_tags_adapter ON adapter_tags (adapter, tag)")
        op.create_index("ix_adapters_facts", "adapters", FACTS)
