"""The Python client: stubs with retries and tracing, and watches that survive a broken connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroweaver.client.connection import Client

__all__ = ["Client"]


def __getattr__(name: str) -> Any:
    """`Client` is imported when it is first used: with gRPC, which not every module of the package needs."""
    if name != "Client":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from neuroweaver.client.connection import Client  # noqa: PLC0415

    return Client
