"""A servicer out of parts, each of which answers some of its service's RPCs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

S = TypeVar("S")


def composed(base: Callable[[], S], *parts: object) -> S:
    """A servicer of `base`, the generated class, whose methods are those of the parts.

    An RPC that no part has answers UNIMPLEMENTED, as the generated class does. Raises TypeError for one that
    two parts have, and for a public method in capitals that is no RPC of the service: it would never be
    called.
    """
    servicer = base()
    for part in parts:
        for name in _rpcs_of(part):
            if name not in vars(base):
                raise TypeError(f"{type(part).__name__}.{name} is no RPC of {base.__name__}")
            if name in vars(servicer):
                raise TypeError(f"two parts of {base.__name__} have {name}")
            setattr(servicer, name, getattr(part, name))
    return servicer


def _rpcs_of(part: object) -> list[str]:
    return [name for name in dir(part) if name[0].isupper()]
