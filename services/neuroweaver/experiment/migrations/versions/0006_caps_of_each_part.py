"""Caps of a ratio's numerator and denominator each, and what caps cut as a share of at most all.

What was counted before stays as it is and is marked: with its next events, or within the hour, each capped
metric is counted again from its units. Caps that were taken stay for replays.
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute("UPDATE cells SET cuts = NULL")
