"""The unit of each event beside its key: an id that comes again with another unit is no retry."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("event_batches", sa.Column("unit_marks", sa.LargeBinary, nullable=True))
