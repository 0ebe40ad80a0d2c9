"""The course of an experiment's effects, drawn by matplotlib (extra `report`): a PNG, or a page with it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from neuroweaver.client.curves import MissingLibrary
from neuroweaver.v1 import experiment_pb2 as pb

_LINE: Final = "#3b5bdb"
_PALE: Final = "#a9b8ec"
_INK: Final = "#50565e"
_GRID: Final = "#e3e5e8"
_ZERO: Final = "#c2410c"

_STYLE: Final[Mapping[str, Any]] = {
    "font.size": 9,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _GRID,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "figure.facecolor": "white",
}


class NothingToDraw(Exception):
    """No result has an effect with an interval yet."""


@dataclass(frozen=True)
class Course:
    """One treatment's effect on one metric over time; intervals as (lower, upper)."""

    variant_id: str
    is_relative: bool
    times: Sequence[datetime]
    effects: Sequence[float]
    always_valid: Sequence[tuple[float, float]]
    fixed_horizon: Sequence[tuple[float, float]]


def courses_of(history: Sequence[pb.ExperimentResults], metric_id: str) -> list[Course]:
    """Relative where every point has a relative interval; points without intervals are left out."""
    found: dict[str, list[tuple[datetime, pb.EffectEstimate]]] = {}
    for results in history:
        for metric in results.metrics:
            for effect in metric.effects if metric.metric_id == metric_id else ():
                if effect.always_valid.HasField("absolute") and effect.fixed_horizon.HasField("absolute"):
                    point = (results.as_of.ToDatetime(tzinfo=UTC), effect)
                    found.setdefault(effect.variant_id, []).append(point)
    return [_course(variant_id, points) for variant_id, points in found.items()]


def _course(variant_id: str, points: Sequence[tuple[datetime, pb.EffectEstimate]]) -> Course:
    estimates = [effect for _, effect in points]
    is_relative = all(
        each.HasField("relative")
        and each.always_valid.HasField("relative")
        and each.fixed_horizon.HasField("relative")
        for each in estimates
    )
    kind, scale = ("relative", 100.0) if is_relative else ("absolute", 1.0)

    def span(inference: pb.EffectInference) -> tuple[float, float]:
        interval = getattr(inference, kind)
        return scale * interval.lower, scale * interval.upper

    return Course(
        variant_id,
        is_relative,
        [time for time, _ in points],
        [scale * getattr(each, kind) for each in estimates],
        [span(each.always_valid) for each in estimates],
        [span(each.fixed_horizon) for each in estimates],
    )


def write(history: Sequence[pb.ExperimentResults], spec: pb.ExperimentSpec, path: Path) -> None:
    """Effects on the target metric; an HTML page if the path ends so, else a PNG.

    Raises MissingLibrary, NothingToDraw, OSError.
    """
    courses = courses_of(history, spec.target_metric_id)
    if not courses:
        raise NothingToDraw(f"{spec.target_metric_id} has no effect with an interval yet")
    picture = to_png(courses, spec)
    if path.suffix.lower() in {".html", ".htm"}:
        path.write_text(_page(picture, spec, history[-1]), encoding="utf-8")
    else:
        path.write_bytes(picture)


def to_png(courses: Sequence[Course], spec: pb.ExperimentSpec) -> bytes:
    """A panel for every treatment, one below the other."""
    plt = _pyplot()
    with plt.rc_context(_STYLE):
        figure, grid = plt.subplots(
            len(courses), 1, figsize=(8, 3.6 * len(courses)), layout="constrained", squeeze=False, sharex=True
        )
        for axes, course in zip(grid.flat, courses, strict=True):
            _draw(axes, course, spec)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=150)
        plt.close(figure)
    return file.getvalue()


def _draw(axes: Any, course: Course, spec: pb.ExperimentSpec) -> None:
    marker = "o" if len(course.times) < 20 else None
    if len(course.times) == 1:
        _draw_single(axes, course)
    else:
        lower, upper = zip(*course.always_valid, strict=True)
        axes.fill_between(course.times, lower, upper, color=_LINE, alpha=0.18, linewidth=0)
        axes.plot(course.times, lower, color=_LINE, linewidth=1, label="always valid")
        axes.plot(course.times, upper, color=_LINE, linewidth=1)
        for number, edge in enumerate(zip(*course.fixed_horizon, strict=True)):
            label = None if number else "fixed horizon (a single look)"
            axes.plot(course.times, edge, color=_PALE, linewidth=1, linestyle=(0, (4, 3)), label=label)
    axes.plot(course.times, course.effects, color=_LINE, linewidth=2, marker=marker, markersize=4,
              label="effect")  # fmt: skip
    axes.axhline(0, color=_ZERO, linewidth=1.2)
    axes.set_ylabel(f"effect on {spec.target_metric_id}{', %' if course.is_relative else ''}")
    axes.set_title(
        f"{course.variant_id} against {spec.control_variant_id}",
        loc="left", fontsize=11, fontweight="bold", color="black",
    )  # fmt: skip
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="best")
    axes.margins(y=0.12)
    _date_axis(axes)


def _draw_single(axes: Any, course: Course) -> None:
    """One moment has no course: its intervals as two whiskers."""
    spans = (
        (course.fixed_horizon[0], _PALE, 6, "fixed horizon (a single look)"),
        (course.always_valid[0], _LINE, 1.5, "always valid"),
    )
    for (lower, upper), colour, width, label in spans:
        axes.vlines(course.times, lower, upper, color=colour, linewidth=width, label=label)
    (moment,) = course.times
    # By itself the axis would span years around one moment.
    axes.set_xlim(moment - timedelta(minutes=5), moment + timedelta(minutes=5))


def _date_axis(axes: Any) -> None:
    from matplotlib import dates  # noqa: PLC0415  an extra, and slow to load

    locator = dates.AutoDateLocator(minticks=3, maxticks=8)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    axes.set_xlabel("UTC")


def _page(picture: bytes, spec: pb.ExperimentSpec, results: pb.ExperimentResults) -> str:
    title, found = html.escape(spec.title), results.verdict
    decision = pb.Decision.Name(found.decision).removeprefix("DECISION_")
    told = html.escape(f"{decision} {found.variant_id}".strip())
    encoded = base64.b64encode(picture).decode()
    alt = html.escape(f"Effects on {spec.target_metric_id} over time", quote=True)
    as_of = results.as_of.ToDatetime(tzinfo=UTC)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
img {{ max-width: 100%; background: white; }}
</style>
<h1>{title}</h1>
<p><strong>{told}</strong> {html.escape(found.reason)}</p>
<img src="data:image/png;base64,{encoded}" alt="{alt}">
<p><small>{html.escape(results.test_id)}, as of {as_of:%Y-%m-%d %H:%M:%S} UTC</small></p>
</html>
"""


def _pyplot() -> Any:
    try:
        import matplotlib as mpl  # noqa: PLC0415  an extra, and slow to load
    except ImportError as error:
        raise MissingLibrary(
            "the plot needs matplotlib: install it with `pip install 'neuroweaver[report]'`"
        ) from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    return plt
