from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from neuroweaver.deployer.local.replicas import log_files


def write(folder: Path, text: str, revision: int = 1) -> Path:
    file = log_files.new_file(folder, revision)
    file.write_text(text)
    return file


def test_lines_of_every_kind_are_read(tmp_path: Path):
    entry = {"time": "2026-01-02T03:04:05.678+00:00", "level": "warning", "message": "slow"}
    write(
        tmp_path,
        f"{json.dumps(entry)}\n2026-01-02 03:04:06,500 ERROR broken\n\nplain\n{{not json\nhalf",
        revision=3,
    )
    lines = list(log_files.lines(tmp_path, "r", ""))
    assert [(line.message, line.level) for line in lines] == [
        ("slow", "WARNING"),
        ("2026-01-02 03:04:06,500 ERROR broken", "ERROR"),
        ("plain", ""),
        ("{not json", ""),
    ]
    assert [line.time for line in lines] == [
        datetime(2026, 1, 2, 3, 4, 5, 678000, UTC),
        *[datetime(2026, 1, 2, 3, 4, 6, 500000, UTC)] * 3,
    ]
    assert {line.revision for line in lines} == {3}


def test_a_cursor_goes_on_within_a_file_and_over_a_restart(tmp_path: Path):
    first = write(tmp_path, "a\nb\n")
    one, two = log_files.lines(tmp_path, "r", "")
    assert [line.message for line in log_files.lines(tmp_path, "r", one.cursor)] == ["b"]
    with first.open("a") as file:
        file.write("c\n")
    write(tmp_path, "d\n", revision=2)
    read = list(log_files.lines(tmp_path, "r", two.cursor))
    assert [(line.message, line.revision) for line in read] == [("c", 1), ("d", 2)]
    cursors = [one.cursor, two.cursor, *(line.cursor for line in read)]
    assert cursors == sorted(cursors)
    assert list(log_files.lines(tmp_path, "r", read[-1].cursor)) == []


def test_a_long_line_is_cut(tmp_path: Path):
    write(tmp_path, "é" * 20_000 + "\n")
    (line,) = log_files.lines(tmp_path, "r", "")
    assert len(line.message.encode()) <= 16 * 1024
    assert line.message.endswith("é…")


def test_the_logs_of_the_last_five_starts_are_kept(tmp_path: Path):
    for start in range(8):
        write(tmp_path, f"{start}\n")
    assert [line.message for line in log_files.lines(tmp_path, "r", "")] == ["3", "4", "5", "6", "7"]


def test_a_log_that_grows_too_large_begins_anew(tmp_path: Path):
    file = log_files.new_file(tmp_path, 1)
    with file.open("ab", buffering=0) as server:
        server.write(b"a\nb\n")
        log_files.bound(tmp_path, 10)
        cursor = log_files.lines(tmp_path, "r", "")[-1].cursor
        server.write(b"c" * 10)
        log_files.bound(tmp_path, 10)
        server.write(b"d\n")
    assert file.read_bytes() == b"d\n"
    assert [line.message for line in log_files.lines(tmp_path, "r", cursor)] == ["d"]


def test_the_last_words_are_those_of_the_last_start_and_not_those_that_only_inform(tmp_path: Path):
    assert log_files.last_words(tmp_path) == []
    write(tmp_path, "Traceback (most recent call last):\n  File x\nOSError: no space\nINFO bye\n")
    assert log_files.last_words(tmp_path) == [
        "Traceback (most recent call last):",
        "  File x",
        "OSError: no space",
    ]
    entries = [json.dumps({"level": level, "message": "failed"}) for level in ("info", "error")]
    write(tmp_path, "\n".join(entries))
    assert log_files.last_words(tmp_path) == entries[1:]
