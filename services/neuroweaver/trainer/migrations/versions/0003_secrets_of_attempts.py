"""The digest of the secret that proves a job's worker; workers that run already were started without one."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("secret_digest", sa.String(64), nullable=False, server_default=""))
