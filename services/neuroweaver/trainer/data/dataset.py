"""Training data: where it lies, what is wrong with it line by line, and the chat examples it holds."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import MappingProxyType

from neuroweaver.trainer.data.files import (
    DatasetError,
    DatasetNotFoundError,
    DatasetRefusedError,
    DatasetUnreadableError,
    builtins,
    format_of,
    locate,
)
from neuroweaver.trainer.data.records import Lines, Record, csv_rows, jsonl
from neuroweaver.trainer.data.rows import Example, Finding, Message, Row, Severity, SystemPrompts, parse

__all__ = [
    "Dataset",
    "DatasetEmptyError",
    "DatasetError",
    "DatasetMalformedError",
    "DatasetNotFoundError",
    "DatasetRefusedError",
    "DatasetUnreadableError",
    "Example",
    "Finding",
    "Inspection",
    "Message",
    "Severity",
    "builtins",
    "describe",
    "inspect",
    "is_validation",
    "iterate",
    "locate",
    "read",
    "require",
    "split",
]

MAX_LINE_BYTES = 1 << 20
MAX_FINDINGS = 100
# Seeing duplicates costs memory for each row; among more rows than this they are no longer counted.
MAX_REMEMBERED = 200_000
NO_PROMPTS: Mapping[str, str] = MappingProxyType({})


class DatasetEmptyError(DatasetError):
    """The file holds no usable row."""


class DatasetMalformedError(DatasetError):
    """Lines are wrong; `findings` holds the first of them."""

    def __init__(self, reason: str, findings: Sequence[Finding]) -> None:
        super().__init__(reason)
        self.findings = tuple(findings)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a pass over the whole file showed.

    rows: records met, usable or not; usable: those that hold an example; errors, warnings: all of them, while
    `findings` holds the first hundred of each. layouts: rows of each; specializations: usable rows of each.
    characters: of all messages, system prompts included. digest: SHA-256 of the file's bytes, in hex.
    """

    path: Path
    format: str
    digest: str
    size_bytes: int
    rows: int
    usable: int
    errors: int
    warnings: int
    duplicates: int
    characters: int
    layouts: Mapping[str, int]
    specializations: Mapping[str, int]
    findings: tuple[Finding, ...]

    @property
    def is_usable(self) -> bool:
        return self.errors == 0 and self.usable > 0


@dataclass(frozen=True, slots=True)
class Dataset:
    """A file's examples in its order, with what was found on the way."""

    examples: tuple[Example, ...]
    inspection: Inspection

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self.inspection.findings

    @property
    def format(self) -> str:
        return self.inspection.format

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
    characters: int = 0
    duplicates: int = 0
    by_severity: Counter[Severity] = field(default_factory=Counter)
    layouts: Counter[str] = field(default_factory=Counter)
    specializations: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    seen: set[bytes] = field(default_factory=set)

    def found(self, finding: Finding) -> None:
        self.by_severity[finding.severity] += 1
        # Bounded apart, so that a thousand warnings never hide an error.
        if self.by_severity[finding.severity] <= MAX_FINDINGS:
            self.findings.append(finding)

    def understood(self, row: Row) -> None:
        self.layouts[row.layout or "unknown"] += 1
        for finding in row.findings:
            self.found(finding)
        if row.example is not None:
            self._counted(row.example)

    def _counted(self, example: Example) -> None:
        self.usable += 1
        self.specializations[example.specialization] += 1
        self.characters += len(example.text) + sum(len(message.content) for message in example.messages)
        key = _key(example, whole=True)
        if key in self.seen:
            self.duplicates += 1
            self.found(
                Finding(example.line, "", Severity.WARNING, "the same example stands earlier in the file")
            )
        elif len(self.seen) < MAX_REMEMBERED:
            self.seen.add(key)


def _rows(lines: Lines, form: str, prompts: SystemPrompts) -> Iterator[Row]:
    for record in csv_rows(lines) if form == "csv" else jsonl(lines):
        if isinstance(record, Record):
            yield parse(record.fields, record.line, prompts)
        else:
            yield Row("", None, (record,))


def _pass(path: Path, max_line_bytes: int, prompts: SystemPrompts) -> Iterator[Example | Inspection]:
    """The examples of the file in order, and at last the inspection."""
    form = format_of(path)
    tally = _Tally()
    try:
        with path.open("rb") as source:
            lines = Lines(source, max_line_bytes)
            for row in _rows(lines, form, prompts):
                tally.rows += 1
                tally.understood(row)
                if row.example is not None:
                    yield row.example
            # A CSV header at fault ends the rows early; the digest is of the whole file all the same.
            for _ in lines:
                continue
    except FileNotFoundError:
        raise DatasetNotFoundError(f"{path.name}: no such file") from None
    except OSError as error:
        raise DatasetUnreadableError(f"{path.name}: {error.strerror}") from error
    if not tally.rows:
        what = "the file is empty" if not lines.size else "the file holds no rows"
        tally.found(Finding(0, "", Severity.ERROR, what))
    yield Inspection(
        path=path,
        format=form,
        digest=lines.sha256.hexdigest(),
        size_bytes=lines.size,
        rows=tally.rows,
        usable=tally.usable,
        errors=tally.by_severity[Severity.ERROR],
        warnings=tally.by_severity[Severity.WARNING],
        duplicates=tally.duplicates,
        characters=tally.characters,
        layouts=dict(tally.layouts),
        specializations=dict(tally.specializations),
        findings=tuple(tally.findings),
    )


def _prompts(system_prompts: Mapping[str, str], specialization: str) -> SystemPrompts:
    if specialization and system_prompts and specialization not in system_prompts:
        known = ", ".join(sorted(system_prompts))
        reason = f"unknown specialization {specialization[:40]!r}; known are {known}"
        raise DatasetError(reason, field="specialization")
    return SystemPrompts(system_prompts, specialization)


def read(
    path: Path,
    *,
    max_line_bytes: int = MAX_LINE_BYTES,
    system_prompts: Mapping[str, str] = NO_PROMPTS,
    specialization: str = "",
) -> Dataset:
    """The file's usable examples and its findings, all in memory.

    A row without a system message gets `system_prompts` of its own `specialization` field, or else of the
    job's `specialization`. Faults of lines are findings, never raised: see `require`.
    Raises DatasetNotFoundError, DatasetUnreadableError, DatasetRefusedError.
    """
    examples: list[Example] = []
    for item in _pass(path, max_line_bytes, _prompts(system_prompts, specialization)):
        if isinstance(item, Inspection):
            return Dataset(tuple(examples), item)
        examples.append(item)
    raise AssertionError("a pass ends with its inspection")


def inspect(
    path: Path,
    *,
    max_line_bytes: int = MAX_LINE_BYTES,
    system_prompts: Mapping[str, str] = NO_PROMPTS,
    specialization: str = "",
) -> Inspection:
    """As `read`, in bounded memory: what stands in the file without its examples."""
    for item in _pass(path, max_line_bytes, _prompts(system_prompts, specialization)):
        if isinstance(item, Inspection):
            return item
    raise AssertionError("a pass ends with its inspection")


def iterate(
    path: Path,
    *,
    max_line_bytes: int = MAX_LINE_BYTES,
    system_prompts: Mapping[str, str] = NO_PROMPTS,
    specialization: str = "",
) -> Iterator[Example]:
    """The file's usable examples, one at a time; rows at fault are passed over: see `inspect`."""
    prompts = _prompts(system_prompts, specialization)
    return (item for item in _pass(path, max_line_bytes, prompts) if isinstance(item, Example))


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
    is_told = not name or name.startswith("column ")
    return f"{where}: {finding.reason}" if is_told else f"{where}: {name}: {finding.reason}"


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
