"""First schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def text(name: str, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.Text(), nullable=nullable)


def integer(name: str) -> sa.Column:
    return sa.Column(name, sa.Integer(), nullable=False)


def big(name: str) -> sa.Column:
    return sa.Column(name, sa.BigInteger(), nullable=False)


def real(name: str, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.Float(), nullable=nullable)


def flag(name: str) -> sa.Column:
    return sa.Column(name, sa.Boolean(), nullable=False)


def time(name: str, nullable: bool = False) -> sa.Column:
    return sa.Column(name, TIME, nullable=nullable)


def json(name: str, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.JSON(), nullable=nullable)


def key() -> sa.Column:
    return sa.Column("id", sa.Text(), primary_key=True, nullable=False)


def upgrade() -> None:
    op.create_table(
        "bases",
        key(), time("created_at"), text("name"), text("family"), text("variant"), text("location"),
        text("kind"), text("revision"), text("config"), text("weight_hash"), flag("builtin"),
        sa.UniqueConstraint("name"),
    )  # fmt: skip
    op.create_index("ix_bases_weight_hash", "bases", ["weight_hash"])
    op.create_table(
        "datasets",
        key(), time("created_at"), text("name"), text("trigger"), text("source"), text("content_hash"),
        integer("image_count"),
        sa.UniqueConstraint("name"),
    )  # fmt: skip
    op.create_table(
        "images",
        key(), text("dataset_id"), integer("position"), text("blob"), text("pixel_hash"), text("name"),
        integer("width"), integer("height"), text("caption"), text("mask"), json("tags"), text("note"),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], ondelete="CASCADE"),
    )  # fmt: skip
    op.create_index("ix_images_dataset_position", "images", ["dataset_id", "position"])
    op.create_index("ix_images_pixel_hash", "images", ["pixel_hash"])
    _runs()
    _adapters()
    _samples()
    op.create_table(
        "jobs",
        key(), time("created_at"), text("kind"), text("state"), text("subject_id"), json("payload"),
        integer("attempts"), text("owner"), time("lease_until", nullable=True), flag("cancel"), text("error"),
        json("result"),
    )  # fmt: skip
    op.create_index("ix_jobs_queue", "jobs", ["state", "created_at", "id"])
    op.create_index("ix_jobs_subject_id", "jobs", ["subject_id"])


def _runs() -> None:
    op.create_table(
        "runs",
        key(), time("created_at"), text("name"), text("state"), text("reason"), text("family"), text("goal"),
        text("base_id"), text("dataset_id"), json("recipe"), text("recipe_hash"), text("dataset_hash"),
        text("base_hash"), big("seed"), big("step"), big("steps"), text("parent_run_id"), big("parent_step"),
        json("versions"), json("process", nullable=True), time("started_at", nullable=True),
        time("ended_at", nullable=True),
        sa.ForeignKeyConstraint(["base_id"], ["bases.id"]),
    )  # fmt: skip
    for column in ("created_at", "name", "state", "base_id", "dataset_id"):
        op.create_index(f"ix_runs_{column}", "runs", [column])
    op.create_table(
        "checkpoints",
        key(), time("created_at"), text("run_id"), big("step"), text("path"), real("loss", nullable=True),
        json("metrics"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
        sa.UniqueConstraint("run_id", "step"),
    )  # fmt: skip


def _adapters() -> None:
    op.create_table(
        "adapters",
        key(), time("created_at"), time("trashed_at", nullable=True), text("name"), text("sort_name"),
        text("search"), text("tag_lines"), text("tensor_sha256"), text("file_sha256"), text("path"),
        big("size"), text("family"), text("method"), integer("rank"), real("alpha"), json("targets"),
        json("trigger_words"), real("recommended_weight"), json("tags"), text("note"), integer("rating"),
        text("origin"), text("run_id", nullable=True), big("step"), text("base_id", nullable=True),
        json("parents"), text("preview"), json("metadata"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"]),
        sa.ForeignKeyConstraint(["base_id"], ["bases.id"]),
    )  # fmt: skip
    for column in ("name", "file_sha256", "run_id", "base_id"):
        op.create_index(f"ix_adapters_{column}", "adapters", [column])
    for order in (["created_at", "id"], ["sort_name", "id"], ["rating", "created_at", "id"], ["size", "id"]):
        op.create_index(f"ix_adapters_by_{order[0]}", "adapters", ["trashed_at", *order])
    identity = ["tensor_sha256", sa.text("coalesce(run_id, '')")]
    op.create_index("ix_adapters_identity", "adapters", identity, unique=True)


def _samples() -> None:
    op.create_table(
        "samples",
        key(), time("created_at"), text("base_id"), json("request"), json("files"),
        sa.ForeignKeyConstraint(["base_id"], ["bases.id"]),
    )  # fmt: skip
    op.create_index("ix_samples_created_at", "samples", ["created_at"])
    op.create_index("ix_samples_base_id", "samples", ["base_id"])
    op.create_table(
        "sample_adapters",
        text("sample_id"), integer("position"), text("adapter_id"), real("weight"),
        real("text_weight", nullable=True), text("tensor_sha256"),
        sa.PrimaryKeyConstraint("sample_id", "position"),
        sa.ForeignKeyConstraint(["sample_id"], ["samples.id"], ondelete="CASCADE"),
    )  # fmt: skip
    op.create_index("ix_sample_adapters_adapter_id", "sample_adapters", ["adapter_id"])


def downgrade() -> None:
    for table in ("jobs", "sample_adapters", "samples", "adapters", "checkpoints", "runs", "images",
                  "datasets", "bases"):  # fmt: skip
        op.drop_table(table)
