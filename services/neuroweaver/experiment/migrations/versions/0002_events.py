"""Events: as they came, what tells them apart, what they make of units, and the statistics."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from neuroweaver.mesh.database.database import UtcDateTime

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "event_batches",
        *_experiment(),
        sa.Column("number", sa.BigInteger, primary_key=True),
        sa.Column("received_time", UtcDateTime, nullable=False),
        sa.Column("first_event_time", UtcDateTime, nullable=False),
        sa.Column("last_event_time", UtcDateTime, nullable=False),
        sa.Column("events", sa.Integer, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "event_ids",
        sa.Column("event_key", sa.LargeBinary, primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "units",
        sa.Column("unit_key", sa.LargeBinary, primary_key=True),
        sa.Column("exposures", sa.LargeBinary, nullable=False),
        sa.Column("samples", sa.LargeBinary, nullable=False),
        sa.Column("judgements", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "cells",
        *_experiment(),
        sa.Column("phase", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("variant_id", _text(64), primary_key=True),
        sa.Column("metric_id", _text(64), primary_key=True),
        sa.Column("counts", sa.Text, nullable=False),
        sa.Column("observed", sa.LargeBinary, nullable=False),
        sa.Column("missing", sa.LargeBinary, nullable=False),
        sa.Column("sketch", sa.LargeBinary, nullable=True),
    )
    op.create_table(
        "totals",
        *_experiment(),
        sa.Column("last_batch", sa.BigInteger, nullable=False),
        sa.Column("expired_batches", sa.BigInteger, nullable=False),
        sa.Column("counts", sa.Text, nullable=False),
    )


def _experiment() -> list[sa.Column[Any]]:
    return [
        sa.Column("project", _text(128), primary_key=True),
        sa.Column("test_id", _text(64), primary_key=True),
    ]


def _text(length: int) -> Any:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
