"""Networks that steer a base stand beside the bases."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What is there already are whole bases."""
    op.add_column("bases", sa.Column("part", sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    """Without them: a row that is no base may not stay."""
    op.execute("DELETE FROM bases WHERE part <> ''")
    with op.batch_alter_table("bases") as table:
        table.drop_column("part")
