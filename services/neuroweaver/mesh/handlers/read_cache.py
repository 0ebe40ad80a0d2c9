"""Finished answers of reads, given again for as long as the database says that they still hold.

    cache = ReadCache(database.revisions(…))
    return await cache.answer(project, "GetThing", request, read)

What comes from here is what `read` would give now: see `revision` for the proof. A write makes answers
unusable without anybody telling the cache.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from neuroweaver.mesh.database.revision import Revision, Revisions

M = TypeVar("M", bound=Message)
Key = tuple[str, str, bytes]

MAX_ENTRIES: Final = 10_000
# As requests and answers go over the wire; in memory an answer takes about six times as much.
MAX_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Entry:
    revision: Revision
    message: Any
    size_bytes: int


class ReadCache:
    """Holds a bounded number of answers, those used last."""

    def __init__(
        self, revisions: Revisions, *, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES
    ) -> None:
        self._revisions = revisions
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._bytes = 0

    async def answer(
        self, project: str, question: str, request: Message, read: Callable[[], Awaitable[M]]
    ) -> M:
        """The answer of `read`, from now or from before. Others get the same object: nobody changes it.

        project, question (such as the method's name), request: all that the answer depends on beside what is
        stored for the project. What `read` raises is not kept.
        """
        # Before `read` begins its transaction, which is what the proof needs.
        revision = await self._revisions.of(project)
        if revision is None:
            return await read()
        key = (project, question, request.SerializeToString(deterministic=True))
        entry = self._entries.get(key)
        if entry is not None and entry.revision == revision:
            self._entries.move_to_end(key)
            message: M = entry.message
            return message
        message = await read()
        self._keep(key, _Entry(revision, message, len(key[2]) + message.ByteSize()))
        return message

    def _keep(self, key: Key, entry: _Entry) -> None:
        if entry.size_bytes > self._max_bytes:
            return
        self._drop(self._entries.pop(key, None))
        self._entries[key] = entry
        self._bytes += entry.size_bytes
        while self._bytes > self._max_bytes or len(self._entries) > self._max_entries:
            self._drop(self._entries.popitem(last=False)[1])

    def _drop(self, entry: _Entry | None) -> None:
        self._bytes -= entry.size_bytes if entry else 0
