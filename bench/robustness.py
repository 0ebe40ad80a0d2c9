"""All four services under faults and hostile clients together: what is lost, refused, slowed down.

    python bench/robustness.py [--minutes 60] [--quiet 60] [--database postgresql|sqlite] [--json]

Writers, readers, one training job after the other and people who chat with a deployed model work all the
time. After a quiet time come, in a random order: kill -9 of each service, crashes of PostgreSQL, full disks.
Beside them, hostile clients send small messages of very many elements, leave downloads unread and uploads
half done, hold watches and connections, ask with prompts of two megabytes and with what is no text. Then
every acknowledged write is looked for, the calls of those who worked on the same things are held against
every possible order (linearizability), and the times of calls that met no outage are compared with those of
the quiet time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
# In place of this folder, whose registry.py would hide the tests' folder of that name.
sys.path[0] = str(Path(__file__).parents[1] / "tests")

from e2e.storm.record import percentile  # noqa: E402
from e2e.storm.storm import Outcome, Plan, run  # noqa: E402

MIB = 1024 * 1024


def figures(outcome: Outcome, seconds: float) -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "seconds": round(seconds),
        "faults_made": outcome.times,
        "acknowledged": outcome.acknowledged,
        "lost": outcome.lost,
        "failures_without_excuse": outcome.faults,
        "calls": len(outcome.record.calls),
        "calls_excused": sum(call.code != "OK" for call in outcome.record.calls)
        - sum(
            int(line.split(" times ")[0]) for line in outcome.faults if ": " in line and "hostile" not in line
        ),
        "latency_ms": {
            kind: {
                "quiet_p50": round(1000 * percentile(quiet, 50), 1),
                "quiet_p99": round(1000 * percentile(quiet, 99), 1),
                "storm_p50": round(1000 * percentile(storm, 50), 1),
                "storm_p99": round(1000 * percentile(storm, 99), 1),
                "ratio_p99": round(percentile(storm, 99) / percentile(quiet, 99), 2),
            }
            for kind, quiet in outcome.quiet.items()
            if (storm := outcome.storm.get(kind))
        },
        "resident_mib": {
            service: {
                "first_third": round(max(sizes[: len(sizes) // 3] or sizes) / MIB),
                "last_third": round(max(sizes[-(len(sizes) // 3) :] or sizes) / MIB),
                "most": round(max(sizes) / MIB),
            }
            for service, sizes in outcome.resident.items()
        },
        "hostile_answers": {
            f"{kind}: {code}": number for (kind, code), number in outcome.record.hostile.items()
        },
        "skipped": outcome.skipped,
    }


def table(found: dict[str, Any]) -> str:
    lines = [
        f"{found['cores']} cores, {found['seconds']} s; faults: "
        + ", ".join(f"{kind} {times}" for kind, times in found["faults_made"].items()),
        "acknowledged: " + ", ".join(f"{number:,} {what}" for what, number in found["acknowledged"].items()),
        f"lost: {'; '.join(found['lost']) or 'nothing'}",
        "failures that no outage excuses: " + ("; ".join(found["failures_without_excuse"]) or "none"),
        "",
        f"{'ms':18}{'quiet p50':>11}{'p99':>9}{'storm p50':>11}{'p99':>9}{'p99 ratio':>11}",
    ]
    for kind, times in found["latency_ms"].items():
        lines.append(
            f"{kind:18}{times['quiet_p50']:11.1f}{times['quiet_p99']:9.1f}{times['storm_p50']:11.1f}"
            f"{times['storm_p99']:9.1f}{times['ratio_p99']:11.2f}"
        )
    lines += ["", f"{'resident MiB':18}{'first third':>13}{'last third':>12}{'most':>7}"]
    for service, sizes in found["resident_mib"].items():
        lines.append(f"{service:18}{sizes['first_third']:13}{sizes['last_third']:12}{sizes['most']:7}")
    lines += ["", "hostile clients were answered:"]
    lines += [f"  {number:6,} times {what}" for what, number in sorted(found["hostile_answers"].items())]
    return "\n".join(lines + [f"SKIPPED: {reason}" for reason in found["skipped"]])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="how long the storm lasts")
    parser.add_argument("--quiet", type=float, default=60.0, help="seconds before it")
    parser.add_argument("--pause", type=float, default=15.0, help="the most seconds between two faults")
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--calm-clients", action="store_true", help="without the hostile ones")
    parser.add_argument("--without-jobs", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    plan = Plan(
        quiet_s=options.quiet,
        storm_s=60 * options.minutes,
        pause_s=options.pause,
        is_postgresql=options.database == "postgresql",
        has_hostile_clients=not options.calm_clients,
        has_jobs=not options.without_jobs,
        seed=options.seed,
    )
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nw-storm-") as home:
        found = figures(asyncio.run(run(plan, Path(home))), time.monotonic() - begun)
    print(json.dumps(found, indent=2) if options.json else table(found))
    if found["lost"] or found["failures_without_excuse"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
