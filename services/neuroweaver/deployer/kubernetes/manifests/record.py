"""The last desired state that was carried out as a whole, in a ConfigMap beside the deployment's objects."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neuroweaver.cluster.kinds import CONFIG_MAP, Object, ref
from neuroweaver.deployer.domain.backend import DesiredState
from neuroweaver.deployer.kubernetes.manifests.scope import Scope
from neuroweaver.deployer.kubernetes.settings import ClusterSettings


@dataclass(frozen=True)
class Record:
    """objects: as `cluster.kinds.Ref` is written. weights: in percent, by revision."""

    generation: int = 0
    objects: frozenset[str] = frozenset()
    weights: Mapping[int, int] = field(default_factory=dict)


def written(wanted: DesiredState, settings: ClusterSettings, objects: Sequence[Object]) -> Object:
    weights = {str(revision.number): revision.weight_percent for revision in wanted.revisions}
    data = {
        "generation": str(wanted.generation),
        "weights": json.dumps(weights, sort_keys=True),
        "redirect": wanted.redirect.url if wanted.redirect else "",
        "objects": json.dumps(sorted(str(ref(item)) for item in objects)),
    }
    return Scope(wanted, settings).object(CONFIG_MAP, data=data)


def read(config_map: Object | None) -> Record:
    """Anybody may have edited it: an entry that cannot be read counts as empty."""
    data = (config_map or {}).get("data") or {}
    generation = data.get("generation", "")
    objects, weights = _json(data, "objects"), _json(data, "weights")
    return Record(
        int(generation) if generation.isdecimal() else 0,
        frozenset(map(str, objects)) if isinstance(objects, list) else frozenset(),
        _weights(weights) if isinstance(weights, dict) else {},
    )


def _json(data: Mapping[str, str], name: str) -> Any:
    try:
        return json.loads(data.get(name, "null"))
    except ValueError:
        return None


def _weights(weights: Mapping[str, Any]) -> dict[int, int]:
    try:
        return {int(number): int(weight) for number, weight in weights.items()}
    except (ValueError, TypeError):
        return {}
