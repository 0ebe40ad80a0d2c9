"""Why a replica ended, from its exit code and the last lines of its log."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

MOST_CHARACTERS: Final = 500
_MOST_LINES: Final = 200


@dataclass(frozen=True)
class Failure:
    """code: a stable word for programs. message: one sentence, with the line of the log that tells most."""

    code: str
    message: str


def _sign(code: str, pattern: str, words: str) -> tuple[re.Pattern[str], Failure]:
    return re.compile(pattern, re.IGNORECASE), Failure(code, words)


# The first that a line of the log shows, the most telling ones first.
_SIGNS: Final = (
    _sign(
        "GPU_OUT_OF_MEMORY",
        r"(cuda|hip) out of memory|torch\.(cuda\.)?outofmemoryerror|no available memory for the cache",
        "The GPU has too little memory",
    ),
    _sign(
        "DIGEST_MISMATCH",
        r"digest[ _]?mismatch|\b(digest|sha-?256|checksum)\b.*\b(mismatch|differs|match|expected|not)\b",
        "A file is not the one that was registered",
    ),
    _sign(
        "IMAGE_PULL",
        r"imagepullbackoff|errimage(never)?pull|invalidimagename|failed to pull image|manifest unknown",
        "The image cannot be pulled",
    ),
    _sign(
        "OUT_OF_MEMORY",
        r"oomkill|out of memory|\bmemoryerror\b|(cannot|can't) allocate memory|std::bad_alloc",
        "The memory does not suffice",
    ),
    _sign("DISK_FULL", r"no space left on device|disk quota exceeded", "The disk is full"),
    _sign("GPU_UNUSABLE", r"cuda error|nvidia-smi|no cuda gpus|nvml|cuda driver", "The GPU cannot be used"),
    _sign("PORT_IN_USE", r"address already in use", "The port is taken"),
    _sign(
        "ARTIFACT_MISSING",
        r"filenotfounderror|no such file or directory|artifact\w* (is |are )?missing",
        "A file is missing",
    ),
    _sign(
        "FORBIDDEN", r"permission ?denied|permissionerror|\bforbidden\b|unauthorized", "A right is missing"
    ),
    _sign(
        "UNREACHABLE",
        r"connection refused|connectionerror|connecterror|name or service not known|timed out",
        "Something that it needs cannot be reached",
    ),
)

# What the model server says by its exit code, and what the shell and the kernel do.
_EXITS: Final = {
    2: Failure("BAD_CONFIG", "The model server takes its configuration for invalid"),
    3: Failure("ARTIFACT_CORRUPT", "Files of the version are missing or corrupt"),
    4: Failure("CANNOT_LOAD", "The model cannot be loaded"),
    126: Failure("NOT_EXECUTABLE", "The model server cannot be executed"),
    127: Failure("NOT_FOUND", "The model server is not there"),
}
_SIGNALS: Final = {
    4: Failure("ILLEGAL_INSTRUCTION", "It used an instruction that this processor does not have"),
    6: Failure("ABORTED", "It aborted itself"),
    7: Failure("BUS_ERROR", "It ended with a bus error; shared memory may be too small"),
    9: Failure("KILLED", "It was killed, as the kernel does when memory runs out"),
    11: Failure("SEGMENTATION_FAULT", "It ended with a segmentation fault"),
    15: Failure("TERMINATED", "It was asked to end"),
}

_TRACEBACK: Final = "Traceback (most recent call last):"
# `package.SomeError: what happened`, as the last line of a traceback is; and such a line anywhere.
_EXCEPTION: Final = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt|Failure|Mismatch)\b(:.*)?$")
_RAISED: Final = re.compile(r"[A-Za-z_][\w.]*(:|$)")
_ERROR_LINE: Final = re.compile(r"\b(error|fatal|critical)\b", re.IGNORECASE)
_SECRET: Final = re.compile(
    r"((?:token|secret|passw(?:or)?d|api[_-]?key|authorization)[\"']?\s*[=:]\s*[\"']?(?:bearer\s+)?|bearer\s+)"
    r"[^\s\"',;]+",
    re.IGNORECASE,
)


def explained(lines: Sequence[str], exit_code: int | None = None, hint: str = "") -> Failure:
    """Of a replica that ended. lines: the last of its log, in order. exit_code: below 0 or above 128 for a
    signal; None: not known. hint: what the backend knows, such as `OOMKilled` or `ImagePullBackOff`.
    """
    plain = [part for line in lines[-_MOST_LINES:] for part in _unpacked(line)]
    line = _telling(plain)
    errors = [text for text in plain if _EXCEPTION.match(text.strip()) or _ERROR_LINE.search(text)]
    for text in (hint, line, *reversed(errors)):
        for pattern, sign in _SIGNS:
            if text and pattern.search(text):
                quoted = line if pattern.search(line) else text
                return Failure(sign.code, _sentence(sign.message, quoted))
    by_exit = _by_exit(exit_code)
    if by_exit is not None:
        return Failure(by_exit.code, _sentence(by_exit.message, line))
    if line or hint:
        return Failure("CRASHED", _sentence("It ended by an error", line or hint))
    return Failure("CRASHED", "It ended and left no line in its log.")


def _by_exit(exit_code: int | None) -> Failure | None:
    if exit_code is None:
        return None
    signal = -exit_code if exit_code < 0 else exit_code - 128
    if signal > 0:
        return _SIGNALS.get(signal, Failure("SIGNAL", f"It was ended by signal {signal}"))
    if exit_code in _EXITS:
        return _EXITS[exit_code]
    return Failure("CRASHED", f"It ended with exit code {exit_code}")


def _telling(lines: Sequence[str]) -> str:
    """The exception of the last traceback, or the last line that speaks of an error, or the last line."""
    for i in reversed(range(len(lines))):
        if lines[i].strip() != _TRACEBACK:
            continue
        # Frames are indented; the first line that is not is the exception.
        after = (line for line in lines[i + 1 :] if line.strip() and not line[0].isspace())
        if _RAISED.match(raised := next(after, "").strip()):
            return raised
    written = [line.strip() for line in lines if line.strip()]
    for line in reversed(written):
        if _EXCEPTION.match(line) or _ERROR_LINE.search(line):
            return line
    return written[-1] if written else ""


def _unpacked(line: str) -> list[str]:
    """The text of a line that is JSON: what its message and its exception say; else the line."""
    if not line.lstrip().startswith("{"):
        return line.splitlines() or [""]
    try:
        entry: Any = json.loads(line)
    except ValueError:
        return line.splitlines()
    if not isinstance(entry, dict):
        return [line]
    texts = [str(entry[name]) for name in ("message", "exception") if entry.get(name)]
    level = str(entry.get("level", "")).lower()
    if texts and level in {"error", "critical", "fatal"} and "exception" not in entry:
        texts[0] = f"{level}: {texts[0]}"
    return [part for text in texts for part in text.splitlines()] or [line]


def _sentence(words: str, quoted: str) -> str:
    hidden = _SECRET.sub(r"\1[redacted]", quoted)
    if len(hidden) > MOST_CHARACTERS:
        hidden = hidden[: MOST_CHARACTERS - 1] + "…"
    return f"{words}: {hidden}" if hidden else f"{words}."
