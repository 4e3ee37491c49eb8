"""What a base was made of: the base and the adapters that were baked into one."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of bases from before, nothing is known."""
    op.add_column("bases", sa.Column("made", sa.JSON(), nullable=False, server_default="{}"))


def downgrade() -> None:
    """Without it."""
    op.drop_column("bases", "made")
