"""Repeats and weight of each picture."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Pictures that are there already come once an epoch and count 1."""
    op.add_column("images", sa.Column("repeats", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("images", sa.Column("weight", sa.Float(), nullable=False, server_default="1"))


def downgrade() -> None:
    """Without them."""
    with op.batch_alter_table("images") as table:
        table.drop_column("repeats")
        table.drop_column("weight")
