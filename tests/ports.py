"""Loopback ports that nothing else takes between the moment they are chosen and the moment a server listens there."""

from __future__ import annotations

import itertools
import random
import socket
from collections.abc import Iterator
from functools import cache
from typing import Final

# Below the ports that systems give out by themselves (from 32768 on Linux): no connection comes to lie on one.
_FIRST: Final = 20_000
_BLOCK: Final = 200
_BLOCKS: Final = 60


def free_port() -> int:
    """A TCP port for the tests of this process alone; it comes again after 200 others at the earliest."""
    _, ports = _block()
    for port in itertools.islice(ports, _BLOCK):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise RuntimeError("there is no free port")


def free_ports(count: int) -> list[int]:
    """Different ones."""
    return [free_port() for _ in range(count)]


@cache
def _block() -> tuple[socket.socket, Iterator[int]]:
    """Ports that belong to this process until it ends, and what claims them.

    That is a UDP socket on the first of them: it leaves TCP free for servers, and every other process that asks here
    sees it, so that runs and workers beside each other do not meet.
    """
    starts = range(_FIRST, _FIRST + _BLOCK * _BLOCKS, _BLOCK)
    for start in random.sample(starts, _BLOCKS):
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind(("127.0.0.1", start))
        except OSError:
            claim.close()
            continue
        return claim, itertools.cycle(range(start, start + _BLOCK))
    raise RuntimeError("every block of ports is taken by another run")
