"""What the routers of a deployment know: written by the deployer into a ConfigMap, read by their pods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from neuroweaver.deployer.domain.backend import DesiredState, Key, Redirect
from neuroweaver.deployer.kubernetes.manifests import scaling
from neuroweaver.deployer.kubernetes.manifests.pods import uses_vllm
from neuroweaver.deployer.kubernetes.naming import identity
from neuroweaver.deployer.kubernetes.naming.containers import PORT
from neuroweaver.deployer.routing.prompt_length import LONGEST_TOKEN
from neuroweaver.mesh.wire.records import Records
from neuroweaver.v1 import deployer_pb2 as pb

ENTRY: Final = "routes.json"
"""Under which name it stands in the ConfigMap."""
_WAKE_S: Final = 600.0
"""As long as clients of the OpenAI API wait by default: to be scheduled, pulled and loaded takes minutes."""

_RECORDS: Final = Records()
_RECORDS.hook(Key, lambda key: [key.project, key.model_id, key.name], lambda parts: Key(*map(str, parts)))


class BadRoutes(ValueError):
    """The text is no table of routes."""


@dataclass(frozen=True)
class Route:
    """A revision. url: of the Service in front of its ready pods, without `/v1`."""

    revision: int
    url: str
    weight_percent: int


@dataclass(frozen=True)
class Table:
    """redirect: who has all the traffic instead. wake_s: how long a request waits for a deployment that
    sleeps; 0 for one that never does. max_prompt_chars: as `routing.fleet.Fleet` has it.
    """

    key: Key
    is_affine: bool
    routes: tuple[Route, ...]
    redirect: Redirect | None = None
    wake_s: float = 0.0
    max_prompt_chars: int = 0


def written(table: Table) -> str:
    return _RECORDS.dump(table)


def read(text: str) -> Table:
    """Raises BadRoutes."""
    try:
        return _RECORDS.load(Table, text)
    except (ValueError, KeyError, TypeError) as error:
        raise BadRoutes(f"{type(error).__name__}: {error}") from error


def table(wanted: DesiredState, namespace: str) -> Table:
    """namespace: of the deployment."""

    def url(number: int) -> str:
        return f"http://{identity.of_revision(wanted.resource_name, number)}.{namespace}.svc:{PORT}"

    return Table(
        wanted.key,
        wanted.spec.rollout.session_affinity != pb.SESSION_AFFINITY_NONE,
        tuple(Route(each.number, url(each.number), each.weight_percent) for each in wanted.revisions),
        wanted.redirect,
        _WAKE_S if any(map(scaling.scales_to_zero, wanted.revisions)) else 0.0,
        LONGEST_TOKEN * wanted.spec.engine.max_context_tokens if uses_vllm(wanted.spec) else 0,
    )
