"""What a replica is started as: its configuration, and what may change without a restart."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, Final

import yaml

from neuroweaver.artifacts.serving_config import ServingConfig
from neuroweaver.cluster import quantities
from neuroweaver.deployer.domain.backend import Bundle, DesiredRevision, DesiredState
from neuroweaver.deployer.domain.serving import serving_config
from neuroweaver.deployer.local.files.supplies import Places
from neuroweaver.deployer.local.machine.machine import Need, need_of

HOST: Final = "127.0.0.1"

# What decides, beside the version, whether two replicas are alike.
_OPTIONS: Final = ("weight_type", "adapter_mode", "max_context_tokens", "max_batch_size", "max_queue_size")


@dataclass(frozen=True)
class Launch:
    """server: its configuration, without what depends on where it runs.

    cpu_limit: "" for none. memory_limit_bytes: 0 for none.
    """

    revision: int
    bundle: Bundle
    server: ServingConfig
    need: Need
    cpu_limit: str = ""
    memory_limit_bytes: int = 0

    @classmethod
    def of(cls, wanted: DesiredState, revision: DesiredRevision) -> Launch:
        resources = wanted.spec.resources
        return cls(
            revision.number,
            revision.bundle,
            serving_config(wanted, revision),
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
        is_switched = self.server.adapter_mode == "switched"
        return _digest(self._frame()) if is_switched and self.bundle.base_name else ""

    @property
    def _options(self) -> dict[str, Any]:
        return {name: getattr(self.server, name) for name in _OPTIONS}

    def _frame(self) -> list[Any]:
        need = [self.need.cores, self.need.memory_bytes, self.need.gpus]
        bundle = self.bundle
        texts = filter(None, (bundle.base_tokenizer_digest, bundle.base_chat_template_digest))
        base = [bundle.base_name, bundle.base_model_digest, *texts]
        return [base, self._options, need, self.cpu_limit, self.memory_limit_bytes]

    def config(self, *, port: int, places: Places, drain_s: float) -> ServingConfig:
        """It listens on loopback: callers come through the router."""
        return replace(
            self.server,
            host=HOST,
            port=port,
            base_folder=str(places.base_folder or ""),
            files_folder=str(places.files_folder),
            drain_s=drain_s,
            memory_limit_bytes=self.memory_limit_bytes,
        )

    def manifest(self, replica_id: str) -> str:
        """As YAML, for people: all that decides how the process runs."""
        return str(yaml.safe_dump(self.description(replica_id), sort_keys=False))

    def description(self, replica_id: str) -> dict[str, Any]:
        requests = {"cpu": self.need.cores, "memory": self.need.memory_bytes}
        engine = {"model": f"{self.server.model}@{self.server.version}"} | self._options
        limits = {"cpu": self.cpu_limit, "memory": self.memory_limit_bytes}
        return {
            "apiVersion": "local/v1",
            "kind": "Process",
            "metadata": {"name": replica_id, "revision": self.revision},
            "spec": {
                "version": self.bundle.version,
                "artifactsDigest": self.bundle.digest,
                "baseModel": self.bundle.base_name,
                "engine": {name: value for name, value in engine.items() if value not in ("", 0)},
                "resources": {
                    "requests": requests | ({"gpu": self.need.gpus} if self.need.gpus else {}),
                    "limits": {name: value for name, value in limits.items() if value},
                },
            },
        }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
