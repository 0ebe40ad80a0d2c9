"""How two versions differ, for a terminal or a pipe: the verdict first, then what it rests on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from neuroweaver.client.differences import MISSING, sides
from neuroweaver.client.names import bump_level, styled, version_state
from neuroweaver.client.text import number, plain
from neuroweaver.v1 import registry_pb2 as registry

_MAX_DECIMALS: Final = 6
_SMALL_P: Final = 0.001
_STYLES: Final = {"better": "green", "worse": "red"}
_UNTOLD: Final = {
    "no test": "a test takes samples or an interval in both versions",
    "chance": "chance alone could do this",
    "no direction": "nobody said whether higher or lower is better",
}
_NOT_JUDGED: Final = "not judged"


def parts(comparison: registry.ModelComparison) -> Iterator[RenderableType]:
    """To be printed one below the other; what has no content is left out."""
    yield Text(plain(comparison.verdict), "bold")
    yield _versions(comparison.a, comparison.b)
    if comparison.metrics:
        yield Text()
        yield _metrics(comparison.metrics)
        yield from _notes(comparison.metrics)
    if comparison.differences:
        yield Text()
        yield _differences(comparison.differences)
    if comparison.compatibility:
        yield Text()
        yield _compatibility(comparison.compatibility)
    yield Text()
    yield _recommendation(comparison)


def judgement(metric: registry.MetricDifference) -> str:
    """better, worse, same, `only in A`, `only in B`, or why none of them can be said."""
    if not (metric.HasField("a") and metric.HasField("b")):
        return "only in A" if metric.HasField("a") else "only in B"
    if metric.HasField("is_better"):
        return "better" if metric.is_better else "worse"
    if metric.difference == 0:
        return "same"
    return _untold(metric)


def _untold(metric: registry.MetricDifference) -> str:
    if metric.caveat:
        return _NOT_JUDGED
    if not (metric.HasField("interval") and metric.HasField("corrected_p_value")):
        return "no test"
    is_beyond_chance = metric.corrected_p_value <= 1 - metric.interval.confidence
    return "no direction" if is_beyond_chance else "chance"


def _notes(metrics: Sequence[registry.MetricDifference]) -> Iterator[Text]:
    """What the words beside the metrics mean, where they do not speak for themselves."""
    words = {judgement(metric) for metric in metrics}
    yield from (Text(f"{word}: {why}", "dim") for word, why in _UNTOLD.items() if word in words)
    caveats = [f"{metric.name} is {metric.caveat}" for metric in metrics if metric.caveat]
    if caveats:
        yield Text(plain(f"{_NOT_JUDGED}: {'; '.join(caveats)}"), "dim")


def _versions(a: registry.ModelVersion, b: registry.ModelVersion) -> Table:
    grid = Table.grid(padding=(0, 2))
    for letter, version in (("A", a), ("B", b)):
        grid.add_row(
            Text(letter, "dim"),
            Text(plain(f"{version.model_id}@{version.version}")),
            styled(version_state(version.state)),
            Text(plain(", ".join(version.aliases)), "cyan"),
        )
    return grid


def _metrics(metrics: Sequence[registry.MetricDifference]) -> Table:
    tested = [metric for metric in metrics if metric.HasField("interval")]
    table = _table("METRIC")
    for column in ("A", "B", "B - A"):
        table.add_column(column, justify="right", no_wrap=True)
    if tested:
        table.add_column(f"{tested[0].interval.confidence * 100:g}% INTERVAL", no_wrap=True)
        table.add_column("P", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for metric in metrics:
        word = judgement(metric)
        cells = [_name(metric), *_values(metric)]
        if tested:
            cells += [_interval(metric), _p(metric)]
        table.add_row(*map(Text, cells), Text(f"{_arrow(metric)} {word}", _STYLES.get(word, "dim")))
    return table


def _name(metric: registry.MetricDifference) -> str:
    return plain(f"{metric.name} ({metric.unit})" if metric.unit else metric.name)


def _values(metric: registry.MetricDifference) -> tuple[str, str, str]:
    """A, B and their difference, with as many decimals as show the difference."""
    if not metric.HasField("difference"):
        return (
            number(metric.a) if metric.HasField("a") else MISSING,
            number(metric.b) if metric.HasField("b") else MISSING,
            MISSING,
        )
    decimals = _decimals(metric)
    shown = [f"{value:,.{decimals}f}" for value in (metric.a, metric.b, metric.difference)]
    if float(shown[2].replace(",", "")) != 0 or metric.difference == 0:
        return shown[0], shown[1], shown[2] if metric.difference <= 0 else f"+{shown[2]}"
    return f"{metric.a:.10g}", f"{metric.b:.10g}", f"{metric.difference:+.2g}"


def _decimals(metric: registry.MetricDifference) -> int:
    """So many that three digits of the values are seen, and two of their difference."""
    largest = max(abs(metric.a), abs(metric.b))
    wanted = [
        digits - 1 - math.floor(math.log10(value))
        for digits, value in ((3, largest), (2, abs(metric.difference)))
        if value > 0
    ]
    return min(max(0, *wanted), _MAX_DECIMALS) if wanted else 0


def _interval(metric: registry.MetricDifference) -> str:
    if not metric.HasField("interval"):
        return ""
    return f"{_signed(metric.interval.lower)} to {_signed(metric.interval.upper)}"


def _signed(value: float) -> str:
    return f"+{number(value)}" if value > 0 else number(value)


def _p(metric: registry.MetricDifference) -> str:
    """After the correction for several metrics, since that is what decides."""
    if not metric.HasField("corrected_p_value"):
        return ""
    p_value = metric.corrected_p_value
    return f"<{_SMALL_P:g}" if p_value < _SMALL_P else f"{p_value:.3f}"


def _arrow(metric: registry.MetricDifference) -> str:
    """Where the value went; whether that is good, the word beside it says."""
    if not metric.HasField("difference"):
        return " "
    return "↑" if metric.difference > 0 else "↓" if metric.difference < 0 else "="


def _differences(differences: Sequence[registry.FieldDifference]) -> Table:
    table = _table("DIFFERENCE")
    for column in ("A", "B"):
        table.add_column(column, overflow="fold")
    for difference in differences:
        table.add_row(*map(Text, (plain(difference.path), *sides(difference))))
    return table


def _compatibility(findings: Sequence[registry.CompatibilityFinding]) -> Table:
    table = _table("DOES B FIT WHERE A RUNS?")
    table.add_column("")
    table.add_column("", overflow="fold")
    for finding in findings:
        told = Text("✓ fits", "green") if finding.is_compatible else Text("✗ does not fit", "red")
        table.add_row(Text(plain(finding.aspect)), told, Text(plain(finding.explanation)))
    return table


def _recommendation(comparison: registry.ModelComparison) -> Text:
    """The reason begins with the level, unless there is none."""
    level = bump_level(comparison.recommended_bump)
    reason = plain(comparison.recommendation_reason)
    if not level:
        return Text(reason or "Nothing calls for a new version.")
    if not reason.lower().startswith(level):
        reason = f"{level}: {reason}" if reason else level
    told = Text.assemble("Recommended bump: ", reason)
    told.stylize("bold", len("Recommended bump: "), len("Recommended bump: ") + len(level))
    return told


def _table(first: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    return table
