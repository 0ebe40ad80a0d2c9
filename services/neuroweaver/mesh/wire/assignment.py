r"""Which variant a unit gets: a pure function of an experiment's configuration and the unit's id.

    d(salt)      = SHA256(utf8("nwx1\0" + salt + "\0" + unit_id)), read as big-endian 32-bit words
    bucket(word) = (word * 1_000_000) >> 32

Integers only, so that every language agrees bit for bit. `ExperimentService` in experiment.proto says in
which order override, layer, targeting, coverage and variant are looked at.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from struct import Struct
from typing import Any, Final, NamedTuple

from semver import Version

from neuroweaver.v1 import experiment_pb2 as pb

BUCKETS: Final = 1_000_000
MAX_UNIT_ID: Final = 256

_WORDS: Final = Struct(">II")

Attributes = Mapping[str, Any]
"""What targeting looks at: strings, numbers, booleans and lists of these."""

_Condition = Callable[[Attributes], bool]
_Values = Sequence[str | float | bool]
"""What a condition compares with."""
_Test = Callable[[Any], bool]
"""Whether an attribute's value, None where there is none, fulfils a condition."""


class Assignment(NamedTuple):
    """bucket: of the variant, None if the unit does not take part. reason: an AssignmentReason."""

    variant_id: str
    is_participant: bool
    reason: int
    bucket: int | None
    phase: int


def buckets(salt: str, unit_id: str) -> tuple[int, int]:
    """The unit's buckets of word 0 and word 1, 0 to 999,999."""
    return _buckets(prefix_of(salt), unit_id)


def prefix_of(salt: str) -> bytes:
    return f"nwx1\0{salt}\0".encode()


def _buckets(prefix: bytes, unit_id: str) -> tuple[int, int]:
    first, second = _WORDS.unpack_from(sha256(prefix + unit_id.encode()).digest())
    return (first * BUCKETS) >> 32, (second * BUCKETS) >> 32


class Evaluator:
    """Assigns the units of one experiment. It never changes: another configuration is another evaluator."""

    def __init__(self, config: pb.AssignmentConfig) -> None:
        self.config: Final = config
        self._prefix = prefix_of(config.salt)
        self._layer = _Layer(config) if config.layer_salt else None
        self._coverage = config.coverage_buckets
        self._overrides = dict(config.overrides)
        self._targets = _rules(config.targeting)
        self._starts, self._variants = _table(config.phase.allocations)
        self._phase = config.phase.number
        self._fixed = self._without_a_hash()

    def assign(self, unit_id: str, attributes: Attributes | None = None) -> Assignment:
        """unit_id: as it is, 1 to 256 characters without NUL. Raises ValueError for another."""
        if not 0 < len(unit_id) <= MAX_UNIT_ID or "\0" in unit_id:
            raise ValueError("a unit id has 1 to 256 characters and no NUL")
        if self._fixed is not None:
            return self._fixed
        if unit_id in self._overrides:
            return self._outside(pb.ASSIGNMENT_REASON_OVERRIDE, self._overrides[unit_id])
        if self._layer is not None and not self._layer.admits(unit_id):
            return self._outside(pb.ASSIGNMENT_REASON_OUTSIDE_LAYER)
        if self._targets is not None and not self._targets(attributes or {}):
            return self._outside(pb.ASSIGNMENT_REASON_NOT_TARGETED)
        # Written out, since this is where the time goes.
        first, second = _WORDS.unpack_from(sha256(self._prefix + unit_id.encode()).digest())
        if (second * BUCKETS) >> 32 >= self._coverage:
            return self._outside(pb.ASSIGNMENT_REASON_NOT_COVERED)
        bucket = (first * BUCKETS) >> 32
        variant = self._variants[bisect_right(self._starts, bucket) - 1]
        return Assignment(variant, True, pb.ASSIGNMENT_REASON_ASSIGNED, bucket, self._phase)

    def _without_a_hash(self) -> Assignment | None:
        """What everyone gets while the experiment is not running."""
        state = self.config.state
        if state == pb.EXPERIMENT_STATE_RUNNING:
            return None
        if state == pb.EXPERIMENT_STATE_CONCLUDED and self.config.winner_variant_id:
            return self._outside(pb.ASSIGNMENT_REASON_CONCLUDED, self.config.winner_variant_id)
        return self._outside(pb.ASSIGNMENT_REASON_NOT_RUNNING)

    def _outside(self, reason: int, variant_id: str = "") -> Assignment:
        return Assignment(variant_id or self.config.control_variant_id, False, reason, None, self._phase)


class _Layer:
    def __init__(self, config: pb.AssignmentConfig) -> None:
        self._prefix = prefix_of(config.layer_salt)
        self._ranges = [(each.start, each.end) for each in config.layer_ranges]

    def admits(self, unit_id: str) -> bool:
        bucket, _ = _buckets(self._prefix, unit_id)
        return any(start <= bucket < end for start, end in self._ranges)


def _table(allocations: Sequence[pb.VariantAllocation]) -> tuple[list[int], list[str]]:
    """Where each range of buckets begins, and whose it is."""
    ranges = sorted((each.start, whose.variant_id) for whose in allocations for each in whose.ranges)
    return [start for start, _ in ranges], [variant for _, variant in ranges]


def _rules(rules: Sequence[pb.TargetingRule]) -> _Condition | None:
    """Any rule whose conditions all hold; None where everyone is meant."""
    if not rules:
        return None
    compiled = [[_condition(condition) for condition in rule.conditions] for rule in rules]
    return lambda attributes: any(all(holds(attributes) for holds in rule) for rule in compiled)


def _condition(condition: pb.TargetingCondition) -> _Condition:
    name = condition.attribute
    values = [getattr(value, value.WhichOneof("kind") or "string_value") for value in condition.values]
    holds = _OPERATORS[condition.operator](values)
    return lambda attributes: holds(attributes.get(name))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _key(value: Any) -> tuple[type, Any] | None:
    """Equal for values of one type that are equal: in Python, True is 1."""
    if isinstance(value, str | bool):
        return type(value), value
    return (float, value) if _is_number(value) else None


def _is_in(values: _Values) -> _Test:
    keys = frozenset(map(_key, values))
    return lambda value: _key(value) in keys


def _is_not_in(values: _Values) -> _Test:
    is_in = _is_in(values)
    return lambda value: not is_in(value)


def _contains(values: _Values) -> _Test:
    is_in = _is_in(values)
    return lambda value: isinstance(value, list | tuple) and any(map(is_in, value))


def _ordered(compare: Callable[[float, float], bool]) -> Callable[[_Values], _Test]:
    def condition(values: _Values) -> _Test:
        bound = values[0]
        return lambda value: _is_number(value) and _is_number(bound) and compare(float(value), float(bound))

    return condition


def _text(test: Callable[[str, tuple[str, ...]], bool]) -> Callable[[_Values], _Test]:
    def condition(values: _Values) -> _Test:
        parts = tuple(value for value in values if isinstance(value, str))
        return lambda value: isinstance(value, str) and test(value, parts)

    return condition


def _semver(test: Callable[[Version, Version], bool]) -> Callable[[_Values], _Test]:
    def condition(values: _Values) -> _Test:
        bound = _version(values[0])

        def holds(value: Any) -> bool:
            mine = _version(value)
            return mine is not None and bound is not None and test(mine, bound)

        return holds

    return condition


def _version(value: Any) -> Version | None:
    try:
        return Version.parse(value) if isinstance(value, str) and len(value) <= MAX_UNIT_ID else None
    except ValueError:
        return None


_OPERATORS: Final[Mapping[int, Callable[[_Values], _Test]]] = {
    pb.TARGETING_OPERATOR_IN: _is_in,
    pb.TARGETING_OPERATOR_NOT_IN: _is_not_in,
    pb.TARGETING_OPERATOR_LESS: _ordered(lambda a, b: a < b),
    pb.TARGETING_OPERATOR_LESS_OR_EQUAL: _ordered(lambda a, b: a <= b),
    pb.TARGETING_OPERATOR_GREATER: _ordered(lambda a, b: a > b),
    pb.TARGETING_OPERATOR_GREATER_OR_EQUAL: _ordered(lambda a, b: a >= b),
    pb.TARGETING_OPERATOR_STARTS_WITH: _text(str.startswith),
    pb.TARGETING_OPERATOR_ENDS_WITH: _text(str.endswith),
    pb.TARGETING_OPERATOR_CONTAINS: _contains,
    pb.TARGETING_OPERATOR_EXISTS: lambda _: lambda value: value is not None,
    pb.TARGETING_OPERATOR_NOT_EXISTS: lambda _: lambda value: value is None,
    pb.TARGETING_OPERATOR_SEMVER_LESS: _semver(lambda a, b: a < b),
    pb.TARGETING_OPERATOR_SEMVER_GREATER_OR_EQUAL: _semver(lambda a, b: a >= b),
}
