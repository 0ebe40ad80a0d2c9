"""Lists in pages, by seeking past the last key: each page costs the same, and inserts shift nothing.

A list's handler:

    page = Page.asked(request, project)
    statement = page.apply(select(models).where(…), models.c.created_at, models.c.model_id)
    rows = (await connection.execute(statement)).all()
    shown, next_page_token = page.cut(rows, key=lambda row: (row.created_at, row.model_id))
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

from sqlalchemy import BigInteger, ColumnElement, Select, literal, tuple_

from neuroweaver.mesh.database.database import UtcDateTime
from neuroweaver.mesh.wire.clock import from_microseconds, microseconds
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.mesh.wire.json_values import parsed

DEFAULT_PAGE_SIZE: Final = 50
MAX_PAGE_SIZE: Final = 1000

_DIGEST_BYTES: Final = 12

Key = tuple[str | int | datetime, ...]

T = TypeVar("T")
S = TypeVar("S", bound=Select[Any])


@dataclass(frozen=True)
class Page:
    size: int
    after: Key | None
    """The key of the last item of the page before; None for the first page."""
    query: tuple[str, ...]

    @classmethod
    def of(cls, page_size: int, page_token: str, query: Sequence[str]) -> Page:
        """query: all that decides which items are listed and in which order; a token is good for it alone.

        Raises InvalidArgument for a negative size, and for a token that was altered or is another query's.
        """
        if page_size < 0:
            raise InvalidArgument("page_size", "is negative")
        size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        bound = tuple(query)
        return cls(size, _decode(page_token, bound) if page_token else None, bound)

    @classmethod
    def asked(cls, request: Any, project: str) -> Page:
        """The page that a list's request asks for; its token is good for that list in that project alone.

        Raises InvalidArgument, as `of`.
        """
        rest = type(request)()
        rest.CopyFrom(request)
        rest.ClearField("page_size")
        rest.ClearField("page_token")
        what = rest.SerializeToString(deterministic=True).hex()
        return cls.of(request.page_size, request.page_token, (rest.DESCRIPTOR.name, project, what))

    def apply(self, statement: S, *columns: ColumnElement[Any], descending: bool = False) -> S:
        """The statement from this page's start, ordered by `columns`, which are unique together.

        It asks for one row more than the page shows: `cut` learns from it whether there is a next page.
        """
        if self.after is not None:
            if len(self.after) != len(columns) or not all(map(_fits, self.after, columns)):
                raise InvalidArgument("page_token", _FOREIGN)
            here = tuple_(*columns)
            last = tuple_(
                *(literal(value, column.type) for value, column in zip(self.after, columns, strict=True))
            )
            statement = statement.where(here < last if descending else here > last)
        order = [column.desc() if descending else column.asc() for column in columns]
        return statement.order_by(*order).limit(self.size + 1)

    def cut(self, rows: Sequence[T], key: Callable[[T], Key]) -> tuple[Sequence[T], str]:
        """The rows of the page, and the token of the next one: empty after the last."""
        shown = rows[: self.size]
        return shown, _encode(key(shown[-1]), self.query) if len(rows) > self.size else ""


_FOREIGN: Final = "is not a token of this list; leave it empty to begin again"


def _encode(key: Key, query: tuple[str, ...]) -> str:
    plain = [{"t": microseconds(value)} if isinstance(value, datetime) else value for value in key]
    body = json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode()
    return base64.urlsafe_b64encode(_digest(body, query) + body).rstrip(b"=").decode()


def _decode(token: str, query: tuple[str, ...]) -> Key:
    try:
        data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except ValueError as error:
        raise InvalidArgument("page_token", _FOREIGN) from error
    digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    # Against mistakes, not against forgery: a token grants nothing, it only says where to go on reading.
    if digest != _digest(body, query):
        raise InvalidArgument("page_token", _FOREIGN)
    try:
        key = tuple(map(_part, parsed(body)))
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidArgument("page_token", _FOREIGN) from error
    if not key:
        raise InvalidArgument("page_token", _FOREIGN)
    return key


def _part(plain: Any) -> str | int | datetime:
    """Raises ValueError, OverflowError for what no key holds: whoever reads this can make up a token."""
    match plain:
        case {"t": int(count)}:
            return from_microseconds(count)
        case str() if "\0" not in plain:
            plain.encode()  # raises ValueError for half of a surrogate pair, which no database takes
            return plain
        case int() if not isinstance(plain, bool) and abs(plain) < 1 << 63:
            return plain
    raise ValueError("is no part of a key")


def _fits(part: str | int | datetime, column: ColumnElement[Any]) -> bool:
    kind = datetime if isinstance(column.type, UtcDateTime) else column.type.python_type
    if not isinstance(part, kind):
        return False
    is_long = isinstance(column.type, BigInteger)
    return is_long or not isinstance(part, int) or -(1 << 31) <= part < 1 << 31


def _digest(body: bytes, query: tuple[str, ...]) -> bytes:
    bound = json.dumps(query, separators=(",", ":")).encode()
    return hashlib.sha256(len(body).to_bytes(4, "big") + body + bound).digest()[:_DIGEST_BYTES]
