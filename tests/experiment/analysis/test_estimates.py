from __future__ import annotations

import itertools
import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from experiment.figures import (
    EQUAL,
    NOW,
    cell,
    experiment,
    guardrail,
    lower,
    metric,
    normal,
    numbers,
    reported,
    snapshot,
    superior,
)
from neuroweaver.experiment.domain.model import CONCLUDED, CREATED, RUNNING
from neuroweaver.experiment.domain.snapshot import (
    Calibration,
    Cell,
    Group,
    Quality,
    Rejection,
    Snapshot,
    Uses,
)
from neuroweaver.mesh.wire.errors import OutOfRange
from neuroweaver.statistics.arm import Sample
from neuroweaver.statistics.moments import Moments
from neuroweaver.statistics.pairwise import Judgements
from neuroweaver.statistics.sketch import GROUPS, GroupedSketch
from neuroweaver.statistics.winsorization import Caps
from neuroweaver.v1 import experiment_pb2 as pb


def test_a_mean_is_compared_by_welchs_t() -> None:
    control, tuned = normal(50, 10, 1, 2), normal(80, 11, 2, 3)
    results = reported(
        experiment(), snapshot({"control": {"score": control}, "tuned": {"score": tuned}})
    ).results
    (effect,) = results.metrics[0].effects
    reference = stats.ttest_ind(tuned, control, equal_var=False)
    interval = reference.confidence_interval(0.95)
    assert effect.status == pb.ESTIMATE_STATUS_OK
    assert effect.absolute == pytest.approx(1.0)
    assert effect.relative == pytest.approx(0.1)
    assert effect.fixed_horizon.p_value == pytest.approx(reference.pvalue)
    assert effect.fixed_horizon.absolute.lower == pytest.approx(interval.low)
    assert effect.fixed_horizon.absolute.upper == pytest.approx(interval.high)
    # Looking at any time costs width.
    assert effect.always_valid.absolute.lower < effect.fixed_horizon.absolute.lower
    assert effect.always_valid.p_value > effect.fixed_horizon.p_value
    assert effect.detectable_effect > 0
    assert not effect.HasField("bayesian")
    assert not effect.HasField("variance_reduction")


def test_a_variants_own_mean_has_students_interval() -> None:
    values = normal(50, 10, 1, 2)
    found = snapshot({"control": {"score": values}, "tuned": {"score": values}})
    estimate = reported(experiment(), found).results.metrics[0].variants[0]
    assert (estimate.variant_id, estimate.units, estimate.events) == ("control", 50, 50)
    assert estimate.value == pytest.approx(10)
    assert estimate.std_dev == pytest.approx(2)
    assert estimate.std_error == pytest.approx(2 / math.sqrt(50))
    assert estimate.interval.upper - 10 == pytest.approx(stats.t.ppf(0.975, 49) * 2 / math.sqrt(50))


def test_phases_are_compared_within_themselves() -> None:
    """Simpson's paradox: in both phases the treatment is better by 1, pooled it looks worse."""
    phases = [{"control": 0.1, "tuned": 0.9}, {"control": 0.9, "tuned": 0.1}]
    found = snapshot(
        {"control": {"score": normal(100, 0, 1)}, "tuned": {"score": normal(900, 1, 2)}},
        {"control": {"score": normal(900, 10, 3)}, "tuned": {"score": normal(100, 11, 4)}},
    )
    made = experiment(phases=phases)
    whole = reported(made, found).results
    control, tuned = whole.metrics[0].variants
    assert tuned.value < control.value
    assert whole.metrics[0].effects[0].absolute == pytest.approx(1)
    second = reported(made, found, phase=2).results
    assert second.metrics[0].variants[0].value == pytest.approx(10)
    assert [each.units for each in second.variants] == [900, 100]
    assert {each.reason for each in whole.notices} == {"WEIGHTS_CHANGED"}


def test_a_phase_that_is_not_there_is_out_of_range() -> None:
    with pytest.raises(OutOfRange):
        reported(experiment(), Snapshot(), phase=2)


def test_p_values_are_adjusted_over_metrics_and_treatments() -> None:
    weights = {"control": 0.4, "a": 0.3, "b": 0.3}
    metrics = [metric("score"), metric("other")]
    shifts = itertools.count()
    found = snapshot(
        {
            variant: {each: normal(100, 0.05 * next(shifts), next(shifts)) for each in ("score", "other")}
            for variant in weights
        }
    )
    made = experiment(weights, metrics=metrics)
    views = [e.fixed_horizon for m in reported(made, found).results.metrics for e in m.effects]
    raw = [each.p_value for each in views]
    least = 0.0
    for rank, index in enumerate(sorted(range(4), key=raw.__getitem__)):
        least = max(least, min(1.0, raw[index] * (4 - rank)))
        assert views[index].adjusted_p_value == pytest.approx(least)
        assert views[index].is_significant == (least < 0.05)
    assert any(each.is_significant for each in views)
    assert not all(each.is_significant for each in views)

    unadjusted = experiment(weights, metrics=metrics, multiplicity_correction=pb.MULTIPLICITY_CORRECTION_NONE)
    views = [e.fixed_horizon for m in reported(unadjusted, found).results.metrics for e in m.effects]
    assert [each.adjusted_p_value for each in views] == raw


def test_a_covariate_takes_variance_out() -> None:
    rng = np.random.default_rng(5)
    cells = {}
    for variant, shift in (("control", 0.0), ("tuned", 0.2)):
        covariate = rng.normal(size=2000)
        outcome = 0.8 * covariate + 0.6 * rng.normal(size=2000) + shift
        sample = Sample(Moments.of(np.stack([outcome, covariate], axis=1)), Moments.zero(1))
        cells[1, variant, "score"] = Cell(sample, 2000)
    groups = {(1, variant): Group(2000) for variant in EQUAL}
    made = experiment(metrics=[metric(cuped=pb.Cuped(exposure_covariate="before"))])
    (effect,) = reported(made, Snapshot(groups, cells)).results.metrics[0].effects
    assert effect.variance_reduction == pytest.approx(0.64, abs=0.03)
    assert effect.absolute == pytest.approx(0.2, abs=0.06)


def test_an_asked_bayesian_view_is_given() -> None:
    found = snapshot({"control": {"score": normal(200, 10, 1)}, "tuned": {"score": normal(200, 10.1, 2)}})
    made = experiment(bayesian=pb.BayesianOptions())
    (effect,) = reported(made, found).results.metrics[0].effects
    error = math.sqrt(2 / 200)
    assert effect.bayesian.chance_to_beat_control == pytest.approx(stats.norm.cdf(0.1 / error))
    made = experiment(bayesian=pb.BayesianOptions(), metrics=[lower("score")])
    (effect,) = reported(made, found).results.metrics[0].effects
    assert effect.bayesian.chance_to_beat_control == pytest.approx(stats.norm.sf(0.1 / error))


def test_judgements_make_a_win_rate() -> None:
    made = experiment(metrics=[metric("judged", pairwise=pb.PairwiseMetric(event_name="judged"))])
    tallies = {
        (1, "control", "tuned", "judged"): Judgements(60, 20, 20, 5, 3),
        (1, "tuned", "control", "judged"): Judgements(5, 0, 10, 0, 0),
    }
    (result,) = reported(made, Snapshot(tallies=tallies)).results.metrics
    (effect,) = result.effects
    counts = effect.pairwise
    assert (counts.wins, counts.ties, counts.losses, counts.flips, counts.missing) == (70, 20, 25, 5, 3)
    assert counts.win_rate == pytest.approx(80 / 115)
    assert counts.interval.lower < counts.win_rate < counts.interval.upper
    assert counts.always_valid_interval.lower < counts.interval.lower
    assert effect.absolute == pytest.approx(80 / 115 - 0.5)
    # McNemar's test of 70 against 25.
    assert effect.fixed_horizon.p_value == pytest.approx(stats.chi2.sf(45**2 / 95, 1))
    assert not effect.HasField("relative")


def test_a_quantile_is_compared_by_its_sketch() -> None:
    rng = np.random.default_rng(7)
    groups, cells = {}, {}
    for variant, scale in (("control", 100.0), ("tuned", 150.0)):
        sketch = GroupedSketch()
        names = [zlib.crc32(f"{variant}{index}".encode()) % GROUPS for index in range(20_000)]
        values = rng.exponential(scale, 20_000)
        sketch.add(names, values)
        groups[1, variant] = Group(20_000)
        cells[1, variant, "p95"] = Cell(Sample(Moments.of(values)), 20_000, 0, sketch.to_bytes())
    made = experiment(metrics=[lower("p95", quantile=pb.QuantileMetric(event_name="ms", quantile=0.95))])
    (result,) = reported(made, Snapshot(groups, cells)).results.metrics
    assert result.variants[0].value == pytest.approx(100 * math.log(20), rel=0.1)
    assert result.variants[0].interval.lower < result.variants[0].value < result.variants[0].interval.upper
    assert 0 < result.rank_error < 0.02
    (effect,) = result.effects
    assert effect.fixed_horizon.is_significant
    assert effect.absolute == pytest.approx(50 * math.log(20), rel=0.3)


def test_the_split_is_tested_and_a_finding_stays() -> None:
    found = snapshot({v: {"score": normal(n, 0, n)} for v, n in (("control", 5000), ("tuned", 5600))})
    fired = reported(experiment(), found).results.sample_ratio
    assert fired.is_mismatch
    assert fired.fire_time.ToDatetime(NOW.tzinfo) == NOW
    even = snapshot({v: {"score": normal(5600, 0, 3)} for v in EQUAL})
    assert not reported(experiment(), even).results.sample_ratio.is_mismatch
    later = reported(experiment(), even, previous=fired, now=NOW.replace(year=2027)).results
    assert later.sample_ratio.is_mismatch
    assert later.sample_ratio.fire_time == fired.fire_time
    assert later.verdict.decision == pb.DECISION_INCONCLUSIVE


def test_the_shares_follow_the_weights_of_each_phase() -> None:
    phases = [{"control": 0.5, "tuned": 0.5}, {"control": 0.9, "tuned": 0.1}]
    found = snapshot(
        {"control": {"score": normal(50, 0, 1)}, "tuned": {"score": normal(50, 0, 2)}},
        {"control": {"score": normal(270, 0, 3)}, "tuned": {"score": normal(30, 0, 4)}},
    )
    control, tuned = reported(experiment(phases=phases), found).results.variants
    assert (control.expected_share, tuned.expected_share) == pytest.approx((0.8, 0.2))
    assert (control.observed_share, tuned.observed_share) == pytest.approx((0.8, 0.2))


def test_what_came_in_is_told() -> None:
    quality = Quality(accepted=100, duplicates=3, late=5, unexposed=2, last_event_time=NOW)
    groups = {(1, "control"): Group(80, 8, 4), (1, "tuned"): Group(20, 0, 0)}
    results = reported(experiment(), Snapshot(groups=groups, quality=quality)).results
    assert (results.events.accepted, results.events.duplicates, results.events.unexposed) == (100, 3, 2)
    assert results.events.mismatch_share == pytest.approx(0.08)
    assert results.variants[0].mismatch_share == pytest.approx(0.1)
    reasons = {(each.reason, each.variant_id) for each in results.notices}
    assert ("SERVED_MISMATCH", "control") in reasons
    assert ("MULTIPLE_EXPOSURE", "control") in reasons
    assert ("LATE_EVENTS", "") in reasons


def test_event_ids_that_units_share_are_noted_with_one_of_them() -> None:
    rejected = Rejection(pb.EVENT_REJECTION_ID_OF_ANOTHER_UNIT, 7, event_ids=("order-1", "order-2"))
    found = Snapshot(
        groups={(1, "control"): Group(80)}, quality=Quality(accepted=100_000, rejected=(rejected,))
    )
    notice = next(n for n in reported(experiment(), found).results.notices if n.reason == "EVENT_ID_REUSED")
    assert notice.message.startswith("7 events were not used")
    assert "order-1" in notice.message


def sums_of(n: int, *sums: float) -> Moments:
    """Of columns with these sums."""
    size = len(sums) + len(sums) * (len(sums) + 1) // 2
    return Moments(n, len(sums), (*map(float, sums), *[0.0] * (size - len(sums))), (0.0,) * size)


def capped_results(
    calibration: Calibration | None,
    cuts: tuple[float, ...] | None = (0, 0, 0),
    caps: pb.Winsorization | None = None,
    state: pb.ExperimentState.ValueType = RUNNING,
    **fields,
):
    """cuts: of a thousand units of each variant, how many are cut, by how much, and the total."""
    caps = caps or pb.Winsorization(upper_quantile=0.99)
    made = experiment(metrics=[metric(winsorization=caps, **fields)], state=state)
    values = normal(1000, 10, 1)
    if "ratio" in fields:
        values = np.stack((values, values), 1)
    found = snapshot({v: {"score": values} for v in EQUAL})
    known = None if cuts is None else sums_of(1000, *cuts)
    cells = {key: replace(each, cuts=known) for key, each in found.cells.items()}
    calibrations = {"score": calibration} if calibration else {}
    return reported(made, Snapshot(found.groups, cells, calibrations=calibrations)).results


@pytest.mark.parametrize(
    ("calibration", "cuts", "reason", "words"),
    [
        (None, (0, 0, 1e4), "WINSORIZATION_CALIBRATING", "once 1,000 units have a value"),
        (Calibration(None, None, 990), (0, 0, 1e4), "WINSORIZATION_CALIBRATING", "990 at the last look"),
        (Calibration(None, None, 2000), (0, 0, 1e4), "WINSORIZATION_NOT_IN_FORCE", "No cap of score is in"),
        (None, None, "WINSORIZATION_OF_EARLIER_VERSION", "counted anew"),
        (
            Calibration(None, 30.0, 2000),
            (10, 100, 1e4),
            "WINSORIZED",
            "capped above 30: 1.00% of the units are cut, and 1.0% of the total.",
        ),
        (
            Calibration(None, 1.0, 2000),
            (990, 9e3, 1e4),
            "WINSORIZED",
            "99.00% of the units are cut, and 90.0%",
        ),
    ],
)
def test_a_notice_says_what_caps_cut_or_that_there_are_none(calibration, cuts, reason, words) -> None:
    results = capped_results(calibration, cuts)
    (notice,) = (each for each in results.notices if each.reason.startswith("WINSORI"))
    assert (notice.reason, notice.metric_id) == (reason, "score")
    assert words in notice.message
    assert ("That is much" in notice.message) == (cuts is not None and cuts[0] > 100)
    has_cap = calibration is not None and calibration.upper is not None
    assert results.metrics[0].HasField("winsorization_upper") == has_cap
    assert results.metrics[0].HasField("winsorized_unit_share") == (cuts is not None)


def caps_notice(*given, **fields) -> str:
    notices = capped_results(*given, **fields).notices
    return next(each.message for each in notices if each.reason.startswith("WINSORI"))


def test_a_notice_says_how_far_caps_may_lag() -> None:
    lag = "again once the metric's units and events have grown by 25%, and every hour once by 5%."
    assert lag in caps_notice(Calibration(None, 30.0, 2000))
    assert lag in caps_notice(Calibration(None, None, 2000))
    assert lag not in caps_notice(None, caps=pb.Winsorization(upper_value=30.0))
    assert lag not in caps_notice(Calibration(None, 30.0, 2000), state=CONCLUDED)


def test_a_notice_of_an_earlier_versions_caps_says_what_changes_them() -> None:
    assert "within the hour" in caps_notice(None, None)
    assert "A decided experiment stays so; RecomputeResults" in caps_notice(None, None, state=CONCLUDED)


RATE = pb.RatioMetric(
    numerator=pb.EventSource(event_name="score"), denominator=pb.EventSource(event_name="n")
)


def test_a_notice_speaks_of_both_parts_of_a_ratio() -> None:
    caps = pb.Winsorization(lower_quantile=0.01, upper_quantile=0.99, calibration_units=1000)
    calibration, cuts = Calibration(2.0, 30.0, 2000, Caps(None, 7.0)), (30, 100, 1e3, 20, 1e3)
    results = capped_results(calibration, cuts, caps, ratio=RATE)
    shown = results.metrics[0]
    assert (shown.winsorization_lower, shown.winsorization_upper) == (2.0, 30.0)
    assert shown.winsorization_denominator_upper == 7.0
    assert not shown.HasField("winsorization_denominator_lower")
    assert (shown.winsorized_unit_share, shown.winsorized_total_share) == (0.03, 0.1)
    message = caps_notice(calibration, cuts, caps, ratio=RATE)
    assert message.startswith(
        "score is capped in its numerator below 2 and above 30 and in its denominator above 7: 3.00% of the units are cut,"
        " and 10.0% of the numerator total and 2.0% of the denominator total. No lower denominator cap is in"
        " force: too many units share the value at that quantile, or most"
    )
    waiting = caps_notice(Calibration(None, None, 990), cuts, caps, ratio=RATE)
    assert waiting.startswith(
        "The caps of score are set once 1,000 units have an event of either part (990 at"
    )


def test_a_metric_of_the_rule_has_no_verdict_before_its_caps() -> None:
    verdict = capped_results(Calibration(None, None, 990)).verdict
    assert verdict.gaps[0].blocker == pb.VERDICT_BLOCKER_WINSORIZATION
    assert verdict.reason == verdict.gaps[0].message
    assert verdict.gaps[0].metric_id == "score"
    settled = capped_results(Calibration(None, None, 2000)).verdict
    assert pb.VERDICT_BLOCKER_WINSORIZATION not in {gap.blocker for gap in settled.gaps}


def lagging(control: Uses, tuned: Uses, **fields):
    values = {"control": {"score": normal(2000, 10, 1)}, "tuned": {"score": normal(2000, 8, 2)}}
    uses = {(1, "control", "score"): control, (1, "tuned", "score"): tuned}
    return reported(experiment(**fields), replace(snapshot(values), uses=uses)).results


def test_a_lagging_variant_blocks_the_verdict() -> None:
    assert lagging(Uses(4000), Uses(4000)).verdict.decision == pb.DECISION_KEEP
    results = lagging(Uses(4000, 10, 12), Uses(4000, 800, 1000))
    (gap,) = (each for each in results.verdict.gaps if each.variant_id == "tuned")
    assert results.verdict.decision == pb.DECISION_INCONCLUSIVE
    assert gap.blocker == pb.VERDICT_BLOCKER_EVENTS_BEFORE_EXPOSURE
    assert (
        "40.00% of the units of tuned have score events from before their exposure, and 0.50%" in gap.message
    )
    assert "1,000 of the 4,000 of tuned" in gap.message
    assert "exposure_grace" in gap.message
    assert gap.message in {each.message for each in results.notices}
    assert [(each.reason, each.variant_id, each.count, each.share) for each in results.events.unused] == [
        (pb.UNUSED_REASON_BEFORE_EXPOSURE, "control", 12, 0.003),
        (pb.UNUSED_REASON_BEFORE_EXPOSURE, "tuned", 1000, 0.25),
    ]


def test_a_lagging_variant_whose_events_a_covariate_reads_blocks_the_verdict_too() -> None:
    results = lagging(Uses(4000, 900), Uses(4000, 1400))
    assert results.verdict.gaps[0].blocker == pb.VERDICT_BLOCKER_EVENTS_BEFORE_EXPOSURE


def test_events_from_before_the_exposure_that_all_variants_have_alike_are_noted() -> None:
    results = lagging(Uses(4000, 600, 800), Uses(4000, 610, 810))
    assert results.verdict.decision == pb.DECISION_KEEP
    (notice,) = (each for each in results.notices if each.reason == "EVENTS_BEFORE_EXPOSURE")
    assert "20.1% of the score events" in notice.message
    few = lagging(Uses(4000, 10, 12), Uses(4000, 12, 14))
    assert not [each for each in few.notices if each.reason == "EVENTS_BEFORE_EXPOSURE"]


def test_a_metric_that_most_of_its_events_are_left_out_of_has_no_verdict() -> None:
    results = lagging(Uses(4000, 1900, 2100), Uses(4000, 1900, 2100))
    (gap,) = results.verdict.gaps
    assert gap.blocker == pb.VERDICT_BLOCKER_EVENTS_BEFORE_EXPOSURE
    assert "52.5% of the score events" in gap.message
    other = metric("other", mean=pb.MeanMetric(source=pb.EventSource(event_name="else")))
    results = lagging(Uses(4000, 1900, 2100), Uses(4000, 1900, 2100), metrics=[other, metric()])
    assert pb.VERDICT_BLOCKER_EVENTS_BEFORE_EXPOSURE not in {gap.blocker for gap in results.verdict.gaps}


def test_units_without_a_covariate_are_noted() -> None:
    made = experiment(metrics=[metric(cuped=pb.Cuped(exposure_covariate="age"))])

    def reasons(missing: int) -> dict[str, str]:
        rows = np.stack((normal(1000, 10, 1), normal(1000, 40, 2)), 1)
        of_each = Cell(Sample(Moments.of(rows[missing:]), Moments.of(rows[:missing, :1])), 1000)
        found = Snapshot(
            {(1, each): Group(1000) for each in EQUAL}, {(1, each, "score"): of_each for each in EQUAL}
        )
        return {each.reason: each.message for each in reported(made, found).results.notices}

    assert "COVARIATES_MISSING" not in reasons(5)
    message = reasons(300)["COVARIATES_MISSING"]
    assert "600 of the 2,000 units" in message
    assert "Send `age` with the first exposure" in message


def test_judgements_of_two_treatments_and_events_of_overrides_are_noted() -> None:
    weights = {"control": 0.4, "tuned": 0.3, "other": 0.3}
    made = experiment(
        weights, metrics=[metric(), metric("better", pairwise=pb.PairwiseMetric(event_name="x"))]
    )
    quality = Quality(accepted=100, overridden=5)
    results = reported(made, Snapshot(between={1: 7}, quality=quality)).results
    assert [(each.reason, each.count) for each in results.events.unused] == [
        (pb.UNUSED_REASON_OVERRIDE, 5),
        (pb.UNUSED_REASON_WITHOUT_CONTROL, 7),
    ]
    texts = [each.message for each in results.notices if each.reason == "EVENTS_NOT_USED"]
    assert len(texts) == 2
    assert "judge each treatment against the control" in texts[1]


def test_units_that_are_left_out_are_noted() -> None:
    values = normal(100, 0, 1)
    found = snapshot({v: {"score": values} for v in EQUAL}, units={"control": 100, "tuned": 150})
    results = reported(experiment(), found).results
    reasons = {(each.reason, each.metric_id, each.variant_id) for each in results.notices}
    assert ("UNITS_WITHOUT_EVENTS", "score", "tuned") in reasons
    assert ("UNITS_WITHOUT_EVENTS", "score", "control") not in reasons


def test_an_effect_that_fades_from_phase_to_phase_is_suspected_of_novelty() -> None:
    phases = [{"control": 0.5, "tuned": 0.5}, {"control": 0.4, "tuned": 0.6}]

    def reasons(later: float) -> set[str]:
        found = snapshot(
            {"control": {"score": normal(4000, 10, 1)}, "tuned": {"score": normal(4000, 11, 2)}},
            {"control": {"score": normal(4000, 10, 3)}, "tuned": {"score": normal(6000, later, 4)}},
        )
        return {each.reason for each in reported(experiment(phases=phases), found).results.notices}

    assert "NOVELTY_SUSPECTED" in reasons(10.1)
    assert "NOVELTY_SUSPECTED" not in reasons(10.95)


def test_without_any_event_nothing_is_estimated() -> None:
    cells = {(1, variant, "score"): cell(np.zeros(50), events=0) for variant in EQUAL}
    groups = {(1, variant): Group(50) for variant in EQUAL}
    (result,) = reported(experiment(), Snapshot(groups, cells)).results.metrics
    assert {each.status for each in result.variants} == {pb.ESTIMATE_STATUS_NOT_ENOUGH_DATA}
    assert not result.effects[0].HasField("absolute")


def test_values_that_are_all_equal_have_a_mean_and_no_interval() -> None:
    (result,) = reported(
        experiment(), snapshot({v: {"score": np.full(9, 5.0)} for v in EQUAL})
    ).results.metrics
    assert result.variants[0].status == pb.ESTIMATE_STATUS_CONSTANT
    assert result.variants[0].value == 5.0
    assert not result.variants[0].HasField("interval")
    assert result.effects[0].status == pb.ESTIMATE_STATUS_CONSTANT
    assert result.effects[0].absolute == 0.0


def test_a_control_around_zero_leaves_the_relative_effect_unset() -> None:
    found = snapshot({"control": {"score": normal(50, 0.01, 1)}, "tuned": {"score": normal(50, 1, 2)}})
    (effect,) = reported(experiment(), found).results.metrics[0].effects
    assert effect.status == pb.ESTIMATE_STATUS_ZERO_BASELINE
    assert effect.HasField("absolute")
    assert not effect.HasField("relative")


_DEGENERATE = {
    "none": np.array([]),
    "one": np.array([3.0]),
    "two": np.array([0.0, 1.0]),
    "zeros": np.zeros(200),
    "ones": np.ones(200),
    "constant": np.full(200, 7.5),
    "single spike": np.eye(1, 200)[0],
    "huge": np.array([1e30, -1e30, 5e29] * 50),
    "tiny": np.array([1e-29, 3e-29] * 50),
    "around zero": np.array([-1.0, 1.0] * 100),
}


@pytest.mark.parametrize("left", _DEGENERATE)
@pytest.mark.parametrize("right", _DEGENERATE)
@pytest.mark.parametrize("method", [pb.INFERENCE_METHOD_ALWAYS_VALID, pb.INFERENCE_METHOD_FIXED_HORIZON])
@pytest.mark.filterwarnings("error")
def test_no_number_is_ever_infinite_or_none(
    left: str, right: str, method: pb.InferenceMethod.ValueType
) -> None:
    metrics = [
        metric("score"),
        metric("rate", proportion=pb.ProportionMetric(event_name="rate")),
        lower("count", count=pb.CountMetric(event_name="count")),
        metric("share", ratio=pb.RatioMetric()),
        metric("p99", quantile=pb.QuantileMetric(event_name="ms", quantile=0.99)),
        metric("judged", pairwise=pb.PairwiseMetric(event_name="judged")),
    ]
    made = experiment(
        {"control": 0.5, "tuned": 0.5, "off": 0.0},
        metrics=metrics,
        min_units_per_variant=2,
        verdict_method=method,
        bayesian=pb.BayesianOptions(prior_std_dev=0.1),
        guardrails=[guardrail(each.metric_id, relative=0.01) for each in metrics],
        decision_rule=pb.DecisionRule(any_of=[superior(each.metric_id, relative=0.1) for each in metrics]),
    )
    cells, groups, tallies = {}, {}, {}
    for variant, values in (("control", _DEGENERATE[left]), ("tuned", _DEGENERATE[right])):
        sketch = GroupedSketch()
        sketch.add(np.arange(len(values)) % 64, values)
        cells[1, variant, "score"] = cells[1, variant, "count"] = cell(values)
        cells[1, variant, "rate"] = cell((values > 0).astype(float))
        cells[1, variant, "share"] = cell(np.stack([values, values[::-1]], axis=1))
        cells[1, variant, "p99"] = Cell(cell(values).sample, len(values), 0, sketch.to_bytes())
        groups[1, variant] = Group(len(values))
        tallies[1, "control", "tuned", "judged"] = Judgements(wins=len(values))
    results = reported(made, Snapshot(groups, cells, tallies)).results
    found = numbers(results)
    assert found
    assert all(math.isfinite(each) for each in found)


def test_an_experiment_that_never_ran_has_results_too() -> None:
    results = reported(experiment(state=CREATED), Snapshot()).results
    assert all(math.isfinite(each) for each in numbers(results))
    assert results.sample_ratio.p_value == 1
    assert results.verdict.decision == pb.DECISION_INCONCLUSIVE
