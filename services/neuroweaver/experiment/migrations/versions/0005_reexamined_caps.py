"""Caps that are examined again, what they cut, and what becomes of every event.

What was counted before stays as it is and is marked: with its next events, or within the hour, an
experiment is counted again from its units. The raw events stay.
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("cells", sa.Column("cuts", sa.LargeBinary, nullable=True))
    totals = sa.table(
        "totals",
        sa.column("project", sa.String),
        sa.column("test_id", sa.String),
        sa.column("counts", sa.Text),
    )
    connection = op.get_bind()
    for row in connection.execute(sa.select(totals)).all():
        its = (totals.c.project == row.project) & (totals.c.test_id == row.test_id)
        connection.execute(sa.update(totals).where(its).values(counts=_carried(row.counts)))


def _carried(counts: str) -> str:
    plain = json.loads(counts)
    # Of each phase, as they were once set; its units are capped anew before any of them moves.
    del plain["caps"]
    plain["numbers"].append(0)
    return json.dumps(plain | {"uses": [], "exams": [], "carried": True})
