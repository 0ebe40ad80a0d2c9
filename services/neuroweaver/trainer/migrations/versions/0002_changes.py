"""Who asked for a change of a job, why and when."""

from alembic import op
from sqlalchemy import BigInteger, Column, String, Text

from neuroweaver.mesh.database.database import UtcDateTime

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "changes",
        Column("project", String(128), primary_key=True),
        Column("job_id", String(64), primary_key=True),
        Column("sequence", BigInteger, primary_key=True, autoincrement=False),
        Column("time", UtcDateTime, nullable=False),
        Column("action", String(32), nullable=False),
        Column("actor", String(256), nullable=False),
        Column("reason", Text, nullable=False),
        Column("trace_id", String(32), nullable=False),
    )
