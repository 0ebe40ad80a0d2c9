"""Webhooks' secrets are sealed from here on, in the same form: the Registry seals the others at its start.

A revision all the same: an older Registry would take a sealed secret for a plain one, and sign wrongly.
"""

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Needs the key, which only the Registry's settings tell of."""
