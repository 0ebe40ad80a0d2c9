"""Experiments, layers, the configurations of evaluators, the events of results and the answers given."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from neuroweaver.mesh.database import idempotency
from neuroweaver.mesh.database.database import UtcDateTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    _experiments()
    op.create_table(
        "projects",
        sa.Column("project", _text(128), primary_key=True),
        sa.Column("config_sequence", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "configs",
        sa.Column("project", _text(128), primary_key=True),
        sa.Column("test_id", _text(64), primary_key=True),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("time", UtcDateTime, nullable=False),
        sa.Column("config", sa.LargeBinary, nullable=False),
    )
    op.create_index("configs_by_sequence", "configs", ["project", "sequence"])
    op.create_table(
        "result_events",
        sa.Column("project", _text(128), primary_key=True),
        sa.Column("test_id", _text(64), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("time", UtcDateTime, nullable=False),
        sa.Column("kind", _text(24), nullable=False),
        sa.Column("event", sa.LargeBinary, nullable=False),
    )
    op.create_table(idempotency.TABLE_NAME, *idempotency.columns())


def _experiments() -> None:
    op.create_table(
        "experiments",
        sa.Column("project", _text(128), primary_key=True),
        sa.Column("test_id", _text(64), primary_key=True),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.Column("layer_id", _text(64), nullable=False),
        sa.Column("record", sa.LargeBinary, nullable=False),
        sa.Column("hidden", sa.Text, nullable=False),
    )
    op.create_index("experiments_by_time", "experiments", ["project", "create_time", "test_id"])
    op.create_index("experiments_by_layer", "experiments", ["project", "layer_id"])
    op.create_index("experiments_by_state", "experiments", ["state"])
    op.create_table(
        "facets",
        sa.Column("project", _text(128), primary_key=True),
        sa.Column("test_id", _text(64), primary_key=True),
        sa.Column("name", _text(128), primary_key=True),
        sa.Column("value", sa.String(256), primary_key=True),
    )
    op.create_index("facets_by_value", "facets", ["project", "name", "value", "test_id"])
    op.create_table(
        "layers",
        sa.Column("project", _text(128), primary_key=True),
        sa.Column("layer_id", _text(64), primary_key=True),
        sa.Column("salt", _text(32), nullable=False),
    )


def _text(length: int) -> Any:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
