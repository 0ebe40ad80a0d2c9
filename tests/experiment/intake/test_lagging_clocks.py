"""Samples stamped by clocks that lag behind those of the exposures, in one variant or in all."""

from __future__ import annotations

import numpy as np
import pytest

from experiment.ingesting import PROJECT, exposure, intake, sample
from experiment.serving import metric, spec
from neuroweaver.experiment.analysis import automation
from neuroweaver.experiment.analysis.guardrails import breached
from neuroweaver.experiment.analysis.report import report
from neuroweaver.experiment.domain.specification import Duration
from neuroweaver.experiment.results.cache import ResultsCache
from neuroweaver.v1 import experiment_pb2 as pb

UNITS = 600
SECOND = 1 / 3600


def happened(lags, seed=1):
    """Each unit buys at once, and some minutes or days later. lags: of each variant, hours."""
    drawn = np.random.default_rng(seed)
    events = []
    for unit in range(UNITS):
        variant = ["control", "tuned"][unit % 2]
        shown = drawn.uniform(40, 80)
        events.append(exposure(f"e{unit}", f"u{unit}", variant, shown))
        for number, after in enumerate((SECOND, drawn.exponential(5 / 60), drawn.uniform(0, 48))):
            at_hour = shown + after - lags[variant]
            events.append(sample(f"s{unit}-{number}", f"u{unit}", drawn.normal(10, 2), at_hour))
    return [events[place] for place in drawn.permutation(len(events))]


async def results_of(tmp_path, lags, **fields):
    return (await report_of(tmp_path, lags, **fields)).results


async def report_of(tmp_path, lags, guardrails=(), **fields):
    made = spec(
        metrics=[metric(**fields)],
        guardrails=guardrails,
        min_units_per_variant=100,
        exposure_grace=Duration(seconds=10),
    )
    async with intake(f"sqlite:///{tmp_path}/lag.db", made) as events:
        told = happened(lags)
        for start in range(0, len(told), 1000):
            await events.take(*told[start : start + 1000])
        assert not (await events.recomputed()).differences
        return report(await events.experiment(), await events.snapshot(), now=events.now)


def lost(results):
    return sum(each.count for each in results.events.unused)


def blockers(results):
    return {gap.blocker for gap in results.verdict.gaps}


@pytest.mark.parametrize("lag", [0.0, 2 * SECOND])
async def test_a_lag_of_seconds_loses_nothing(tmp_path, lag):
    results = await results_of(tmp_path, {"control": 0.0, "tuned": lag})
    assert lost(results) == 0
    assert [estimate.events for estimate in results.metrics[0].variants] == [900, 900]
    assert pb.VERDICT_BLOCKER_EVENTS_BEFORE_EXPOSURE not in blockers(results)


@pytest.mark.parametrize("lag", [5 / 60, 24.0])
@pytest.mark.parametrize("is_covariate", [False, True])
async def test_a_longer_lag_of_one_variant_blocks_the_verdict(tmp_path, lag, is_covariate):
    fields = {"cuped": pb.Cuped(lookback=Duration(seconds=3600))} if is_covariate else {}
    results = await results_of(tmp_path, {"control": 0.0, "tuned": lag}, **fields)
    assert results.verdict.decision == pb.DECISION_INCONCLUSIVE
    assert pb.VERDICT_BLOCKER_EVENTS_BEFORE_EXPOSURE in blockers(results)
    assert "EVENTS_BEFORE_EXPOSURE" in {notice.reason for notice in results.notices}
    used = sum(estimate.events for estimate in results.metrics[0].variants)
    if not is_covariate:
        assert lost(results) == 3 * UNITS - used > 0


async def test_a_lag_of_all_variants_is_noted(tmp_path):
    results = await results_of(tmp_path, {"control": 1 / 60, "tuned": 1 / 60})
    assert 0 < lost(results) < 3 * UNITS / 2
    assert "EVENTS_BEFORE_EXPOSURE" in {notice.reason for notice in results.notices}
    assert pb.VERDICT_BLOCKER_EVENTS_BEFORE_EXPOSURE not in blockers(results)


async def test_a_lag_that_takes_most_events_blocks_the_verdict(tmp_path):
    results = await results_of(tmp_path, {"control": 24.0, "tuned": 24.0})
    assert lost(results) > 3 * UNITS / 2
    assert pb.VERDICT_BLOCKER_EVENTS_BEFORE_EXPOSURE in blockers(results)


async def test_a_lag_of_one_variant_breaches_no_guardrail(tmp_path):
    """Sums of half the events look like harm: no reason to stop."""
    source = pb.EventSource(event_name="score", aggregation=pb.UNIT_AGGREGATION_SUM)
    rail = pb.Guardrail(metric_id="score", margin=pb.EffectSize(relative=0.01))
    found = await report_of(
        tmp_path, {"control": 0.0, "tuned": 24.0}, guardrails=[rail], mean=pb.MeanMetric(source=source)
    )
    assert pb.VERDICT_BLOCKER_EVENTS_BEFORE_EXPOSURE in blockers(found.results)
    assert breached(found.study)
    assert not found.breaches


async def test_what_an_earlier_version_counted_is_counted_anew_before_anything_follows_from_it(tmp_path):
    """It knew no times of events: the lag of one variant looked like a harm that stops the experiment."""
    rail = pb.Guardrail(metric_id="score", margin=pb.EffectSize(relative=0.01))
    made = spec(
        guardrails=[rail],
        min_units_per_variant=100,
        exposure_grace=Duration(seconds=10),
        thompson=pb.ThompsonAllocation(min_weight=0.1),
    )
    async with intake(f"sqlite:///{tmp_path}/lag.db", made) as events:
        told = happened({"control": 0.0, "tuned": 5 / 60})
        for start in range(0, len(told), 1000):
            await events.take(*told[start : start + 1000])
        await events.make_carried()
        carried = report(await events.experiment(), await events.snapshot(), now=events.now)
        assert breached(carried.study)
        assert not carried.breaches
        assert carried.is_held
        assert automation.following(carried.study) is None
        assert blockers(carried.results) == {pb.VERDICT_BLOCKER_RECOUNT}
        found = await ResultsCache(events.store, events.projections).report(PROJECT, "t")
        assert not found.study.snapshot.outdated
        assert not found.breaches
        assert blockers(found.results) == {pb.VERDICT_BLOCKER_EVENTS_BEFORE_EXPOSURE}


async def test_a_replacement_counts_anew_what_an_earlier_version_counted(tmp_path):
    async with intake(f"sqlite:///{tmp_path}/one.db") as events:
        await events.take(exposure("e", "u", "control"))
        await events.make_carried()
        assert not (await events.recomputed()).is_replaced
        assert (await events.recomputed(replace_stored=True)).is_replaced
        assert not (await events.snapshot()).outdated
