"""Experiments and their results as tables of at most 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from neuroweaver.client.cli.output import when
from neuroweaver.client.text import number, plain
from neuroweaver.v1 import experiment_pb2 as pb
from neuroweaver.v1.common_pb2 import Interval

BAR_WIDTH: Final = 22
_STATES: Final = {
    pb.EXPERIMENT_STATE_RUNNING: "cyan",
    pb.EXPERIMENT_STATE_PAUSED: "yellow",
    pb.EXPERIMENT_STATE_STOPPED: "yellow",
    pb.EXPERIMENT_STATE_CONCLUDED: "green",
}
_DECISIONS: Final = {
    pb.DECISION_SHIP: ("SHIP", "bold green"),
    pb.DECISION_KEEP: ("KEEP", "bold red"),
    pb.DECISION_INCONCLUSIVE: ("INCONCLUSIVE", "bold yellow"),
}


def state_of(state: pb.ExperimentState.ValueType) -> Text:
    name = pb.ExperimentState.Name(state).removeprefix("EXPERIMENT_STATE_")
    return Text(name, _STATES.get(state, "dim"))


def facts(experiment: pb.Experiment) -> Iterable[tuple[str, str | Text]]:
    spec = experiment.spec
    yield "experiment", experiment.test_id
    yield "title", spec.title
    yield "hypothesis", spec.hypothesis
    yield "state", state_of(experiment.state)
    yield "reason", experiment.state_reason
    yield "unit", spec.unit
    yield "target", spec.target_metric_id
    yield "guardrails", ", ".join(each.metric_id for each in spec.guardrails)
    yield "coverage", _percent(experiment.coverage)
    yield "layer", f"{spec.layer.layer_id}, {_percent(spec.layer.share)}" if spec.HasField("layer") else ""
    yield "created", f"{when(experiment.create_time)} by {experiment.created_by}"
    yield "started", when(experiment.start_time)
    yield "stopped", when(experiment.stop_time)
    if experiment.HasField("conclusion"):
        yield from _conclusion(experiment.conclusion)
    for notice in experiment.notices:
        yield "notice", notice.message


def _conclusion(found: pb.ExperimentConclusion) -> Iterable[tuple[str, str | Text]]:
    state = pb.ConclusionState.Name(found.state).removeprefix("CONCLUSION_STATE_")
    yield "winner", Text(found.winner_variant_id, "green")
    yield "decided", f"{when(found.time)} by {found.concluded_by}{', forced' if found.is_forced else ''}"
    yield "because", found.reason
    yield "release", state.replace("_", " ").lower()
    if found.version:
        moved = f"{found.alias} of {found.model_id}: {found.previous_version or 'nowhere'} → {found.version}"
        yield "alias", moved
    yield "error", Text(plain(found.last_error), "red") if found.last_error else ""


def allocations(experiment: pb.Experiment) -> Table:
    """What each variant serves, and its weight now."""
    table = _table("VARIANT", "WEIGHT", "MODEL", "PARAMETERS")
    now = experiment.phases[-1].allocations if experiment.phases else ()
    weights = {each.variant_id: each.weight for each in now}
    for each in experiment.spec.variants:
        is_control = each.variant_id == experiment.spec.control_variant_id
        target = each.target
        model = f"{target.model_id}@{target.version or target.alias}" if target.model_id else ""
        parameters = ", ".join(f"{name}={each.parameters[name]}" for name in each.parameters)
        table.add_row(
            Text(f"{each.variant_id}{' (control)' if is_control else ''}", "cyan"),
            _percent(weights.get(each.variant_id, each.weight)),
            plain(model),
            plain(parameters),
        )
    return table


def phases(experiment: pb.Experiment) -> Table:
    table = _table("PHASE", "SINCE", "WEIGHTS", "MOVED", "REASON")
    for each in experiment.phases:
        shares = ", ".join(f"{one.variant_id} {_percent(one.weight)}" for one in each.allocations)
        table.add_row(
            str(each.number), when(each.start_time), shares, _percent(each.moved_share), plain(each.reason)
        )
    return table


def verdict(results: pb.ExperimentResults) -> Text:
    """What should be done, what is still missing, and when that can be expected."""
    found = results.verdict
    word, style = _DECISIONS.get(found.decision, ("NO VERDICT", "dim"))
    told = Text.assemble((f"{word} {found.variant_id}".strip(), style), "  ", plain(found.reason))
    for gap in found.gaps:
        missing = f" ({gap.missing_units:,} units to come)" if gap.HasField("missing_units") else ""
        told.append(f"\n  waits for: {plain(gap.message)}{missing}", "yellow")
    if found.HasField("forecast"):
        forecast = found.forecast
        told.append(
            f"\n  expected in {number(forecast.days)} days, after {forecast.units:,} more units; "
            f"{plain(forecast.basis)}",
            "dim",
        )
    return told


def variants(results: pb.ExperimentResults) -> Table:
    table = _table("VARIANT", "UNITS", "SHARE", "EXPECTED", "SERVED ANOTHER", right=(1, 2, 3, 4))
    for each in results.variants:
        table.add_row(
            Text(each.variant_id, "cyan"),
            f"{each.units:,}",
            _percent(each.observed_share) if each.HasField("observed_share") else "-",
            _percent(each.expected_share),
            f"{each.mismatched_units:,}",
        )
    return table


def board(results: pb.ExperimentResults, spec: pb.ExperimentSpec) -> RenderableType:
    """What `watch` shows: the verdict, and for every metric its effects with their always-valid intervals."""
    units = "  ".join(f"{each.variant_id} {each.units:,}" for each in results.variants)
    head = Text.assemble(
        (results.test_id, "bold"), " ", state_of(results.state), (f"  {when(results.as_of)}", "dim"),
        f"\nunits: {units}",
    )  # fmt: skip
    # The verdict on top: a terminal too low for all metrics cuts off the end.
    parts: list[RenderableType] = [head, verdict(results), *_warnings(results), Text()]
    for metric in results.metrics:
        parts += [_heading(metric, spec), _bars(metric, spec)]
    return Group(*parts)


def _bars(metric: pb.MetricResult, spec: pb.ExperimentSpec) -> Table:
    table = _table("  VARIANT", "VALUE", "EFFECT", "ALWAYS-VALID", "", right=(1, 2))
    effects = {each.variant_id: each for each in metric.effects}
    spans = [interval for each in metric.effects if (interval := shown(each)[1])]
    for each in metric.variants:
        row: list[str | Text] = [Text(f"  {each.variant_id}", "cyan"), _value(each)]
        if each.variant_id in effects:
            effect = effects[each.variant_id]
            point, interval, unit = shown(effect)
            style = _style(effect, _goal(metric, spec))
            row.append(Text(signed(point, unit), style))
            row += [_between(interval, unit), Text(bar(point, interval, spans), style)]
        table.add_row(*row)
    return table


def tables(results: pb.ExperimentResults, spec: pb.ExperimentSpec) -> RenderableType:
    """What `results` shows: with both methods' intervals and p-values."""
    phase = f"  phase {results.phase}" if results.phase else ""
    head = Text.assemble(
        (results.test_id, "bold"), " ", state_of(results.state), (f"  {when(results.as_of)}{phase}", "dim")
    )
    parts: list[RenderableType] = [head, verdict(results), Text(), variants(results)]
    for metric in results.metrics:
        parts += [Text(), _heading(metric, spec), _values(metric), _effects(metric, spec)]
    return Group(*parts, *_warnings(results))


def _values(metric: pb.MetricResult) -> Table:
    table = _table("  VARIANT", "UNITS", "VALUE", "INTERVAL", "STD DEV", right=(1, 2, 4))
    for each in metric.variants:
        table.add_row(
            Text(f"  {each.variant_id}", "cyan"),
            f"{each.units:,}",
            _value(each),
            f"{_figure(each.interval.lower)} … {_figure(each.interval.upper)}"
            if each.HasField("interval")
            else "",
            _figure(each.std_dev) if each.HasField("std_dev") else "",
        )
    return table


def _effects(metric: pb.MetricResult, spec: pb.ExperimentSpec) -> Table:
    table = _table("  EFFECT OF", "", "METHOD", "INTERVAL", "P", "ADJUSTED", right=(1, 4, 5))
    for each in metric.effects:
        point, _, unit = shown(each)
        style = _style(each, _goal(metric, spec))
        name, told = Text(f"  {each.variant_id}", "cyan"), Text(signed(point, unit), style)
        for title, found in (("always valid", each.always_valid), ("fixed horizon", each.fixed_horizon)):
            interval = _interval(found, is_relative=unit == "%")
            mark = " *" if found.is_significant else "  "
            adjusted = _p(found.adjusted_p_value) if found.HasField("adjusted_p_value") else "-"
            p_value = _p(found.p_value) if found.HasField("p_value") else "-"
            table.add_row(name, told, title, _between(interval, unit), p_value, adjusted + mark)
            name, told = Text(), Text()
        for line in _remarks(each):
            table.add_row("", "", Text(line, "dim"))
    return table


def _remarks(effect: pb.EffectEstimate) -> Iterable[str]:
    if effect.status != pb.ESTIMATE_STATUS_OK:
        status = pb.EstimateStatus.Name(effect.status).removeprefix("ESTIMATE_STATUS_")
        yield status.replace("_", " ").lower()
    if effect.HasField("bayesian"):
        yield f"{_percent(effect.bayesian.chance_to_beat_control)} to beat"
    if effect.HasField("variance_reduction"):
        yield f"CUPED took {_percent(effect.variance_reduction)} of variance"
    if effect.HasField("pairwise"):
        counts = effect.pairwise
        yield f"{counts.wins:,} won, {counts.ties:,} tied, {counts.losses:,} lost"


def _warnings(results: pb.ExperimentResults) -> Iterable[Text]:
    ratio = results.sample_ratio
    if ratio.is_mismatch:
        yield Text(f"The split is not as the weights say (p = {_p(ratio.p_value)}).", "bold red")
    rejected = sum(each.count for each in results.events.rejected)
    if rejected or results.events.unexposed:
        yield Text(f"{rejected:,} events rejected, {results.events.unexposed:,} without exposure", "yellow")
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
    low, high = min(0.0, *(each.lower for each in spans)), max(0.0, *(each.upper for each in spans))
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


def _goal(metric: pb.MetricResult, spec: pb.ExperimentSpec) -> pb.MetricGoal.ValueType:
    found = (each.goal for each in spec.metrics if each.metric_id == metric.metric_id)
    return next(found, pb.METRIC_GOAL_INCREASE)


def _heading(metric: pb.MetricResult, spec: pb.ExperimentSpec) -> Text:
    known = next((each for each in spec.metrics if each.metric_id == metric.metric_id), pb.ExperimentMetric())
    role = "target, " if metric.metric_id == spec.target_metric_id else ""
    if any(each.metric_id == metric.metric_id for each in spec.guardrails):
        role += "guardrail, "
    way = "lower" if known.goal == pb.METRIC_GOAL_DECREASE else "higher"
    unit = f" [{plain(known.unit)}]" if known.unit else ""
    return Text.assemble((metric.metric_id, "bold"), unit, (f"  {role}{way} is better", "dim"))


def _style(effect: pb.EffectEstimate, goal: pb.MetricGoal.ValueType) -> str:
    if not effect.always_valid.is_significant:
        return ""
    return "green" if (effect.absolute > 0) == (goal != pb.METRIC_GOAL_DECREASE) else "red"


def _interval(found: pb.EffectInference, *, is_relative: bool) -> Interval | None:
    if is_relative:
        return found.relative if found.HasField("relative") else None
    return found.absolute if found.HasField("absolute") else None


def _between(interval: Interval | None, unit: str) -> str:
    return f"{signed(interval.lower, unit)} … {signed(interval.upper, unit)}" if interval else "-"


def _value(estimate: pb.VariantEstimate) -> str:
    return _figure(estimate.value) if estimate.HasField("value") else "-"


def _figure(value: float) -> str:
    """One digit more than elsewhere: variants that differ by a percent must not look the same."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.4g}"


def _p(value: float) -> str:
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _table(*columns: str, right: Sequence[int] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place in right else "left", overflow="fold")
    return table
