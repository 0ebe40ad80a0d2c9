"""All units of an experiment in memory, in columns: those of a batch are taken out, changed, and put back."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from neuroweaver.experiment.intake.key_index import KeyIndex
from neuroweaver.experiment.intake.keys import Keys
from neuroweaver.experiment.intake.readings import JUDGEMENT_TYPE, NOTE_TYPE, SAMPLE_TYPE, Plan
from neuroweaver.experiment.intake.units import Change, Ints, Population, Records, Totals, unexposed

_LEAST: Final = 1024
_NONE: Final = -1
# Steps along a chain after which a look at all rows is quicker.
_LONG: Final = 100


class UnitTable:
    """The place of a unit is its number, from 0, in the order in which they came."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.index = KeyIndex()
        self._exposures = _Column(unexposed(plan, 1)[0], plan.exposure_type)
        self._totals = {name: _Column.like(getattr(Totals.none(plan, 1), name)) for name in _TOTALS}
        self._loose = _Chains(SAMPLE_TYPE)
        self._judgements = _Chains(JUDGEMENT_TYPE)
        self._notes = _Chains(NOTE_TYPE)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def nbytes(self) -> int:
        columns = self._exposures, *self._totals.values()
        chains = sum(each.nbytes for _, each in self._chains)
        return self.index.nbytes + sum(each.nbytes for each in columns) + chains

    @property
    def _chains(self) -> Sequence[tuple[str, _Chains]]:
        return ("loose", self._loose), ("judgements", self._judgements), ("notes", self._notes)

    def population(self, keys: Keys, exposures: Records, judgements: Records) -> Population:
        """Units by their keys, each once, with what it takes to join these events to them."""
        places = self.index.find(keys)
        shown = self._exposures.taken(places)
        may_move = np.zeros(len(keys), np.bool_)
        is_early = exposures.rows["time"] <= shown["time"][exposures.unit]
        may_move[exposures.unit[is_early]] = True
        is_judged = np.zeros(len(keys), np.bool_)
        is_judged[judgements.unit] = True
        return Population(
            self.plan,
            shown,
            Totals(**{name: column.taken(places) for name, column in self._totals.items()}),
            self._loose.of(np.where(may_move, places, _NONE)),
            self._judgements.of(np.where(is_judged, places, _NONE)),
        )

    def noted(self, keys: Keys) -> tuple[Records, Ints]:
        """The notes on samples of units that were rejected; and (units, names), how many there are."""
        places = self.index.find(keys)
        return self._notes.of(places), self._totals["rejected"].taken(places).astype(np.int64)

    def everyone(self) -> Population:
        """All units by their places, without the samples that are kept."""
        totals = {name: column.all(len(self)) for name, column in self._totals.items()}
        return self._population(self._exposures.all(len(self)), totals, self._judgements.all())

    def everyone_after(self, keys: Keys, change: Change) -> Population:
        """As `everyone` after `put`, which was not called yet."""
        places, new = self.index.find(keys), change.new
        is_new = places == _NONE

        def changed(column: _Column, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
            all_values = column.all(len(self))
            all_values[places[~is_new]] = values[~is_new]
            return np.concatenate((all_values, values[is_new]))

        totals = {name: changed(column, getattr(new.totals, name)) for name, column in self._totals.items()}
        places[is_new] = np.arange(len(self), len(self) + np.count_nonzero(is_new))
        fresh = Records(places[change.judgements.unit], change.judgements.rows)
        judgements = self._judgements.all() + fresh
        return self._population(changed(self._exposures, new.exposures), totals, judgements)

    def _population(
        self, exposures: npt.NDArray[Any], totals: dict[str, npt.NDArray[Any]], judgements: Records
    ) -> Population:
        return Population(self.plan, exposures, Totals(**totals), Records.none(SAMPLE_TYPE), judgements)

    def put(self, keys: Keys, change: Change) -> Ints:
        """Stores what became of the units of `population`. Returns their places."""
        places = self.index.find(keys)
        is_new = places == _NONE
        places[is_new] = np.arange(len(self), len(self) + int(np.count_nonzero(is_new)))
        self.index.add(keys[is_new])
        new = change.new
        self._exposures.put(places, new.exposures)
        for name, column in self._totals.items():
            column.put(places, getattr(new.totals, name))
        self._loose.cover(len(self))
        self._judgements.cover(len(self))
        self._notes.cover(len(self))
        self._loose.drop(places[change.moved])
        self._loose.append(places[new.loose.unit], new.loose.rows)
        self._judgements.append(places[change.judgements.unit], change.judgements.rows)
        self._notes.append(places[change.notes.unit], change.notes.rows)
        return places

    def forget_loose(self, oldest_us: int, lookback_us: int) -> int:
        """Drops the samples whose part no exposure can change any more, since none before `oldest_us` comes.

        All those of units that were exposed before that, and of others what no exposure would look back to.
        """
        first = self._exposures.all(len(self))["time"]
        return self._loose.prune(first < oldest_us, oldest_us - lookback_us)

    def arrays(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Copies of all there is, for `from_arrays`."""
        yield "keys", self.index.keys()
        yield "exposures", self._exposures.all(len(self))
        for name, column in self._totals.items():
            yield name, column.all(len(self))
        for name, chains in self._chains:
            records = chains.all()
            yield f"{name}_unit", records.unit
            yield f"{name}_rows", records.rows

    @classmethod
    def from_arrays(cls, plan: Plan, arrays: dict[str, npt.NDArray[Any]]) -> UnitTable:
        """What `arrays` gave."""
        table = cls(plan)
        table.index.add(arrays["keys"])
        # Columns that an earlier version did not count: nothing is known of them.
        arrays = dict(arrays)
        for name in ("numbers", "sums", "extremes"):
            whole = getattr(Totals.none(plan, len(arrays[name])), name)
            whole[:, : arrays[name].shape[1]] = arrays[name]
            arrays[name] = whole
        places = np.arange(len(table))
        table._exposures.put(places, arrays["exposures"])
        for name, column in table._totals.items():
            # Rejections are not in those of an earlier version.
            if name in arrays:
                column.put(places, arrays[name])
        for name, chains in table._chains:
            chains.cover(len(table))
            if f"{name}_unit" in arrays:
                chains.append(arrays[f"{name}_unit"], arrays[f"{name}_rows"])
        return table


_TOTALS: Final = ("numbers", "sums", "extremes", "samples", "rejected")


def packed(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Named arrays as bytes (NumPy's npz, uncompressed)."""
    data = io.BytesIO()
    np.savez(data, allow_pickle=False, **arrays)
    return data.getvalue()


def unpacked(data: bytes) -> dict[str, npt.NDArray[Any]]:
    """What `packed` gave."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


class _Column:
    """Values by place; `default` where none was put yet."""

    def __init__(self, default: Any, kind: np.dtype[Any]) -> None:
        self._default = np.asarray(default, kind)
        self._values = np.zeros((0, *self._default.shape), kind)

    @classmethod
    def like(cls, row: npt.NDArray[Any]) -> _Column:
        """row: (1, …), of defaults."""
        return cls(row[0], row.dtype)

    @property
    def nbytes(self) -> int:
        return self._values.nbytes

    def taken(self, places: Ints) -> npt.NDArray[Any]:
        """A copy; the default at -1."""
        if not len(self._values):
            return np.repeat(self._default[None], len(places), 0)
        values: npt.NDArray[Any] = self._values[np.maximum(places, 0)]
        values[places == _NONE] = self._default
        return values

    def all(self, count: int) -> npt.NDArray[Any]:
        return self._values[:count].copy()

    def put(self, places: Ints, values: npt.NDArray[Any]) -> None:
        self._values = _roomy(self._values, int(places.max()) + 1 if len(places) else 0)
        self._values[places] = values


class _Chains:
    """Rows of units, those of a unit linked one to the next."""

    def __init__(self, kind: np.dtype[Any]) -> None:
        self._heads = np.zeros(0, np.int32)
        self._rows = np.zeros(0, kind)
        self._owner = np.zeros(0, np.int32)
        self._next = np.zeros(0, np.int32)
        self._used = 0
        self._dropped = 0

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in (self._heads, self._rows, self._owner, self._next))

    def cover(self, units: int) -> None:
        """Makes room for so many units."""
        self._heads = _roomy(self._heads, units, _NONE)

    def of(self, places: Ints) -> Records:
        """The rows of some units, the unit as its index among the places; none for -1."""
        at, unit = self._walked(places)
        return Records(unit, self._rows[at])

    def append(self, places: Ints, rows: npt.NDArray[Any]) -> None:
        if not len(places):
            return
        start, self._used = self._used, self._used + len(places)
        for name in ("_rows", "_owner", "_next"):
            setattr(self, name, _roomy(getattr(self, name), self._used))
        self._rows[start : self._used] = rows
        self._owner[start : self._used] = places
        order = np.argsort(places, kind="stable")
        owner, at = places[order], start + order
        is_first = np.ones(len(order), np.bool_)
        is_first[1:] = owner[1:] != owner[:-1]
        before = np.concatenate(([_NONE], at[:-1]))
        self._next[at] = np.where(is_first, self._heads[owner], before)
        is_last = np.concatenate((is_first[1:], [True]))
        self._heads[owner[is_last]] = at[is_last]

    def drop(self, places: Ints) -> None:
        """All rows of some units."""
        at, _ = self._walked(places)
        self._owner[at] = _NONE
        self._heads[places] = _NONE
        self._dropped += len(at)
        if self._dropped > max(_LEAST, self._used // 2):
            self._rebuild(self.all())

    def prune(self, is_unit: npt.NDArray[np.bool_], before_us: int) -> int:
        """Drops all rows of chosen units, and older ones of all. Returns the number dropped."""
        records = self.all()
        is_old = is_unit[records.unit] | (records.rows["time"] < before_us)
        if is_old.any():
            self._rebuild(records.chosen(~is_old))
        return int(np.count_nonzero(is_old))

    def all(self) -> Records:
        """By place."""
        alive = np.flatnonzero(self._owner[: self._used] != _NONE)
        return Records(self._owner[alive].astype(np.int64), self._rows[alive])

    def _rebuild(self, records: Records) -> None:
        self._heads[:] = _NONE
        self._used = self._dropped = 0
        self._rows, self._owner, self._next = self._rows[:0], self._owner[:0], self._next[:0]
        self.append(records.unit, records.rows)

    def _walked(self, places: Ints) -> tuple[Ints, Ints]:
        unit = np.flatnonzero(places != _NONE)
        at = self._heads[places[unit]].astype(np.int64)
        rows: list[Ints] = []
        units: list[Ints] = []
        while True:
            is_there = at != _NONE
            at, unit = at[is_there], unit[is_there]
            if not len(at):
                break
            if len(rows) == _LONG:
                return self._searched(places)
            rows.append(at)
            units.append(unit)
            at = self._next[at].astype(np.int64)
        if not rows:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return np.concatenate(rows), np.concatenate(units)

    def _searched(self, places: Ints) -> tuple[Ints, Ints]:
        """As `_walked`, by a look at all rows: quicker where one unit has very many."""
        unit = np.flatnonzero(places != _NONE)
        unit = unit[np.argsort(places[unit])]
        owner, mine = self._owner[: self._used], places[unit]
        at = np.flatnonzero(np.isin(owner, mine))
        return at, unit[np.searchsorted(mine, owner[at])]


def _roomy(values: npt.NDArray[Any], needed: int, filler: int = 0) -> npt.NDArray[Any]:
    """The values, with room for so many at least."""
    if needed <= len(values):
        return values
    grown = np.zeros((max(_LEAST, needed, len(values) * 3 // 2), *values.shape[1:]), values.dtype)
    grown[: len(values)] = values
    if filler:
        grown[len(values) :] = filler
    return grown
