"""The records of a data file, read line by line in bounded memory: JSONL objects and CSV rows."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NoReturn

from neuroweaver.trainer.data.rows import PAIRS, Finding, Severity

BOM = b"\xef\xbb\xbf"
MAGIC = {
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"\x1f\x8b": "a gzip file",
    b"PK\x03\x04": "a zip file",
    b"PAR1": "a Parquet file",
}
HALF_PAIR = re.compile(r"[\ud800-\udfff]")
ARRAY = "; the file looks like one JSON array; write one object on each line"
DRAIN_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Record:
    line: int
    fields: dict[str, Any]


@dataclass(slots=True)
class Lines:
    """The lines of a file without their ends; digest and size are of every byte read so far.

    A line longer than `max_line_bytes`, and one that is not UTF-8, comes as a Finding.
    """

    source: BinaryIO
    max_line_bytes: int
    size: int = 0
    line: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)

    def __iter__(self) -> Iterator[str | Finding]:
        while raw := self._read(self.max_line_bytes + 2):
            self.line += 1
            start = self.size - len(raw)
            content = raw.rstrip(b"\r\n")
            is_cut = not raw.endswith(b"\n") and len(raw) > self.max_line_bytes
            if is_cut:
                self._drain()
            if is_cut or len(content) > self.max_line_bytes:
                yield self._error(f"longer than {self.max_line_bytes} bytes")
                continue
            if self.line == 1:
                content = content.removeprefix(BOM)
            try:
                yield content.decode("utf-8")
            except UnicodeDecodeError as error:
                skipped = len(BOM) if self.line == 1 and raw.startswith(BOM) else 0
                yield self._error(self._not_utf8(content, error, start + skipped))

    def _not_utf8(self, content: bytes, error: UnicodeDecodeError, start: int) -> str:
        kind = next(
            (name for magic, name in MAGIC.items() if self.line == 1 and content.startswith(magic)), ""
        )
        hint = f"; this looks like {kind}; save it as UTF-8 text" if kind else ""
        return (
            f"not UTF-8: byte 0x{content[error.start]:02x} at byte {error.start} of the line "
            f"(offset {start + error.start} of the file){hint}"
        )

    def _error(self, reason: str) -> Finding:
        return Finding(self.line, "", Severity.ERROR, reason)

    def _read(self, limit: int) -> bytes:
        raw = self.source.readline(limit)
        self.sha256.update(raw)
        self.size += len(raw)
        return raw

    def _drain(self) -> None:
        while (raw := self._read(DRAIN_BYTES)) and not raw.endswith(b"\n"):
            pass


def jsonl(lines: Lines) -> Iterator[Record | Finding]:
    """The objects of a JSONL file. Blank lines are skipped; a line that is no object is a Finding."""
    for text in lines:
        if isinstance(text, Finding):
            yield text
        elif text.strip():
            yield _object(text, lines.line)


def _object(text: str, line: int) -> Record | Finding:
    try:
        value = json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        reason = f"malformed JSON at column {error.colno}: {error.msg}{_hint(text, line, error)}"
        return Finding(line, f"column {error.colno}", Severity.ERROR, reason)
    except RecursionError:
        return Finding(line, "", Severity.ERROR, "malformed JSON: nested too deeply")
    except ValueError as error:
        return Finding(line, "", Severity.ERROR, f"malformed JSON: {error}")
    if not isinstance(value, dict):
        hint = ARRAY if line == 1 and isinstance(value, list) else ""
        return Finding(line, "", Severity.ERROR, f"a row must be a JSON object{hint}")
    return Record(line, value)


def _hint(text: str, line: int, error: json.JSONDecodeError) -> str:
    """What the writer of a malformed line probably did, and the way out."""
    if line == 1 and text.lstrip().startswith("["):
        return ARRAY
    rest = text[error.pos :].lstrip()
    if rest.startswith(","):
        return "; a line ends with the object, without a comma"
    if "\r" in text and rest.startswith("{"):
        return "; lines end in CR alone; save the file with LF or CRLF line ends"
    return "; one line holds one object" if rest.startswith("{") else ""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if any(HALF_PAIR.search(name) for name in fields):
        raise ValueError("a key holds half of a surrogate pair, which is no character")
    if len(fields) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        duplicate = counts.most_common(1)[0][0]
        raise ValueError(f"duplicate key {duplicate[:40]!r}")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def csv_rows(lines: Lines) -> Iterator[Record | Finding]:
    """The rows of a comma-separated file under its header; a row may span lines inside double quotes."""
    csv.field_size_limit(max(csv.field_size_limit(), lines.max_line_bytes))
    header: list[str] = []
    for record in _csv_records(lines):
        if isinstance(record, Finding):
            yield record
            if not header:
                return
            continue
        line, text = record
        cells = _cells(line, text)
        if isinstance(cells, Finding):
            yield cells
        elif not header:
            header = [name.strip().lower() for name in cells]
            if fault := _header_fault(line, header):
                yield fault
                return
        elif len(cells) != len(header):
            reason = f"{len(cells)} columns where the header has {len(header)}"
            yield Finding(line, "", Severity.ERROR, reason)
        else:
            yield Record(line, dict(zip(header, cells, strict=True)))


def _csv_records(lines: Lines) -> Iterator[tuple[int, str] | Finding]:
    """Each record's first line number and text: lines are joined while a double quote is open."""
    held: list[str] = []
    first = quotes = size = 0
    for text in lines:
        if isinstance(text, Finding):
            yield text
            held, quotes, size = [], 0, 0
            continue
        if not held:
            if not text.strip():
                continue
            first = lines.line
        held.append(text)
        quotes += text.count('"')
        size += len(text) + 1
        if quotes % 2 == 0:
            yield first, "\n".join(held)
        elif size <= lines.max_line_bytes:
            continue
        else:
            yield _open_quote(first)
        held, quotes, size = [], 0, 0
    if held:
        yield _open_quote(first)


def _open_quote(line: int) -> Finding:
    reason = 'a double quote is opened here and never closed; write "" for one inside a quoted field'
    return Finding(line, "", Severity.ERROR, reason)


def _cells(line: int, text: str) -> list[str] | Finding:
    try:
        return next(csv.reader([text], strict=True))
    except csv.Error as error:
        return Finding(line, "", Severity.ERROR, f"malformed CSV: {error}")


def _header_fault(line: int, header: list[str]) -> Finding | None:
    if len(set(header)) < len(header):
        duplicate = Counter(header).most_common(1)[0][0]
        return Finding(line, duplicate[:40], Severity.ERROR, f"duplicate column {duplicate[:40]!r}")
    questions = {"text"} | {pair.asks for pair in PAIRS}
    if questions.isdisjoint(header):
        present = ", ".join(name[:40] for name in header[:8])
        hint = "; columns are separated by commas" if any(mark in present for mark in ";\t|") else ""
        columns = ", ".join([*(pair.name for pair in PAIRS), "text"])
        return Finding(line, "", Severity.ERROR, f"unknown columns: {present}; use one of {columns}{hint}")
    return None
