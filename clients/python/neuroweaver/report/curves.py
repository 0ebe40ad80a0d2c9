"""A job's curves, drawn by matplotlib (extra `report`): SVG in the colours of its page, and one PNG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from neuroweaver.client.training_history import History
from neuroweaver.v1 import trainer_pb2 as trainer

# Drawn in these colours; in the SVG each becomes a variable of the page, which knows the reader's theme.
LINE: Final = "#3b5bdb"
MARK: Final = "#c2410c"
_INK: Final = "#50565e"
_GRID: Final = "#e3e5e8"
_VARIABLES: Final = {LINE: "var(--line)", _INK: "var(--ink-2)", _GRID: "var(--grid)", MARK: "var(--mark)"}

STYLE: Final[Mapping[str, Any]] = {
    "font.size": 8.5,
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
    "axes.facecolor": "none",
    "grid.linewidth": 0.8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "svg.fonttype": "none",
}
_SIZE_IN: Final = (4.3, 2.35)
SMOOTHED_FROM: Final = 20
"""A curve of so many points is drawn pale, with its moving mean."""


class MissingLibrary(Exception):
    """The extra `report` is not installed."""


@dataclass(frozen=True)
class Curve:
    """values are finite. mark: a value to compare with, and what it stands for."""

    name: str
    title: str
    y_label: str
    steps: Sequence[int]
    values: Sequence[float]
    mark: tuple[float, str] | None = None


def curves_of(history: History, config: trainer.TrainingConfig) -> list[Curve]:
    """Those for which the job reported at least two points."""
    target_kl = config.target_kl if config.HasField("target_kl") else 0.0
    wanted = (
        (trainer.STAGE_SFT, "loss", "Fine-tuning loss", "nats per token", None),
        (trainer.STAGE_REWARD_MODEL, "loss", "Reward model loss", "nats per pair", (math.log(2), "guessing")),
        (trainer.STAGE_PPO, "reward", "PPO reward", "mean of the step's responses", None),
        (trainer.STAGE_PPO, "kl", "PPO distance from the fine-tuned model", "KL, nats per response",
         (target_kl, "target") if target_kl else None),
    )  # fmt: skip
    curves = []
    for stage, metric, title, y_label, mark in wanted:
        steps, values = history.stages[stage].curve(metric) if stage in history.stages else ((), ())
        points = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
        if len(points) > 1:
            name = f"{trainer.Stage.Name(stage)}-{metric}".lower()
            steps, values = zip(*points, strict=True)
            curves.append(Curve(name, title, y_label, steps, values, mark))
    return curves


def smoothed(values: Sequence[float]) -> list[float]:
    """Centred mean over a tenth of the curve."""
    half = max(1, len(values) // 20)
    windows = (values[max(0, middle - half) : middle + half + 1] for middle in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def to_svg(curve: Curve) -> str:
    """An <svg> element to be put into a page that defines --line, --ink-2, --grid and --mark."""
    plt = pyplot()
    with plt.rc_context({**STYLE, "figure.facecolor": "none", "svg.hashsalt": curve.name}):
        figure, axes = plt.subplots(figsize=_SIZE_IN, layout="constrained")
        _draw(axes, curve)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        plt.close(figure)
    return _themed(file.getvalue(), curve.title)


def write_png(curves: Sequence[Curve], path: Path) -> None:
    """All curves in one picture, two in a row."""
    plt = pyplot()
    columns = min(2, len(curves))
    rows = math.ceil(len(curves) / columns)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            rows, columns, figsize=(5.4 * columns, 3.1 * rows), layout="constrained", squeeze=False
        )
        figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
        for axes, curve in zip(grid.flat, curves, strict=False):
            _draw(axes, curve)
            axes.set_title(curve.title, loc="left", fontsize=10, fontweight="bold", color="black")
        for axes in list(grid.flat)[len(curves) :]:
            axes.set_visible(False)
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _draw(axes: Any, curve: Curve) -> None:
    is_long = len(curve.values) >= SMOOTHED_FROM
    marker = "o" if len(curve.values) < 4 else None
    axes.plot(
        curve.steps, curve.values, color=LINE, marker=marker, markersize=4,
        linewidth=0.9 if is_long else 1.6, alpha=0.35 if is_long else 1,
    )  # fmt: skip
    if is_long:
        axes.plot(curve.steps, smoothed(curve.values), color=LINE, linewidth=1.8)
    if curve.mark:
        value, label = curve.mark
        axes.axhline(value, color=MARK, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            label, (1, value), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
            ha="right", va="bottom", color=MARK, fontsize=7.5,
        )  # fmt: skip
    axes.set_xlabel("step")
    axes.set_ylabel(curve.y_label)
    axes.margins(x=0.01, y=0.12)
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
    axes.yaxis.get_major_locator().set_params(nbins=5)


def _themed(svg: str, title: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Several drawings share one page: only ids that are referred to stay, and those are salted.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    head, _, body = svg.partition(">")
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{title}">{body}'


def pyplot() -> Any:
    """Raises MissingLibrary."""
    try:
        import matplotlib as mpl  # noqa: PLC0415  an extra, and slow to load
    except ImportError as error:
        raise MissingLibrary(
            "drawing needs matplotlib: install it with `pip install 'neuroweaver[report]'`"
        ) from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    return plt
