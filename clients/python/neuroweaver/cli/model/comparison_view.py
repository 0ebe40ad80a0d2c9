"""How two versions differ, for a terminal or a pipe: the verdict first, then what it rests on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from neuroweaver.cli.model.differences import MISSING, sides
from neuroweaver.cli.terminal.names import style_of, styled, word
from neuroweaver.cli.terminal.output import stacked, table
from neuroweaver.client.text import number, plain
from neuroweaver.v1 import registry_pb2 as registry

_MAX_DECIMALS: Final = 6
_SMALL_P: Final = 0.001
_OPEN: Final = {
    "no test": "a test needs samples or an interval in both versions",
    "chance": "the difference may be due to chance",
    "no direction": "it is not recorded whether higher or lower is better",
}
"""Why a metric is neither better nor worse."""
_NOT_JUDGED: Final = "not judged"


def picture(comparison: registry.ModelComparison) -> RenderableType:
    """What has no content is left out."""
    metrics = comparison.metrics
    return stacked(
        Group(Text(plain(comparison.verdict), "bold"), _versions(comparison.a, comparison.b)),
        Group(_metrics(metrics), *_notes(metrics)) if metrics else None,
        _differences(comparison.differences) if comparison.differences else None,
        _compatibility(comparison.compatibility) if comparison.compatibility else None,
        _recommendation(comparison),
    )


def judgement(metric: registry.MetricDifference) -> str:
    """better, worse, same, `only in A`, `only in B`, or why it is inconclusive."""
    if not (metric.HasField("a") and metric.HasField("b")):
        return "only in A" if metric.HasField("a") else "only in B"
    if metric.HasField("is_better"):
        return "better" if metric.is_better else "worse"
    if metric.difference == 0:
        return "same"
    if metric.caveat:
        return _NOT_JUDGED
    if not (metric.HasField("interval") and metric.HasField("corrected_p_value")):
        return "no test"
    is_beyond_chance = metric.corrected_p_value <= 1 - metric.interval.confidence
    return "no direction" if is_beyond_chance else "chance"


def _notes(metrics: Sequence[registry.MetricDifference]) -> Iterator[Text]:
    """What the words beside the metrics mean, where they are not obvious."""
    words = {judgement(metric) for metric in metrics}
    yield from (Text(f"{verdict}: {why}", "dim") for verdict, why in _OPEN.items() if verdict in words)
    caveats = [f"{metric.name} is {metric.caveat}" for metric in metrics if metric.caveat]
    if caveats:
        yield Text(plain(f"{_NOT_JUDGED}: {'; '.join(caveats)}"), "dim")


def _versions(a: registry.ModelVersion, b: registry.ModelVersion) -> Table:
    grid = Table.grid(padding=(0, 2))
    for letter, version in (("A", a), ("B", b)):
        grid.add_row(
            Text(letter, "dim"),
            Text(plain(f"{version.model_id}@{version.version}")),
            styled(version, "state"),
            Text(plain(", ".join(version.aliases)), "cyan"),
        )
    return grid


def _metrics(metrics: Sequence[registry.MetricDifference]) -> Table:
    level = next((metric.interval.confidence for metric in metrics if metric.HasField("interval")), None)
    tested = () if level is None else (f"{level * 100:g}% INTERVAL", "P")
    rows = (
        (
            f"{metric.name} ({metric.unit})" if metric.unit else metric.name,
            *_values(metric),
            *(_test(metric) if tested else ()),
            _mark(metric),
        )
        for metric in metrics
    )
    columns = ("METRIC", "A", "B", "B - A", *tested, "")
    return table(columns, rows, right=(1, 2, 3, 5), unbroken=range(1, len(columns)), style="bold")


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
    """Enough to show three digits of the values, and two of their difference."""
    largest = max(abs(metric.a), abs(metric.b))
    wanted = [
        digits - 1 - math.floor(math.log10(value))
        for digits, value in ((3, largest), (2, abs(metric.difference)))
        if value > 0
    ]
    return min(max(0, *wanted), _MAX_DECIMALS) if wanted else 0


def _test(metric: registry.MetricDifference) -> tuple[str, str]:
    """The interval, and the p-value after the correction for several metrics, since that is what decides."""
    interval = p_value = ""
    if metric.HasField("interval"):
        bounds = (metric.interval.lower, metric.interval.upper)
        interval = " to ".join(f"+{number(bound)}" if bound > 0 else number(bound) for bound in bounds)
    if metric.HasField("corrected_p_value"):
        p = metric.corrected_p_value
        p_value = f"<{_SMALL_P:g}" if p < _SMALL_P else f"{p:.3f}"
    return interval, p_value


def _mark(metric: registry.MetricDifference) -> Text:
    """An arrow, which way the value went; the word beside it says whether that is good."""
    arrow = " "
    if metric.HasField("difference"):
        arrow = "↑" if metric.difference > 0 else "↓" if metric.difference < 0 else "="
    verdict = judgement(metric)
    return Text(f"{arrow} {verdict}", style_of(verdict))


def _differences(differences: Sequence[registry.FieldDifference]) -> Table:
    rows = ((difference.path, *sides(difference)) for difference in differences)
    return table(("DIFFERENCE", "A", "B"), rows, style="bold")


def _compatibility(findings: Sequence[registry.CompatibilityFinding]) -> Table:
    fits, does_not = Text("✓ fits", "green"), Text("✗ does not fit", "red")
    rows = (
        (finding.aspect, fits if finding.is_compatible else does_not, finding.explanation)
        for finding in findings
    )
    return table(("DOES B FIT WHERE A RUNS?", "", ""), rows, style="bold")


def _recommendation(comparison: registry.ModelComparison) -> Text:
    """The reason begins with the level, unless there is none."""
    level = word(comparison, "recommended_bump").lower() if comparison.recommended_bump else ""
    reason = plain(comparison.recommendation_reason)
    if not level:
        return Text(reason or "Nothing calls for a new version.")
    if not reason.lower().startswith(level):
        reason = f"{level}: {reason}" if reason else level
    label = "Recommended bump: "
    line = Text(f"{label}{reason}")
    line.stylize("bold", len(label), len(label) + len(level))
    return line
