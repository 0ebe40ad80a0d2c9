"""What callers miss when a local deployer is killed and started again, and how long its lease waits.

    python bench/deployer_killed.py
    python bench/deployer_killed.py --json

A caller asks every 20 ms, before stand-ins of model servers, while the deployer is killed with SIGKILL and
started again at once. The lease is that of a process that is killed, in SQLite, as another one waits for it.
All is on loopback and ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [str(ROOT / name) for name in ("services", "gen/python", "clients/python", "tests")]
sys.path[:0] = SOURCES

import httpx2  # noqa: E402

from deployer.local.worlds import children_environment  # noqa: E402
from neuroweaver.deployer.storage.lease import Lease, LeaseHolder  # noqa: E402
from neuroweaver.mesh.database.database import Database  # noqa: E402
from neuroweaver.mesh.database.migrations import migrate  # noqa: E402

DEPLOYER: Final = ROOT / "tests" / "deployer" / "local" / "deployer_process.py"
KILLS: Final = 5
PERIOD_S: Final = 0.02
AFTER_S: Final = 3.0
HOLD: Final = "--hold"


class Deployer:
    def __init__(self, home: str, port: int) -> None:
        self._options = (str(DEPLOYER), home, str(port), "1.0.0", "2", "")
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> dict[str, Any]:
        """What it told when both replicas were ready."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, *self._options, stdout=asyncio.subprocess.PIPE, env=children_environment()
        )
        assert self.process.stdout is not None
        while len((told := json.loads(await self.process.stdout.readline()))["ready"]) < 2:
            pass
        self._draining = asyncio.create_task(self.process.stdout.read())
        return dict(told)

    async def end(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        await self.process.wait()


async def asked(url: str, ended: asyncio.Event) -> tuple[Counter[str], float]:
    """Answers by status, and the longest time without a good one."""
    seen: Counter[str] = Counter()
    longest_s, good_at = 0.0, time.perf_counter()
    async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
        while not ended.is_set():
            try:
                status = str((await client.post(url, json={"model": "advisor"})).status_code)
            except httpx2.TransportError:
                status = "no connection"
            seen[status] += 1
            if status == "200":
                longest_s, good_at = max(longest_s, time.perf_counter() - good_at), time.perf_counter()
            await asyncio.sleep(PERIOD_S)
    return seen, longest_s


async def killed() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as home, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        listener.close()
        deployer = Deployer(home, port)
        url = f"{(await deployer.start())['endpoint']}/chat/completions"
        ended = asyncio.Event()
        asking = asyncio.create_task(asked(url, ended))
        for _ in range(KILLS):
            await deployer.end(signal.SIGKILL)
            await deployer.start()
            await asyncio.sleep(AFTER_S)
        ended.set()
        seen, longest_s = await asking
        await deployer.end(signal.SIGTERM)
    good = seen.pop("200", 0)
    return {"kills": KILLS, "good": good, "failed": dict(seen), "longest_s": round(longest_s, 2)}


async def leading(folder: str) -> None:
    """Holds the lease, and says so."""
    database = Database(f"sqlite+aiosqlite:///{folder}/deployer.db", schema="deployer")
    await migrate(database, "neuroweaver.deployer")

    async def lead(_lease: Lease) -> None:
        sys.stdout.write("leads\n")
        sys.stdout.flush()
        await asyncio.Event().wait()

    sys.stdout.write("waits\n")
    sys.stdout.flush()
    await LeaseHolder(database).run(lead)


async def lease_waited_s() -> float:
    with tempfile.TemporaryDirectory() as folder:
        holders = []
        for _ in range(2):
            holder = await asyncio.create_subprocess_exec(
                *(sys.executable, __file__, HOLD, folder),
                stdout=asyncio.subprocess.PIPE,
                env=children_environment(),
            )
            holders.append(holder)
            await holder.stdout.readline()  # type: ignore[union-attr]
            if len(holders) == 1:
                await holder.stdout.readline()  # type: ignore[union-attr]
        await asyncio.sleep(AFTER_S)  # it has seen the first one by now
        holders[0].kill()
        began = time.perf_counter()
        await holders[1].stdout.readline()  # type: ignore[union-attr]
        waited_s = time.perf_counter() - began
        for holder in holders:
            with contextlib.suppress(ProcessLookupError):
                holder.kill()
            await holder.wait()
    return waited_s


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(HOLD, metavar="FOLDER", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.hold:
        await leading(given.hold)
        return
    row = await killed()
    row["lease_waited_s"] = round(await lease_waited_s(), 2)
    row["load"] = round(os.getloadavg()[0], 1)
    if given.json:
        sys.stdout.write(json.dumps(row) + "\n")
    else:
        for name, value in row.items():
            sys.stdout.write(f"{name:16} {value}\n")


if __name__ == "__main__":
    asyncio.run(main())
