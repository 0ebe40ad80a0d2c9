"""Training data: where it lies, what is wrong with it line by line, and the chat examples it holds."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Final, TypedDict, Unpack

from neuroweaver.trainer.data.files import (
    DatasetError,
    DatasetNotFoundError,
    DatasetUnreadableError,
    format_of,
)
from neuroweaver.trainer.data.records import Lines, Record, csv_rows, jsonl
from neuroweaver.trainer.data.rows import Example, Finding, Row, Severity, SystemPrompts, parse

MAX_LINE_BYTES: Final = 1 << 20
MAX_FINDINGS: Final = 100
# Seeing duplicates costs memory for each row; among more rows than this they are no longer counted.
MAX_REMEMBERED: Final = 200_000


class DatasetEmptyError(DatasetError):
    """The file holds no usable row."""


class DatasetMalformedError(DatasetError):
    """Lines are wrong; `findings` holds the first of them."""

    def __init__(self, reason: str, findings: Sequence[Finding]) -> None:
        super().__init__(reason)
        self.findings = tuple(findings)


class Options(TypedDict, total=False):
    """How a file is read.

    system_prompts: by specialisation, put before rows without a system message: that of the row's own
    `specialization` field, or else of the job's `specialization`. max_line_bytes: longer lines are at fault.
    """

    max_line_bytes: int
    system_prompts: Mapping[str, str]
    specialization: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a pass over the whole file showed.

    digest: SHA-256 of the file's bytes, in hex. rows: usable or not. usable: those that hold an example.
    errors: all of them, while `findings` holds the first hundred of each severity. layouts: rows of each.
    """

    path: Path
    digest: str
    rows: int
    usable: int
    errors: int
    layouts: Mapping[str, int]
    findings: tuple[Finding, ...]

    @property
    def is_usable(self) -> bool:
        return self.errors == 0 and self.usable > 0


@dataclass(frozen=True, slots=True)
class Dataset:
    """A file's examples in its order, and what the pass showed."""

    examples: tuple[Example, ...]
    inspection: Inspection

    @property
    def digest(self) -> str:
        return self.inspection.digest

    @property
    def rows(self) -> int:
        return self.inspection.rows


@dataclass(slots=True)
class _Tally:
    """The counts of one pass, with findings bounded."""

    rows: int = 0
    usable: int = 0
    by_severity: Counter[Severity] = field(default_factory=Counter)
    layouts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    seen: set[bytes] = field(default_factory=set)

    def add(self, row: Row) -> None:
        self.rows += 1
        self.layouts[row.layout or "unknown"] += 1
        for finding in row.findings:
            self.add_finding(finding)
        if row.example is not None:
            self._add_example(row.example)

    def add_finding(self, finding: Finding) -> None:
        self.by_severity[finding.severity] += 1
        # Bounded apart, so that a thousand warnings never hide an error.
        if self.by_severity[finding.severity] <= MAX_FINDINGS:
            self.findings.append(finding)

    def _add_example(self, example: Example) -> None:
        self.usable += 1
        key = _key(example, whole=True)
        if key in self.seen:
            repeated = "repeats an earlier row"
            self.add_finding(Finding(example.line, "", Severity.WARNING, repeated))
        elif len(self.seen) < MAX_REMEMBERED:
            self.seen.add(key)


class Reading:
    """One pass over a file in bounded memory: its usable examples in order, and then its inspection.

    Faults of lines are findings, never raised: see `require`. Raises DatasetNotFoundError,
    DatasetUnreadableError, DatasetRefusedError.
    """

    inspection: Inspection
    """Of the whole file, once the examples have come to their end."""

    def __init__(self, path: Path, **options: Unpack[Options]) -> None:
        self._path = path
        self._max_line_bytes = options.get("max_line_bytes", MAX_LINE_BYTES)
        self._prompts = _prompts(options.get("system_prompts", {}), options.get("specialization", ""))

    def __iter__(self) -> Iterator[Example]:
        is_csv = format_of(self._path) == "csv"
        tally = _Tally()
        try:
            with self._path.open("rb") as source:
                lines = Lines(source, self._max_line_bytes)
                for row in self._rows(csv_rows(lines) if is_csv else jsonl(lines)):
                    tally.add(row)
                    if row.example is not None:
                        yield row.example
                # A CSV header at fault ends the rows early; the digest is of the whole file all the same.
                for _ in lines:
                    continue
        except FileNotFoundError:
            raise DatasetNotFoundError(f"{self._path.name}: no such file") from None
        except OSError as error:
            raise DatasetUnreadableError(f"{self._path.name}: {error.strerror}") from error
        if not tally.rows:
            reason = "the file is empty" if not lines.size else "the file holds no rows"
            tally.add_finding(Finding(0, "", Severity.ERROR, reason))
        self.inspection = Inspection(
            path=self._path,
            digest=lines.sha256.hexdigest(),
            rows=tally.rows,
            usable=tally.usable,
            errors=tally.by_severity[Severity.ERROR],
            layouts=dict(tally.layouts),
            findings=tuple(tally.findings),
        )

    def _rows(self, records: Iterable[Record | Finding]) -> Iterator[Row]:
        for record in records:
            if isinstance(record, Record):
                yield parse(record.fields, record.line, self._prompts)
            else:
                yield Row("", None, (record,))


def _prompts(system_prompts: Mapping[str, str], specialization: str) -> SystemPrompts:
    if specialization and system_prompts and specialization not in system_prompts:
        names = ", ".join(sorted(system_prompts))
        reason = f"unknown specialization {specialization[:40]!r}; use one of {names}"
        raise DatasetError(reason, field="specialization")
    return SystemPrompts(system_prompts, specialization)


def read(path: Path, **options: Unpack[Options]) -> Dataset:
    """The file's usable examples and its inspection, all in memory. Raises as `Reading`."""
    reading = Reading(path, **options)
    examples = tuple(reading)
    return Dataset(examples, reading.inspection)


def inspect(path: Path, **options: Unpack[Options]) -> Inspection:
    """What the file holds, in bounded memory. Raises as `Reading`."""
    reading = Reading(path, **options)
    for _ in reading:
        continue
    return reading.inspection


def require(dataset: Dataset | Inspection) -> None:
    """Raise DatasetMalformedError if any line is at fault, DatasetEmptyError if no row is usable."""
    inspection = dataset.inspection if isinstance(dataset, Dataset) else dataset
    faults = [finding for finding in inspection.findings if finding.severity is Severity.ERROR]
    if not inspection.rows:
        raise DatasetEmptyError(f"{inspection.path.name}: {faults[0].reason}")
    if inspection.errors:
        shown = "; ".join(describe(inspection.path, fault) for fault in faults[:3])
        more = f" (and {inspection.errors - 3} more)" if inspection.errors > 3 else ""
        raise DatasetMalformedError(shown + more, faults)


def describe(path: Path, finding: Finding) -> str:
    """The finding in one line: `train.jsonl:17: answer: is empty`."""
    where = f"{path.name}:{finding.line}" if finding.line else path.name
    name = finding.column_or_field
    # The reason for malformed JSON names its column itself.
    names_itself = not name or name.startswith("column ")
    return f"{where}: {finding.reason}" if names_itself else f"{where}: {name}: {finding.reason}"


def split(
    examples: Sequence[Example], validation_fraction: float, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Train and validation, each in the given order; see `is_validation`.

    Neither side is left empty if two different questions are there: the question nearest to the other side
    moves over. Raises ValueError if the fraction is not in [0, 1).
    """
    chosen = [is_validation(example, validation_fraction, seed) for example in examples]
    if validation_fraction and (all(chosen) or not any(chosen)):
        places = [_place(example, seed) for example in examples]
        if len(set(places)) > 1:
            only = max(places) if all(chosen) else min(places)
            chosen = [(place == only) is not all(chosen) for place in places]
    train = tuple(example for example, out in zip(examples, chosen, strict=True) if not out)
    return train, tuple(example for example, out in zip(examples, chosen, strict=True) if out)


def is_validation(example: Example, validation_fraction: float, seed: int) -> bool:
    """Whether the example is held out; it depends on what the user says (or the text) and the seed alone.

    So a row stays on its side when others come or go, and two answers to one question stay together.
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be in [0, 1), not {validation_fraction}")
    return _place(example, seed) < validation_fraction


def _place(example: Example, seed: int) -> float:
    """A number in [0, 1) drawn from the example's key."""
    keyed = hashlib.sha256(f"{seed}\0".encode() + _key(example, whole=False)).digest()
    return int.from_bytes(keyed[:6], "big") / (1 << 48)


def _key(example: Example, *, whole: bool) -> bytes:
    """A hash of the whole example, or of the user's words without regard to case and spacing."""
    if whole:
        spoken = chain([example.text], *((message.role, message.content) for message in example.messages))
        return hashlib.sha256("\0".join(spoken).encode()).digest()[:16]
    asked = [message.content for message in example.messages if message.role == "user"] or [example.text]
    return hashlib.sha256("\0".join(" ".join(text.split()).casefold() for text in asked).encode()).digest()
