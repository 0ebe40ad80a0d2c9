"""The sufficient statistics of one experiment: all that an analysis knows of its events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime

from neuroweaver.statistics.arm import Sample
from neuroweaver.statistics.pairwise import Judgements
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
class Cell:
    """A metric in one variant and phase.

    events: those in the statistics. units_without_events: left out of the sample, or without a value.
    sketch: a `GroupedSketch` of the events of a quantile metric, or of the units' means; None for other
    kinds.
    """

    sample: Sample
    events: int = 0
    units_without_events: int = 0
    sketch: bytes | None = None


@dataclass(frozen=True)
class Rejection:
    """Events that were not used. names, event_ids: at most ten of each, the first that came."""

    reason: pb.EventRejection.ValueType
    count: int
    names: tuple[str, ...] = ()
    event_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quality:
    """What came in, and what could not be used. unexposed: events of units that have no exposure yet."""

    accepted: int = 0
    duplicates: int = 0
    late: int = 0
    unexposed: int = 0
    rejected: tuple[Rejection, ...] = ()
    last_event_time: datetime | None = None


@dataclass(frozen=True)
class Snapshot:
    """groups: by (phase, variant). cells: by (phase, variant, metric). tallies: by (phase, baseline,
    candidate, metric), where the control is the baseline, and between treatments the one specified first.
    caps: in force under quantile winsorisation, by (phase, metric); lower and upper, None for no cap.
    units_by_day: units by the UTC day of their first exposure in any phase.
    """

    groups: Mapping[tuple[int, str], Group] = field(default_factory=dict)
    cells: Mapping[tuple[int, str, str], Cell] = field(default_factory=dict)
    tallies: Mapping[tuple[int, str, str, str], Judgements] = field(default_factory=dict)
    caps: Mapping[tuple[int, str], tuple[float | None, float | None]] = field(default_factory=dict)
    quality: Quality = field(default_factory=Quality)
    units_by_day: Mapping[date, int] = field(default_factory=dict)
