"""The names and ports of the containers in a pod."""

from __future__ import annotations

from typing import Final

PORT: Final = 8000
PORT_NAME: Final = "http"
SERVER: Final = "server"
FETCH: Final = "fetch"
