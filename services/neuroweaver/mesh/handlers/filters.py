"""Filters of lists: `state=VALIDATED AND tags.team=service`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from neuroweaver.mesh.wire.errors import InvalidArgument

Term = tuple[str, str]


def parse(text: str, keys: Collection[str]) -> Sequence[Term]:
    """The terms, each of which must hold. keys: what may stand left of the =; `tags.` admits every tag.

    Raises InvalidArgument naming `filter`.
    """
    return [_term(part, keys) for part in text.split(" AND ")] if text.strip() else []


def _term(part: str, keys: Collection[str]) -> Term:
    key, equals, value = part.strip().partition("=")
    key = key.rstrip()
    families = [name for name in keys if name.endswith(".")]
    is_known = key not in families and (key in keys or key.startswith(tuple(families)))
    if not equals or not is_known:
        known = ", ".join(f"{name}name=value" if name in families else f"{name}=value" for name in keys)
        raise InvalidArgument("filter", f"has a term that is none of {known}")
    if "\0" in part:
        raise InvalidArgument("filter", "holds control characters")
    return key, value
