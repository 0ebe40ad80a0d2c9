"""What a start costs: CPU of `neuroweaver --help`, seconds until `neuroweaver up` is healthy, idle memory.

    python bench/startup.py [--rounds 5]

`up` starts in a new home on free ports, so its first round also makes the tables; the median is over all
rounds. Memory is read ten seconds later: RSS, and PSS, which counts shared pages once. Linux only.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from neuroweaver.local.processes import SERVICES, free_ports

PROGRAM = Path(sys.executable).with_name("neuroweaver")
SETTLED_S = 10.0


def help_cpu_s() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([PROGRAM, "--help"], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def environment(home: str) -> dict[str, str]:
    kinds = [f"{service.upper()}_{kind}" for service in SERVICES for kind in ("PORT", "METRICS_PORT")]
    ports = free_ports(len(kinds) + 1)
    named = {
        f"NEUROWEAVER_{kind}": str(port) for kind, port in zip([*kinds, "SERVING_PORT"], ports, strict=True)
    }
    return os.environ | named | {"NEUROWEAVER_HOME": home, "PYTHONUNBUFFERED": "1"}


def memory_mib(process: psutil.Process) -> Iterator[tuple[str, float, float]]:
    """Of each process of the fleet: its name, RSS and PSS."""
    for each in [process, *process.children(recursive=True)]:
        command = " ".join(each.cmdline())
        name = next((name for name in SERVICES if f"neuroweaver.{name}" in command), "up")
        memory = each.memory_full_info()
        yield name, memory.rss / 2**20, memory.pss / 2**20


def up_s(environ: dict[str, str], *, is_last: bool) -> float:
    """Seconds until `up` says that all is well; memory is printed in the last round."""
    started = time.perf_counter()
    with subprocess.Popen(
        [PROGRAM, "up"], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as fleet:
        assert fleet.stdout is not None
        seen = []
        for line in fleet.stdout:
            seen.append(line)
            if line.startswith("Logs:"):
                break
        else:
            raise SystemExit("up has ended:\n" + "".join(seen))
        took = time.perf_counter() - started
        if is_last:
            time.sleep(SETTLED_S)
            rows = list(memory_mib(psutil.Process(fleet.pid)))
            for name, rss, pss in rows:
                print(f"{name:12} RSS {rss:5.0f} MiB   PSS {pss:5.0f} MiB")
            rss, pss = (sum(row[column] for row in rows) for column in (1, 2))
            print(f"{'together':12} RSS {rss:5.0f} MiB   PSS {pss:5.0f} MiB")
        fleet.send_signal(signal.SIGINT)
        fleet.communicate(timeout=60)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    help_cpu_s()
    print(f"neuroweaver --help: {statistics.median(help_cpu_s() for _ in range(rounds)):.2f} s of CPU")
    with tempfile.TemporaryDirectory() as home:
        environ = environment(home)
        times = [up_s(environ, is_last=number == rounds - 1) for number in range(rounds)]
    print(f"neuroweaver up: healthy after {statistics.median(times):.2f} s (first {times[0]:.2f} s)")


if __name__ == "__main__":
    main()
