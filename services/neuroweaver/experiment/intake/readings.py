"""What the metrics of an experiment read of its events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from neuroweaver.experiment.domain.metrics import (
    COUNT,
    MEAN,
    SUM,
    Estimate,
    Outcome,
    definition_of,
    estimate_of,
    outcomes_of,
)
from neuroweaver.experiment.domain.specification import length
from neuroweaver.statistics.winsorization import NO_CAPS, Caps
from neuroweaver.v1 import experiment_pb2 as pb


@dataclass(frozen=True)
class Span:
    """The events of a unit that count. window_us: how long after its first exposure; None: for ever.

    lookback_us: those before it instead, within so long. grace_us: clocks differ, so what is stamped up to so
    long before the exposure counts as after it.
    """

    window_us: int | None = None
    lookback_us: int | None = None
    grace_us: int = 0

    @property
    def only_grows(self) -> bool:
        """Whether an earlier first exposure takes events in and leaves none out."""
        return self.window_us is None and self.lookback_us is None

    def holds(self, time: npt.NDArray[np.int64], first: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """time: of events. first: of their units' first exposures. Both in microseconds, (n,)."""
        if self.lookback_us is not None:
            before = first - time
            return (before > self.grace_us) & (before <= self.lookback_us)
        since = time >= first - self.grace_us
        if self.window_us is not None:
            return since & (time - first <= self.window_us)
        return since


@dataclass(frozen=True)
class Source:
    """An outcome, its events by the place of their name."""

    name: int
    aggregation: pb.UnitAggregation.ValueType
    threshold: float | None

    @property
    def is_share(self) -> bool:
        return self.threshold is not None

    @property
    def is_always_there(self) -> bool:
        """Whether a unit without events has a value too, 0."""
        return self.is_share or self.aggregation in {SUM, COUNT}


@dataclass(frozen=True)
class Reading:
    """One metric. sources: of the outcome columns. span: of the outcomes; span_before: of the covariates,
    None without any that look back.

    covariate: index among those of exposures, None without. caps: by values. calibration: units without
    which there are no caps by quantiles, 0 for a metric without such caps.
    """

    metric_id: str
    sources: tuple[Source, ...]
    span: Span
    span_before: Span | None
    covariate: int | None
    caps: Caps
    lower_quantile: float | None
    upper_quantile: float | None
    calibration: int
    is_quantile: bool
    is_of_unit_means: bool

    @property
    def is_sketched(self) -> bool:
        """Whether its events are, as they come; units' means are sketched where they are read."""
        return self.is_quantile and not self.is_of_unit_means

    @property
    def is_capped(self) -> bool:
        """Whether by values or by quantiles."""
        return bool(self.calibration) or self.caps != NO_CAPS

    @property
    def is_valued(self) -> bool:
        """Whether it has a value of each unit that is more than the number of events."""
        return not self.is_quantile and any(
            source.is_share or source.aggregation != COUNT for source in self.sources
        )

    @property
    def outcomes(self) -> int:
        return len(self.sources)

    @property
    def is_ratio(self) -> bool:
        return self.outcomes == 2

    @property
    def cuts(self) -> int:
        """Columns of what caps cut, see `snapshot.Cell`."""
        return 1 + 2 * self.outcomes

    @property
    def covariates(self) -> int:
        if self.span_before is not None:
            return self.outcomes
        return 0 if self.covariate is None else 1


@dataclass(frozen=True)
class Total:
    """What is kept of the events of a name in a span. place: of its column among those of its kind.

    threshold: of a count, those events alone that reach it.
    """

    name: int
    span: Span
    kind: TotalKind
    place: int
    threshold: float = -np.inf


class TotalKind(Enum):
    NUMBER = "number"
    SUM = "sum"
    MAX = "max"
    MIN = "min"


class Plan:
    """How the events of an experiment are read.

    variants: the control first, then as specified: a judgement's baseline is the one that comes first.
    names: of the events that metrics of units read; judgements: those that pairwise metrics read, with the
    metrics' ids. exposure_type, sample_type, judgement_type: how a unit's events are kept.
    """

    def __init__(self, spec: pb.ExperimentSpec) -> None:
        others = [each.variant_id for each in spec.variants if each.variant_id != spec.control_variant_id]
        self.variants = [spec.control_variant_id, *others]
        self.grace_us = _microseconds(spec, "exposure_grace") or 0
        self.names: list[str] = []
        self.covariates: list[str] = []
        self.pairwise: list[tuple[str, str]] = [
            (metric.metric_id, definition_of(metric).event_name)
            for metric in spec.metrics
            if estimate_of(metric) is Estimate.WIN_RATE
        ]
        self.judgements = sorted({name for _, name in self.pairwise})
        self.readings = [self._reading(metric) for metric in spec.metrics if outcomes_of(metric)]
        self.exposure_type = np.dtype(
            [
                ("time", "<i8"),
                ("phase", "<i4"),
                ("variant", "u1"),
                ("is_mismatched", "u1"),
                ("variants", "<u4"),
                ("covariates", "<f8", (max(1, len(self.covariates)),)),
            ]
        )
        self._totals: dict[tuple[int, Span, TotalKind, float], Total] = {}
        for reading in self.readings:
            for source in reading.sources:
                for span in (reading.span, reading.span_before):
                    if span is not None:
                        self._add_totals(source, span)
        # Those of a version that did not tell which events no metric uses come first.
        self.used_totals = len(self._totals)
        # The metrics of which more is compared over time than the number of events.
        self.valued = [each for each in self.readings if each.is_valued]
        self._add_timed()
        self.totals: Sequence[Total] = tuple(self._totals.values())
        # Name and span of the events that are sketched, each once however many metrics read them.
        self.sketched = {
            (reading.sources[0].name, reading.span) for reading in self.readings if reading.is_sketched
        }
        # Names of which every event is kept: an earlier exposure would leave some out again.
        self.is_kept = np.zeros(len(self.names), np.bool_)
        for total in self.totals:
            self.is_kept[total.name] |= total.span.window_us is not None
        # The longest lookback of the metrics that read each name, microseconds.
        self.lookback_us = np.zeros(len(self.names), np.int64)
        for reading in self.readings:
            for source in reading.sources if reading.span_before else ():
                lookback_us = reading.span_before.lookback_us if reading.span_before else None
                self.lookback_us[source.name] = max(self.lookback_us[source.name], lookback_us or 0)

    @property
    def is_capped(self) -> bool:
        """Whether any metric is."""
        return any(reading.is_capped for reading in self.readings)

    @property
    def since(self) -> Span:
        """All that happened from the exposure on."""
        return Span(grace_us=self.grace_us)

    @property
    def before(self) -> Span:
        """All that happened before it."""
        return Span(lookback_us=_EVER_US, grace_us=self.grace_us)

    @property
    def last_hour(self) -> Span:
        """Of what happened before it."""
        return Span(lookback_us=self.grace_us + _HOUR_US, grace_us=self.grace_us)

    @property
    def last_day(self) -> Span:
        return Span(lookback_us=self.grace_us + 24 * _HOUR_US, grace_us=self.grace_us)

    def spans_of_values(self, reading: Reading) -> Sequence[Span]:
        """Those of a metric's values that `Snapshot.timed_values` has."""
        early = [self.last_day, self.before]
        return early if reading.span.window_us is None else [*early, reading.span, self.since]

    def number_of(self, name: int, span: Span) -> int:
        """The column of the number of events."""
        return self._totals[name, span, TotalKind.NUMBER, -np.inf].place

    def used(self, name: int) -> Sequence[Span]:
        """The longest spans in which any metric reads events of a name: from the exposure on, and before."""
        spans = {total.span for total in self.totals[: self.used_totals] if total.name == name}
        before = [span for span in spans if span.lookback_us is not None]
        since = [span for span in spans if span.lookback_us is None]
        longest = max(since, key=lambda span: _EVER_US if span.window_us is None else span.window_us)
        return [longest, *sorted(before, key=lambda span: span.lookback_us or 0)[-1:]]

    def windows(self, name: int) -> Sequence[Span]:
        """The spans with an end in which metrics read events of a name, the shortest first."""
        spans = {total.span for total in self.totals[: self.used_totals] if total.name == name}
        return sorted(
            (span for span in spans if span.window_us is not None), key=lambda span: span.window_us or 0
        )

    def timed_columns(self, event_name: str) -> int:
        """How many numbers `Population.timed` gives of a unit."""
        return 6 + len(self.windows(self.names.index(event_name)))

    def value_of(self, source: Source, span: Span) -> Total:
        """What the source's value is made of."""
        return self._totals[_key(source, span)]

    def count(self, *kinds: TotalKind) -> int:
        """Columns of some kinds."""
        return sum(total.kind in kinds for total in self.totals)

    def _add_timed(self) -> None:
        """What tells whether times fit."""
        for name in range(len(self.names)):
            for span in (self.since, self.before, self.last_hour, self.last_day):
                self._add(name, span, TotalKind.NUMBER)
        for reading in self.valued:
            for source in reading.sources:
                for span in self.spans_of_values(reading):
                    self._add_totals(source, span)

    def _add_totals(self, source: Source, span: Span) -> None:
        for name, _, kind, threshold in ((source.name, span, TotalKind.NUMBER, -np.inf), _key(source, span)):
            self._add(name, span, kind, threshold)

    def _add(self, name: int, span: Span, kind: TotalKind, threshold: float = -np.inf) -> None:
        key = name, span, kind, threshold
        if key not in self._totals:
            shared = (kind,) if kind in {TotalKind.NUMBER, TotalKind.SUM} else EXTREMES
            place = sum(total.kind in shared for total in self._totals.values())
            self._totals[key] = Total(name, span, kind, place, threshold)

    def _reading(self, metric: pb.ExperimentMetric) -> Reading:
        caps, cuped = metric.winsorization, metric.cuped
        lookback_us = _microseconds(cuped, "lookback")
        by_quantiles = caps.HasField("lower_quantile") or caps.HasField("upper_quantile")
        return Reading(
            metric_id=metric.metric_id,
            sources=tuple(map(self._source, outcomes_of(metric))),
            span=Span(window_us=_microseconds(metric, "conversion_window"), grace_us=self.grace_us),
            span_before=None if lookback_us is None else Span(None, lookback_us, self.grace_us),
            covariate=_place(self.covariates, cuped.exposure_covariate) if cuped.exposure_covariate else None,
            caps=Caps(_given(caps, "lower_value"), _given(caps, "upper_value")),
            lower_quantile=_given(caps, "lower_quantile"),
            upper_quantile=_given(caps, "upper_quantile"),
            calibration=caps.calibration_units if by_quantiles else 0,
            is_quantile=estimate_of(metric) is Estimate.QUANTILE,
            is_of_unit_means=metric.quantile.is_of_unit_means,
        )

    def _source(self, outcome: Outcome) -> Source:
        return Source(_place(self.names, outcome.event_name), outcome.aggregation, outcome.threshold)


# Longer than any experiment, and short enough to be told from the exposure that a unit does not have.
_EVER_US: Final = 1 << 60
_HOUR_US: Final = 3_600_000_000

EXTREMES: Final = (TotalKind.MAX, TotalKind.MIN)

SAMPLE_TYPE: Final = np.dtype([("time", "<i8"), ("name", "u1"), ("value", "<f8")])
NOTE_TYPE: Final = np.dtype([("name", "u1"), ("mark", "<f8")])
"""Of a sample that was rejected for its time. mark: what tells it from others, see `events.REJECTED`."""
JUDGEMENT_TYPE: Final = np.dtype(
    [
        ("phase", "<i4"),
        ("name", "u1"),
        ("baseline", "u1"),
        ("candidate", "u1"),
        # Who won with the baseline's answer first, and with the candidate's: values of PairwiseOutcome.
        ("first", "u1"),
        ("second", "u1"),
    ]
)


def _key(source: Source, span: Span) -> tuple[int, Span, TotalKind, float]:
    if source.threshold is not None:
        return source.name, span, TotalKind.NUMBER, source.threshold
    return source.name, span, _TOTAL_KINDS[source.aggregation], -np.inf


_TOTAL_KINDS: Final = {
    SUM: TotalKind.SUM,
    MEAN: TotalKind.SUM,
    COUNT: TotalKind.NUMBER,
    pb.UNIT_AGGREGATION_MAX: TotalKind.MAX,
    pb.UNIT_AGGREGATION_MIN: TotalKind.MIN,
}


def _place(names: list[str], name: str) -> int:
    if name not in names:
        names.append(name)
    return names.index(name)


def _given(message: Any, field: str) -> float | None:
    return getattr(message, field) if message.HasField(field) else None


def _microseconds(message: Any, field: str) -> int | None:
    if not message.HasField(field):
        return None
    moment = length(getattr(message, field))
    return (moment.days * 86_400 + moment.seconds) * 1_000_000 + moment.microseconds


def indexes(plan_names: Sequence[str], names: Sequence[str]) -> Any:
    """The place of each name among the plan_names ones, -1 for the others."""
    places = {name: place for place, name in enumerate(plan_names)}
    return np.array([places.get(name, -1) for name in names], np.int64)
