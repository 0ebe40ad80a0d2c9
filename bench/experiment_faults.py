"""Kills an Experiment service again and again while events come in, and counts what is left.

    python bench/experiment_faults.py [--kills 25] [--database sqlite|postgresql]

Four writers send batches of 50; the service is killed with SIGKILL at a random moment up to 60 ms after some
batches were acknowledged, and started again over the same database. After every kill: nothing acknowledged is
lost, nothing counts twice when all is sent again, and the statistics equal those made anew of the raw events.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

# In place of this folder, whose registry.py would hide the tests' folder of that name.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import postgres
from experiment.faults import SIZE, Feed, Service, begin, check, kill_while_feeding


def main(options: argparse.Namespace) -> None:
    drawn = random.Random(options.seed)
    for kind in ["sqlite", "postgresql"] if options.database is None else [options.database]:
        with ExitStack() as stack:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            url = ""
            if kind == "postgresql":
                binaries = postgres.binaries()
                if binaries is None:
                    raise SystemExit("PostgreSQL's server is not installed")
                url = stack.enter_context(postgres.server(binaries, is_durable=True))
            service, feed, started = Service(home, url), Feed(), time.monotonic()
            now_us = begin(service)
            for _ in range(options.kills):
                kill_while_feeding(service, feed, now_us, drawn.randint(1, 60), drawn.uniform(0, 0.06))
                check(service, feed, now_us)
            print(
                f"{kind}: {options.kills} kills, {len(feed.sent) * SIZE:,} events, none lost, "
                f"none counted twice; {time.monotonic() - started:.0f} s"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--database", choices=["sqlite", "postgresql"])
    parser.add_argument("--seed", type=int, default=1)
    main(parser.parse_args())
