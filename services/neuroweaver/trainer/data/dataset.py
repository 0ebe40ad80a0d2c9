"""Training data: where it lies, what is wrong with it line by line, and the chat examples it holds."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Final, TypedDict, Unpack

from neuroweaver.mesh.wire.threads import check_wanted
from neuroweaver.trainer.data.files import (
    DatasetError,
    DatasetNotFoundError,
    DatasetUnreadableError,
    format_of,
)
from neuroweaver.trainer.data.marks import Remark
from neuroweaver.trainer.data.records import Lines, Record, csv_rows, jsonl
from neuroweaver.trainer.data.rows import Example, Finding, Row, Severity, SystemPrompts, parse
from neuroweaver.trainer.data.turns import last_exchange

MAX_LINE_BYTES: Final = 1 << 20
MAX_FINDINGS: Final = 100
# Seeing duplicates costs memory for each row; among more rows than this they are no longer counted.
MAX_REMEMBERED: Final = 200_000
# Different remarks on fields that are not used; a file of rows without a scheme could have any number.
MAX_REMARKS: Final = 50


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
    questions: usable ones that ask something, as plain text does not. left_out: those that are marked as not
    to be learnt. errors: all of them, while `findings` holds the first hundred of each severity.
    remarks: findings too, each once for all rows in which something is not used. layouts: rows of each.
    """

    path: Path
    digest: str
    rows: int
    usable: int
    questions: int
    left_out: int
    errors: int
    layouts: Mapping[str, int]
    findings: tuple[Finding, ...]
    remarks: tuple[Finding, ...]

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
    questions: int = 0
    left_out: int = 0
    remarks: dict[Remark, tuple[int, int]] = field(default_factory=dict)
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
            self._add_remarks(row.example.line, row.remarks)
        elif all(finding.severity is Severity.WARNING for finding in row.findings):
            self.left_out += 1

    def add_finding(self, finding: Finding) -> None:
        self.by_severity[finding.severity] += 1
        # Bounded apart, so that a thousand warnings never hide an error.
        if self.by_severity[finding.severity] <= MAX_FINDINGS:
            self.findings.append(finding)

    def remarked(self) -> Iterator[Finding]:
        """One finding for all rows that a remark holds for, at the first of them."""
        for (name, reason), (line, rows) in self.remarks.items():
            count = f" (in {rows} rows)" if rows > 1 else ""
            yield Finding(line, name, Severity.WARNING, reason + count)

    def _add_remarks(self, line: int, remarks: Sequence[Remark]) -> None:
        for remark in remarks:
            first, rows = self.remarks.get(remark, (line, 0))
            if rows or len(self.remarks) < MAX_REMARKS:
                self.remarks[remark] = (first, rows + 1)

    def _add_example(self, example: Example) -> None:
        self.usable += 1
        self.questions += last_exchange(example) is not None
        key = _digest(example)
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
                    check_wanted()
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
        remarks = tuple(tally.remarked())
        self.inspection = Inspection(
            path=self._path,
            digest=lines.sha256.hexdigest(),
            rows=tally.rows,
            usable=tally.usable,
            questions=tally.questions,
            left_out=tally.left_out,
            errors=tally.by_severity[Severity.ERROR],
            layouts=dict(tally.layouts),
            findings=(*tally.findings, *remarks),
            remarks=remarks,
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
    if not inspection.usable:
        raise DatasetEmptyError(f"no row is left: {describe(inspection.path, inspection.findings[0])}")


def describe(path: Path, finding: Finding) -> str:
    """The finding in one line: `train.jsonl:17: answer: is empty`."""
    where = f"{path.name}:{finding.line}" if finding.line else path.name
    name = finding.column_or_field
    # The reason for malformed JSON names its column itself.
    names_itself = not name or name.startswith("column ")
    return f"{where}: {finding.reason}" if names_itself else f"{where}: {name}: {finding.reason}"


def _digest(example: Example) -> bytes:
    spoken = chain([example.text], *((message.role, message.content) for message in example.messages))
    return hashlib.sha256("\0".join(spoken).encode()).digest()[:16]
