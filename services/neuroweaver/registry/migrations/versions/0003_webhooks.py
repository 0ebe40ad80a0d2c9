"""Webhooks, and the changes that are on their way to them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from neuroweaver.mesh.database.database import UtcDateTime

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "webhooks",
        sa.Column("project", _text(128), primary_key=True),
        sa.Column("webhook_id", _text(63), primary_key=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("actions", sa.Text, nullable=False),
        sa.Column("model_id", _text(63), nullable=False),
        sa.Column("secret", _text(64), nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
    )
    lane = ["project", "webhook_id"]
    op.create_table(
        "webhook_deliveries",
        sa.Column("project", _text(128), primary_key=True),
        sa.Column("webhook_id", _text(63), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("action", _text(64), nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.Column("state", _text(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_attempt_time", UtcDateTime),
        sa.Column("last_attempt_time", UtcDateTime),
        sa.Column("last_status", sa.Integer, nullable=False),
        sa.Column("last_error", sa.Text, nullable=False),
        sa.Column("claim", _text(26)),
        sa.ForeignKeyConstraint(lane, ["webhooks.project", "webhooks.webhook_id"]),
    )
    op.create_index("webhook_deliveries_by_state", "webhook_deliveries", [*lane, "state", "sequence"])
    op.create_index("webhook_deliveries_by_attempt", "webhook_deliveries", [*lane, "last_attempt_time"])
    is_claimed = sa.text("claim IS NOT NULL")
    op.create_index(
        "webhook_deliveries_claimed",
        "webhook_deliveries",
        lane,
        unique=True,
        sqlite_where=is_claimed,
        postgresql_where=is_claimed,
    )


def _text(length: int) -> Any:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
