"""The words that occur, so that the search knows which part of one is enough (SQLite)."""

from alembic import op

from registry import fulltext

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A catalog from before 0004 has the words already. PostgreSQL has no need of them."""
    fulltext.drop(op.get_bind(), "vocabulary")
    fulltext.create(op.get_bind(), "vocabulary")


def downgrade() -> None:
    """Without them."""
    fulltext.drop(op.get_bind(), "vocabulary")
