"""`neuroweaver experiment plan`: how many units an experiment needs, and how long it takes."""

from __future__ import annotations

from typing import Annotated

import typer

from neuroweaver.client.cli.failures import BadInput, talking_to
from neuroweaver.client.cli.output import AsJson, console, print_facts, print_json, print_table, to_json
from neuroweaver.client.text import number
from neuroweaver.v1 import experiment_pb2 as pb


def plan(
    *,
    mean: Annotated[
        float | None, typer.Option(help="The control's mean; needs --std.", show_default=False)
    ] = None,
    std: Annotated[
        float | None, typer.Option(help="Standard deviation over units.", show_default=False)
    ] = None,
    proportion: Annotated[
        float | None, typer.Option(metavar="RATE", help="The control's share, in (0, 1).", show_default=False)
    ] = None,
    ratio: Annotated[
        str,
        typer.Option(
            metavar="MEAN,STD,MEAN,STD,R",
            help="Of the numerator, of the denominator, and their correlation.",
            show_default=False,
        ),
    ] = "",
    effect: Annotated[
        str,
        typer.Option(
            metavar="5%|0.1", help="To be seen: relative with %, else in the unit.", show_default=False
        ),
    ] = "",
    power: Annotated[float | None, typer.Option(help="Default 0.8.", show_default=False)] = None,
    units: Annotated[
        int | None, typer.Option(min=2, help="Per arm: gives the effect or power.", show_default=False)
    ] = None,
    per_day: Annotated[
        float | None, typer.Option(metavar="N", help="Units a day: gives the days.", show_default=False)
    ] = None,
    weights: Annotated[
        str, typer.Option(metavar="W,W…", help="Of the arms, control first.", show_default=False)
    ] = "",
    fixed: Annotated[
        bool, typer.Option("--fixed", help="For a single look at the end; default: look at any time.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compute the units that an effect takes, or the effect or power that so many units give.

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
        found = client.experiment.PlanExperiment(request)
    if as_json:
        print_json(to_json(found))
    else:
        _print_plan(found)


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
        raise BadInput("belongs to --mean, and --mean needs it", "--std")
    if mean is not None and std is not None:
        request.mean.CopyFrom(pb.MeanBaseline(mean=mean, std_dev=std))
    elif proportion is not None:
        request.proportion.rate = proportion
    else:
        parts = _numbers(ratio, "--ratio")
        if len(parts) != 5:
            raise BadInput(f"has {len(parts)} numbers, not 5", "--ratio")
        request.ratio.CopyFrom(
            pb.RatioBaseline(
                numerator_mean=parts[0],
                numerator_std_dev=parts[1],
                denominator_mean=parts[2],
                denominator_std_dev=parts[3],
                correlation=parts[4],
            )
        )


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
        raise BadInput(f"{text!r} is not a list of numbers with commas between", option) from error


def _print_plan(found: pb.PlanExperimentResponse) -> None:
    relative = f" ({found.relative_effect:.3g} of the control's value)"
    print_facts(
        [
            ("units per arm", ", ".join(f"{each:,}" for each in found.units_per_arm)),
            ("units in all", f"{found.total_units:,}"),
            ("days", number(found.days) if found.HasField("days") else ""),
            ("power", f"{found.power:.3g}"),
            (
                "effect",
                f"{found.absolute_effect:.4g}{relative if found.HasField('relative_effect') else ''}",
            ),
            ("basis", found.basis),
        ]
    )
    if not found.curve:
        return
    console().print()
    rows = [
        (
            f"{each.units_per_arm:,}",
            number(each.days) if each.HasField("days") else "-",
            f"{each.detectable_effect:.4g}",
        )
        for each in found.curve
    ]
    print_table(("UNITS PER ARM", "DAYS", "SMALLEST EFFECT SEEN"), rows, empty="")
