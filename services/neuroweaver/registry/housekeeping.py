"""What the Registry clears away by itself, every hour."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Final

from neuroweaver.mesh import housekeeping
from neuroweaver.mesh.clock import utc_now
from neuroweaver.mesh.housekeeping import Chores
from neuroweaver.registry.artifacts import ArtifactStore
from neuroweaver.registry.store import Store

_LOG: Final = logging.getLogger("neuroweaver.registry")

# How late a retry still reads the first answer.
ANSWERS_KEPT: Final = timedelta(days=7)
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


async def keep_house(store: Store, artifacts: ArtifactStore) -> None:
    """Until cancelled."""
    await housekeeping.keep_house(_LOG, lambda: chores(store, artifacts))


def chores(store: Store, artifacts: ArtifactStore) -> Chores:
    now = utc_now()
    return {
        "answers": lambda: store.forget_answers(now - ANSWERS_KEPT),
        "events": lambda: store.compact(now - EVENTS_KEPT),
        "deliveries": lambda: store.forget_deliveries(now - DELIVERIES_KEPT),
        "parts": lambda: artifacts.expire_parts(PARTS_KEPT),
        "files": lambda: store.collect(
            artifacts.delete, unused_since=now - UNUSED_FILES_KEPT, hidden_since=now - HIDDEN_FILES_KEPT
        ),
    }
