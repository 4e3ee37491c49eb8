"""Comparisons: grids of samples, and votes on them."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def text(name: str) -> sa.Column:
    return sa.Column(name, sa.Text(), nullable=False)


def upgrade() -> None:
    """Samples from before have no key: nobody has worked one out for them."""
    for name in ("key", "purpose"):
        op.add_column("samples", sa.Column(name, sa.Text(), nullable=False, server_default=""))
    op.create_index("ix_samples_key", "samples", ["key"])
    op.add_column("jobs", sa.Column("background", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "comparisons",
        sa.Column("id", sa.Text(), primary_key=True, nullable=False),
        sa.Column("created_at", TIME, nullable=False), text("name"), text("base_id"),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.UniqueConstraint("name"),
        sa.ForeignKeyConstraint(["base_id"], ["bases.id"]),
    )  # fmt: skip
    op.create_index("ix_comparisons_base_id", "comparisons", ["base_id"])
    op.create_table(
        "comparison_cells",
        text("comparison_id"), text("place"), text("key"), text("sample_id"),
        sa.PrimaryKeyConstraint("comparison_id", "place"),
        sa.ForeignKeyConstraint(["comparison_id"], ["comparisons.id"], ondelete="CASCADE"),
    )  # fmt: skip
    op.create_index("ix_comparison_cells_sample_id", "comparison_cells", ["sample_id"])
    op.create_table(
        "votes",
        sa.Column("id", sa.Text(), primary_key=True, nullable=False),
        sa.Column("created_at", TIME, nullable=False), text("comparison_id"), text("axis"), text("left"),
        text("right"), text("outcome"), text("prompt"), text("context"),
        sa.ForeignKeyConstraint(["comparison_id"], ["comparisons.id"], ondelete="CASCADE"),
    )  # fmt: skip
    op.create_index("ix_votes_comparison_id", "votes", ["comparison_id"])


def downgrade() -> None:
    """Without them; the pictures of comparisons stay as samples."""
    for table in ("votes", "comparison_cells", "comparisons"):
        op.drop_table(table)
    op.drop_index("ix_samples_key", "samples")
    with op.batch_alter_table("jobs") as table:
        table.drop_column("background")
    with op.batch_alter_table("samples") as table:
        for name in ("purpose", "key"):
            table.drop_column(name)
