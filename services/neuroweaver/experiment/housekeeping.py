"""What the Experiment service clears away by itself, every hour."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.experiment.intake import retention, sketching
from neuroweaver.experiment.storage.store import Store
from neuroweaver.mesh.handlers import legacy as housekeeping
from neuroweaver.mesh.handlers.housekeeping import Chores
from neuroweaver.mesh.wire.errors import Error

_LOG: Final = logging.getLogger("neuroweaver.experiment")

CHECKPOINT_PERIOD_S: Final = 5.0

# How late a retry still reads the first answer.
ANSWERS_KEPT: Final = timedelta(days=7)


async def keep_house(store: Store) -> None:
    """Until cancelled."""
    await housekeeping.keep_house(_LOG, lambda: chores(store))


def chores(store: Store) -> Chores:
    now = store.clock()
    return {
        "answers": lambda: store.forget_answers(now - ANSWERS_KEPT),
        "raw events": lambda: expire_all(store, now),
    }


async def keep_checkpoints(store: Store) -> None:
    """Again and again, for the experiments that many events came for."""
    while True:
        for project, test_id in store.projections.due():
            with _one_at_a_time("no checkpoint", test_id):
                async with store.read(project) as experiments:
                    experiment = await experiments.experiment(test_id)
                await retention.keep_checkpoint(store, experiment)
        await asyncio.sleep(CHECKPOINT_PERIOD_S)


async def expire_all(store: Store, now: datetime) -> int:
    """Raw events beyond their experiment's retention. Gives how many; mends sketches on the way."""
    dropped = 0
    for project, test_id in await store.everything():
        with _one_at_a_time("not cleared away", test_id):
            async with store.read(project) as experiments:
                experiment = await experiments.experiment(test_id)
            await sketching.mend(store, experiment)
            dropped += await retention.expire(store, experiment, now)
    return dropped


@contextmanager
def _one_at_a_time(what: str, test_id: str) -> Iterator[None]:
    """One experiment's fault is told, and holds up no other one."""
    try:
        yield
    except (SQLAlchemyError, Error) as error:
        _LOG.warning(what, extra={"cause": type(error).__name__, "test_id": test_id})
    except Exception:  # noqa: BLE001  # whatever it is, the others go on
        _LOG.exception(what, extra={"test_id": test_id})
