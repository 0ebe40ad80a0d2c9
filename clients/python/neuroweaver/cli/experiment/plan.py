"""`neuroweaver experiment plan`: how many units an experiment needs, and how long it takes."""

from __future__ import annotations

from typing import Annotated, Final

from rich.console import RenderableType
from typer import Option

from neuroweaver.cli.terminal.failures import BadInput, talking_to
from neuroweaver.cli.terminal.output import AsJson, facts, listing, print_answer, stacked
from neuroweaver.client.text import number
from neuroweaver.v1 import experiment_pb2 as pb

_RATIO: Final = (
    "numerator_mean",
    "numerator_std_dev",
    "denominator_mean",
    "denominator_std_dev",
    "correlation",
)


def plan(
    *,
    mean: Annotated[float | None, Option(help="The control's mean; requires --std.")] = None,
    std: Annotated[float | None, Option(help="Standard deviation over units.")] = None,
    proportion: Annotated[
        float | None, Option(metavar="RATE", help="The control's share, in (0, 1).")
    ] = None,
    ratio: Annotated[
        str, Option(metavar="MEAN,STD,MEAN,STD,R", help="Numerator, denominator, correlation.")
    ] = "",
    effect: Annotated[
        str, Option(metavar="5%|0.1", help="Effect to detect: relative with %, else in the metric's unit.")
    ] = "",
    power: Annotated[float | None, Option(help="Default: 0.8.")] = None,
    units: Annotated[int | None, Option(min=2, help="Per arm: computes the effect or the power.")] = None,
    per_day: Annotated[float | None, Option(metavar="N", help="Units a day: computes the days.")] = None,
    weights: Annotated[str, Option(metavar="W,W…", help="Of the arms, control first.")] = "",
    fixed: Annotated[
        bool, Option("--fixed", help="For a single look at the end. Default: look at any time.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compute how many units detect an effect, or which effect or power a number of units gives.

    Example: neuroweaver experiment plan --proportion 0.1 --effect 5% --per-day 20000
    """
    request = pb.PlanExperimentRequest(
        effect=_effect(effect) if effect else None,
        power=power,
        units_per_arm=units,
        units_per_day=per_day,
        weights=_numbers(weights, "--weights") if weights else (),
        method=pb.INFERENCE_METHOD_FIXED_HORIZON if fixed else pb.INFERENCE_METHOD_ALWAYS_VALID,
    )
    _set_baseline(request, mean, std, proportion, ratio)
    with talking_to("experiment") as client:
        print_answer(client.experiment.PlanExperiment(request), _view, as_json=as_json)


def _set_baseline(
    request: pb.PlanExperimentRequest,
    mean: float | None,
    std: float | None,
    proportion: float | None,
    ratio: str,
) -> None:
    """Raises BadInput unless exactly one baseline is given, and whole."""
    if (mean is not None) + (proportion is not None) + bool(ratio) != 1:
        raise BadInput("give one of --mean with --std, --proportion, or --ratio", "--mean")
    if (mean is None) != (std is None):
        raise BadInput("and --mean require each other", "--std")
    if mean is not None and std is not None:
        request.mean.CopyFrom(pb.MeanBaseline(mean=mean, std_dev=std))
    elif proportion is not None:
        request.proportion.rate = proportion
    else:
        parts = _numbers(ratio, "--ratio")
        if len(parts) != len(_RATIO):
            raise BadInput(f"has {len(parts)} numbers, not {len(_RATIO)}", "--ratio")
        for field, value in zip(_RATIO, parts, strict=True):
            setattr(request.ratio, field, value)


def _effect(text: str) -> pb.EffectSize:
    try:
        if text.endswith("%"):
            return pb.EffectSize(relative=float(text[:-1]) / 100)
        return pb.EffectSize(absolute=float(text))
    except ValueError as error:
        raise BadInput(f"{text!r} is neither a number nor a percentage", "--effect") from error


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise BadInput(f"{text!r} is not a list of numbers separated by commas", option) from error


def _view(planned: pb.PlanExperimentResponse) -> RenderableType:
    relative = f" ({planned.relative_effect:.3g} of the control's value)"
    effect = f"{planned.absolute_effect:.4g}{relative if planned.HasField('relative_effect') else ''}"
    numbers = facts(
        [
            ("units per arm", ", ".join(f"{count:,}" for count in planned.units_per_arm)),
            ("total units", f"{planned.total_units:,}"),
            ("days", number(planned.days) if planned.HasField("days") else ""),
            ("power", f"{planned.power:.3g}"),
            ("effect", effect),
            ("basis", planned.basis),
        ]
    )
    rows = (
        (
            f"{point.units_per_arm:,}",
            number(point.days) if point.HasField("days") else "-",
            f"{point.detectable_effect:.4g}",
        )
        for point in planned.curve
    )
    columns = ("UNITS PER ARM", "DAYS", "SMALLEST EFFECT SEEN")
    return stacked(numbers, listing(columns, rows) if planned.curve else None)
