"""The health page of NeuroWeaver's model server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from neuroweaver.v1 import deployer_pb2 as pb

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

    phase: str = ""
    phase_s: Mapping[str, float] = field(default_factory=dict)
    last_token_time: datetime | None = None
    loaded_versions: tuple[str, ...] = ()
    reason: str = ""
    is_live: bool = True

    @property
    def is_ready(self) -> bool:
        return self.is_live and self.phase == "ready"

    @classmethod
    def of(cls, page: Any, *, is_live: bool = True) -> Health:
        """From the JSON of the page; what is not as agreed is left out."""
        if not isinstance(page, dict):
            return cls(is_live=is_live)
        token, versions, phases = (page.get(key) for key in ("last_token_time", "loaded_versions", "phases"))
        return cls(
            phase=str(page.get("phase", "")),
            phase_s={
                str(name): float(seconds)
                for name, seconds in (phases if isinstance(phases, dict) else {}).items()
                if isinstance(seconds, int | float)
            },
            last_token_time=datetime.fromtimestamp(token, UTC) if isinstance(token, int | float) else None,
            loaded_versions=tuple(map(str, versions)) if isinstance(versions, list) else (),
            reason=str(page.get("reason") or ""),
            is_live=is_live,
        )
