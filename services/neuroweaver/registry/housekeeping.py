"""What the Registry clears away by itself, every hour."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.mesh.clock import utc_now
from neuroweaver.mesh.errors import Error
from neuroweaver.registry.artifacts import ArtifactStore
from neuroweaver.registry.store import Store

_LOG: Final = logging.getLogger("neuroweaver.registry")

PERIOD_S: Final = 3600.0

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
    """Does every chore, again and again. What fails is left for the next time: the database may be back."""
    while True:
        for name, chore in chores(store, artifacts).items():
            try:
                if done := await chore():
                    _LOG.info("cleared away", extra={"what": name, "count": done})
            except (SQLAlchemyError, OSError, Error) as error:
                _LOG.warning("not cleared away", extra={"what": name, "cause": type(error).__name__})
        await asyncio.sleep(PERIOD_S)


def chores(store: Store, artifacts: ArtifactStore) -> Mapping[str, Callable[[], Awaitable[int]]]:
    """By the name of what they clear away; each gives how many."""
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
