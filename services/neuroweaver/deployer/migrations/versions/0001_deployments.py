"""Deployments, what happened to them, what was measured of them, and who runs the loop."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from neuroweaver.mesh.database import idempotency
from neuroweaver.mesh.database.database import UtcDateTime

revision = "0001"
down_revision = None

_KEY = ["project", "model_id", "name"]


def upgrade() -> None:
    op.create_table(
        "deployments",
        *_key(),
        sa.Column("resource_name", _text(63), nullable=False, unique=True),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("alias", _text(63), nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.Column("last_sequence", sa.BigInteger, nullable=False),
        sa.Column("first_sequence", sa.BigInteger, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
    )
    op.create_index("deployments_by_time", "deployments", ["project", "create_time", "model_id", "name"])
    op.create_index("deployments_by_state", "deployments", ["state"])
    op.create_table(
        "labels",
        *_key(),
        sa.Column("label", _text(253), primary_key=True),
        sa.Column("value", _text(63), nullable=False),
        _of_deployment(),
    )
    op.create_index("labels_by_value", "labels", ["project", "label", "value", "model_id", "name"])
    op.create_table(
        "events",
        *_key(),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("time", UtcDateTime, nullable=False),
        sa.Column("actor", _text(256), nullable=False),
        sa.Column("event", sa.LargeBinary, nullable=False),
        _of_deployment(),
    )
    op.create_index("events_by_time", "events", ["time"])
    _logs()
    _measured()
    op.create_table(
        "leases",
        sa.Column("lease", _text(63), primary_key=True),
        sa.Column("holder", _text(64), nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("beat", sa.BigInteger, nullable=False),
    )
    op.create_table(idempotency.TABLE_NAME, *idempotency.columns())


def _logs() -> None:
    op.create_table(
        "log_lines",
        *_key(),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("time", UtcDateTime, nullable=False),
        sa.Column("replica_id", _text(253), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("level", _text(16), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        _of_deployment(),
    )
    op.create_table(
        "log_cursors",
        *_key(),
        sa.Column("replica_id", _text(253), primary_key=True),
        sa.Column("cursor", sa.Text, nullable=False),
        sa.Column("time", UtcDateTime, nullable=False),
        _of_deployment(),
    )


def _measured() -> None:
    op.create_table(
        "measurements",
        *_key(),
        sa.Column("time", UtcDateTime, primary_key=True),
        sa.Column("revision", sa.BigInteger, primary_key=True),
        sa.Column("record", sa.Text, nullable=False),
        _of_deployment(),
    )
    op.create_index("measurements_by_time", "measurements", ["time"])
    op.create_table(
        "samples",
        *_key(),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("time", UtcDateTime, nullable=False),
        sa.Column("source", sa.String(128), nullable=False),
        sa.Column("actor", _text(256), nullable=False),
        sa.Column("version", _text(128), nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("accuracy", sa.Float),
        sa.Column("latency_ms", sa.Float),
        sa.Column("throughput_rps", sa.Float),
        sa.Column("error_rate", sa.Float),
        sa.Column("cost_per_request", sa.Float),
        sa.Column("judged_quality", sa.Float),
        _of_deployment(),
    )
    op.create_index("samples_of_deployment", "samples", [*_KEY, "time"])
    op.create_index("samples_by_time", "samples", ["time"])


def _key() -> list[sa.Column[Any]]:
    lengths = {"project": 128, "model_id": 63, "name": 32}
    return [sa.Column(name, _text(length), primary_key=True) for name, length in lengths.items()]


def _of_deployment() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(_KEY, [f"deployments.{name}" for name in _KEY])


def _text(length: int) -> Any:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
