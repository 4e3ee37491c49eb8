"""Evidence sheets: what was measured of a comparison, about a run or an adapter."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
INDEXED = ("run_id", "adapter_id", "comparison_id", "plan_hash")


def upgrade() -> None:
    """A new table."""
    op.create_table(
        "evaluations",
        sa.Column("id", sa.Text(), primary_key=True, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("adapter_id", sa.Text(), nullable=True),
        sa.Column("comparison_id", sa.Text(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column("plan_hash", sa.Text(), nullable=False),
        sa.Column("result", sa.JSON(), nullable=False),
        sa.Column("measured_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["comparison_id"], ["comparisons.id"], ondelete="CASCADE"),
    )
    for column in INDEXED:
        op.create_index(f"ix_evaluations_{column}", "evaluations", [column])


def downgrade() -> None:
    """Without them; their pictures stay in the comparisons. Older programs know no jobs of this kind."""
    op.execute("DELETE FROM jobs WHERE kind = 'evaluate'")
    op.drop_table("evaluations")
