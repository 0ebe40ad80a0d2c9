"""What a caller of an HTTP port may take: the settings of model servers and routers."""

from __future__ import annotations

import resource
from dataclasses import dataclass, replace
from typing import Final

from neuroweaver.mesh.wire.environment import seconds_above_0, variable, whole

# Of a process, for all but the connections of its callers.
_OTHER_FILES: Final = 200
# A router has one to the caller and one to a replica.
_FILES_PER_CONNECTION: Final = 2


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    head_bytes: int = variable(
        "NEUROWEAVER_HTTP_HEAD_BYTES",
        whole(1024, "a number of bytes"),
        32 << 10,
        help="The most bytes of a request's line and headers.",
    )
    head_s: float = variable(
        "NEUROWEAVER_HTTP_HEAD_S",
        seconds_above_0,
        15.0,
        help="How long line and headers may take, from the connection or their first byte.",
    )
    body_bytes: int = variable(
        "NEUROWEAVER_HTTP_BODY_BYTES",
        whole(1024, "a number of bytes"),
        8 << 20,
        help="The most bytes of a request's body.",
    )
    body_s: float = variable(
        "NEUROWEAVER_HTTP_BODY_S", seconds_above_0, 60.0, help="How long a request's body may take to come."
    )
    bodies_bytes: int = variable(
        "NEUROWEAVER_HTTP_BODIES_BYTES",
        whole(1 << 20, "a number of bytes"),
        256 << 20,
        help="The most bytes of all requests' bodies that a process holds; beyond, it takes small ones alone "
        "(64 KiB).",
    )
    idle_s: float = variable(
        "NEUROWEAVER_HTTP_IDLE_S",
        seconds_above_0,
        75.0,
        help="How long a connection is kept between two requests.",
    )
    unread_s: float = variable(
        "NEUROWEAVER_HTTP_UNREAD_S",
        seconds_above_0,
        60.0,
        help="How long a caller may read nothing of its answer before the connection is cut.",
    )
    connections: int = variable(
        "NEUROWEAVER_HTTP_CONNECTIONS",
        whole(1, "a number of connections"),
        1000,
        help="The most connections at once, as far as the limit of open files has room. For one more, the "
        "longest without a whole request is closed; where all have one, the new one gets 503.",
    )
    connections_per_address: int = variable(
        "NEUROWEAVER_HTTP_CONNECTIONS_PER_ADDRESS",
        whole(1, "a number of connections"),
        500,
        help="The most connections of one address, likewise. All callers behind a proxy have its address.",
    )

    def behind_router(self) -> HttpLimits:
        """Room for what a router within these limits adds to a request, and for all that it passes on: to
        what stands behind it, its callers have one address.
        """
        return replace(
            self,
            head_bytes=2 * self.head_bytes,
            body_bytes=self.body_bytes + (64 << 10),
            connections_per_address=self.connections,
        )


def connections_with_files(wanted: int) -> int:
    """As many of these connections as there are files for; raises this process's limit if it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted * _FILES_PER_CONNECTION + _OTHER_FILES
    if soft < needed:
        soft = min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(wanted, (soft - _OTHER_FILES) // _FILES_PER_CONNECTION))
