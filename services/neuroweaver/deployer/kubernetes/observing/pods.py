"""What a deployment's pods say themselves: health, metrics, logs. Who does not answer is left alone for a
while.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Final, TypeVar

from neuroweaver.cluster import quantities
from neuroweaver.cluster.api import Api
from neuroweaver.cluster.errors import LOST, BackendError, Trouble
from neuroweaver.cluster.failures import Refusal
from neuroweaver.cluster.kinds import POD, POD_METRICS, Object, is_going
from neuroweaver.deployer.domain.backend import Line, Measured, Replica
from neuroweaver.deployer.kubernetes.naming import containers, identity
from neuroweaver.deployer.kubernetes.observing import log_lines, observation
from neuroweaver.deployer.model_servers import metrics
from neuroweaver.deployer.model_servers.health import Health

_LOG: Final = logging.getLogger("neuroweaver.deployer")
T = TypeVar("T")
U = TypeVar("U")

_ASK_AGAIN_S: Final = 30.0
_FORGOTTEN_S: Final = 3600.0
_POD_TIMEOUT_S: Final = 2.0
_AT_ONCE: Final = 16
_MOST_ASKED: Final = 100
_MOST_LOGS_READ: Final = 5
_LOG_BYTES: Final = 4 * 1024 * 1024
_LOST: Final = (*LOST, Refusal, BackendError)


class Silence:
    """Those that did not answer a moment ago, by name."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def __contains__(self, name: str) -> bool:
        return time.monotonic() < self._until.get(name, 0.0)

    def begin(self, name: str) -> bool:
        """Whether it had answered before."""
        now = time.monotonic()
        self._until = {other: until for other, until in self._until.items() if until > now - _FORGOTTEN_S}
        is_first = name not in self._until
        self._until[name] = now + _ASK_AGAIN_S
        return is_first

    def end(self, name: str) -> None:
        self._until.pop(name, None)


class Pods:
    """Of one cluster."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.silent_pods = Silence()
        self.silent_nodes = Silence()
        self.silent_metrics = Silence()

    async def find(self, namespace: str, name: str) -> list[Object]:
        return (await self._api.list(POD, namespace, identity.selector(name))).items

    async def replicas(
        self, pods: Sequence[Object], crash_loop_restarts: int, *, has_health: bool
    ) -> list[Replica]:
        """has_health: whether their servers have the health page of ours."""
        known = [(pod, observation.replica(pod, crash_loop_restarts)) for pod in pods]
        wordless = [
            replica.replica_id for _, replica in known if replica.is_failing and ": " not in replica.message
        ][:_MOST_LOGS_READ]

        async def finer(entry: tuple[Object, Replica]) -> Replica:
            pod, replica = entry
            if replica.replica_id in wordless:
                return await self._with_reason(pod, replica)
            if not has_health or replica.is_failing or not _is_running(pod):
                return replica
            health = await self._health(pod)
            return replica if health is None else observation.with_health(replica, health)

        return await _each(finer, known)

    async def measure(self, namespace: str, name: str) -> list[Measured]:
        running = {
            pod["metadata"]["name"]: pod for pod in await self.find(namespace, name) if _is_running(pod)
        }
        asked = list(running)[:_MOST_ASKED]
        pages = dict(zip(asked, await _each(self._page, [running[each] for each in asked]), strict=True))
        usage = await self._usage(namespace, name)
        measured = []
        for number in sorted(set(map(identity.revision_of, running.values()))):
            names = [each for each, pod in running.items() if identity.revision_of(pod) == number]
            used = [usage[each] for each in names if each in usage]
            measured.append(
                metrics.measured(
                    number,
                    [page for each in names if (page := pages.get(each))],
                    [each for each in names if pages.get(each) is None],
                    cpu_cores=sum(cpu for cpu, _ in used) / len(used) if used else None,
                    memory_bytes=sum(memory for _, memory in used) if used else None,
                )
            )
        return measured

    async def log(self, pod: Object, cursor: str) -> list[Line]:
        """Of its last end too, where it was started again. A pod without a log yet has no lines, nor has for
        now one on a node that does not answer: its kubelet reads the log, and the others' are not its matter.
        """
        node = str((pod.get("spec") or {}).get("nodeName", ""))
        if node in self.silent_nodes:
            return []
        statuses = (pod.get("status") or {}).get("containerStatuses") or ()
        has_restarted = any(
            each.get("restartCount") and each.get("name") == containers.SERVER for each in statuses
        )
        query = [("limitBytes", str(_LOG_BYTES))]
        query += [("sinceTime", log_lines.since_time(cursor))] if cursor else []
        lines: list[Line] = []
        for past in ([("previous", "true")], []) if has_restarted else ([],):
            try:
                text = await self._log(pod, [*query, *past])
            except (Refusal, BackendError) as error:
                # 400: the container has not started; 404: the pod is gone, or that log is.
                if isinstance(error, Refusal) and error.status in {400, 404}:
                    continue
                if not _is_of_the_node(error):
                    raise
                if self.silent_nodes.begin(node):
                    _LOG.warning("logs cannot be read", extra={"node": node, "cause": str(error)})
                break
            self.silent_nodes.end(node)
            name, revision = pod["metadata"]["name"], identity.revision_of(pod)
            lines += log_lines.lines(text, name, revision, lines[-1].cursor if lines else cursor)
        return lines

    async def _log(self, pod: Object, query: Sequence[tuple[str, str]]) -> str:
        metadata = pod["metadata"]
        return await self._api.log(metadata["namespace"], metadata["name"], containers.SERVER, query)

    async def _with_reason(self, pod: Object, replica: Replica) -> Replica:
        """A container that left no last words: the end of its log."""
        try:
            text = await self._log(pod, [("tailLines", "5"), ("previous", "true")])
        except _LOST:
            return replica
        lines = log_lines.lines(text, replica.replica_id, replica.revision)
        words = " / ".join(line.message for line in lines)
        return replace(replica, message=f"{replica.message}: {words}"[:2000]) if words else replica

    async def _health(self, pod: Object) -> Health | None:
        """None if the pod does not say."""
        uid = pod["metadata"]["uid"]
        if uid in self.silent_pods:
            return None
        try:
            return Health.of(json.loads(await self._ask(pod, "/health/live")))
        except (*_LOST, ValueError):
            self.silent_pods.begin(uid)
            return None

    async def _page(self, pod: Object) -> metrics.Page | None:
        try:
            return metrics.page(await self._ask(pod, "/metrics"))
        except (*_LOST, ValueError):
            return None

    async def _ask(self, pod: Object, path: str) -> str:
        return await self._api.ask_pod(pod, containers.PORT, path, timeout_s=_POD_TIMEOUT_S)

    async def _usage(self, namespace: str, name: str) -> dict[str, tuple[float, int]]:
        """Cores and bytes by pod, from the cluster's own measurements; empty where there are none."""
        if POD_METRICS.resource in self.silent_metrics:
            return {}
        try:
            found = await self._api.list(POD_METRICS, namespace, identity.selector(name), repeats=False)
        except (Refusal, BackendError):
            self.silent_metrics.begin(POD_METRICS.resource)
            return {}
        return {
            item["metadata"]["name"]: (float(_used(item, "cpu")), int(_used(item, "memory")))
            for item in found.items
        }


def _used(usage: Object, resource: str) -> Decimal:
    used = (quantities.parse(each["usage"][resource]) for each in usage.get("containers") or ())
    return sum(used, Decimal(0))


def _is_of_the_node(error: Refusal | BackendError) -> bool:
    if isinstance(error, Refusal):
        return error.is_worth_another_try
    return error.trouble == Trouble.UNREACHABLE


def _is_running(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") == "Running" and not is_going(pod)


async def _each(work: Callable[[T], Awaitable[U]], items: Iterable[T]) -> list[U]:
    """A few at a time."""
    limit = asyncio.Semaphore(_AT_ONCE)

    async def one(item: T) -> U:
        async with limit:
            return await work(item)

    return list(await asyncio.gather(*map(one, items)))
