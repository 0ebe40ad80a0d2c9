"""Requests out of bytes: counted, decoded and checked, large ones beside the event loop.

What costs milliseconds goes to threads of their own. A request whose caller left is dropped there, before its
turn or between two steps, each of which is short: what a request may hold is bounded.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from neuroweaver.mesh.server.message_size import MAX_UNKNOWN_BYTES, UNKNOWN_RULE, count_elements
from neuroweaver.mesh.server.message_text import check_utf8
from neuroweaver.mesh.server.wire_format import Malformed
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.mesh.wire.threads import check_wanted, in_thread

# Up to here a request is decoded and checked within milliseconds.
_SMALL_BYTES: Final = 8 * 1024
_FEW_ELEMENTS: Final = 64

_THREADS: Final = ThreadPoolExecutor(2, thread_name_prefix="requests")


class Decoder:
    """Makes messages of a method's requests. checks: raise an Error to refuse one."""

    def __init__(
        self, deserializer: Callable[[bytes], Any] | None, checks: Sequence[Callable[[Message], None]]
    ) -> None:
        self._deserializer = deserializer
        # `FromString`, which generated code gives, is a method of the message's class.
        self._kind: Descriptor | None = getattr(getattr(deserializer, "__self__", None), "DESCRIPTOR", None)
        self._checks = checks

    async def __call__(self, data: bytes) -> Any:
        """Raises InvalidArgument for bytes that are no message of the method, and what the checks raise."""
        try:
            if len(data) <= _SMALL_BYTES and self._count(data) <= _FEW_ELEMENTS:
                return self._decode(data)
            return await in_thread(self._counted, data, pool=_THREADS)
        except (DecodeError, Malformed) as error:
            raise InvalidArgument("", "the request is not a message of this method") from error

    async def each(self, requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        """The messages of a stream."""
        async for data in requests:
            yield await self(data)

    def _counted(self, data: bytes) -> Any:
        self._count(data)
        check_wanted()
        return self._decode(data)

    def _count(self, data: bytes) -> int:
        return count_elements(self._kind, data) if self._kind else 0

    def _decode(self, data: bytes) -> Any:
        if self._deserializer is None:
            return data
        try:
            message = self._deserializer(data)
        except DecodeError:
            if self._kind:
                check_utf8(self._kind, data)
            raise
        has_unknown = _without_unknown(message)
        for check in self._checks:
            check_wanted()
            check(message)
        # A handler may refuse unknown fields by their numbers.
        return self._deserializer(data) if has_unknown else message


def _without_unknown(message: Message) -> bool:
    """Whether there were unknown fields, for each of which the validator takes a microsecond.

    Raises InvalidArgument for more of them than a newer client has.
    """
    size = message.ByteSize()
    message.DiscardUnknownFields()
    unknown = size - message.ByteSize()
    if unknown > MAX_UNKNOWN_BYTES:
        raise InvalidArgument("", UNKNOWN_RULE)
    return unknown > 0
