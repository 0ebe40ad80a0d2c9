"""What a model server says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from neuroweaver.v1 import deployer_pb2 as pb

TIMEOUT_S: Final = 2.0

PHASES: Final[Mapping[str, pb.ReplicaPhase.ValueType]] = {
    "scheduling": pb.REPLICA_PHASE_SCHEDULING,
    "pulling": pb.REPLICA_PHASE_PULLING,
    "loading": pb.REPLICA_PHASE_LOADING,
    "warming": pb.REPLICA_PHASE_WARMING,
    "ready": pb.REPLICA_PHASE_READY,
    "draining": pb.REPLICA_PHASE_DRAINING,
    "failed": pb.REPLICA_PHASE_FAILED,
}
COLD_START: Final = ("scheduling", "pulling", "loading", "warming")


@dataclass(frozen=True)
class Health:
    """phase_s: seconds that each phase of the cold start took."""

    is_live: bool
    phase: str
    phase_s: Mapping[str, float] = field(default_factory=dict)
    last_token_time: datetime | None = None
    loaded_versions: tuple[str, ...] = ()
    reason: str = ""

    @property
    def is_ready(self) -> bool:
        return self.is_live and self.phase == "ready"


async def health(client: httpx2.AsyncClient, base_url: str) -> Health | None:
    """None if there is no answer, or one that no model server gives."""
    try:
        answer = await client.get(f"{base_url}/health/live", timeout=TIMEOUT_S)
        told = answer.json()
        return _health(answer.status_code, told) if isinstance(told, dict) else None
    except (httpx2.HTTPError, OSError, ValueError, TypeError, AttributeError):
        return None


async def counters(client: httpx2.AsyncClient, base_url: str) -> dict[str, float] | None:
    """Its Prometheus samples by name, added up over their labels; None if there is no answer."""
    try:
        answer = await client.get(f"{base_url}/metrics", timeout=TIMEOUT_S)
        if answer.status_code != 200:
            return None
        sums: dict[str, float] = {}
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    except (httpx2.HTTPError, OSError, ValueError):
        return None
    return sums


def _health(status: int, told: Mapping[str, Any]) -> Health | None:
    phase = str(told.get("phase", ""))
    if status not in (200, 503) or phase not in PHASES:
        return None
    last = told.get("last_token_time")
    return Health(
        status == 200,
        phase,
        {str(name): float(seconds) for name, seconds in (told.get("phases") or {}).items()},
        datetime.fromtimestamp(float(last), UTC) if last is not None else None,
        tuple(str(version) for version in told.get("loaded_versions") or ()),
        str(told.get("reason") or ""),
    )
