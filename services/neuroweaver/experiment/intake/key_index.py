"""Where keys are, without a look at the disk: found by the thousand at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from neuroweaver.experiment.intake.keys import Keys

# A run is merged with the next younger one that is more than a fourth of it: few runs to search, and each
# key is moved a few times in all (the tiers of a log-structured merge tree).
_RATIO: Final = 4


@dataclass(frozen=True)
class _Run:
    """Sorted by `high`."""

    high: npt.NDArray[np.uint64]
    low: npt.NDArray[np.uint64]
    place: npt.NDArray[np.int32]


class KeyIndex:
    """The places of keys: the first that was added has 0."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def nbytes(self) -> int:
        return sum(run.high.nbytes + run.low.nbytes + run.place.nbytes for run in self._runs)

    def find(self, keys: Keys) -> npt.NDArray[np.int64]:
        """The place of each key; -1 for one that is not there."""
        places = np.full(len(keys), -1, np.int64)
        # In their order, neighbours are looked for in memory that lies together.
        order = np.argsort(keys[:, 0])
        high, low = keys[order, 0], keys[order, 1]
        for run in self._runs:
            at = np.searchsorted(run.high, high)
            rest = np.flatnonzero(at < len(run.high))
            rest = rest[run.high[at[rest]] == high[rest]]
            while len(rest):
                is_it = run.low[at[rest]] == low[rest]
                places[order[rest[is_it]]] = run.place[at[rest[is_it]]]
                # Two keys may share a half.
                rest = rest[~is_it]
                at[rest] += 1
                rest = rest[at[rest] < len(run.high)]
                rest = rest[run.high[at[rest]] == high[rest]]
        return places

    def add(self, keys: Keys) -> None:
        """keys: new ones, each once."""
        if not len(keys):
            return
        order = np.argsort(keys[:, 0], kind="stable")
        place = np.arange(self._size, self._size + len(keys), dtype=np.int32)
        self._runs.append(_Run(keys[order, 0], keys[order, 1], place[order]))
        self._size += len(keys)
        while len(self._runs) > 1 and len(self._runs[-2].high) < _RATIO * len(self._runs[-1].high):
            younger, older = self._runs.pop(), self._runs.pop()
            self._runs.append(_merged(older, younger))

    def copy(self) -> KeyIndex:
        """As it is now; costs nothing, since runs never change."""
        copied = KeyIndex()
        copied._runs, copied._size = list(self._runs), self._size
        return copied

    def keys(self) -> Keys:
        """All of them, by place."""
        keys = np.zeros((self._size, 2), np.uint64)
        for run in self._runs:
            keys[run.place, 0], keys[run.place, 1] = run.high, run.low
        return keys


def _merged(older: _Run, younger: _Run) -> _Run:
    at = np.searchsorted(older.high, younger.high, side="right") + np.arange(len(younger.high))
    is_older = np.ones(len(older.high) + len(younger.high), np.bool_)
    is_older[at] = False

    def merged(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
        both = np.empty(len(is_older), one.dtype)
        both[is_older], both[at] = one, other
        return both

    return _Run(
        merged(older.high, younger.high), merged(older.low, younger.low), merged(older.place, younger.place)
    )
