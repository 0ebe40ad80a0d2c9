"""Filters of lists: `state=VALIDATED AND tags.team=service`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from neuroweaver.mesh.errors import InvalidArgument

TAGS: Final = "tags."

Term = tuple[str, str]


def parse(text: str, keys: Collection[str]) -> Sequence[Term]:
    """The terms, each of which must hold. `keys`: what may stand left of the =; `tags.` admits every tag.

    Raises InvalidArgument naming `filter`.
    """
    return [_term(part, keys) for part in text.split(" AND ")] if text.strip() else []


def _term(part: str, keys: Collection[str]) -> Term:
    key, equals, value = part.strip().partition("=")
    is_known = key in keys or (TAGS in keys and key.startswith(TAGS) and len(key) > len(TAGS))
    if not equals or not is_known:
        known = ", ".join(f"{name}name=value" if name == TAGS else f"{name}=value" for name in keys)
        raise InvalidArgument("filter", f"has a term that is none of {known}")
    if "\0" in part:
        raise InvalidArgument("filter", "holds control characters")
    return key, value
