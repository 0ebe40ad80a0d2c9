"""The sufficient statistics of one experiment: all that an analysis knows of its events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Final

from neuroweaver.statistics.arm import Sample
from neuroweaver.statistics.moments import Moments
from neuroweaver.statistics.pairwise import Judgements
from neuroweaver.statistics.winsorization import NO_CAPS, Caps
from neuroweaver.v1 import experiment_pb2 as pb


@dataclass(frozen=True)
class Group:
    """The units analysed under a variant in a phase: all, those served another variant at least once, and
    those exposed under another variant too.
    """

    units: int = 0
    mismatched: int = 0
    multiply_exposed: int = 0


@dataclass(frozen=True)
class Uses:
    """The events of one name of the units analysed under a variant in a phase: all, and those that no metric
    counts, since they came before the exposure or after the window. early_units: units with any event before
    the exposure, whether a covariate reads it or not. rejected_units: units with any event that was rejected
    for its time, which is none of the others.
    """

    events: int = 0
    early_units: int = 0
    before_exposure: int = 0
    after_window: int = 0
    rejected_units: int = 0


@dataclass(frozen=True)
class Cell:
    """A metric in one variant and phase.

    events: those in the statistics. units_without_events: left out of the sample, or without a value.
    sketch: a `GroupedSketch` of the events of a quantile metric, or of the units' means; None for other
    kinds. cuts: of a capped metric, over the sample's units: whether a cap changed a value, then of each
    outcome by how much, and the size of what it changed and of what it left together; None where an earlier
    version capped them.
    """

    sample: Sample
    events: int = 0
    units_without_events: int = 0
    sketch: bytes | None = None
    cuts: Moments | None = None


# Caps by quantiles are taken again whenever their metric's units and events have grown by this. Each time all
# units are read: five passes over them in all, however many there will be.
CAPS_GROWTH: Final = 1.25
# Every hour less is enough.
CAPS_GROWTH_HOURLY: Final = 1.05


@dataclass(frozen=True)
class Calibration:
    """Caps by quantiles, None for no cap on a side. units: the complete ones from which they were taken.

    A ratio's are of its numerator; those of its denominator are beside them.
    """

    lower: float | None
    upper: float | None
    units: int
    denominator: Caps = NO_CAPS

    @property
    def is_in_force(self) -> bool:
        """Whether there is any cap."""
        return Caps(self.lower, self.upper) != NO_CAPS or self.denominator != NO_CAPS


@dataclass(frozen=True)
class Rejection:
    """Events that were not used. names, event_ids: at most ten of each, the first that came."""

    reason: pb.EventRejection.ValueType
    count: int
    names: tuple[str, ...] = ()
    event_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quality:
    """What came in, and what could not be used. unexposed: events of units that have no exposure yet.
    overridden: events of units that an override assigns.
    """

    accepted: int = 0
    duplicates: int = 0
    late: int = 0
    unexposed: int = 0
    overridden: int = 0
    rejected: tuple[Rejection, ...] = ()
    last_event_time: datetime | None = None


@dataclass(frozen=True)
class Snapshot:
    """groups: by (phase, variant). cells: by (phase, variant, metric). tallies: by (phase, baseline,
    candidate, metric), where the control is the baseline, and between treatments the one specified first.
    calibrations: of quantile winsorisation, by metric, once it was tried. uses: by (phase, variant, name of
    the events). timings: by the same, over all units: how many of these events came before the exposure, how
    many from it on, how many were rejected for their times, how many of those before came within the last
    hour, within the last day, and earlier; and how many within each window that a metric reads them in, the
    shortest first. timed_values: by (phase, variant, metric), of metrics that are more than a number of
    events and no quantile, over all units: the outcomes, uncapped and 0 without events, of the last day
    before the exposure, and of all before it; with a window, of that, and of all since the exposure.
    between: by phase, the judgements of two treatments. rejected_exposures: by variant, those rejected for
    their times. outdated: the metrics that an earlier version counted in another way, or whose times of
    events it did not count, until their units are counted anew. losing: by (reason, phase, variant), the
    units with samples that were rejected for their names, or since their ids are those of other units'
    events; where these are many, of the same sample of the units of each variant.
    units_by_day: units by the UTC day of their first exposure in any phase.
    """

    groups: Mapping[tuple[int, str], Group] = field(default_factory=dict)
    cells: Mapping[tuple[int, str, str], Cell] = field(default_factory=dict)
    tallies: Mapping[tuple[int, str, str, str], Judgements] = field(default_factory=dict)
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    uses: Mapping[tuple[int, str, str], Uses] = field(default_factory=dict)
    timings: Mapping[tuple[int, str, str], Moments] = field(default_factory=dict)
    timed_values: Mapping[tuple[int, str, str], Moments] = field(default_factory=dict)
    between: Mapping[int, int] = field(default_factory=dict)
    rejected_exposures: Mapping[str, int] = field(default_factory=dict)
    quality: Quality = field(default_factory=Quality)
    units_by_day: Mapping[date, int] = field(default_factory=dict)
    outdated: frozenset[str] = frozenset()
    losing: Mapping[tuple[pb.EventRejection.ValueType, int, str], int] = field(default_factory=dict)
