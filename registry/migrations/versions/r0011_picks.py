"""Which checkpoint of a run is the one to use, why, and who says so."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of runs from before nobody has picked one."""
    op.add_column("runs", sa.Column("pick_step", sa.BigInteger(), nullable=False, server_default="0"))
    for name in ("pick_reason", "pick_by"):
        op.add_column("runs", sa.Column(name, sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    """Without them; the adapters that were kept stay."""
    for name in ("pick_by", "pick_reason", "pick_step"):
        op.drop_column("runs", name)
