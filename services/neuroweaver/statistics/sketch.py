"""The events of a quantile metric in one variant: a KLL sketch (arXiv 1603.05346) for each random group of
units.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from neuroweaver.statistics.moments import usable
from neuroweaver.statistics.quantile import QuantileArm, of_events

GROUPS: Final = 64
# A group's sketch keeps some 600 of its values; together the groups' errors average out to 1/8 of one's.
_K: Final = 200


class GroupedSketch:
    """Takes in events in any order and merges; an event once in cannot be taken out.

    rank_error: of the share of events below a value, at 99 % confidence, from sketching alone.
    """

    def __init__(self) -> None:
        self._sketches: list[Any] = [None] * GROUPS

    def add(self, groups: Sequence[int] | npt.NDArray[np.int64], values: npt.ArrayLike) -> None:
        """groups, values: (events,), the group of each event's unit, and its value."""
        group, value = np.asarray(groups), usable(values)
        for index in np.unique(group):
            self._sketch(int(index)).update(value[group == index])

    def merge(self, other: GroupedSketch) -> None:
        for index, theirs in enumerate(other._sketches):
            if theirs is not None:
                self._sketch(index).merge(theirs)

    @property
    def events(self) -> int:
        return sum(sketch.n for sketch in self._sketches if sketch is not None)

    @property
    def rank_error(self) -> float:
        rough = [s.n * s.normalized_rank_error(False) for s in self._sketches if s and s.is_estimation_mode()]
        return math.hypot(*rough) / self.events if rough else 0.0

    def arm(self, units: int, level: float) -> QuantileArm | None:
        """units: how many the events are of. None with too little data, see `quantile.of_events`."""
        values: list[float] = []
        weights: list[int] = []
        groups: list[int] = []
        for index, sketch in enumerate(self._sketches):
            for value, weight in sketch or ():
                values.append(value)
                weights.append(weight)
                groups.append(index)
        return of_events(values, weights, groups, units, level)

    def to_bytes(self) -> bytes:
        parts = [b"" if sketch is None else sketch.serialize() for sketch in self._sketches]
        return b"".join(struct.pack("<I", len(part)) + part for part in parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> GroupedSketch:
        """What `to_bytes` gave. ValueError for anything else."""
        result, at = cls(), 0
        for index in range(GROUPS):
            size = struct.unpack_from("<I", data, at)[0] if at + 4 <= len(data) else len(data)
            part = data[at + 4 : at + 4 + size]
            if len(part) != size:
                raise ValueError("not a grouped sketch")
            if part:
                result._sketches[index] = _kll().deserialize(part)
            at += 4 + size
        if at != len(data):
            raise ValueError("not a grouped sketch")
        return result

    def _sketch(self, index: int) -> Any:
        if self._sketches[index] is None:
            self._sketches[index] = _kll()(_K)
        return self._sketches[index]


def _kll() -> Any:
    from datasketches import kll_doubles_sketch  # noqa: PLC0415  # only quantile metrics need it

    return kll_doubles_sketch
