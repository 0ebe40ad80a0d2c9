"""The Python client: stubs with retries and tracing, and watches that survive a broken connection."""

from __future__ import annotations

from neuroweaver.client.connection import Client

__all__ = ["Client"]
