"""The history of an experiment's results: one a second while they are fresh, one a minute for good."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete

from neuroweaver.experiment.domain.model import CONCLUDED
from neuroweaver.experiment.storage import tables
from neuroweaver.experiment.storage.reader import RESULTS, Reader
from neuroweaver.experiment.storage.writer import Writer
from neuroweaver.v1 import experiment_pb2 as pb

KEPT_EVERY: Final = timedelta(minutes=1)


async def latest(
    experiments: Reader, test_id: str, count: int = 1, until: datetime | None = None
) -> list[pb.ResultsEvent]:
    """The results kept last, by a moment, the newest first."""
    return await experiments.result_events(test_id, kind=RESULTS, until=until, limit=count, newest_first=True)


async def split(
    experiments: Reader, test_id: str, until: datetime | None = None
) -> pb.SampleRatioResult | None:
    """What the test of the split said last, by a moment: what it found stays.

    Not all results are kept, so that those of later may be the first to tell that it had fired by then.
    """
    newest, by_then = await latest(experiments, test_id), await latest(experiments, test_id, until=until)
    result = by_then[0].results.sample_ratio if by_then else None
    if until is None or not newest or (result and result.is_mismatch):
        return result
    last = newest[0].results.sample_ratio
    if last.HasField("fire_time") and last.fire_time.ToDatetime(until.tzinfo) <= until:
        result = pb.SampleRatioResult(p_value=last.level, level=last.level, fire_time=last.fire_time)
        result.is_mismatch = True
    return result


async def breaches(experiments: Reader, test_id: str) -> set[tuple[str, str]]:
    """Metric and treatment of the breaches that watches were told of."""
    events = await experiments.result_events(test_id, kind="guardrail_breached")
    breaches = (event.guardrail_breached for event in events)
    return {(breach.guardrail.metric_id, breach.variant_id) for breach in breaches}


async def keep(experiments: Writer, results: pb.ExperimentResults, least_age: timedelta) -> int:
    """Stores results and returns their sequence; 0 if they were not stored.

    They are not stored if they equal the last ones, if those are younger than `least_age` (another process
    was faster), or if watches have ended. The last ones are dropped if they came less than a minute after
    those before them.
    """
    experiment = await experiments.experiment(results.test_id)
    stored = await latest(experiments, results.test_id, 2)
    if experiment.state == CONCLUDED or (stored and is_same(stored[0].results, results)):
        return 0
    # Of a clock that was set back since, they count as old.
    if stored and abs(experiments.now - stored[0].time.ToDatetime(experiments.now.tzinfo)) < least_age:
        return 0
    if len(stored) == 2 and stored[0].time.ToDatetime() - stored[1].time.ToDatetime() < KEPT_EVERY:
        table = tables.result_events
        its = tables.of_experiment(table, experiments.project, results.test_id)
        last = table.c.sequence == stored[0].sequence
        await experiments.connection.execute(delete(table).where(its, last))
    event = pb.ResultsEvent(results=results)
    event.results.sequence = experiment.last_sequence + 1
    return (await experiments.publish(experiment, event)).last_sequence


def is_same(one: pb.ExperimentResults, other: pb.ExperimentResults) -> bool:
    """Whether they differ only in when they were computed, and in what follows from the hour alone."""
    return _timeless(one) == _timeless(other)


def _timeless(results: pb.ExperimentResults) -> pb.ExperimentResults:
    timeless = pb.ExperimentResults()
    timeless.CopyFrom(results)
    timeless.ClearField("sequence")
    timeless.ClearField("compute_time")
    timeless.ClearField("as_of")
    timeless.verdict.ClearField("forecast")
    return timeless
