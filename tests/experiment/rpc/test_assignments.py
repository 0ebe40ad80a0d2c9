from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from neuroweaver.experiment.domain.allocation import allocate
from neuroweaver.mesh.wire.assignment import BUCKETS, Evaluator, buckets
from neuroweaver.v1 import experiment_pb2 as pb

HERE = Path(__file__).parent
VECTORS = json.loads((HERE / "vectors.json").read_text(encoding="utf-8"))["vectors"]
RUNNING = pb.EXPERIMENT_STATE_RUNNING


def config(weights: dict[str, float] | None = None, **fields) -> pb.AssignmentConfig:
    weights = weights or {"control": 0.5, "tuned": 0.5}
    allocations = [
        pb.VariantAllocation(
            variant_id=variant, ranges=[pb.BucketRange(start=start, end=end) for start, end in spans]
        )
        for variant, spans in allocate(weights).items()
    ]
    return pb.AssignmentConfig(
        **{
            "test_id": "t",
            "state": RUNNING,
            "salt": "pepper",
            "coverage_buckets": BUCKETS,
            "phase": pb.AnalysisPhase(number=3, allocations=allocations),
            "control_variant_id": "control",
        }
        | fields
    )


def rule(operator: str, *values, attribute: str = "plan") -> pb.TargetingRule:
    kinds = {str: "string_value", bool: "bool_value", float: "number_value", int: "number_value"}
    condition = pb.TargetingCondition(
        attribute=attribute,
        operator=getattr(pb, f"TARGETING_OPERATOR_{operator}"),
        values=[pb.AttributeValue(**{kinds[type(value)]: value}) for value in values],
    )
    return pb.TargetingRule(conditions=[condition])


def test_the_vectors_are_what_an_independent_implementation_says():
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    printed = subprocess.run(
        ["node", str(HERE / "vectors.mjs")], check=True, capture_output=True, timeout=60
    ).stdout
    assert json.loads(printed)["vectors"] == VECTORS


def test_buckets_are_those_of_the_vectors():
    assert len(VECTORS) == 696
    assert {(v["salt"], v["unit_id"]): tuple(v["buckets"]) for v in VECTORS} == {
        (v["salt"], v["unit_id"]): buckets(v["salt"], v["unit_id"]) for v in VECTORS
    }


def test_a_bucket_is_worked_out_by_hand():
    digest = hashlib.sha256(b"nwx1\x00pepper\x00user-1").digest()
    first = int.from_bytes(digest[:4], "big")
    assert buckets("pepper", "user-1")[0] == first * 1_000_000 // 2**32


def test_a_unit_gets_the_variant_whose_range_holds_its_bucket():
    evaluator = Evaluator(config({"control": 0.2, "a": 0.5, "b": 0.3}))
    for number in range(2000):
        found = evaluator.assign(f"u{number}")
        bucket, _ = buckets("pepper", f"u{number}")
        expected = "control" if bucket < 200_000 else "a" if bucket < 700_000 else "b"
        assert found == (expected, True, pb.ASSIGNMENT_REASON_ASSIGNED, bucket, 3)


def test_fragmented_ranges_are_looked_up_right():
    phase = pb.AnalysisPhase(
        number=1,
        allocations=[
            pb.VariantAllocation(variant_id=name, ranges=[pb.BucketRange(start=s, end=e) for s, e in spans])
            for name, spans in {
                "control": [(0, 10), (20, 500_000)],
                "empty": [],
                "tuned": [(500_000, BUCKETS), (10, 20)],
            }.items()
        ],
    )
    evaluator = Evaluator(config(phase=phase))
    edges = [evaluator._starts, evaluator._variants]
    assert edges == [[0, 10, 20, 500_000], ["control", "tuned", "control", "tuned"]]


def test_coverage_takes_the_units_of_the_second_word():
    evaluator = Evaluator(config(coverage_buckets=100_000))
    taken = [evaluator.assign(f"u{number}").is_participant for number in range(20_000)]
    assert taken == [buckets("pepper", f"u{number}")[1] < 100_000 for number in range(20_000)]
    assert 0.09 < sum(taken) / len(taken) < 0.11
    assert evaluator.assign("u0" if not taken[0] else "u1").variant_id == "control"


def test_raising_the_coverage_keeps_everyone_where_they_were():
    some, more = Evaluator(config(coverage_buckets=50_000)), Evaluator(config(coverage_buckets=500_000))
    for number in range(5000):
        before, after = some.assign(f"u{number}"), more.assign(f"u{number}")
        assert not before.is_participant or before == after


def test_experiments_of_one_layer_exclude_each_other():
    ranges = [[pb.BucketRange(start=0, end=600_000)], [pb.BucketRange(start=600_000, end=BUCKETS)]]
    first, second = (
        Evaluator(config(layer_salt="layer", layer_ranges=each, salt=f"s{number}"))
        for number, each in enumerate(ranges)
    )
    for number in range(5000):
        assert first.assign(f"u{number}").is_participant != second.assign(f"u{number}").is_participant
    outside = next(each for each in map(first.assign, map(str, range(100))) if not each.is_participant)
    assert outside.reason == pb.ASSIGNMENT_REASON_OUTSIDE_LAYER


def test_an_override_wins_over_layer_targeting_and_coverage_and_is_not_analysed():
    evaluator = Evaluator(
        config(
            overrides={"tester": "tuned"}, coverage_buckets=0, targeting=[rule("EXISTS")], layer_salt="layer"
        )
    )
    assert evaluator.assign("tester") == ("tuned", False, pb.ASSIGNMENT_REASON_OVERRIDE, None, 3)


@pytest.mark.parametrize(
    ("state", "winner", "variant", "reason"),
    [
        (pb.EXPERIMENT_STATE_PAUSED, "", "control", pb.ASSIGNMENT_REASON_NOT_RUNNING),
        (pb.EXPERIMENT_STATE_CREATED, "", "control", pb.ASSIGNMENT_REASON_NOT_RUNNING),
        (pb.EXPERIMENT_STATE_STOPPED, "", "control", pb.ASSIGNMENT_REASON_NOT_RUNNING),
        (pb.EXPERIMENT_STATE_CONCLUDING, "tuned", "control", pb.ASSIGNMENT_REASON_NOT_RUNNING),
        (pb.EXPERIMENT_STATE_CONCLUDED, "tuned", "tuned", pb.ASSIGNMENT_REASON_CONCLUDED),
    ],
)
def test_outside_of_running_everyone_gets_the_same(state, winner, variant, reason):
    evaluator = Evaluator(config(state=state, winner_variant_id=winner, overrides={"u": "tuned"}))
    assert evaluator.assign("u") == (variant, False, reason, None, 3)


@pytest.mark.parametrize(
    ("matches", "wanted", "value"),
    [
        (True, rule("IN", "pro", "team"), "team"),
        (False, rule("IN", "pro"), "Pro"),
        (False, rule("IN", "é"), "e\u0301"),
        (False, rule("IN", 1), True),
        (True, rule("IN", 1), 1.0),
        (False, rule("IN", True), 1),
        (False, rule("IN", "1"), 1),
        (True, rule("NOT_IN", "pro"), "free"),
        (True, rule("NOT_IN", "pro"), None),
        (True, rule("NOT_IN", "1"), 1),
        (False, rule("NOT_IN", "pro"), "pro"),
        (True, rule("LESS", 3), 2),
        (False, rule("LESS", 3), 3),
        (False, rule("LESS", 3), "2"),
        (False, rule("LESS", 3), None),
        (False, rule("LESS", 3), float("nan")),
        (True, rule("LESS_OR_EQUAL", 3), 3),
        (True, rule("GREATER", 3), 3.5),
        (False, rule("GREATER", 0), True),
        (True, rule("GREATER_OR_EQUAL", 3), 3),
        (True, rule("STARTS_WITH", "de", "fr"), "fr-CH"),
        (False, rule("STARTS_WITH", "de"), 3),
        (True, rule("ENDS_WITH", ".org"), "a.org"),
        (True, rule("CONTAINS", "beta"), ["alpha", "beta"]),
        (False, rule("CONTAINS", "beta"), "beta"),
        (True, rule("EXISTS"), False),
        (False, rule("EXISTS"), None),
        (True, rule("NOT_EXISTS"), None),
        (False, rule("NOT_EXISTS"), 0),
        (True, rule("SEMVER_LESS", "2.0.0"), "2.0.0-rc.1"),
        (False, rule("SEMVER_LESS", "2.0.0"), "2.0"),
        (True, rule("SEMVER_GREATER_OR_EQUAL", "1.10.0"), "1.10.0+build"),
        (False, rule("SEMVER_GREATER_OR_EQUAL", "1.10.0"), "1.9.0"),
    ],
)
def test_targeting(matches, wanted, value):
    attributes = {} if value is None else {"plan": value}
    found = Evaluator(config(targeting=[wanted])).assign("u", attributes)
    assert found.is_participant == matches
    assert matches or found.reason == pb.ASSIGNMENT_REASON_NOT_TARGETED


def test_all_conditions_of_any_rule_must_hold():
    both = pb.TargetingRule(
        conditions=[rule("IN", "pro").conditions[0], rule("GREATER", 1, attribute="age").conditions[0]]
    )
    evaluator = Evaluator(config(targeting=[both, rule("IN", "team")]))
    assert not evaluator.assign("u", {"plan": "pro"}).is_participant
    assert evaluator.assign("u", {"plan": "pro", "age": 2}).is_participant
    assert evaluator.assign("u", {"plan": "team"}).is_participant
    assert not evaluator.assign("u").is_participant


@pytest.mark.parametrize("unit_id", ["", "a\0b", "x" * 257, "\ud800"])
def test_what_is_no_unit_id_is_refused(unit_id):
    with pytest.raises(ValueError):  # a lone surrogate is refused by the encoder
        Evaluator(config()).assign(unit_id)


def _all_buckets(salt: str, number: int) -> np.ndarray:
    prefix = b"nwx1\0" + salt.encode() + b"\0"
    digests = b"".join(hashlib.sha256(prefix + b"user-%d" % unit).digest()[:4] for unit in range(number))
    return (np.frombuffer(digests, dtype=">u4").astype(np.uint64) * BUCKETS) >> np.uint64(32)


def test_buckets_are_uniform_and_experiments_independent():
    """50,000 ids x 20 experiments; 1M ids are looked at by bench/assign.py."""
    number, salts = 50_000, [f"salt-{index}" for index in range(20)]
    found = [_all_buckets(salt, number) for salt in salts]
    assert [buckets(salts[0], f"user-{unit}")[0] for unit in range(100)] == found[0][:100].tolist()
    uniform = [
        stats.chisquare(np.bincount(each * np.uint64(100) // np.uint64(BUCKETS), minlength=100)).pvalue
        for each in found
    ]
    independent = [
        stats.chi2_contingency(np.histogram2d(a // (BUCKETS // 4), b // (BUCKETS // 4), bins=4)[0]).pvalue
        for a, b in pairwise(found)
    ]
    # Of 39 tests at this level, one fails by chance once in 2,500 runs; the ids are always the same.
    assert min(uniform + independent) > 1e-5
