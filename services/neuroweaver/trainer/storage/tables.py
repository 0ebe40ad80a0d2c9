"""The Trainer's tables."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from neuroweaver.mesh.database import idempotency
from neuroweaver.mesh.database.database import UtcDateTime

METADATA: Final = MetaData()


def _job() -> tuple[Column[str], Column[str]]:
    return (
        Column("project", String(128), primary_key=True),
        Column("job_id", String(64), primary_key=True),
    )


JOBS: Final = Table(
    "jobs",
    METADATA,
    *_job(),
    Column("model_name", String(63), nullable=False),
    Column("output_dir", String(255), nullable=False),
    Column("state", Integer, nullable=False),
    Column("stage", Integer, nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    Column("start_time", UtcDateTime),
    Column("end_time", UtcDateTime),
    Column("attempt", Integer, nullable=False),
    Column("lease_token", BigInteger, nullable=False),
    Column("secret_digest", String(64), nullable=False, server_default=""),
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
EVENTS: Final = Table(
    "events",
    METADATA,
    *_job(),
    Column("sequence", BigInteger, primary_key=True),
    Column("event", LargeBinary, nullable=False),
)
LOGS: Final = Table(
    "logs",
    METADATA,
    *_job(),
    Column("sequence", BigInteger, primary_key=True),
    Column("line", LargeBinary, nullable=False),
)
# sequence: of the last event that the change made; 0 for the start, which makes none.
CHANGES: Final = Table(
    "changes",
    METADATA,
    *_job(),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("time", UtcDateTime, nullable=False),
    Column("action", String(32), nullable=False),
    Column("actor", String(256), nullable=False),
    Column("reason", Text, nullable=False),
    Column("trace_id", String(32), nullable=False),
)
Index("jobs_create_time", JOBS.c.project, JOBS.c.create_time, JOBS.c.job_id)
Index("jobs_state", JOBS.c.state, JOBS.c.create_time)
idempotency.table(METADATA)
