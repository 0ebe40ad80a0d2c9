"""Which events were taken in, and of which unit each is: a retry repeats both."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from neuroweaver.experiment.intake.key_index import KeyIndex
from neuroweaver.experiment.intake.keys import Keys

Marks = npt.NDArray[np.uint32]
"""Of the unit of each event; 0 where it was not kept."""

_UNKNOWN: Final = 0


def marks_of(unit_ids: Sequence[str]) -> Marks:
    """Two units have the same mark once in four billion times: then a reused id looks like a retry."""
    return np.array([zlib.crc32(unit_id.encode()) or 1 for unit_id in unit_ids], np.uint32)


def unknown_marks(count: int) -> Marks:
    return np.full(count, _UNKNOWN, np.uint32)


class EventIds:
    def __init__(self) -> None:
        self._index = KeyIndex()
        self._marks = unknown_marks(0)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def nbytes(self) -> int:
        return self._index.nbytes + self._marks.nbytes

    def find(self, keys: Keys, marks: Marks) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which of these events were taken in, and which of those of another unit."""
        places = self._index.find(keys)
        is_known = places >= 0
        is_other = np.zeros(len(keys), np.bool_)
        kept = self._marks[places[is_known]]
        is_other[is_known] = (kept != _UNKNOWN) & (kept != marks[is_known])
        return is_known, is_other

    def add(self, keys: Keys, marks: Marks) -> None:
        """keys: new ones, each once. marks: of their units."""
        start, end = len(self._index), len(self._index) + len(keys)
        if end > len(self._marks):
            self._marks = np.concatenate((self._marks, unknown_marks(max(end, 2 * start) - len(self._marks))))
        self._marks[start:end] = marks
        self._index.add(keys)
