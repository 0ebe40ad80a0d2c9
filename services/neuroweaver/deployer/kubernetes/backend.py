"""The cluster backend. Killed after any call, it goes on from what it finds: all it remembers is what
it reported last.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Final

from neuroweaver.cluster.api import Api
from neuroweaver.cluster.errors import LOST, BackendError, Trouble
from neuroweaver.cluster.failures import Refusal, to_backend_error
from neuroweaver.cluster.kinds import (
    AUTOSCALER,
    CONFIG_MAP,
    DEPLOYMENT,
    HTTP_ROUTE,
    OWNED,
    POD,
    REPLICA_SET,
    SCALED_OBJECT,
    SERVICE,
    Kind,
    Object,
    Ref,
    has_controller,
    is_going,
    kind_of,
    ref,
)
from neuroweaver.deployer.domain.backend import (
    BackendPlan,
    DesiredState,
    FieldChange,
    Key,
    Line,
    Measured,
    Observed,
)
from neuroweaver.deployer.kubernetes import applying
from neuroweaver.deployer.kubernetes.manifests import pods, record, router_pods, traffic
from neuroweaver.deployer.kubernetes.manifests.manifests import Cluster, manifests
from neuroweaver.deployer.kubernetes.manifests.scope import namespace_of
from neuroweaver.deployer.kubernetes.naming import identity
from neuroweaver.deployer.kubernetes.observing import observation
from neuroweaver.deployer.kubernetes.observing.pods import Pods
from neuroweaver.deployer.kubernetes.observing.watching import Backoff, Watcher
from neuroweaver.deployer.kubernetes.planning import planner
from neuroweaver.deployer.kubernetes.settings import ClusterSettings
from neuroweaver.v1 import deployer_pb2 as pb

_LOG: Final = logging.getLogger("neuroweaver.deployer")

_RETRY_S: Final = 5.0
_NOT_SET_UP_S: Final = 60.0
_KINDS_KNOWN_FOR_S: Final = 60.0
_TOLERATED_POINTS: Final = 5
_TRAFFIC_AND_PODS: Final = frozenset({DEPLOYMENT, AUTOSCALER, SCALED_OBJECT, HTTP_ROUTE})


@asynccontextmanager
async def _clear_errors() -> AsyncIterator[None]:
    """Whatever the API server refused, as a BackendError."""
    try:
        yield
    except Refusal as error:
        raise to_backend_error(error) from error
    except LOST as error:
        words = str(error) or type(error).__name__
        raise BackendError(Trouble.UNREACHABLE, f"the cluster does not answer ({words})") from error


@dataclass
class _Changes:
    """What a deployment's `observe` has yet to report, or reported last."""

    corrected: tuple[FieldChange, ...] = ()
    left: tuple[FieldChange, ...] = ()
    desired: dict[int, int] = field(default_factory=dict)


class KubernetesBackend:
    """A `Backend` over one cluster. `close` it."""

    def __init__(
        self, settings: ClusterSettings, api: Api | None = None, backoff: Backoff | None = None
    ) -> None:
        self._settings = settings
        self._api = api or Api(settings.access)
        self._backoff = backoff
        self._cluster = Cluster()
        self._cluster_until = 0.0
        self._pods = Pods(self._api)
        self._changes: dict[Key, _Changes] = {}
        self._namespaces: dict[Key, str] = {}
        self._namespaces_changed = asyncio.Event()

    async def close(self) -> None:
        await self._api.close()

    @_clear_errors()
    async def plan(self, wanted: DesiredState) -> BackendPlan:
        namespace = namespace_of(wanted.spec, self._settings)
        # What it comes to in the end, where the router answers.
        cluster = replace(await self._discovered(), has_router=True)
        live = await self._own(namespace, wanted.resource_name, cluster)
        own_pods = await self._pods.find(namespace, wanted.resource_name)
        return await planner.plan(self._api, self._settings, cluster, wanted, live, own_pods)

    async def logs(
        self, key: Key, resource_name: str, spec: pb.DeploymentSpec, since: Mapping[str, str]
    ) -> AsyncIterator[Line]:
        del key
        async with _clear_errors():
            found = await self._pods.find(namespace_of(spec, self._settings), resource_name)
        for pod in found:
            async with _clear_errors():
                lines = await self._pods.log(pod, since.get(pod["metadata"]["name"], ""))
            for line in lines:
                yield line

    @_clear_errors()
    async def measure(self, key: Key, resource_name: str, spec: pb.DeploymentSpec) -> Sequence[Measured]:
        del key
        return await self._pods.measure(namespace_of(spec, self._settings), resource_name)

    async def run(self, changed: Callable[[Key], None]) -> None:
        await self._there()
        watches: dict[str, list[asyncio.Task[None]]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                self._namespaces_changed.clear()
                used = {self._settings.namespace, *self._namespaces.values()}
                for namespace in watches.keys() - used:
                    for watch in watches.pop(namespace):
                        watch.cancel()
                for namespace in sorted(used - watches.keys()):
                    watches[namespace] = [
                        group.create_task(Watcher(self._api, kind, namespace, changed, self._backoff).run())
                        for kind in (POD, *(kind for kind in OWNED if not kind.is_custom))
                    ]
                await self._namespaces_changed.wait()

    async def _there(self) -> None:
        """Returns once there is a cluster to watch. That there is none is logged once."""
        logged = ""
        while True:
            try:
                with suppress(Refusal):  # it is there, and says not which one it is
                    await self._api.version()
            except BackendError as error:
                if str(error) != logged:
                    logged = str(error)
                    _LOG.info("no cluster is watched", extra={"cause": logged})
                is_set_up = error.trouble != Trouble.NOT_CONFIGURED
                await asyncio.sleep(_RETRY_S if is_set_up else _NOT_SET_UP_S)
            else:
                return

    # What is there.

    def _known(self, key: Key, spec: pb.DeploymentSpec) -> str:
        """The deployment's namespace, which is watched until its last deployment is removed."""
        namespace = namespace_of(spec, self._settings)
        if self._namespaces.get(key) != namespace:
            self._namespaces[key] = namespace
            self._namespaces_changed.set()
        return namespace

    async def _discovered(self) -> Cluster:
        if time.monotonic() >= self._cluster_until:
            custom = [kind for kind in OWNED if kind.is_custom]
            found = await asyncio.gather(*map(self._api.has, custom))
            kinds = frozenset(kind for kind, is_there in zip(custom, found, strict=True) if is_there)
            self._cluster = Cluster(kinds)
            self._cluster_until = time.monotonic() + _KINDS_KNOWN_FOR_S
        return self._cluster

    async def _with_backup(self, wanted: DesiredState, cluster: Cluster) -> Cluster:
        """With what the front of the backup selects now, if a backup in this namespace has the traffic."""
        if not wanted.redirect or router_pods.is_wanted(wanted):
            return cluster
        name, namespace = traffic.backup(wanted.redirect.url)
        if namespace != namespace_of(wanted.spec, self._settings):  # DNS leads to its front itself
            return cluster
        its_front = await self._api.get(SERVICE, namespace, name)
        return replace(cluster, backup_selector=((its_front or {}).get("spec") or {}).get("selector"))

    async def _live(self, namespace: str, name: str, cluster: Cluster) -> dict[Ref, Object]:
        kinds = [kind for kind in OWNED if not kind.is_custom or kind in cluster.kinds]

        async def listed(kind: Kind) -> list[Object]:
            try:
                return (await self._api.list(kind, namespace, identity.selector(name))).items
            except Refusal as error:
                if kind.is_custom and error.is_missing:  # its definition was removed a moment ago
                    self._cluster_until = 0.0
                    return []
                raise

        return {ref(item): item for items in await asyncio.gather(*map(listed, kinds)) for item in items}

    async def _own(self, namespace: str, name: str, cluster: Cluster) -> dict[Ref, Object]:
        """What the deployer made. What a controller made of it, as KEDA makes an autoscaler of a
        ScaledObject with all of its labels, is the controller's to change and to remove.
        """
        live = await self._live(namespace, name, cluster)
        return {name: found for name, found in live.items() if not has_controller(found)}

    # Towards the desired state.

    @_clear_errors()
    async def apply(self, wanted: DesiredState) -> None:
        namespace = self._known(wanted.key, wanted.spec)
        cluster = await self._with_backup(wanted, await self._discovered())
        live = await self._own(namespace, wanted.resource_name, cluster)
        cluster = replace(cluster, has_router=router_pods.is_available(live))
        objects = manifests(wanted, self._settings, cluster)
        the_record = record.written(wanted, self._settings, objects)
        kept = {ref(desired) for desired in objects} | {ref(the_record)}
        leftovers = [found for name, found in live.items() if name not in kept]
        held_back = await self._held_back(wanted, live, leftovers)
        before = record.read(live.get(ref(the_record)))
        was_there = before.objects if before.generation == wanted.generation else frozenset()
        is_whole = not held_back and (cluster.has_router or not router_pods.is_wanted(wanted))
        corrected: list[FieldChange] = []
        left: list[FieldChange] = []
        for desired in objects:
            name = ref(desired)
            now = live.get(name)
            if name in held_back:
                continue
            if now is not None and is_going(now):
                is_whole = False  # it comes again once it is gone
                continue
            if now is None and str(name) in was_there:
                corrected.append(FieldChange(str(name), "metadata.name", "", json.dumps(name.name)))
            set_back, theirs = await applying.apply(self._api, desired, now)
            corrected += set_back
            left += theirs
        await self._delete(leftovers)
        changes = self._changes.setdefault(wanted.key, _Changes())
        changes.left = tuple(left)
        changes.corrected = (*changes.corrected, *corrected)[:100]
        if is_whole:
            await applying.apply(self._api, the_record, live.get(ref(the_record)))

    async def _held_back(
        self, wanted: DesiredState, live: Mapping[Ref, Object], leftovers: Sequence[Object]
    ) -> frozenset[Ref]:
        """Deployments that wait until the pods they replace are gone; only with the replacement RECREATE."""
        if wanted.replacement != pb.REPLACEMENT_MODE_RECREATE:
            return frozenset()
        staying = {each.number for each in wanted.revisions if each.replicas or each.autoscaling}
        names = (identity.of_revision(wanted.resource_name, number) for number in staying)
        waiting = frozenset(Ref(DEPLOYMENT.name, name) for name in names) - live.keys()
        if not waiting:
            return frozenset()
        await self._delete(found for found in leftovers if found["kind"] == DEPLOYMENT.name)
        namespace = namespace_of(wanted.spec, self._settings)
        is_anything_left = any(
            identity.revision_of(pod) not in staying and not observation.is_over(pod)
            for pod in await self._pods.find(namespace, wanted.resource_name)
        )
        return waiting if is_anything_left else frozenset()

    async def _delete(self, objects: Iterable[Object], kind: Kind | None = None) -> None:
        for found in objects:
            if not is_going(found):
                await self._api.delete(kind or kind_of(found), found)

    @_clear_errors()
    async def remove(self, key: Key, resource_name: str, spec: pb.DeploymentSpec) -> bool:
        """Pods first, so that they drain while their names still resolve; then the rest."""
        namespace, name = self._known(key, spec), resource_name
        cluster = await self._discovered()
        live = await self._own(namespace, name, cluster)
        first = [found for found in live.values() if kind_of(found) in _TRAFFIC_AND_PODS]
        sets = (await self._api.list(REPLICA_SET, namespace, identity.selector(name))).items
        await self._delete(first)
        # One whose Deployment was deleted and left it behind.
        orphans = [found for found in sets if not found["metadata"].get("ownerReferences")]
        await self._delete(orphans, REPLICA_SET)
        if first or sets or await self._pods.find(namespace, name):
            return False
        await self._delete(live.values())
        if await self._own(namespace, name, cluster):
            return False
        self._changes.pop(key, None)
        self._namespaces.pop(key, None)
        self._namespaces_changed.set()
        return True

    # What it looks like.

    @_clear_errors()
    async def observe(self, key: Key, resource_name: str, spec: pb.DeploymentSpec) -> Observed:
        namespace, name = self._known(key, spec), resource_name
        live = await self._live(namespace, name, await self._discovered())
        found = await self._pods.find(namespace, name)
        if not live and not found:
            return Observed()
        deployments = {
            number: deployment
            for number, deployment in _by_revision(live, DEPLOYMENT).items()
            if not router_pods.is_router(deployment)
        }
        autoscalers = _by_revision(live, AUTOSCALER)
        desired = {
            number: int(deployment["spec"].get("replicas", 1))
            for number, deployment in deployments.items()
            if not is_going(deployment)
        }
        changes = self._changes.setdefault(key, _Changes())
        replicas = await self._pods.replicas(
            found, spec.recovery.crash_loop_restarts or 5, has_health=not pods.uses_vllm(spec)
        )
        done = record.read(live.get(Ref(CONFIG_MAP.name, name)))
        reasons = observation.reasons(found, deployments.values(), autoscalers.values())
        kinds = {kind_of(each) for each in live.values()}
        has_route = HTTP_ROUTE in kinds
        ready = Counter(each.revision for each in replicas if each.is_ready)
        split = traffic.split_by_replicas(done.weights, ready, _TOLERATED_POINTS)
        if split and not (has_route or router_pods.is_available(live)):
            reasons.append(("WEIGHTS_BY_REPLICAS", split))
        if obstacle := router_pods.obstacle(live):
            reasons.append((router_pods.READY_REASON, obstacle))
        scalings = observation.scalings(changes.desired, desired, autoscalers)
        corrected, changes.corrected, changes.desired = changes.corrected, (), desired
        is_rolled_out = all(map(observation.is_rolled_out, deployments.values()))
        endpoint = traffic.endpoint(name, namespace)
        if has_route and self._settings.gateway_url:
            endpoint = f"{self._settings.gateway_url}{traffic.route_path(key)}/v1"
        return Observed(
            exists=True,
            endpoint=endpoint,
            replicas=tuple(sorted(replicas, key=lambda each: (each.revision, each.replica_id))),
            desired=desired,
            weights=done.weights,
            is_idle=SCALED_OBJECT in kinds and not any(desired.values()),
            drift=corrected or changes.left,
            drift_corrected=bool(corrected),
            scalings=scalings,
            reasons=tuple(reasons),
            applied_generation=done.generation if is_rolled_out else max(0, done.generation - 1),
        )


def _by_revision(live: Mapping[Ref, Object], kind: Kind) -> dict[int, Object]:
    return {identity.revision_of(each): each for each in live.values() if each["kind"] == kind.name}
