"""The events of a batch as units keep them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroweaver.experiment.intake.events import EXPOSURE, JUDGEMENT, REJECTED, SAMPLE, Batch
from neuroweaver.experiment.intake.readings import JUDGEMENT_TYPE, NOTE_TYPE, SAMPLE_TYPE, Plan, indexes
from neuroweaver.experiment.intake.units import Ints, Records


def units_of(batch: Batch, overrides: Mapping[str, str]) -> tuple[list[str], Ints]:
    """The units of a batch, and the place of each event's among them; -1 for those that are not analysed."""
    places: dict[str, int] = {}
    if overrides:
        of_events = [
            -1 if each in overrides else places.setdefault(each, len(places)) for each in batch.unit_ids
        ]
    else:
        of_events = [places.setdefault(each, len(places)) for each in batch.unit_ids]
    return list(places), np.array(of_events, np.int64)


def overridden(batch: Batch, overrides: Mapping[str, str]) -> int:
    """How many events are of units that an override assigns, which are not analysed."""
    return sum(unit_id in overrides for unit_id in batch.unit_ids) if overrides else 0


def records(plan: Plan, batch: Batch, unit: Ints) -> tuple[Records, Records, Records]:
    """The events of a batch by kind, as units keep them. Names and variants are known, phases settled."""
    rows = batch.rows
    variants = indexes(plan.variants, batch.variants)
    kinds = [np.flatnonzero((rows["kind"] == kind) & (unit >= 0)) for kind in (EXPOSURE, SAMPLE, JUDGEMENT)]
    at, sampled, judged = kinds
    exposures = np.zeros(len(at), plan.exposure_type)
    if len(at):
        exposures["time"], exposures["phase"] = rows["time"][at], rows["phase"][at]
        exposures["variant"] = variants[rows["variant"][at]]
        exposures["is_mismatched"] = rows["variant"][at] != rows["other"][at]
        exposures["variants"] = 1 << exposures["variant"].astype(np.uint32)
        exposures["covariates"] = np.nan
        for place, event in enumerate(at.tolist() if batch.covariates else ()):
            given = batch.covariates.get(event, {})
            for column, name in enumerate(plan.covariates):
                exposures["covariates"][place, column] = given.get(name, np.nan)
    samples = np.zeros(len(sampled), SAMPLE_TYPE)
    if len(sampled):
        samples["time"], samples["value"] = rows["time"][sampled], rows["value"][sampled]
        samples["name"] = indexes(plan.names, batch.names)[rows["name"][sampled]]
    judgements = np.zeros(len(judged), JUDGEMENT_TYPE)
    if len(judged):
        _fill_judgements(judgements, plan, batch, rows[judged], variants)
    return Records(unit[at], exposures), Records(unit[sampled], samples), Records(unit[judged], judgements)


def rejections(plan: Plan, batch: Batch, unit: Ints) -> Records:
    """The notes of a batch on samples that were rejected for their times."""
    noted = np.flatnonzero((batch.rows["kind"] == REJECTED) & (unit >= 0))
    rows = np.zeros(len(noted), NOTE_TYPE)
    if len(noted):
        rows["mark"] = batch.rows["value"][noted]
        rows["name"] = indexes(plan.names, batch.names)[batch.rows["name"][noted]]
    return Records(unit[noted], rows)


def _fill_judgements(
    judgements: npt.NDArray[Any], plan: Plan, batch: Batch, rows: npt.NDArray[Any], variants: Ints
) -> None:
    """With the variant first that comes first in the plan, whichever the judge called the baseline."""
    one, other = variants[rows["variant"]], variants[rows["other"]]
    is_turned = one > other
    judgements["phase"] = rows["phase"]
    judgements["name"] = indexes(plan.judgements, batch.names)[rows["name"]]
    judgements["baseline"], judgements["candidate"] = np.minimum(one, other), np.maximum(one, other)
    # The outcomes by place: none, baseline, candidate, tie.
    turned = np.array([0, 2, 1, 3], np.uint8)
    judgements["first"] = np.where(is_turned, turned[rows["second"]], rows["first"])
    judgements["second"] = np.where(is_turned, turned[rows["first"]], rows["second"])
