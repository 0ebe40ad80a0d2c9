"""Asks a model server of this machine how it is."""

from __future__ import annotations

from typing import Final

import httpx2

from neuroweaver.deployer.model_servers import metrics
from neuroweaver.deployer.model_servers.health import PHASES, Health

TIMEOUT_S: Final = 2.0


async def health(client: httpx2.AsyncClient, base_url: str) -> Health | None:
    """None if there is no answer, or one that no model server gives."""
    try:
        answer = await client.get(f"{base_url}/health/live", timeout=TIMEOUT_S)
        health = Health.of(answer.json(), is_live=answer.status_code == 200)
    except (httpx2.HTTPError, OSError, ValueError):
        return None
    return health if answer.status_code in (200, 503) and health.phase in PHASES else None


async def page(client: httpx2.AsyncClient, base_url: str) -> metrics.Page | None:
    """None if there is no answer, or one that no model server gives."""
    try:
        answer = await client.get(f"{base_url}/metrics", timeout=TIMEOUT_S)
        return metrics.page(answer.text) if answer.status_code == 200 else None
    except (httpx2.HTTPError, OSError, ValueError):
        return None
