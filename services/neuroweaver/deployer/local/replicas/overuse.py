"""Whether a process holds more memory than it may.

A cgroup of its own would bound it to the byte, but few deployers may make one. RLIMIT_AS and RLIMIT_DATA
count what is reserved, and CUDA, the allocator's arenas and the stacks of threads reserve far more than they
touch; where they refuse, whatever asks for memory next fails, in the midst of a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import Final

from neuroweaver.cluster import quantities
from neuroweaver.deployer.local.replicas.processes import Process

_LOOK_S: Final = 0.5


async def overuse(process: Process, limit_bytes: Callable[[], int]) -> str:
    """Waits until it holds more than its limit, and gives that in words; empty once it has ended.

    limit_bytes: asked at each look; 0 for none.
    """
    while not process.has_ended:
        limit = limit_bytes()
        held = await asyncio.to_thread(process.held_bytes) if limit else 0
        if held > limit and not process.has_ended:
            used, most = quantities.of_bytes(held), quantities.written(Decimal(limit))
            return f"used {used} of memory, more than its limit of {most} (OOM_KILLED)"
        await asyncio.sleep(_LOOK_S)
    return ""
