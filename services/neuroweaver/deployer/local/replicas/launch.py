"""What a replica is started as: its configuration, and what may change without a restart."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

import yaml

from neuroweaver.cluster import quantities
from neuroweaver.deployer.domain.backend import Bundle, Wanted, WantedRevision
from neuroweaver.deployer.local.files.supplies import Places
from neuroweaver.deployer.local.machine.machine import Need, need_of
from neuroweaver.v1 import deployer_pb2 as pb

HOST: Final = "127.0.0.1"

_WEIGHT_TYPES: Final = {
    pb.WEIGHT_TYPE_BF16: "bf16",
    pb.WEIGHT_TYPE_FP16: "fp16",
    pb.WEIGHT_TYPE_FP32: "fp32",
}
_MAX_BATCH_SIZE: Final = 16
_MAX_QUEUE_SIZE: Final = 256


@dataclass(frozen=True)
class Launch:
    """options: those of the configuration file that do not depend on where it runs.

    cpu_limit: "" for none. memory_limit_bytes: 0 for none.
    """

    revision: int
    bundle: Bundle
    options: tuple[tuple[str, Any], ...]
    need: Need
    cpu_limit: str = ""
    memory_limit_bytes: int = 0

    @classmethod
    def of(cls, wanted: Wanted, revision: WantedRevision) -> Launch:
        engine, resources = wanted.spec.engine, wanted.spec.resources
        options: dict[str, Any] = {
            "weight_type": _WEIGHT_TYPES.get(engine.weight_type, ""),
            "adapter_mode": "switched" if engine.adapter_mode == pb.ADAPTER_MODE_SWITCHED else "merged",
            "max_context_tokens": engine.max_context_tokens,
            "max_batch_size": engine.max_batch_size or _MAX_BATCH_SIZE,
            "max_queue_size": engine.max_queue_size if engine.HasField("max_queue_size") else _MAX_QUEUE_SIZE,
            "model": f"{wanted.key.model_id}@{revision.bundle.version}",
        }
        return cls(
            revision.number,
            revision.bundle,
            tuple(sorted(options.items())),
            need_of(resources, revision.bundle),
            resources.cpu_limit,
            int(quantities.amount(resources.memory_limit or "0")),
        )

    @property
    def target(self) -> str:
        """Replicas with the same one are alike."""
        return f"{self.revision}-{_digest([self.bundle.version, self.bundle.digest, *self._frame()])}"

    @property
    def frame(self) -> str:
        """Replicas with the same one differ by their adapter at most. Empty: nothing can be swapped."""
        is_switched = dict(self.options)["adapter_mode"] == "switched"
        return _digest(self._frame()) if is_switched and self.bundle.base_name else ""

    def _frame(self) -> list[Any]:
        options = {name: value for name, value in self.options if name != "model"}
        need = [self.need.cores, self.need.memory_bytes, self.need.gpus]
        base = [self.bundle.base_name, self.bundle.base_model_digest]
        return [base, options, need, self.cpu_limit, self.memory_limit_bytes]

    def config(self, *, port: int, places: Places, drain_s: float) -> dict[str, Any]:
        """The model server's configuration file. It listens on loopback: callers come through the router."""
        return dict(self.options) | {
            "host": HOST,
            "port": port,
            "base_folder": str(places.base_folder) if places.base_folder else "",
            "base_digest": self.bundle.base_model_digest,
            "files_folder": str(places.files_folder),
            "files": files(self.bundle),
            "version": self.bundle.version,
            "revision": self.revision,
            "drain_s": drain_s,
            "memory_limit_bytes": self.memory_limit_bytes,
        }

    def manifest(self, replica_id: str) -> str:
        """As YAML, for people: all that decides how the process runs."""
        return str(yaml.safe_dump(self.description(replica_id), sort_keys=False))

    def description(self, replica_id: str) -> dict[str, Any]:
        requests = {"cpu": self.need.cores, "memory": self.need.memory_bytes}
        limits = {"cpu": self.cpu_limit, "memory": self.memory_limit_bytes}
        return {
            "apiVersion": "local/v1",
            "kind": "Process",
            "metadata": {"name": replica_id, "revision": self.revision},
            "spec": {
                "version": self.bundle.version,
                "artifactsDigest": self.bundle.digest,
                "baseModel": self.bundle.base_name,
                "engine": {name: value for name, value in self.options if value not in ("", 0)},
                "resources": {
                    "requests": requests | ({"gpu": self.need.gpus} if self.need.gpus else {}),
                    "limits": {name: value for name, value in limits.items() if value},
                },
            },
        }


def files(bundle: Bundle) -> list[dict[str, Any]]:
    return [
        {"path": file.path, "digest": file.digest, "size_bytes": file.size_bytes} for file in bundle.files
    ]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
