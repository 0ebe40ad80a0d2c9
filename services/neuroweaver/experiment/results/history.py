"""The course of an experiment's results: a result a second while it is fresh, a result a minute for good."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from sqlalchemy import delete, select

from neuroweaver.experiment.domain.model import CONCLUDED
from neuroweaver.experiment.storage import tables
from neuroweaver.experiment.storage.reader import RESULTS, Reader
from neuroweaver.experiment.storage.writer import Writer
from neuroweaver.v1 import experiment_pb2 as pb

BREACH: Final = "guardrail_breached"
"""The kind of the event of a breach."""

KEPT_EVERY: Final = timedelta(minutes=1)


async def latest(experiments: Reader, test_id: str, count: int = 1) -> list[pb.ResultsEvent]:
    """The results kept last, the newest first."""
    table = tables.result_events
    statement = (
        select(table.c.event)
        .where(table.c.project == experiments.project, table.c.test_id == test_id, table.c.kind == RESULTS)
        .order_by(table.c.sequence.desc())
        .limit(count)
    )
    rows = await experiments.connection.execute(statement)
    return [pb.ResultsEvent.FromString(row.event) for row in rows]


async def breaches(experiments: Reader, test_id: str) -> set[tuple[str, str]]:
    """Metric and treatment of the breaches that watches were told of."""
    table = tables.result_events
    statement = select(table.c.event).where(
        table.c.project == experiments.project, table.c.test_id == test_id, table.c.kind == BREACH
    )
    rows = await experiments.connection.execute(statement)
    told = [pb.ResultsEvent.FromString(row.event).guardrail_breached for row in rows]
    return {(each.guardrail.metric_id, each.variant_id) for each in told}


async def keep(experiments: Writer, results: pb.ExperimentResults, least_age: timedelta) -> int:
    """Puts results down, unless they say what the last ones did, or those are younger than this (another
    process was faster), or watches have ended. The ones before are dropped if they came less than a minute
    after those before them. Gives their sequence; 0 if they were not put down.
    """
    experiment = await experiments.experiment(results.test_id)
    known = await latest(experiments, results.test_id, 2)
    if experiment.state == CONCLUDED:
        return 0
    if known and is_same(known[0].results, results):
        return 0
    if known and experiments.now - known[0].time.ToDatetime(experiments.now.tzinfo) < least_age:
        return 0
    if len(known) == 2:
        times = [each.time.ToDatetime() for each in known]
        if times[0] - times[1] < KEPT_EVERY:
            await _drop(experiments, results.test_id, known[0].sequence)
    event = pb.ResultsEvent(results=results)
    event.results.sequence = experiment.last_sequence + 1
    return (await experiments.tell(experiment, RESULTS, event)).last_sequence


def is_same(one: pb.ExperimentResults, other: pb.ExperimentResults) -> bool:
    """But for when they were computed, and what follows from the hour alone."""
    return _timeless(one) == _timeless(other)


def _timeless(results: pb.ExperimentResults) -> pb.ExperimentResults:
    made = pb.ExperimentResults()
    made.CopyFrom(results)
    made.ClearField("sequence")
    made.ClearField("compute_time")
    made.ClearField("as_of")
    made.verdict.ClearField("forecast")
    return made


async def _drop(experiments: Writer, test_id: str, sequence: int) -> None:
    table = tables.result_events
    await experiments.connection.execute(
        delete(table).where(
            table.c.project == experiments.project,
            table.c.test_id == test_id,
            table.c.sequence == sequence,
        )
    )
