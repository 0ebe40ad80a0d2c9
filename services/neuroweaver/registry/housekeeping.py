"""Hourly cleanup."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Final

from neuroweaver.mesh.handlers import housekeeping
from neuroweaver.mesh.handlers.housekeeping import Chores
from neuroweaver.registry.artifacts.store import ArtifactStore
from neuroweaver.registry.storage import tables
from neuroweaver.registry.storage.store import Store

_LOG: Final = logging.getLogger("neuroweaver.registry")

# How long an upload may lie before it is named in a version.
UNUSED_FILES_KEPT: Final = timedelta(days=1)
# How long an interrupted upload can be resumed.
PARTS_KEPT: Final = timedelta(days=7)
# How long the files of a deleted version lie, should the deletion prove a mistake.
HIDDEN_FILES_KEPT: Final = timedelta(days=30)
# How long a delivery that arrived is still listed.
DELIVERIES_KEPT: Final = timedelta(days=7)
# From how far back a watch can resume. The history itself is kept for ever.
EVENTS_KEPT: Final = timedelta(days=90)
_TIMES: Final = (
    tables.model_events.c.time,
    tables.blobs.c.last_used,
    tables.models.c.delete_time,
    tables.versions.c.delete_time,
    tables.webhook_deliveries.c.last_attempt_time,
)


async def keep_house(store: Store, artifacts: ArtifactStore) -> None:
    """Until cancelled."""
    await housekeeping.keep_house(
        _LOG, store.database, lambda now: chores(store, artifacts, now), times=_TIMES, clock=store.clock
    )


def chores(store: Store, artifacts: ArtifactStore, now: datetime) -> Chores:
    return {
        "events": lambda: store.compact(now - EVENTS_KEPT),
        "deliveries": lambda: store.forget_deliveries(now - DELIVERIES_KEPT),
        "parts": lambda: artifacts.expire_parts(PARTS_KEPT),
        "files": lambda: store.collect(
            artifacts.delete, unused_since=now - UNUSED_FILES_KEPT, hidden_since=now - HIDDEN_FILES_KEPT
        ),
    }
