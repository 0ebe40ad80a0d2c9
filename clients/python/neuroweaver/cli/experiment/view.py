"""Experiments and their results as tables of at most 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from neuroweaver.cli.terminal.names import spoken, styled, word
from neuroweaver.cli.terminal.output import facts, stacked, table, when
from neuroweaver.client.text import number, plain
from neuroweaver.v1 import experiment_pb2 as pb
from neuroweaver.v1.common_pb2 import Interval

BAR_WIDTH: Final = 22
_DECISIONS: Final = {"SHIP": "bold green", "KEEP": "bold red", "INCONCLUSIVE": "bold yellow"}


def experiment(shown: pb.Experiment) -> RenderableType:
    return stacked(summary(shown), allocations(shown), _phases(shown) if shown.phases else None)


def summary(shown: pb.Experiment) -> Table:
    return facts(_facts(shown))


def _facts(experiment: pb.Experiment) -> Iterator[tuple[str, str | Text]]:
    spec = experiment.spec
    yield "experiment", experiment.test_id
    yield "title", spec.title
    yield "hypothesis", spec.hypothesis
    yield "state", styled(experiment, "state")
    yield "reason", experiment.state_reason
    yield "unit", spec.unit
    yield "target", spec.target_metric_id
    yield "guardrails", ", ".join(guardrail.metric_id for guardrail in spec.guardrails)
    yield "coverage", f"{experiment.coverage:.1%}"
    yield "layer", f"{spec.layer.layer_id}, {spec.layer.share:.1%}" if spec.HasField("layer") else ""
    yield "created", f"{when(experiment.create_time)} by {experiment.created_by}"
    yield "started", when(experiment.start_time)
    yield "stopped", when(experiment.stop_time)
    if experiment.HasField("conclusion"):
        yield from _conclusion(experiment.conclusion)
    for notice in experiment.notices:
        yield "notice", notice.message


def _conclusion(conclusion: pb.ExperimentConclusion) -> Iterator[tuple[str, str | Text]]:
    forced = ", forced" if conclusion.is_forced else ""
    yield "winner", Text(plain(conclusion.winner_variant_id), "green")
    yield "decided", f"{when(conclusion.time)} by {conclusion.concluded_by}{forced}"
    yield "because", conclusion.reason
    yield "release", spoken(conclusion, "state")
    if conclusion.version:
        before = conclusion.previous_version or "nowhere"
        yield "alias", f"{conclusion.alias} of {conclusion.model_id}: {before} → {conclusion.version}"
    yield "error", Text(plain(conclusion.last_error), "red") if conclusion.last_error else ""


def allocations(experiment: pb.Experiment) -> Table:
    """What each variant serves, and its weight now."""
    now = experiment.phases[-1].allocations if experiment.phases else ()
    weights = {allocation.variant_id: allocation.weight for allocation in now}
    control = experiment.spec.control_variant_id
    rows = (
        (
            _name(f"{variant.variant_id}{' (control)' if variant.variant_id == control else ''}"),
            f"{weights.get(variant.variant_id, variant.weight):.1%}",
            served(variant.target),
            ", ".join(f"{name}={variant.parameters[name]}" for name in variant.parameters),
        )
        for variant in experiment.spec.variants
    )
    return table(("VARIANT", "WEIGHT", "MODEL", "PARAMETERS"), rows)


def served(target: pb.VariantTarget) -> str:
    return f"{target.model_id}@{target.version or target.alias}" if target.model_id else ""


def _phases(experiment: pb.Experiment) -> Table:
    rows = (
        (
            str(phase.number),
            when(phase.start_time),
            ", ".join(f"{allocation.variant_id} {allocation.weight:.1%}" for allocation in phase.allocations),
            f"{phase.moved_share:.1%}",
            phase.reason,
        )
        for phase in experiment.phases
    )
    return table(("PHASE", "SINCE", "WEIGHTS", "MOVED", "REASON"), rows)


def verdict(results: pb.ExperimentResults) -> Text:
    """What to do, what is still missing, and when that can be expected."""
    conclusion = results.verdict
    decision = word(conclusion, "decision") if conclusion.decision else "NO VERDICT"
    style = _DECISIONS.get(decision, "dim")
    text = Text.assemble(
        (plain(f"{decision} {conclusion.variant_id}").strip(), style), "  ", plain(conclusion.reason)
    )
    for gap in conclusion.gaps:
        missing = f" ({gap.missing_units:,} units to come)" if gap.HasField("missing_units") else ""
        text.append(f"\n  waits for: {plain(gap.message)}{missing}", "yellow")
    if conclusion.HasField("forecast"):
        forecast = conclusion.forecast
        text.append(
            f"\n  expected in {number(forecast.days)} days, after {forecast.units:,} more units; "
            f"{plain(forecast.basis)}",
            "dim",
        )
    return text


def _variants(results: pb.ExperimentResults) -> Table:
    rows = (
        (
            _name(variant.variant_id),
            f"{variant.units:,}",
            f"{variant.observed_share:.1%}" if variant.HasField("observed_share") else "-",
            f"{variant.expected_share:.1%}",
            f"{variant.mismatched_units:,}",
        )
        for variant in results.variants
    )
    return table(("VARIANT", "UNITS", "SHARE", "EXPECTED", "SERVED ANOTHER"), rows, right=(1, 2, 3, 4))


def board(results: pb.ExperimentResults, spec: pb.ExperimentSpec) -> RenderableType:
    """What `watch` shows: the verdict, and for every metric its effects with their always-valid intervals."""
    units = "  ".join(f"{variant.variant_id} {variant.units:,}" for variant in results.variants)
    head = _head(results).append(f"\nunits: {plain(units)}")
    # The verdict on top: a terminal too low for all metrics cuts off the end.
    parts: list[RenderableType] = [head, verdict(results), *_warnings(results), Text()]
    for metric in results.metrics:
        parts += [_heading(metric, spec), _bars(metric, spec)]
    return Group(*parts)


def _bars(metric: pb.MetricResult, spec: pb.ExperimentSpec) -> Table:
    effects = {effect.variant_id: effect for effect in metric.effects}
    spans = [interval for effect in metric.effects if (interval := shown(effect)[1])]

    def row(variant: pb.VariantEstimate) -> Sequence[str | Text]:
        cells = _name(f"  {variant.variant_id}"), _value(variant)
        effect = effects.get(variant.variant_id)
        if effect is None:
            return cells
        (point, interval, unit), style = shown(effect), _style(effect, metric, spec)
        line = Text(bar(point, interval, spans), style)
        return *cells, Text(signed(point, unit), style), _between(interval, unit), line

    columns = ("  VARIANT", "VALUE", "EFFECT", "ALWAYS-VALID", "")
    return table(columns, map(row, metric.variants), right=(1, 2))


def tables(results: pb.ExperimentResults, spec: pb.ExperimentSpec) -> RenderableType:
    """What `results` shows: with both methods' intervals and p-values."""
    parts: list[RenderableType] = [_head(results), verdict(results), Text(), _variants(results)]
    for metric in results.metrics:
        parts += [Text(), _heading(metric, spec), _values(metric), _effects(metric, spec)]
    return Group(*parts, *_warnings(results))


def _head(results: pb.ExperimentResults) -> Text:
    phase = f"  phase {results.phase}" if results.phase else ""
    time = (f"  {when(results.as_of)}{phase}", "dim")
    return Text.assemble((plain(results.test_id), "bold"), " ", styled(results, "state"), time)


def _values(metric: pb.MetricResult) -> Table:
    rows = (
        (
            _name(f"  {variant.variant_id}"),
            f"{variant.units:,}",
            _value(variant),
            f"{_figure(variant.interval.lower)} … {_figure(variant.interval.upper)}"
            if variant.HasField("interval")
            else "",
            _figure(variant.std_dev) if variant.HasField("std_dev") else "",
        )
        for variant in metric.variants
    )
    return table(("  VARIANT", "UNITS", "VALUE", "INTERVAL", "STD DEV"), rows, right=(1, 2, 4))


def _effects(metric: pb.MetricResult, spec: pb.ExperimentSpec) -> Table:
    rows = (row for effect in metric.effects for row in _effect(effect, _style(effect, metric, spec)))
    columns = ("  EFFECT OF", "", "METHOD", "INTERVAL", "P", "ADJUSTED")
    return table(columns, rows, right=(1, 4, 5))


def _effect(effect: pb.EffectEstimate, style: str) -> Iterator[Sequence[str | Text]]:
    """A row for each method, and one for each remark."""
    point, _, unit = shown(effect)
    name, value = _name(f"  {effect.variant_id}"), Text(signed(point, unit), style)
    for method, inference in (("always valid", effect.always_valid), ("fixed horizon", effect.fixed_horizon)):
        interval = _interval(inference, is_relative=unit == "%")
        adjusted = _p(inference.adjusted_p_value) if inference.HasField("adjusted_p_value") else "-"
        p_value = _p(inference.p_value) if inference.HasField("p_value") else "-"
        mark = " *" if inference.is_significant else "  "
        yield name, value, method, _between(interval, unit), p_value, adjusted + mark
        name, value = Text(), Text()
    for remark in _remarks(effect):
        yield "", "", Text(remark, "dim")


def _remarks(effect: pb.EffectEstimate) -> Iterable[str]:
    if effect.status != pb.ESTIMATE_STATUS_OK:
        yield spoken(effect, "status")
    if effect.HasField("bayesian"):
        yield f"{effect.bayesian.chance_to_beat_control:.1%} chance to beat control"
    if effect.HasField("variance_reduction"):
        yield f"CUPED removed {effect.variance_reduction:.1%} of the variance"
    if effect.HasField("pairwise"):
        counts = effect.pairwise
        yield f"{counts.wins:,} won, {counts.ties:,} tied, {counts.losses:,} lost"


def _warnings(results: pb.ExperimentResults) -> Iterable[Text]:
    ratio = results.sample_ratio
    if ratio.is_mismatch:
        yield Text(f"The split differs from the weights (p = {_p(ratio.p_value)}).", "bold red")
    rejected = sum(rejection.count for rejection in results.events.rejected)
    unexposed, unused = results.events.unexposed, sum(each.count for each in results.events.unused)
    if rejected or unexposed or unused:
        yield Text(
            f"{rejected:,} events rejected, {unexposed:,} without exposure, {unused:,} in no metric", "yellow"
        )
    for notice in results.notices:
        yield Text(f"{notice.reason}: {plain(notice.message)}", "yellow")


def shown(effect: pb.EffectEstimate) -> tuple[float | None, Interval | None, str]:
    """The effect, its always-valid interval and `%` where both are relative; else absolute and no unit."""
    if effect.HasField("relative") and effect.always_valid.HasField("relative"):
        return effect.relative, effect.always_valid.relative, "%"
    point = effect.absolute if effect.HasField("absolute") else None
    return point, _interval(effect.always_valid, is_relative=False), ""


def bar(point: float | None, interval: Interval | None, spans: Sequence[Interval]) -> str:
    """`╶──●──╴` on the scale of all `spans`, with `│` at zero."""
    if interval is None or point is None:
        return ""
    low, high = min(0.0, *(span.lower for span in spans)), max(0.0, *(span.upper for span in spans))
    scale = (BAR_WIDTH - 1) / (high - low or 1.0)

    def column(value: float) -> int:
        return min(BAR_WIDTH - 1, max(0, round((value - low) * scale)))

    cells = [" "] * BAR_WIDTH
    for place in range(column(interval.lower), column(interval.upper) + 1):
        cells[place] = "─"
    cells[column(0.0)] = "┼" if cells[column(0.0)] == "─" else "│"
    cells[column(point)] = "●"
    return "".join(cells)


def signed(value: float | None, unit: str) -> str:
    """+5.2 %, -0.31; `-` for none."""
    if value is None:
        return "-"
    return f"{value * 100:+.3g}%" if unit else f"{value:+.3g}"


def _defined(metric: pb.MetricResult, spec: pb.ExperimentSpec) -> pb.ExperimentMetric:
    """As the spec has it; one without any field if the spec does not."""
    same = (defined for defined in spec.metrics if defined.metric_id == metric.metric_id)
    return next(same, pb.ExperimentMetric())


def _heading(metric: pb.MetricResult, spec: pb.ExperimentSpec) -> Text:
    defined = _defined(metric, spec)
    role = "target, " if metric.metric_id == spec.target_metric_id else ""
    if any(guardrail.metric_id == metric.metric_id for guardrail in spec.guardrails):
        role += "guardrail, "
    way = "lower" if defined.goal == pb.METRIC_GOAL_DECREASE else "higher"
    unit = f" [{plain(defined.unit)}]" if defined.unit else ""
    return Text.assemble((plain(metric.metric_id), "bold"), unit, (f"  {role}{way} is better", "dim"))


def _style(effect: pb.EffectEstimate, metric: pb.MetricResult, spec: pb.ExperimentSpec) -> str:
    if not effect.always_valid.is_significant:
        return ""
    is_increase_good = _defined(metric, spec).goal != pb.METRIC_GOAL_DECREASE
    return "green" if (effect.absolute > 0) == is_increase_good else "red"


def _interval(inference: pb.EffectInference, *, is_relative: bool) -> Interval | None:
    if is_relative:
        return inference.relative if inference.HasField("relative") else None
    return inference.absolute if inference.HasField("absolute") else None


def _between(interval: Interval | None, unit: str) -> str:
    return f"{signed(interval.lower, unit)} … {signed(interval.upper, unit)}" if interval else "-"


def _value(estimate: pb.VariantEstimate) -> str:
    return _figure(estimate.value) if estimate.HasField("value") else "-"


def _figure(value: float) -> str:
    """One more digit than elsewhere: variants that differ by a percent must not look the same."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.4g}"


def _p(value: float) -> str:
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def _name(text: str) -> Text:
    return Text(plain(text), "cyan")
