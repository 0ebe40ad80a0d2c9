"""How often the analysis of a rollout errs, and how soon it finds what is wrong.

    python bench/rollout_statistics.py [--runs 400]

Traffic is made up (`tests/deployer/courses.py`): slices of 7.5 seconds, a look every 30 seconds for 20
minutes, 100 requests a slice, 20 of them the candidate's. A candidate exactly at its limit is the hardest
case in which to call it broken is an error.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from deployer.courses import Traffic, policy, verdicts
from neuroweaver.v1 import deployer_pb2 as pb

ERRORS = pb.ROLLOUT_METRIC_ERROR_RATE
LATENCY = pb.ROLLOUT_METRIC_LATENCY_P95
QUALITY = pb.ROLLOUT_METRIC_JUDGED_QUALITY
SLICES = 160
LOOK_S = 30

AT_LIMIT = {
    "error rate, 1 %": (Traffic(), [(ERRORS, "difference", 0.0)]),
    "error rate, 4 %, bursts of 10": (
        Traffic(failing=(0.04, 0.04), bursts=10),
        [(ERRORS, "difference", 0.0)],
    ),
    "error rate, 1.1 % against 1 %, relative 0.1": (
        Traffic(failing=(0.01, 0.011)),
        [(ERRORS, "relative", 0.1)],
    ),
    "error rate, absolute 1 %": (Traffic(), [(ERRORS, "absolute", 0.01)]),
    "p95 latency": (Traffic(), [(LATENCY, "relative", 0.0)]),
    "judged quality": (Traffic(), [(QUALITY, "difference", 0.0)]),
    "all three": (
        Traffic(),
        [(ERRORS, "difference", 0.0), (LATENCY, "relative", 0.0), (QUALITY, "difference", 0.0)],
    ),
}
LIMITS = [(ERRORS, "difference", 0.01), (LATENCY, "relative", 0.2), (QUALITY, "difference", 0.05)]
COURSES = {
    "like the stable one": Traffic(),
    "error rate 3 %, not 1 %": Traffic(failing=(0.01, 0.03)),
    "error rate 5 %": Traffic(failing=(0.01, 0.05)),
    "error rate 20 %": Traffic(failing=(0.01, 0.2)),
    "latency 1.5 times": Traffic(median_ms=(110, 165)),
    "latency 2 times": Traffic(median_ms=(110, 220)),
    "quality 0.72, not 0.80": Traffic(quality=(0.8, 0.72)),
    "quality 0.65": Traffic(quality=(0.8, 0.65)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--runs", type=int, default=400)
    runs = parser.parse_args().runs
    print(f"called broken, of {runs} candidates exactly at the limit (at most 5 % are promised):")
    for name, (traffic, checks) in AT_LIMIT.items():
        rng = np.random.default_rng(1)
        found = [verdicts(traffic, policy(*checks), SLICES, rng) for _ in range(runs)]
        failed = sum(pb.ROLLOUT_VERDICT_FAIL in each for each in found)
        print(f"  {name:<46} {100 * failed / runs:5.2f} %")
    print(f"of {runs} candidates, limits: error rate + 1 point, p95 latency + 20 %, quality - 0.05:")
    for name, traffic in COURSES.items():
        rng = np.random.default_rng(2)
        found = [verdicts(replace(traffic), policy(*LIMITS), SLICES, rng) for _ in range(runs)]
        failed = sorted(len(each) for each in found if pb.ROLLOUT_VERDICT_FAIL in each)
        # At the end of a bake time of 5 minutes, the default.
        passed = sum(len(each) >= 10 and each[9] == pb.ROLLOUT_VERDICT_PASS for each in found)
        half = f", half of them within {LOOK_S * failed[len(failed) // 2]} s" if failed else ""
        print(
            f"  {name:<26} found {100 * len(failed) / runs:6.2f} %{half}; "
            f"passed after 5 minutes {100 * passed / runs:6.2f} %"
        )


if __name__ == "__main__":
    main()
