"""A watch of one model finds its events without reading those of all others."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_index("model_events_by_model", "model_events", ["project", "model_id", "sequence"])
