"""What the Experiment service drops and examines every hour, and the checkpoints that it stores."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.experiment.intake import calibration, retention, sketching
from neuroweaver.experiment.intake.projection import Projections
from neuroweaver.experiment.storage import tables
from neuroweaver.experiment.storage.store import Store, inputs_topic
from neuroweaver.mesh.handlers import housekeeping
from neuroweaver.mesh.handlers.housekeeping import Chores
from neuroweaver.mesh.handlers.loop import Outages, repeat

_LOG: Final = logging.getLogger("neuroweaver.experiment")

CHECKPOINT_PERIOD_S: Final = 5.0

# Of what fails at present, every hour again, one experiment holding up no other.
_CAPS: Final = Outages("caps")
_RAW_EVENTS: Final = Outages("raw events")


async def keep_house(store: Store, projections: Projections) -> None:
    """Until cancelled."""
    await housekeeping.keep_house(
        _LOG,
        store.database,
        lambda now: chores(store, projections, now),
        times=(tables.event_batches.c.last_event_time,),
        clock=store.clock,
    )


def chores(store: Store, projections: Projections, now: datetime) -> Chores:
    return {
        "caps": lambda: reexamine_all(store, projections),
        "raw events": lambda: expire_all(store, projections, now),
    }


async def keep_checkpoints(store: Store, projections: Projections) -> None:
    """Until cancelled, for the experiments that many events came for."""
    outages = Outages("checkpoints")

    async def turn() -> None:
        for project, test_id in projections.due():
            with outages.survived(SQLAlchemyError, project=project, test_id=test_id):
                experiment = await store.experiment(project, test_id)
                await retention.keep_checkpoint(store, projections, experiment)

    await repeat("checkpoints", turn, CHECKPOINT_PERIOD_S)


async def reexamine_all(store: Store, projections: Projections) -> int:
    """Takes caps by quantiles again where that is due. Returns 0: nothing is dropped."""
    for project, test_id in await store.keys():
        with _CAPS.survived(project=project, test_id=test_id):
            experiment = await store.experiment(project, test_id)
            if await calibration.reexamine(store, projections, experiment):
                store.topics.notify([inputs_topic(project, test_id)])
    return 0


async def expire_all(store: Store, projections: Projections, now: datetime) -> int:
    """Drops raw events beyond their experiment's retention; mends sketches on the way.

    Returns the number dropped.
    """
    dropped = 0
    for project, test_id in await store.keys():
        with _RAW_EVENTS.survived(project=project, test_id=test_id):
            experiment = await store.experiment(project, test_id)
            await sketching.mend(store, projections, experiment)
            dropped += await retention.expire(store, projections, experiment, now)
    return dropped
