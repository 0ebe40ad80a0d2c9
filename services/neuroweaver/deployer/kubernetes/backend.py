"""The cluster backend. Killed after any call, it goes on from what it finds: all it remembers is what it
told last.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from neuroweaver.cluster import quantities
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
    POD_METRICS,
    REPLICA_SET,
    SCALED_OBJECT,
    SERVICE,
    Kind,
    Object,
    Ref,
    has_controller,
    kind_of,
    ref,
)
from neuroweaver.deployer.domain.backend import (
    BackendPlan,
    FieldChange,
    Key,
    Line,
    Measured,
    Observed,
    Replica,
    Wanted,
)
from neuroweaver.deployer.kubernetes.manifests import pods, router_pods, traffic
from neuroweaver.deployer.kubernetes.manifests.manifests import Cluster, manifests, record
from neuroweaver.deployer.kubernetes.manifests.scope import namespace_of
from neuroweaver.deployer.kubernetes.naming import containers, identity
from neuroweaver.deployer.kubernetes.observing import drift, log_lines, measuring, observation
from neuroweaver.deployer.kubernetes.observing.observation import Health
from neuroweaver.deployer.kubernetes.observing.watching import Backoff, Watcher
from neuroweaver.deployer.kubernetes.planning import planner
from neuroweaver.deployer.kubernetes.settings import ClusterSettings
from neuroweaver.v1 import deployer_pb2 as pb

_LOG: Final = logging.getLogger("neuroweaver.deployer")

_RETRY_S: Final = 5.0
_NOT_SET_UP_S: Final = 60.0
_KINDS_KNOWN_FOR_S: Final = 60.0
_ASK_AGAIN_S: Final = 30.0
_POD_TIMEOUT_S: Final = 2.0
_AT_ONCE: Final = 16
_MOST_ASKED: Final = 100
_MOST_LOGS_READ: Final = 5
_LOG_BYTES: Final = 4 * 1024 * 1024
_TOLERATED_POINTS: Final = 5
_LOST: Final = (*LOST, Refusal, BackendError)
_FAILING: Final = frozenset({pb.REPLICA_PHASE_FAILED, pb.REPLICA_PHASE_CRASH_LOOP})
_TRAFFIC_AND_PODS: Final = frozenset({DEPLOYMENT, AUTOSCALER, SCALED_OBJECT, HTTP_ROUTE})


@dataclass
class _Told:
    """What a deployment's `observe` has yet to tell, or told last."""

    corrected: tuple[FieldChange, ...] = ()
    left: tuple[FieldChange, ...] = ()
    desired: dict[int, int] = field(default_factory=dict)


class KubernetesBackend:
    """`deployer.backend.Backend` over one cluster. `close` it."""

    def __init__(
        self, settings: ClusterSettings, api: Api | None = None, backoff: Backoff | None = None
    ) -> None:
        self._settings = settings
        self._api = api or Api(settings.access)
        self._backoff = backoff
        self._cluster = Cluster()
        self._cluster_until = 0.0
        self._told: dict[Key, _Told] = {}
        self._silent_until: dict[str, float] = {}
        self._mute_until: dict[str, float] = {}
        self._unmeasured_until = 0.0
        self._namespaces: dict[Key, str] = {}
        self._namespaces_changed = asyncio.Event()

    async def close(self) -> None:
        await self._api.close()

    async def plan(self, wanted: Wanted) -> BackendPlan:
        with _clear_errors():
            namespace = namespace_of(wanted.spec, self._settings)
            cluster = await self._discovered()
            live = await self._own(namespace, wanted.resource_name, cluster)
            own_pods = await self._pods(namespace, wanted.resource_name)
            # What it comes to in the end, where the router answers.
            cluster = replace(cluster, has_router=True)
            found = planner.Found(live, own_pods)
            return await planner.plan(self._api, self._settings, cluster, wanted, found)

    async def apply(self, wanted: Wanted) -> None:
        with _clear_errors():
            await self._apply(wanted)

    async def observe(self, key: Key, resource_name: str, spec: pb.DeploymentSpec) -> Observed:
        with _clear_errors():
            return await self._observe(key, resource_name, spec)

    async def remove(self, key: Key, resource_name: str, spec: pb.DeploymentSpec) -> bool:
        with _clear_errors():
            is_gone = await self._remove(key, resource_name, spec)
        if is_gone:
            self._told.pop(key, None)
            self._namespaces.pop(key, None)
            self._namespaces_changed.set()
        return is_gone

    async def logs(
        self, key: Key, resource_name: str, spec: pb.DeploymentSpec, since: Mapping[str, str]
    ) -> AsyncIterator[Line]:
        del key
        with _clear_errors():
            found = await self._pods(namespace_of(spec, self._settings), resource_name)
        for pod in found:
            for line in await self._log_of(pod, since.get(pod["metadata"]["name"], "")):
                yield line

    async def measure(self, key: Key, resource_name: str, spec: pb.DeploymentSpec) -> Sequence[Measured]:
        del key
        with _clear_errors():
            return await self._measure(resource_name, namespace_of(spec, self._settings))

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
        """Returns once there is a cluster to watch. A deployer may run where there is none, told once."""
        told = ""
        while True:
            try:
                await self._api.version()
            except BackendError as error:
                if str(error) != told:
                    told = str(error)
                    _LOG.info("no cluster is watched", extra={"cause": told})
                is_set_up = error.trouble != Trouble.NOT_CONFIGURED
                await asyncio.sleep(_RETRY_S if is_set_up else _NOT_SET_UP_S)
            except Refusal:  # it is there, and says not which one it is
                return
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

    async def _with_backup(self, wanted: Wanted, cluster: Cluster) -> Cluster:
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

    async def _pods(self, namespace: str, name: str) -> list[Object]:
        return (await self._api.list(POD, namespace, identity.selector(name))).items

    # Towards the wish.

    async def _apply(self, wanted: Wanted) -> None:
        namespace = self._known(wanted.key, wanted.spec)
        cluster = await self._with_backup(wanted, await self._discovered())
        live = await self._own(namespace, wanted.resource_name, cluster)
        cluster = replace(cluster, has_router=router_pods.is_available(live))
        objects = manifests(wanted, self._settings, cluster)
        the_record = record(wanted, self._settings, objects)
        kept = {ref(each) for each in objects} | {ref(the_record)}
        leftovers = [each for name, each in live.items() if name not in kept]
        held_back = await self._held_back(wanted, live, leftovers)
        before = live.get(ref(the_record))
        was_there = _objects(before) if _generation(before) == wanted.generation else frozenset()
        told = self._told.setdefault(wanted.key, _Told())
        is_whole = not held_back and (cluster.has_router or not router_pods.is_wanted(wanted))
        corrected: list[FieldChange] = []
        left: list[FieldChange] = []
        for wish in objects:
            if ref(wish) in held_back:
                continue
            now = live.get(ref(wish))
            if now is not None and now["metadata"].get("deletionTimestamp"):
                is_whole = False  # it comes again once it is gone
                continue
            if now is None and str(ref(wish)) in was_there:
                corrected.append(FieldChange(str(ref(wish)), "metadata.name", "", json.dumps(ref(wish).name)))
            mine, theirs = await self._apply_one(wish, now)
            corrected += mine
            left += theirs
        for each in leftovers:
            if not each["metadata"].get("deletionTimestamp"):
                await self._api.delete(kind_of(each), each)
        told.left = tuple(left)
        told.corrected = (*told.corrected, *corrected)[:100]
        if is_whole:
            await self._apply_one(the_record, before)

    async def _held_back(
        self, wanted: Wanted, live: Mapping[Ref, Object], leftovers: Sequence[Object]
    ) -> frozenset[Ref]:
        """Deployments that wait until the pods that they replace are gone, where the wish is RECREATE."""
        if wanted.replacement != pb.REPLACEMENT_MODE_RECREATE:
            return frozenset()
        waiting = {
            Ref(DEPLOYMENT.name, identity.of_revision(wanted.resource_name, revision.number))
            for revision in wanted.revisions
            if revision.replicas or revision.autoscaling
        } - live.keys()
        if not waiting:
            return frozenset()
        for each in leftovers:
            if each["kind"] == DEPLOYMENT.name and not each["metadata"].get("deletionTimestamp"):
                await self._api.delete(DEPLOYMENT, each)
        staying = {
            revision.number for revision in wanted.revisions if revision.replicas or revision.autoscaling
        }
        namespace = namespace_of(wanted.spec, self._settings)
        going = [
            pod
            for pod in await self._pods(namespace, wanted.resource_name)
            if identity.revision_of(pod) not in staying and not observation.is_over(pod)
        ]
        return frozenset(waiting) if going else frozenset()

    async def _apply_one(
        self, wish: Object, live: Object | None
    ) -> tuple[tuple[FieldChange, ...], tuple[FieldChange, ...]]:
        """Gives what others had changed: what was set back, and what was left to them."""
        kind = kind_of(wish)
        stamped = drift.stamped(wish)
        if live is None:
            await self._api.apply(kind, stamped, is_forced=True)
            return (), ()
        own, theirs = drift.left_to_others(stamped, live)
        if not drift.was_applied(stamped, live):
            if kind == DEPLOYMENT:
                await self._hand_over_replicas(own, live)
            await self._api.apply(kind, own, is_forced=True)
            return (), theirs
        if drift.holds(own, live):
            return (), theirs
        # A default, or an amount written another way, is no drift: a dry run tells.
        changes = drift.differences(live, await self._api.apply(kind, own, is_forced=True, is_dry_run=True))
        if changes:
            await self._api.apply(kind, own, is_forced=True)
        return changes, theirs

    async def _hand_over_replicas(self, wish: Object, live: Object) -> None:
        """To give up a field that nobody else owns removes it, and the number would fall to its default of 1.

        https://kubernetes.io/docs/reference/using-api/server-side-apply/#transferring-ownership
        """
        if "replicas" in wish["spec"] or not drift.owns(live, "spec", "replicas"):
            return
        metadata = {name: live["metadata"][name] for name in ("name", "namespace")}
        body = {
            "apiVersion": DEPLOYMENT.api_version,
            "kind": DEPLOYMENT.name,
            "metadata": metadata,
            "spec": {"replicas": live["spec"]["replicas"]},
        }
        await self._api.apply(DEPLOYMENT, body, is_forced=True, manager=drift.HANDOVER)

    async def _remove(self, key: Key, name: str, spec: pb.DeploymentSpec) -> bool:
        """Pods first, so that they drain while their names still resolve; then the rest."""
        namespace = self._known(key, spec)
        cluster = await self._discovered()
        live = await self._own(namespace, name, cluster)
        first = [each for each in live.values() if kind_of(each) in _TRAFFIC_AND_PODS]
        sets = (await self._api.list(REPLICA_SET, namespace, identity.selector(name))).items
        # One whose Deployment was deleted and left it behind.
        orphans = [each for each in sets if not each["metadata"].get("ownerReferences")]
        for each in first:
            if not each["metadata"].get("deletionTimestamp"):
                await self._api.delete(kind_of(each), each)
        for each in orphans:
            if not each["metadata"].get("deletionTimestamp"):
                await self._api.delete(REPLICA_SET, each)
        if first or sets or await self._pods(namespace, name):
            return False
        for each in live.values():
            if not each["metadata"].get("deletionTimestamp"):
                await self._api.delete(kind_of(each), each)
        return not await self._own(namespace, name, cluster)

    # What it looks like.

    async def _observe(self, key: Key, name: str, spec: pb.DeploymentSpec) -> Observed:
        namespace = self._known(key, spec)
        cluster = await self._discovered()
        live = await self._live(namespace, name, cluster)
        found = await self._pods(namespace, name)
        if not live and not found:
            return Observed()
        deployments = {
            identity.revision_of(each): each
            for each in live.values()
            if each["kind"] == DEPLOYMENT.name and not router_pods.is_router(each)
        }
        autoscalers = {
            identity.revision_of(each): each for each in live.values() if each["kind"] == AUTOSCALER.name
        }
        desired = {
            number: int(each["spec"].get("replicas", 1))
            for number, each in deployments.items()
            if not each["metadata"].get("deletionTimestamp")
        }
        told = self._told.setdefault(key, _Told())
        scalings = observation.scalings(told.desired, desired, autoscalers)
        replicas = await self._replicas(found, spec)
        the_record = live.get(Ref(CONFIG_MAP.name, name))
        weights = _weights(the_record)
        reasons = observation.reasons(found, deployments.values(), autoscalers.values())
        has_route = any(each["kind"] == HTTP_ROUTE.name for each in live.values())
        is_exact = has_route or router_pods.is_available(live)
        if not is_exact and (split := _split(weights, replicas)):
            reasons.append(("WEIGHTS_BY_REPLICAS", split))
        if obstacle := router_pods.obstacle(live):
            reasons.append((router_pods.READY_REASON, obstacle))
        corrected, told.corrected, told.desired = told.corrected, (), desired
        applied = _generation(the_record)
        is_rolled_out = all(map(observation.is_rolled_out, deployments.values()))
        is_zero = any(each["kind"] == SCALED_OBJECT.name for each in live.values())
        return Observed(
            exists=True,
            endpoint=self._endpoint(key, name, namespace, has_route=has_route),
            replicas=tuple(sorted(replicas, key=lambda each: (each.revision, each.replica_id))),
            desired=desired,
            weights=weights,
            is_idle=is_zero and not any(desired.values()),
            drift=corrected or told.left,
            drift_corrected=bool(corrected),
            scalings=scalings,
            reasons=tuple(reasons),
            applied_generation=applied if is_rolled_out else max(0, applied - 1),
        )

    def _endpoint(self, key: Key, name: str, namespace: str, *, has_route: bool) -> str:
        if has_route and self._settings.gateway_url:
            return f"{self._settings.gateway_url}{traffic.route_path(key)}/v1"
        return traffic.endpoint(name, namespace)

    async def _replicas(self, found: Sequence[Object], spec: pb.DeploymentSpec) -> list[Replica]:
        loops = spec.recovery.crash_loop_restarts or 5
        known = [(pod, observation.replica(pod, loops)) for pod in found]
        limit = asyncio.Semaphore(_AT_ONCE)
        silent = [
            pod["metadata"]["uid"]
            for pod, each in known
            if each.phase in _FAILING and ": " not in each.message
        ][:_MOST_LOGS_READ]

        async def finer(pod: Object, each: Replica) -> Replica:
            async with limit:
                if pod["metadata"]["uid"] in silent:
                    return await self._with_reason(pod, each)
                if pods.uses_vllm(spec) or each.phase in _FAILING or not _is_running(pod):
                    return each
                health = await self._health(pod)
                return each if health is None else observation.with_health(each, health)

        return list(await asyncio.gather(*(finer(pod, each) for pod, each in known)))

    async def _with_reason(self, pod: Object, each: Replica) -> Replica:
        """A container that left no last words: the end of its log."""
        query = [("tailLines", "5"), ("previous", "true")]
        try:
            text = await self._api.log(
                pod["metadata"]["namespace"], each.replica_id, containers.SERVER, query
            )
        except _LOST:
            return each
        words = " / ".join(line.message for line in log_lines.lines(text, each.replica_id, each.revision))
        return replace(each, message=f"{each.message}: {words}"[:2000]) if words else each

    async def _health(self, pod: Object) -> Health | None:
        """None if the pod does not say; then it is left alone for a while."""
        uid = pod["metadata"]["uid"]
        if time.monotonic() < self._silent_until.get(uid, 0.0):
            return None
        try:
            return Health.of(json.loads(await self._ask(pod, "/health/live")))
        except (*_LOST, ValueError):
            now = time.monotonic()
            self._silent_until = {name: until for name, until in self._silent_until.items() if until > now}
            self._silent_until[uid] = now + _ASK_AGAIN_S
            return None

    async def _ask(self, pod: Object, path: str) -> str:
        return await self._api.ask_pod(pod, containers.PORT, path, timeout_s=_POD_TIMEOUT_S)

    async def _measure(self, name: str, namespace: str) -> list[Measured]:
        running = [pod for pod in await self._pods(namespace, name) if _is_running(pod)]
        limit = asyncio.Semaphore(_AT_ONCE)

        async def read(pod: Object) -> measuring.Page | None:
            async with limit:
                try:
                    return measuring.page(await self._ask(pod, "/metrics"))
                except (*_LOST, ValueError):
                    return None

        pages = dict(
            zip(
                (pod["metadata"]["name"] for pod in running),
                await asyncio.gather(*(read(pod) for pod in running[:_MOST_ASKED])),
                strict=False,
            )
        )
        usage = await self._usage(namespace, name)
        made = []
        for number in sorted({identity.revision_of(pod) for pod in running}):
            names = [pod["metadata"]["name"] for pod in running if identity.revision_of(pod) == number]
            used = [usage[each] for each in names if each in usage]
            made.append(
                measuring.measured(
                    number,
                    [page for each in names if (page := pages.get(each))],
                    [each for each in names if pages.get(each) is None],
                    cpu_cores=sum(cpu for cpu, _ in used) / len(used) if used else None,
                    memory_bytes=sum(memory for _, memory in used) if used else None,
                )
            )
        return made

    async def _usage(self, namespace: str, name: str) -> dict[str, tuple[float, int]]:
        """Cores and bytes by pod, from the cluster's own measurements; empty where there are none. A metrics
        server that does not answer is left alone for a while.
        """
        if time.monotonic() < self._unmeasured_until:
            return {}
        try:
            found = await self._api.list(POD_METRICS, namespace, identity.selector(name), repeats=False)
        except (Refusal, BackendError):
            self._unmeasured_until = time.monotonic() + _ASK_AGAIN_S
            return {}
        made = {}
        for item in found.items:
            containers = item.get("containers") or ()
            cpu = sum(quantities.parse(each["usage"]["cpu"]) for each in containers)
            memory = sum(quantities.parse(each["usage"]["memory"]) for each in containers)
            made[item["metadata"]["name"]] = (float(cpu), int(memory))
        return made

    async def _log_of(self, pod: Object, cursor: str) -> list[Line]:
        """Of its last end too, where it was started again. A pod without a log yet has no lines, nor has for
        now one on a node that does not answer: its kubelet reads the log, and the others' are not its matter.
        """
        if time.monotonic() < self._mute_until.get(_node_of(pod), 0.0):
            return []
        metadata = pod["metadata"]
        number = identity.revision_of(pod)
        statuses = (pod.get("status") or {}).get("containerStatuses") or ()
        has_restarted = any(
            each.get("restartCount") and each.get("name") == containers.SERVER for each in statuses
        )
        query = [("limitBytes", str(_LOG_BYTES))]
        query += [("sinceTime", log_lines.since_time(cursor))] if cursor else []
        made: list[Line] = []
        for past in (True, False) if has_restarted else (False,):
            try:
                text = await self._api.log(
                    metadata["namespace"],
                    metadata["name"],
                    containers.SERVER,
                    [*query, ("previous", "true")] if past else query,
                )
            except Refusal as error:
                # 400: the container has not started; 404: the pod is gone, or that log is.
                if error.status in {400, 404}:
                    continue
                if not error.is_worth_another_try:
                    raise to_backend_error(error) from error
                self._mute(pod, str(error))
                break
            except BackendError as error:
                if error.trouble != Trouble.UNREACHABLE:
                    raise
                self._mute(pod, str(error))
                break
            self._mute_until.pop(_node_of(pod), None)
            after = made[-1].cursor if made else cursor
            made += log_lines.lines(text, metadata["name"], number, after)
        return made

    def _mute(self, pod: Object, cause: str) -> None:
        """Leaves the logs of the node's pods alone for a while; told when it begins."""
        node = _node_of(pod)
        if node not in self._mute_until:
            _LOG.warning("logs cannot be read", extra={"node": node, "cause": cause})
        self._mute_until[node] = time.monotonic() + _ASK_AGAIN_S


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Whatever the API server refused, as a BackendError."""
    try:
        yield
    except Refusal as error:
        raise to_backend_error(error) from error
    except LOST as error:
        words = str(error) or type(error).__name__
        raise BackendError(Trouble.UNREACHABLE, f"the cluster does not answer ({words})") from error


def _generation(the_record: Object | None) -> int:
    told = ((the_record or {}).get("data") or {}).get("generation", "")
    return int(told) if told.isdecimal() else 0


def _objects(the_record: Object | None) -> frozenset[str]:
    told = ((the_record or {}).get("data") or {}).get("objects", "[]")
    try:
        return frozenset(json.loads(told))
    except (ValueError, TypeError):
        return frozenset()


def _weights(the_record: Object | None) -> dict[int, int]:
    told = ((the_record or {}).get("data") or {}).get("weights", "{}")
    try:
        return {int(number): int(weight) for number, weight in json.loads(told).items()}
    except (ValueError, AttributeError):
        return {}


def _split(weights: Mapping[int, int], replicas: Sequence[Replica]) -> str:
    """How the traffic is really split, where that is far from what was asked for."""
    serving = [number for number, weight in weights.items() if weight > 0]
    if len(serving) < 2:
        return ""
    ready = {
        number: sum(each.revision == number and each.phase == pb.REPLICA_PHASE_READY for each in replicas)
        for number in serving
    }
    real = traffic.shares(ready)
    if all(abs(real[number] - weights[number]) <= _TOLERATED_POINTS for number in serving):
        return ""
    return ", ".join(f"revision {number} gets {real[number]} % for {weights[number]} %" for number in serving)


def _node_of(pod: Object) -> str:
    return str((pod.get("spec") or {}).get("nodeName", ""))


def _is_running(pod: Object) -> bool:
    status = pod.get("status") or {}
    return status.get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")
