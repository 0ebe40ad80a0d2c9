"""Events of one variant that are lost for their ids or their names."""

from __future__ import annotations

import numpy as np
import pytest

from experiment.ingesting import exposure, intake, sample
from experiment.serving import spec
from neuroweaver.experiment.analysis.report import report
from neuroweaver.v1 import experiment_pb2 as pb

UNITS = 600


def happened(ids=("control", "tuned"), names=("score", "score")):
    """Two samples a unit, a few events of others' names in both variants. ids: of a variant with its own name
    in them, each is used by eight units. names: of most of the samples of a variant.
    """
    drawn = np.random.default_rng(1)
    events = []
    for unit in range(UNITS):
        place = unit % 2
        variant = ["control", "tuned"][place]
        events.append(exposure(f"e{unit}", f"u{unit}", variant))
        for number in range(2):
            event_id = f"{unit}-{number}" if ids[place] == variant else f"{ids[place]}{unit // 16}-{number}"
            events.append(sample(event_id, f"u{unit}", drawn.normal(10, 2), name=names[place]))
        if drawn.random() < 0.2:
            events.append(sample(f"other{unit}", f"u{unit}", 1.0, name="other"))
    return events


async def results_of(tmp_path, events):
    made = spec(min_units_per_variant=100)
    async with intake(f"sqlite:///{tmp_path}/lost.db", made) as taken:
        for start in range(0, len(events), 500):
            await taken.take(*events[start : start + 500])
        found = await taken.recomputed(replace_stored=True)
        assert found.snapshot.losing == (await taken.snapshot()).losing
        assert found.snapshot.quality == (await taken.snapshot()).quality
        return report(await taken.experiment(), await taken.snapshot(), now=taken.now).results


def messages(results, reason):
    return [each.message for each in results.notices if each.reason == reason and each.variant_id]


async def test_ids_of_one_variant_that_are_not_unique_block_the_verdict(tmp_path):
    results = await results_of(tmp_path, happened(ids=("control", "counter")))
    assert {gap.blocker for gap in results.verdict.gaps} == {pb.VERDICT_BLOCKER_EVENTS_REJECTED}
    (message,) = messages(results, "EVENT_ID_REUSED")
    assert message == results.verdict.reason
    assert "units of tuned and 0 units of control" in message


async def test_ids_that_are_not_unique_in_all_variants_are_noted(tmp_path):
    results = await results_of(tmp_path, happened(ids=("a", "b")))
    assert not messages(results, "EVENT_ID_REUSED")
    assert "EVENT_ID_REUSED" in {each.reason for each in results.notices}


@pytest.mark.parametrize(("names", "count"), [(("score", "Score"), 1), (("score", "score"), 0)])
async def test_names_that_no_metric_reads_are_noted_and_compared(tmp_path, names, count):
    results = await results_of(tmp_path, happened(names=names))
    assert len(messages(results, "EVENT_NAMES_UNKNOWN")) == count
    (message,) = (
        each.message
        for each in results.notices
        if each.reason == "EVENT_NAMES_UNKNOWN" and not each.variant_id
    )
    assert "other" in message
    assert ("Score" in message) == (count == 1)
