"""A deployer of its own process around the local backend: HOME PORT VERSION REPLICAS MACHINE_GPUS [RESOURCES].
Tells each observation.

VERSION empty: desired for nothing, and only finds what is there. MACHINE_GPUS: names with commas between them.
RESOURCES: of each replica, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from pathlib import Path

from deployer.local.worlds import (
    KEY,
    NAME,
    FakeRegistry,
    big_machine,
    no_base,
    revision,
    settings,
    spec,
    wanted,
)
from neuroweaver.deployer.local.backend import local_backend
from neuroweaver.deployer.local.front.process import as_process
from neuroweaver.v1 import deployer_pb2 as pb


async def main(home: Path, port: int, version: str, replicas: int, gpus: str, resources: str = "{}") -> None:
    registry, stop = FakeRegistry(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    chosen = settings(home, port=port, start_router=as_process)
    machine = big_machine(gpus=tuple(gpus.split(",")) if gpus else ())
    async with local_backend(chosen, registry.fetch, no_base, machine=machine) as backend:
        desired = wanted(
            revision(registry.bundle(version or "1.0.0"), replicas=replicas),
            generation=1,
            resources=pb.ReplicaResources(**json.loads(resources)),
        )
        while not stop.is_set():
            if version:
                await backend.apply(desired)
            observed = await backend.observe(KEY, NAME, spec())
            told = {
                "ready": [each.replica_id for each in observed.replicas if each.phase == 5],
                "replicas": [each.replica_id for each in observed.replicas],
                "endpoint": observed.endpoint,
                "weights": dict(observed.weights),
                "at": time.monotonic(),
                "messages": [each.message for each in observed.replicas],
            }
            sys.stdout.write(json.dumps(told) + "\n")
            sys.stdout.flush()
            await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), *sys.argv[5:]))
