"""Checks of values from JSON: each returns the value, or raises Broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Check = Callable[[Any], Any]


class Broken(ValueError):
    """The rule that a value breaks. path: of the part at fault, behind the value's own name."""

    def __init__(self, rule: str, path: str = "") -> None:
        super().__init__(rule)
        self.path = path


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
