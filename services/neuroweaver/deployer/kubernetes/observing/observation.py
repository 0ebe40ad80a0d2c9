"""From pods, Deployments and autoscalers to what the reconcile loop wants to know. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from typing import Final

from neuroweaver.cluster.kinds import Object
from neuroweaver.deployer.domain.backend import Replica, Scaling
from neuroweaver.deployer.kubernetes.naming import identity
from neuroweaver.deployer.kubernetes.naming.containers import SERVER
from neuroweaver.deployer.model_servers.health import PHASES, Health
from neuroweaver.v1 import deployer_pb2 as pb

_PULLFAILING: Final = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "CreateContainerConfigError",
    }
)
_LONGEST_MESSAGE: Final = 2000
_STARTING: Final = frozenset({pb.REPLICA_PHASE_LOADING, pb.REPLICA_PHASE_WARMING})
_LONGEST_BACKOFF: Final = timedelta(minutes=5)
"""The kubelet's: 10 s, doubled at each further restart."""
_LATEST_END: Final = timedelta(seconds=30)
"""After a pod's grace time, for the kubelet to kill it and to say so."""


def is_over(pod: Object, now: datetime | None = None) -> bool:
    """Whether it does not run and never will again, though it is still listed: evicted ones are kept to be
    read, and one on a lost node says until the node comes back that it is about to end.
    """
    if (pod.get("status") or {}).get("phase") in {"Failed", "Succeeded"}:
        return True
    # The API server adds the grace time.
    end = _time(pod["metadata"].get("deletionTimestamp"))
    return end is not None and (now or datetime.now(UTC)) > end + _LATEST_END


def replica(pod: Object, crash_loop_restarts: int, now: datetime | None = None) -> Replica:
    """now: the time to judge by; the present if it is not given."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    server = _container(status, "containerStatuses")
    init: Object = next(iter(status.get("initContainerStatuses") or ()), {})
    if is_over(pod, now):
        phase, message = pb.REPLICA_PHASE_GONE, _last_words(status, server, init)
    else:
        phase, message = _phase(pod, server, init, crash_loop_restarts)
    failing = server if server.get("lastState") or server.get("state") else init
    last = _last_end(server) or _last_end(init)
    found = Replica(
        replica_id=metadata["name"],
        revision=identity.revision_of(pod),
        phase=phase,
        message=message[:_LONGEST_MESSAGE],
        node=pod.get("spec", {}).get("nodeName", ""),
        restarts=int(server.get("restartCount", 0)) + int(init.get("restartCount", 0)),
        last_exit=last.get("exitCode") if last else None,
        phases=_phases(pod, server),
        start_time=_time(metadata.get("creationTimestamp")),
        ready_time=_ready_time(pod, server) if phase == pb.REPLICA_PHASE_READY else None,
    )
    return replace(found, restart_at=_restart_at(failing, last)) if found.is_failing else found


def with_health(known: Replica, health: Health) -> Replica:
    """The server's own word on what it does is finer than the kubelet's."""
    phase, phases = known.phase, known.phases
    if phase in _STARTING and health.phase != "ready":
        phase = PHASES.get(health.phase, phase)
    if health.phase_s:
        phases = (
            *((phase, length) for phase, length in phases if phase not in _STARTING),
            *(
                (PHASES[name], timedelta(seconds=length))
                for name, length in health.phase_s.items()
                if PHASES.get(name) in _STARTING
            ),
        )
    return replace(
        known,
        phase=phase,
        phases=phases,
        last_token_time=health.last_token_time,
        loaded_versions=health.loaded_versions,
    )


def reasons(
    pods: Iterable[Object], deployments: Iterable[Object], autoscalers: Iterable[Object]
) -> list[tuple[str, str]]:
    """Why it does not come further, each reason once."""
    found: dict[tuple[str, str], None] = {}
    for pod in pods:
        status = pod.get("status") or {}
        if ended := _out_of_memory(status):
            found["OOM_KILLED", ended] = None
        scheduled = _condition(status, "PodScheduled")
        if scheduled.get("status") == "False":
            message = scheduled.get("message", "")
            found[_unschedulable(message), message] = None
    for deployment in deployments:
        failure = _condition(deployment.get("status") or {}, "ReplicaFailure")
        if failure.get("status") == "True":
            message = failure.get("message", "")
            found["QUOTA_EXCEEDED" if "quota" in message else "REPLICA_REFUSED", message] = None
        progress = _condition(deployment.get("status") or {}, "Progressing")
        if progress.get("reason") == "ProgressDeadlineExceeded":
            found["PROGRESS_DEADLINE_EXCEEDED", progress.get("message", "")] = None
    for autoscaler in autoscalers:
        active = _condition(autoscaler.get("status") or {}, "ScalingActive")
        if active.get("status") == "False" and active.get("reason") != "ScalingDisabled":
            found["AUTOSCALING_BLIND", active.get("message", "")] = None
    return list(found)


def is_rolled_out(deployment: Object) -> bool:
    """Whether all of its pods are of its present template."""
    status, metadata = deployment.get("status") or {}, deployment["metadata"]
    is_seen = int(status.get("observedGeneration", 0)) >= int(metadata.get("generation", 0))
    return is_seen and int(status.get("replicas", 0)) <= int(status.get("updatedReplicas", 0))


def cause_of_scaling(autoscaler: Object | None) -> str:
    """Which figure lies highest above (or, if none does, nearest to) its target."""
    if autoscaler is None:
        return "IDLE"
    spec, status = autoscaler.get("spec") or {}, autoscaler.get("status") or {}
    highest, cause = -1.0, "CUSTOM_METRIC"
    for aimed, current in zip_longest(spec.get("metrics") or (), status.get("currentMetrics") or ()):
        if aimed is None:
            break
        kind = aimed.get("type", "").lower()
        name, ratio = _ratio(aimed.get(kind) or {}, (current or {}).get(kind) or {})
        if ratio > highest:
            highest, cause = ratio, name
    return cause


def scalings(
    before: Mapping[int, int], now: Mapping[int, int], autoscalers: Mapping[int, Object]
) -> tuple[Scaling, ...]:
    """Changes of the numbers aimed at, of revisions whose number is not fixed."""
    return tuple(
        Scaling(number, before[number], now[number], cause_of_scaling(autoscalers[number]))
        for number in sorted(now.keys() & before.keys() & autoscalers.keys())
        if before[number] != now[number]
    )


def _last_words(status: Object, server: Object, init: Object) -> str:
    message = status.get("message") or _ending(server) or _ending(init)
    return f"{status.get('reason') or ''} {message}".strip()


def _phase(
    pod: Object, server: Object, init: Object, crash_loop_restarts: int
) -> tuple[pb.ReplicaPhase.ValueType, str]:
    metadata, status = pod["metadata"], pod.get("status") or {}
    if metadata.get("deletionTimestamp"):
        return pb.REPLICA_PHASE_DRAINING, ""
    if _condition(status, "Ready").get("status") == "True":
        return pb.REPLICA_PHASE_READY, ""
    for container in (init, server):
        if failure := _failure(container, crash_loop_restarts):
            return failure
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") != "True" and not pod.get("spec", {}).get("nodeName"):
        return pb.REPLICA_PHASE_SCHEDULING, scheduled.get("message", "")
    if "running" not in (server.get("state") or {}):
        waiting = (server.get("state") or {}).get("waiting") or {}
        return pb.REPLICA_PHASE_PULLING, waiting.get("message", "")
    return (pb.REPLICA_PHASE_WARMING if server.get("started") else pb.REPLICA_PHASE_LOADING), ""


def _failure(container: Object, crash_loop_restarts: int) -> tuple[pb.ReplicaPhase.ValueType, str] | None:
    state = container.get("state") or {}
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
    reason = waiting.get("reason", "")
    if reason in _PULLFAILING:
        return pb.REPLICA_PHASE_FAILED, f"{reason}: {waiting.get('message', '')}"
    if reason == "CrashLoopBackOff" or (ended and ended.get("exitCode") != 0):
        is_loop = int(container.get("restartCount", 0)) >= crash_loop_restarts
        phase = pb.REPLICA_PHASE_CRASH_LOOP if is_loop else pb.REPLICA_PHASE_FAILED
        return phase, _ending(container)
    return None


def _ending(container: Object) -> str:
    """What a container said when it ended: its termination message, which is the end of its log if it wrote
    none.
    """
    last = _last_end(container)
    if not last:
        return ""
    words = (last.get("message") or "").strip()
    how = f"{container.get('name', SERVER)} ended with exit code {last.get('exitCode')}"
    if last.get("reason") not in {None, "", "Error"}:
        how += f" ({last['reason']})"
    return f"{how}: {words}" if words else how


def _out_of_memory(status: Object) -> str:
    """What the kernel ended for its memory and is not back yet; empty if nothing was."""
    if _condition(status, "Ready").get("status") == "True":
        return ""
    containers = (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ()))
    return next((_ending(each) for each in containers if _last_end(each).get("reason") == "OOMKilled"), "")


def _last_end(container: Object) -> Object:
    state, last = container.get("state") or {}, container.get("lastState") or {}
    found: Object = state.get("terminated") or last.get("terminated") or {}
    return found


def _restart_at(container: Object, last: Object) -> datetime | None:
    ended = _time(last.get("finishedAt")) if last else None
    if ended is None:
        return None
    wait: timedelta = timedelta(seconds=10) * 2 ** min(max(0, int(container.get("restartCount", 0)) - 1), 5)
    return ended + min(wait, _LONGEST_BACKOFF)


def _phases(pod: Object, server: Object) -> tuple[tuple[pb.ReplicaPhase.ValueType, timedelta], ...]:
    """How long each phase took that is over. From the kubelet's marks, which are whole seconds."""
    status = pod.get("status") or {}
    marks = (
        (pb.REPLICA_PHASE_SCHEDULING, _condition_time(status, "PodScheduled")),
        (
            pb.REPLICA_PHASE_PULLING,
            _time(((server.get("state") or {}).get("running") or {}).get("startedAt")),
        ),
        (pb.REPLICA_PHASE_LOADING, _condition_time(status, "Ready")),
    )
    begin = _time(pod["metadata"].get("creationTimestamp"))
    made = []
    for phase, end in marks:
        if begin is None or end is None:
            break
        made.append((phase, max(timedelta(), end - begin)))
        begin = end
    return tuple(made)


def _ready_time(pod: Object, server: Object) -> datetime | None:
    """Conditions need not say since when they hold: then at the latest mark before."""
    running = (server.get("state") or {}).get("running") or {}
    return (
        _condition_time(pod.get("status") or {}, "Ready")
        or _time(running.get("startedAt"))
        or _time(pod["metadata"].get("creationTimestamp"))
    )


def _unschedulable(message: str) -> str:
    """A word for programs from the scheduler's sentence."""
    match = re.search(r"Insufficient (\S+?)[.,]?(\s|$)", message)
    return (lack_of(match[1]) if match else "") or "UNSCHEDULABLE"


def lack_of(resource: str) -> str:
    """The word for programs; empty for a resource that has none."""
    if "/" in resource:  # an extended one, such as nvidia.com/gpu
        return "INSUFFICIENT_GPU"
    words = {"cpu": "CPU", "memory": "MEMORY", "ephemeral-storage": "STORAGE"}
    return f"INSUFFICIENT_{words[resource]}" if resource in words else ""


def _ratio(aimed: Object, current: Object) -> tuple[str, float]:
    name = {"cpu": "CPU", "memory": "MEMORY"}.get(aimed.get("name", ""), "")
    if not name:
        metric = (aimed.get("metric") or {}).get("name", "")
        name = "CONCURRENCY" if metric == "neuroweaver_serving_concurrency" else "CUSTOM_METRIC"
    target = (aimed.get("target") or {}).get("averageUtilization")
    value = (current.get("current") or {}).get("averageUtilization")
    if isinstance(target, int) and isinstance(value, int) and target:
        return name, value / target
    return name, 0.0


def _container(status: Object, kind: str) -> Object:
    found: Object = next((each for each in status.get(kind) or () if each.get("name") == SERVER), {})
    return found


def _condition(status: Object, name: str) -> Object:
    found: Object = next((each for each in status.get("conditions") or () if each.get("type") == name), {})
    return found


def _condition_time(status: Object, name: str) -> datetime | None:
    condition = _condition(status, name)
    return _time(condition.get("lastTransitionTime")) if condition.get("status") == "True" else None


def _time(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
