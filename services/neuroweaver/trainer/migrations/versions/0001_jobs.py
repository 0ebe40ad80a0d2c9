"""Jobs with their events, logs and answered requests."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, LargeBinary, String, UniqueConstraint

from neuroweaver.mesh.database import idempotency
from neuroweaver.mesh.database.database import UtcDateTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        Column("project", String(128), primary_key=True),
        Column("job_id", String(64), primary_key=True),
        Column("model_name", String(63), nullable=False),
        Column("output_dir", String(255), nullable=False),
        Column("state", Integer, nullable=False),
        Column("stage", Integer, nullable=False),
        Column("create_time", UtcDateTime, nullable=False),
        Column("start_time", UtcDateTime),
        Column("end_time", UtcDateTime),
        Column("attempt", Integer, nullable=False),
        Column("lease_token", BigInteger, nullable=False),
        Column("reported", BigInteger, nullable=False),
        Column("last_sequence", BigInteger, nullable=False),
        Column("last_log_sequence", BigInteger, nullable=False),
        Column("dataset_digest", String(64), nullable=False),
        Column("trace_parent", String(64), nullable=False),
        Column("config", LargeBinary, nullable=False),
        Column("progress", LargeBinary),
        Column("failure", LargeBinary),
        Column("result", LargeBinary),
        UniqueConstraint("output_dir", name="jobs_output_dir_key"),
    )
    op.create_index("jobs_create_time", "jobs", ["project", "create_time", "job_id"])
    op.create_index("jobs_state", "jobs", ["state", "create_time"])
    for table, content in (("events", "event"), ("logs", "line")):
        op.create_table(
            table,
            Column("project", String(128), primary_key=True),
            Column("job_id", String(64), primary_key=True),
            Column("sequence", BigInteger, primary_key=True),
            Column(content, LargeBinary, nullable=False),
        )
    op.create_table(idempotency.TABLE_NAME, *idempotency.columns())
