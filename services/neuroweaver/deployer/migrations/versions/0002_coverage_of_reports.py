"""Whether a report's sender measured all requests of its deployment; of older reports nobody knows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    coverage = sa.Column("covers_deployment", sa.Boolean, nullable=False, server_default=sa.false())
    op.add_column("samples", coverage)
