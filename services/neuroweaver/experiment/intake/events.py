"""Batches of events: checked as they come, and kept in columns."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.v1 import experiment_pb2 as pb

EXPOSURE: Final = 0
SAMPLE: Final = 1
JUDGEMENT: Final = 2
REJECTED: Final = 3
"""A note that a sample of this name and unit was rejected for its time; its own time is when it was
made, and its value is a number made of the sample's id, by which the sample is known again."""

MAX_EVENTS: Final = 1000

# The sum of a billion of these stays within what moments hold.
LARGEST_VALUE: Final = 1e20
_START_US: Final = 946_684_800_000_000
_END_US: Final = 253_402_300_800_000_000

EVENT_TYPE: Final = np.dtype(
    [
        ("time", "<i8"),
        ("kind", "u1"),
        # Places in `names`, and in `variants`: the assigned and the served one, or baseline and candidate.
        ("name", "<u2"),
        ("variant", "<u2"),
        ("other", "<u2"),
        ("phase", "<i4"),
        # Of the judge, with the baseline's answer first and with the candidate's.
        ("first", "u1"),
        ("second", "u1"),
        ("value", "<f8"),
    ]
)


@dataclass(frozen=True)
class Batch:
    """Events of one experiment. rows: (n,) of EVENT_TYPE, times in microseconds since 1970; notes come last.

    covariates, judges: of those events that have any, by their index.
    """

    test_id: str
    event_ids: Sequence[str]
    unit_ids: Sequence[str]
    rows: npt.NDArray[Any]
    names: Sequence[str] = ()
    variants: Sequence[str] = ()
    covariates: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    judges: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def events(self) -> npt.NDArray[Any]:
        """The rows without the notes."""
        events: npt.NDArray[Any] = self.rows[self.rows["kind"] != REJECTED]
        return events

    def chosen(self, places: npt.NDArray[np.int64]) -> Batch:
        """Those at some places, in that order."""
        if len(places) == len(self):
            return self
        moved = {old: new for new, old in enumerate(places.tolist())}
        return replace(
            self,
            event_ids=[self.event_ids[place] for place in moved],
            unit_ids=[self.unit_ids[place] for place in moved],
            rows=self.rows[places],
            covariates={moved[old]: each for old, each in self.covariates.items() if old in moved},
            judges={moved[old]: each for old, each in self.judges.items() if old in moved},
        )

    def trimmed(self) -> Batch:
        """Without names and variants that no event uses."""
        kind = self.rows["kind"]
        rows = self.rows.copy()
        names = _kept(self.names, rows, ("name",), kind != EXPOSURE)
        has_variants = (kind == EXPOSURE) | (kind == JUDGEMENT)
        variants = _kept(self.variants, rows, ("variant", "other"), has_variants)
        return replace(self, rows=rows, names=names, variants=variants)

    @classmethod
    def joined(cls, batches: Sequence[Batch]) -> Batch:
        """All events of some batches of one experiment."""
        if len(batches) == 1:
            return batches[0]
        names, variants = _Names(), _Names()
        parts = []
        covariates: dict[int, Mapping[str, float]] = {}
        judges: dict[int, str] = {}
        start = 0
        for batch in batches:
            rows = batch.rows.copy()
            name_places = np.array([names.place(each) for each in batch.names] or [0], np.uint16)
            variant_places = np.array([variants.place(each) for each in batch.variants] or [0], np.uint16)
            rows["name"] = name_places[rows["name"]]
            rows["variant"], rows["other"] = variant_places[rows["variant"]], variant_places[rows["other"]]
            parts.append(rows)
            covariates |= {start + index: each for index, each in batch.covariates.items()}
            judges |= {start + index: each for index, each in batch.judges.items()}
            start += len(rows)
        return cls(
            test_id=batches[0].test_id,
            event_ids=[each for batch in batches for each in batch.event_ids],
            unit_ids=[each for batch in batches for each in batch.unit_ids],
            rows=np.concatenate(parts),
            names=list(names),
            variants=list(variants),
            covariates=covariates,
            judges=judges,
        )

    def to_bytes(self) -> bytes:
        header = json.dumps(
            {
                "names": list(self.names),
                "variants": list(self.variants),
                "covariates": {str(index): dict(each) for index, each in self.covariates.items()},
                "judges": {str(index): each for index, each in self.judges.items()},
                "count": len(self),
            }
        ).encode()
        # Field by field: what repeats lies together and shrinks.
        columns = b"".join(np.ascontiguousarray(self.rows[name]).tobytes() for name in EVENT_TYPE.names or ())
        ids = "\0".join((*self.event_ids, *self.unit_ids)).encode()
        return zlib.compress(struct.pack("<I", len(header)) + header + columns + ids, 1)

    @classmethod
    def from_bytes(cls, test_id: str, data: bytes) -> Batch:
        """What `to_bytes` gave."""
        plain = zlib.decompress(data)
        at = 4 + struct.unpack_from("<I", plain)[0]
        header: dict[str, Any] = json.loads(plain[4:at])
        count: int = header["count"]
        rows = np.zeros(count, EVENT_TYPE)
        for name in EVENT_TYPE.names or ():
            column = np.frombuffer(plain, EVENT_TYPE[name], count, at)
            rows[name], at = column, at + column.nbytes
        ids = plain[at:].decode().split("\0")
        return cls(
            test_id=test_id,
            event_ids=ids[:count],
            unit_ids=ids[count:],
            rows=rows,
            names=header["names"],
            variants=header["variants"],
            covariates={int(index): each for index, each in header["covariates"].items()},
            judges={int(index): each for index, each in header["judges"].items()},
        )


def _kept(
    all_names: Sequence[str], rows: npt.NDArray[Any], columns: Sequence[str], has_one: npt.NDArray[np.bool_]
) -> Sequence[str]:
    """Those of the names that some columns use, whose places are put right; 0 in rows that have none."""
    used = np.unique(np.concatenate([rows[column][has_one] for column in columns]))
    for column in columns:
        rows[column] = np.where(has_one, np.searchsorted(used, rows[column]), 0)
    return [all_names[place] for place in used.tolist()]


class _Names(dict[str, int]):
    """Names in the order they came, and their places."""

    def place(self, name: str) -> int:
        return self.setdefault(name, len(self))


def batches_of(request: pb.RecordEventsRequest) -> list[Batch]:
    """The events of a request, a batch for each experiment. Raises InvalidArgument naming the field."""
    if request.HasField("columns"):
        return [_of_columns(request.test_id, request.columns)]
    return _of_rows(request.test_id, request.rows.events)


def _of_columns(test_id: str, columns: pb.EventColumns) -> Batch:
    count = len(columns.event_ids)
    if not test_id:
        raise InvalidArgument("test_id", "is required with columns")
    if not 1 <= count <= MAX_EVENTS:
        raise InvalidArgument("columns.event_ids", f"holds {count} events, not 1 to {MAX_EVENTS}")
    rows = np.zeros(count, EVENT_TYPE)
    _check_length("columns.unit_ids", columns.unit_ids, count)
    _check_length("columns.event_times_us", columns.event_times_us, count)
    rows["time"] = columns.event_times_us
    _check("columns.event_times_us", _is_time(rows["time"]), "is not a time from 2000 to 9999")
    names: Sequence[str] = ()
    variants: Sequence[str] = ()
    if columns.HasField("metrics"):
        names = list(columns.metrics.names)
        rows["kind"] = SAMPLE
        rows["name"] = _places(
            "columns.metrics.name_indexes", columns.metrics.name_indexes, count, len(names)
        )
        _check_length("columns.metrics.values", columns.metrics.values, count)
        rows["value"] = columns.metrics.values
        _check("columns.metrics.values", _is_value(rows["value"]), _NOT_A_VALUE)
    elif columns.HasField("exposures"):
        exposures = columns.exposures
        variants = list(exposures.variant_ids)
        rows["kind"] = EXPOSURE
        rows["phase"] = exposures.phase
        number = len(variants)
        rows["variant"] = _places("columns.exposures.assigned", exposures.assigned, count, number)
        rows["other"] = rows["variant"]
        if exposures.served:
            rows["other"] = _places("columns.exposures.served", exposures.served, count, number)
    else:
        raise InvalidArgument("columns", "holds neither exposures nor metrics")
    return Batch(test_id, list(columns.event_ids), list(columns.unit_ids), rows, names, variants)


_NOT_A_VALUE: Final = f"is not a number within {LARGEST_VALUE:g}"


def _is_time(times: Any) -> Any:
    return (times >= _START_US) & (times < _END_US)


def _is_value(values: Any) -> Any:
    return np.abs(values) <= LARGEST_VALUE


def _check(field_name: str, is_right: Any, text: str) -> None:
    if not np.all(is_right):
        raise InvalidArgument(f"{field_name}[{int(np.argmin(is_right))}]", text)


def _check_length(field_name: str, values: Sequence[Any], count: int) -> None:
    if len(values) != count:
        raise InvalidArgument(field_name, f"has {len(values)} entries for {count} events")


def _places(field_name: str, places: Sequence[int], count: int, count_of_names: int) -> npt.NDArray[np.int64]:
    _check_length(field_name, places, count)
    indexes = np.array(places, np.int64)
    _check(field_name, indexes < count_of_names, f"is not an index into the {count_of_names} names")
    return indexes


@dataclass
class _Rows:
    """The events of one experiment, as they are collected."""

    names: _Names = field(default_factory=_Names)
    variants: _Names = field(default_factory=_Names)
    event_ids: list[str] = field(default_factory=list)
    unit_ids: list[str] = field(default_factory=list)
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    covariates: dict[int, Mapping[str, float]] = field(default_factory=dict)
    judges: dict[int, str] = field(default_factory=dict)

    def add(self, where: str, event: pb.ExperimentEvent) -> None:
        time = event.event_time.seconds * 1_000_000 + event.event_time.nanos // 1000
        if not _is_time(time):
            raise InvalidArgument(f"{where}.event_time", "is not a time from 2000 to 9999")
        self.event_ids.append(event.event_id)
        self.unit_ids.append(event.unit_id)
        kind = event.WhichOneof("body")
        if kind == "exposure":
            self._add_exposure(where, time, event.exposure)
        elif kind == "metric":
            if not _is_value(event.metric.value):
                raise InvalidArgument(f"{where}.metric.value", _NOT_A_VALUE)
            name = self.names.place(event.metric.name)
            self.rows.append((time, SAMPLE, name, 0, 0, 0, 0, 0, event.metric.value))
        elif kind == "judgement":
            self._add_judgement(time, event.judgement)
        else:
            raise InvalidArgument(f"{where}.body", "is required")

    def _add_exposure(self, where: str, time: int, exposure: pb.Exposure) -> None:
        for name, value in exposure.covariates.items():
            if not _is_value(value):
                raise InvalidArgument(f'{where}.exposure.covariates["{name}"]', _NOT_A_VALUE)
        if exposure.covariates:
            self.covariates[len(self.rows)] = dict(exposure.covariates)
        assigned = self.variants.place(exposure.assigned_variant_id)
        served = self.variants.place(exposure.served_variant_id or exposure.assigned_variant_id)
        self.rows.append((time, EXPOSURE, 0, assigned, served, exposure.phase, 0, 0, 0.0))

    def _add_judgement(self, time: int, judgement: pb.PairwiseJudgement) -> None:
        if judgement.judge:
            self.judges[len(self.rows)] = judgement.judge
        baseline = self.variants.place(judgement.baseline_variant_id)
        candidate = self.variants.place(judgement.candidate_variant_id)
        outcomes = (judgement.baseline_first, judgement.candidate_first)
        name = self.names.place(judgement.name)
        self.rows.append((time, JUDGEMENT, name, baseline, candidate, 0, *outcomes, 0.0))


def _of_rows(default: str, events: Sequence[pb.ExperimentEvent]) -> list[Batch]:
    by_test: dict[str, _Rows] = {}
    for index, event in enumerate(events):
        test_id = event.test_id or default
        if not test_id:
            raise InvalidArgument(f"rows.events[{index}].test_id", "is missing, here and in the request")
        by_test.setdefault(test_id, _Rows()).add(f"rows.events[{index}]", event)
    return [
        Batch(
            test_id,
            each.event_ids,
            each.unit_ids,
            np.array(each.rows, EVENT_TYPE),
            list(each.names),
            list(each.variants),
            each.covariates,
            each.judges,
        )
        for test_id, each in by_test.items()
    ]
