"""Units live in memory: keys beside the raw events, and checkpoints, take the place of their tables."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from neuroweaver.mesh.database.database import UtcDateTime

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    expired = sa.text("SELECT count(*) FROM totals WHERE expired_batches > 0")
    if op.get_bind().execute(expired).scalar_one():
        raise RuntimeError(
            "raw events were removed by age, and the units cannot be made of the rest: "
            "conclude those experiments with the version that took them in"
        )
    op.add_column("event_batches", sa.Column("event_keys", sa.LargeBinary, nullable=True))
    op.add_column("totals", sa.Column("checkpoint_id", _text(32), nullable=True))
    op.add_column("totals", sa.Column("checkpoint_batch", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("totals", sa.Column("checkpoint_form", _text(32), nullable=False, server_default=""))
    op.create_table(
        "checkpoints",
        sa.Column("project", _text(128), primary_key=True),
        sa.Column("test_id", _text(64), primary_key=True),
        sa.Column("checkpoint_id", _text(32), primary_key=True),
        sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
    )
    op.drop_table("event_ids")
    op.drop_table("units")


def _text(length: int) -> Any:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
