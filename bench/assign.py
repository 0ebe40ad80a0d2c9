"""What an assignment costs in the client, and whether the hash splits well.

    python bench/assign.py [--units 1000000] [--experiments 20]

Microseconds a call of the local evaluator, median of rounds, without and with targeting and a layer. Then all
units x experiments: is each experiment's split uniform, and are experiments independent of each other?
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from hashlib import sha256
from itertools import pairwise

import numpy as np
from scipy import stats

from neuroweaver.experiment.domain.allocation import allocate
from neuroweaver.mesh.wire.assignment import BUCKETS, Evaluator
from neuroweaver.v1 import experiment_pb2 as pb


def config(**fields) -> pb.AssignmentConfig:
    allocations = [
        pb.VariantAllocation(variant_id=name, ranges=[pb.BucketRange(start=a, end=b) for a, b in spans])
        for name, spans in allocate({"control": 0.5, "tuned": 0.3, "other": 0.2}).items()
    ]
    return pb.AssignmentConfig(
        test_id="t",
        state=pb.EXPERIMENT_STATE_RUNNING,
        salt="01JD3N8Z7QXK",
        coverage_buckets=BUCKETS,
        phase=pb.AnalysisPhase(number=1, allocations=allocations),
        control_variant_id="control",
        **fields,
    )


def microseconds(evaluator: Evaluator, units: list[str], rounds: int, attributes=None) -> float:
    found = []
    assign = evaluator.assign
    for _ in range(rounds):
        begun = time.perf_counter()
        for unit in units:
            assign(unit, attributes)
        found.append((time.perf_counter() - begun) / len(units) * 1e6)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=1_000_000)
    parser.add_argument("--experiments", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=21)
    args = parser.parse_args()

    condition = pb.TargetingCondition(
        attribute="plan", operator=pb.TARGETING_OPERATOR_IN, values=[pb.AttributeValue(string_value="pro")]
    )
    targeted = config(targeting=[pb.TargetingRule(conditions=[condition])])
    layered = config(layer_salt="layer", layer_ranges=[pb.BucketRange(start=0, end=BUCKETS)])
    units = [f"user-{number}" for number in range(20_000)]
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    for name, made, attributes in (
        ("plain", config(), None),
        ("targeted", targeted, {"plan": "pro"}),
        ("in a layer", layered, None),
    ):
        print(f"{name:>12}: {microseconds(Evaluator(made), units, args.rounds, attributes):.2f} us a call")

    salts = [f"salt-{number}" for number in range(args.experiments)]
    ids = [b"user-%d" % number for number in range(args.units)]
    buckets = []
    for salt in salts:
        prefix = b"nwx1\0" + salt.encode() + b"\0"
        words = b"".join(sha256(prefix + unit).digest()[:4] for unit in ids)
        buckets.append((np.frombuffer(words, ">u4").astype(np.uint64) * BUCKETS) >> np.uint64(32))
    uniform = [
        stats.chisquare(np.bincount((each // 1000).astype(int), minlength=1000)).pvalue for each in buckets
    ]
    independent = [
        stats.chi2_contingency(np.histogram2d(a // 100_000, b // 100_000, bins=10)[0]).pvalue
        for a, b in pairwise(buckets)
    ]
    print(f"{args.units:,} units x {args.experiments} experiments")
    print(f"  uniform over 1000 cells: smallest p {min(uniform):.3f} of {len(uniform)}")
    print(f"  pairs independent over 10 x 10 cells: smallest p {min(independent):.3f} of {len(independent)}")


if __name__ == "__main__":
    main()
