"""The effects of an experiment over time, drawn by matplotlib (extra `report`): a PNG, or a page with it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from neuroweaver.cli.terminal.names import word
from neuroweaver.report.curves import LINE, MARK, STYLE, MissingLibrary, pyplot
from neuroweaver.v1 import experiment_pb2 as pb

__all__ = ["MissingLibrary", "NothingToDraw", "Progress", "progress_of", "write"]

_PALE: Final = "#a9b8ec"


class NothingToDraw(Exception):
    """No result has an effect with an interval yet."""


@dataclass(frozen=True)
class Progress:
    """One treatment's effect on one metric over time; intervals as (lower, upper)."""

    variant_id: str
    is_relative: bool
    times: Sequence[datetime]
    effects: Sequence[float]
    always_valid: Sequence[tuple[float, float]]
    fixed_horizon: Sequence[tuple[float, float]]


def progress_of(history: Sequence[pb.ExperimentResults], metric_id: str) -> list[Progress]:
    """Relative where every point has a relative interval; points without intervals are left out."""
    by_variant: dict[str, list[tuple[datetime, pb.EffectEstimate]]] = {}
    for results in history:
        for metric in results.metrics:
            for effect in metric.effects if metric.metric_id == metric_id else ():
                if effect.always_valid.HasField("absolute") and effect.fixed_horizon.HasField("absolute"):
                    point = (results.as_of.ToDatetime(tzinfo=UTC), effect)
                    by_variant.setdefault(effect.variant_id, []).append(point)
    return [_progress(variant_id, points) for variant_id, points in by_variant.items()]


def _progress(variant_id: str, points: Sequence[tuple[datetime, pb.EffectEstimate]]) -> Progress:
    estimates = [effect for _, effect in points]
    is_relative = all(
        estimate.HasField("relative")
        and estimate.always_valid.HasField("relative")
        and estimate.fixed_horizon.HasField("relative")
        for estimate in estimates
    )
    kind, scale = ("relative", 100.0) if is_relative else ("absolute", 1.0)

    def span(inference: pb.EffectInference) -> tuple[float, float]:
        interval = getattr(inference, kind)
        return scale * interval.lower, scale * interval.upper

    return Progress(
        variant_id,
        is_relative,
        [time for time, _ in points],
        [scale * getattr(estimate, kind) for estimate in estimates],
        [span(estimate.always_valid) for estimate in estimates],
        [span(estimate.fixed_horizon) for estimate in estimates],
    )


def write(history: Sequence[pb.ExperimentResults], spec: pb.ExperimentSpec, path: Path) -> None:
    """Effects on the target metric; an HTML page if the path ends so, else a PNG.

    Raises MissingLibrary, NothingToDraw, OSError.
    """
    effects = progress_of(history, spec.target_metric_id)
    if not effects:
        raise NothingToDraw(f"{spec.target_metric_id} has no effect with an interval yet")
    picture = to_png(effects, spec)
    if path.suffix.lower() in {".html", ".htm"}:
        path.write_text(_page(picture, spec, history[-1]), encoding="utf-8")
    else:
        path.write_bytes(picture)


def to_png(effects: Sequence[Progress], spec: pb.ExperimentSpec) -> bytes:
    """A panel for every treatment, one below the other."""
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            len(effects), 1, figsize=(8, 3.6 * len(effects)), layout="constrained", squeeze=False, sharex=True
        )
        for axes, progress in zip(grid.flat, effects, strict=True):
            _draw(axes, progress, spec)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=150)
        plt.close(figure)
    return file.getvalue()


def _draw(axes: Any, progress: Progress, spec: pb.ExperimentSpec) -> None:
    marker = "o" if len(progress.times) < 20 else None
    if len(progress.times) == 1:
        _draw_single(axes, progress)
    else:
        lower, upper = zip(*progress.always_valid, strict=True)
        axes.fill_between(progress.times, lower, upper, color=LINE, alpha=0.18, linewidth=0)
        axes.plot(progress.times, lower, color=LINE, linewidth=1, label="always valid")
        axes.plot(progress.times, upper, color=LINE, linewidth=1)
        for number, edge in enumerate(zip(*progress.fixed_horizon, strict=True)):
            label = None if number else "fixed horizon (a single look)"
            axes.plot(progress.times, edge, color=_PALE, linewidth=1, linestyle=(0, (4, 3)), label=label)
    axes.plot(progress.times, progress.effects, color=LINE, linewidth=2, marker=marker, markersize=4,
              label="effect")  # fmt: skip
    axes.axhline(0, color=MARK, linewidth=1.2)
    axes.set_ylabel(f"effect on {spec.target_metric_id}{', %' if progress.is_relative else ''}")
    axes.set_title(
        f"{progress.variant_id} against {spec.control_variant_id}",
        loc="left", fontsize=11, fontweight="bold", color="black",
    )  # fmt: skip
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="best")
    axes.margins(y=0.12)
    _date_axis(axes)


def _draw_single(axes: Any, progress: Progress) -> None:
    """A single moment: its intervals as two whiskers."""
    spans = (
        (progress.fixed_horizon[0], _PALE, 6, "fixed horizon (a single look)"),
        (progress.always_valid[0], LINE, 1.5, "always valid"),
    )
    for (lower, upper), colour, width, label in spans:
        axes.vlines(progress.times, lower, upper, color=colour, linewidth=width, label=label)
    (moment,) = progress.times
    # By default the axis would span years around one moment.
    axes.set_xlim(moment - timedelta(minutes=5), moment + timedelta(minutes=5))


def _date_axis(axes: Any) -> None:
    from matplotlib import dates  # noqa: PLC0415  an extra, and slow to load

    locator = dates.AutoDateLocator(minticks=3, maxticks=8)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    axes.set_xlabel("UTC")


def _page(picture: bytes, spec: pb.ExperimentSpec, results: pb.ExperimentResults) -> str:
    title, verdict = html.escape(spec.title), results.verdict
    decision = html.escape(f"{word(verdict, 'decision')} {verdict.variant_id}".strip())
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
<p><strong>{decision}</strong> {html.escape(verdict.reason)}</p>
<img src="data:image/png;base64,{encoded}" alt="{alt}">
<p><small>{html.escape(results.test_id)}, as of {as_of:%Y-%m-%d %H:%M:%S} UTC</small></p>
</html>
"""
