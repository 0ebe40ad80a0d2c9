"""Judgements on disk, so that a resumed job never pays for the same one twice."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def key_of(**asked: Any) -> str:
    """SHA-256 in hex of everything that decides the answer."""
    text = json.dumps(asked, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class JudgeCache:
    """A JSONL file of answers by key; without a path, the memory alone.

    An answer is on the disk when `put` returns. A line torn by a crash is dropped when the file is opened.
    Of several processes, each sees what was there when it opened the file.
    """

    def __init__(self, path: Path | None) -> None:
        self._answers: dict[str, Any] = {}
        self._path = path
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._load(path)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Any | None:
        return self._answers.get(key)

    def put(self, key: str, answer: Any) -> None:
        self._answers[key] = answer
        if self._path is None:
            return
        # Opened anew each time: the file may lie in a folder that a checkpoint replaced meanwhile.
        with self._path.open("ab") as file:
            file.write(json.dumps({"key": key, "answer": answer}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _load(self, path: Path) -> None:
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        for line in content[:whole].splitlines():
            try:
                entry = json.loads(line)
                self._answers[entry["key"]] = entry["answer"]
            except (ValueError, KeyError, TypeError):
                continue  # a damaged line costs one judgement, which is then asked for again
