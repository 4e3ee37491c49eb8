"""Imported adapters, licences, exports, saved filters, watched folders, pictures of runs."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

IDENTITY = ["tensor_sha256", sa.text("coalesce(run_id, '')")]
HASHED = sa.text("tensor_sha256 != ''")
TIME = sa.DateTime(timezone=True)
NEW_TEXTS = ("licence", "consent", "keywords", "source")


def text(name: str) -> sa.Column:
    return sa.Column(name, sa.Text(), nullable=False)


def upgrade() -> None:
    """What is there already is taken to be sound, as the last check found it."""
    for name in ("licence", "consent"):
        op.add_column("datasets", sa.Column(name, sa.Text(), nullable=False, server_default=""))
    for name in NEW_TEXTS:
        op.add_column("adapters", sa.Column(name, sa.Text(), nullable=False, server_default=""))
    op.add_column("adapters", sa.Column("favourite", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("adapters", sa.Column("file_state", sa.Text(), nullable=False, server_default="ok"))
    op.add_column("adapters", sa.Column("checked_at", TIME, nullable=True))
    op.add_column("adapters", sa.Column("mtime_ns", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index("ix_adapters_file_state", "adapters", ["file_state"])
    op.create_index("ix_adapters_path", "adapters", ["path"])
    op.drop_index("ix_adapters_identity", "adapters")
    op.create_index(
        "ix_adapters_identity", "adapters", IDENTITY, unique=True,
        sqlite_where=HASHED, postgresql_where=HASHED,
    )  # fmt: skip
    op.create_table(
        "run_images",
        text("run_id"), sa.Column("position", sa.Integer(), nullable=False), text("pixel_hash"),
        text("blob"), text("name"),
        sa.PrimaryKeyConstraint("run_id", "position"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
    )  # fmt: skip
    op.create_index("ix_run_images_pixel_hash", "run_images", ["pixel_hash"])
    op.create_table(
        "exports",
        sa.Column("id", sa.Text(), primary_key=True, nullable=False),
        sa.Column("created_at", TIME, nullable=False), text("adapter_id"), text("path"), text("layout"),
        text("dtype"), sa.Column("publish", sa.Boolean(), nullable=False), text("sha256"),
        sa.Column("report", sa.JSON(), nullable=False),
    )  # fmt: skip
    for name in ("created_at", "adapter_id", "sha256"):
        op.create_index(f"ix_exports_{name}", "exports", [name])
    op.create_table(
        "saved_filters",
        sa.Column("id", sa.Text(), primary_key=True, nullable=False),
        sa.Column("created_at", TIME, nullable=False), text("name"),
        sa.Column("query", sa.JSON(), nullable=False),
        sa.UniqueConstraint("name"),
    )  # fmt: skip
    op.create_table(
        "watches",
        sa.Column("id", sa.Text(), primary_key=True, nullable=False),
        sa.Column("created_at", TIME, nullable=False), text("path"),
        sa.Column("scanned_at", TIME, nullable=True), text("note"),
        sa.UniqueConstraint("path"),
    )  # fmt: skip


def downgrade() -> None:
    """Without them."""
    for table in ("watches", "saved_filters", "exports", "run_images"):
        op.drop_table(table)
    op.drop_index("ix_adapters_identity", "adapters")
    op.create_index("ix_adapters_identity", "adapters", IDENTITY, unique=True)
    for index in ("ix_adapters_path", "ix_adapters_file_state"):
        op.drop_index(index, "adapters")
    for name in (*NEW_TEXTS, "favourite", "file_state", "checked_at", "mtime_ns"):
        op.drop_column("adapters", name)
    for name in ("licence", "consent"):
        op.drop_column("datasets", name)
