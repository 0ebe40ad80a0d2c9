"""Quantities as Kubernetes writes them: `500m` of a core, `2Gi` of memory."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

_FACTORS: Final = {
    "m": Decimal("0.001"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
}
_QUANTITY: Final = re.compile(rf"([0-9]+(?:\.[0-9]+)?)({'|'.join(_FACTORS)})?", re.ASCII)
_MEBIBYTE: Final = 2**20


def parse(text: str) -> Decimal:
    """In cores or bytes. Raises ValueError for what is no quantity, such as `10GB`."""
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise ValueError(f"{text} is no quantity")
    number, unit = found.groups()
    return Decimal(number) * (_FACTORS[unit] if unit else 1)


def mebibytes(size_bytes: int) -> str:
    """At least this many bytes, in whole `Mi`."""
    return f"{max(1, -(-size_bytes // _MEBIBYTE))}Mi"
