"""CPU in cores and sizes in bytes, from and to the way Kubernetes writes them."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

_NUMBER: Final = re.compile(r"[0-9]+(\.[0-9]+)?")
_UNITS: Final = {
    "Ki": 1024,
    "Mi": 1024**2,
    "Gi": 1024**3,
    "Ti": 1024**4,
    "k": 1000,
    "M": 1000**2,
    "G": 1000**3,
    "T": 1000**4,
}


def cores(quantity: str) -> float:
    """`500m` and `0.5` are half a core. Raises ValueError."""
    if quantity.endswith("m"):
        return float(_number(quantity[:-1], quantity) / 1000)
    return float(_number(quantity, quantity))


def size_bytes(quantity: str) -> int:
    """`1Ki` is 1024, `1k` is 1000. Raises ValueError."""
    for unit, factor in _UNITS.items():
        if quantity.endswith(unit):
            return int(_number(quantity.removesuffix(unit), quantity) * factor)
    return int(_number(quantity, quantity))


def of_cores(value: float) -> str:
    return f"{round(value * 1000)}m" if value != int(value) else str(int(value))


def of_bytes(value: int) -> str:
    """In whole mebibytes, rounded up; what is below one in bytes."""
    mebibyte = _UNITS["Mi"]
    return f"{-(-value // mebibyte)}Mi" if value >= mebibyte else str(value)


def _number(text: str, quantity: str) -> Decimal:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{quantity!r} is no quantity")
    return Decimal(text)
