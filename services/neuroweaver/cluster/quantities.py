"""CPU and sizes exactly as Kubernetes reads and writes them: `500m`, `2Gi`, `1e3`.

https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal, localcontext
from typing import Final

_FACTORS: Final = {
    unit: Decimal(1000) ** power for power, unit in enumerate(["n", "u", "m", "", *"kMGTPE"], start=-3)
} | {f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", start=1)}
_QUANTITY: Final = re.compile(
    r"(?P<number>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:(?P<unit>[numkMGTPE]|[KMGTPE]i)|[eE](?P<power>[+-]?[0-9]{1,3}))?",
    re.ASCII,
)
_BINARY: Final = ("Ti", "Gi", "Mi", "Ki")
_DIGITS: Final = 60
_LARGEST: Final = Decimal(2**63 - 1)
_MEBIBYTE: Final = 2**20


class NotAQuantity(ValueError):
    """The text is no quantity, such as `10GB`."""


def parse(text: str | float) -> Decimal:
    """In cores, bytes or pieces. Raises NotAQuantity."""
    found = _QUANTITY.fullmatch(str(text))
    if found is None:
        raise NotAQuantity(f"{text!r} is no quantity, such as 500m, 2 or 10Gi")
    with localcontext(prec=_DIGITS):
        value = Decimal(found["number"]) * _FACTORS[found["unit"] or ""]
        if found["power"]:
            value = value.scaleb(int(found["power"]))
        if abs(value) > _LARGEST:
            raise NotAQuantity(f"{text!r} is more than a quantity can hold")
        return value


def amount(text: str | float) -> Decimal:
    """What can be asked for or be there: not less than nothing. Raises NotAQuantity."""
    value = parse(text)
    if value < 0:
        raise NotAQuantity(f"{text!r} is no quantity that can be asked for: it is negative")
    return value


def equal(one: str | float, other: str | float) -> bool:
    """Whether both are the same amount; two texts that are no quantities only if they are the same text."""
    try:
        return parse(one) == parse(other)
    except NotAQuantity:
        return one == other


def written(value: Decimal) -> str:
    """The shortest way that loses nothing; below a thousandth it is rounded up, as Kubernetes does with
    CPU.
    """
    with localcontext(prec=_DIGITS):
        if value != value.to_integral_value():
            thousandths = (value * 1000).to_integral_value(rounding=ROUND_CEILING)
            return written(thousandths / 1000) if thousandths % 1000 == 0 else f"{thousandths:f}m"
        for unit in _BINARY:
            if value and value % _FACTORS[unit] == 0:
                return f"{value / _FACTORS[unit]:f}{unit}"
        return f"{value.to_integral_value():f}"


def of_cores(value: float) -> str:
    """To the nearest thousandth."""
    return f"{round(value * 1000)}m" if value != int(value) else str(int(value))


def of_bytes(value: int) -> str:
    """In whole mebibytes, rounded up; what is below one in bytes."""
    return f"{-(-value // _MEBIBYTE)}Mi" if value >= _MEBIBYTE else str(value)


def canonical(text: str) -> str:
    """The same amount, always in the same words. Raises NotAQuantity."""
    return written(parse(text))
