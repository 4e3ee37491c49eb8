"""Where a run trains."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Runs from before trained on the machine of their worker."""
    op.add_column("runs", sa.Column("place", sa.Text(), nullable=False, server_default="local"))


def downgrade() -> None:
    """Without it. Older programs know no jobs of a cluster."""
    op.execute("DELETE FROM jobs WHERE kind = 'train-away'")
    op.drop_column("runs", "place")
