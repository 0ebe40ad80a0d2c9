"""Starts services again that `neuroweaver up --detach` started and that stop: `python -m neuroweaver.local`.

It ends by SIGTERM, and leaves them running: `neuroweaver down` ends it first and then them.
"""

from __future__ import annotations

import os
import signal
import threading
from datetime import UTC, datetime

from neuroweaver.local.processes import Fleet
from neuroweaver.local.restarts import WATCH_S, Restarts


def main() -> None:
    stop = threading.Event()
    # Between two looks: a service that was just started is recorded before this ends.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    fleet = Fleet(os.environ)
    fleet.take_over()
    _say(f"supervises {', '.join(place.service for place in fleet.places)}")
    restarts = Restarts(fleet, _say)
    while not stop.wait(WATCH_S):
        restarts.look()
    _say("ends; the services go on")


def _say(line: str) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}", flush=True)  # noqa: T201  # its log


if __name__ == "__main__":
    main()
