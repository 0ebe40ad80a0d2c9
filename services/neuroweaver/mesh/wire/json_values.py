"""JSON that others wrote: read strictly, and checks of its values, which return them or raise Broken."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final, NoReturn

Check = Callable[[Any], Any]
Pairs = list[tuple[str, Any]]

_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_ESCAPED_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


class Broken(ValueError):
    """The rule that a value breaks. path: of the part at fault, behind the value's own name."""

    def __init__(self, rule: str, path: str = "") -> None:
        super().__init__(rule)
        self.path = path


def parsed(content: bytes, *, pairs: Callable[[Pairs], dict[str, Any]] = dict) -> Any:
    """The value of a JSON text (RFC 8259). pairs: makes an object of its fields; may raise ValueError.

    Raises Broken, with the path of a text that holds half of a surrogate pair: JSON can escape one, but UTF-8
    cannot hold it.
    """
    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=pairs, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise Broken(f"is not UTF-8 (byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise Broken("is not JSON") from error
    if _ESCAPED_SURROGATE.search(content):
        _refuse_half_pairs(value)
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")


def _refuse_half_pairs(whole: Any) -> None:
    """Without recursion, whose limit the value may come close to."""
    parts: list[tuple[str, Any]] = [("", whole)]
    while parts:
        path, value = parts.pop()
        if isinstance(value, str) and _SURROGATE.search(value):
            raise Broken("holds half of a surrogate pair, which is no character", path)
        if isinstance(value, dict):
            if any(map(_SURROGATE.search, value)):
                raise Broken("has a key with half of a surrogate pair, which is no character", path)
            parts += [(f"{path}.{name}".removeprefix("."), part) for name, part in value.items()]
        elif isinstance(value, list):
            parts += [(f"{path}[{at}]", part) for at, part in enumerate(value)]


def text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise Broken("must be a text")
    return value


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Broken("must be true or false")
    return value


def number(low: float, high: float) -> Check:
    def check(value: Any) -> Any:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise Broken(f"must be a number from {low:g} to {high:g}")
        return value

    return check


def whole(low: int, high: int) -> Check:
    def check(value: Any) -> Any:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise Broken(f"must be a whole number from {low} to {high}")
        return value

    return check
