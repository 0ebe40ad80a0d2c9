"""A Deployer over real gRPC on loopback that tells what a script says: a rollout of revision 5 beside revision 4."""

# ruff: noqa: N802 - methods are named as their RPCs
from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from clients.fakes import abort
from neuroweaver.mesh.wire.errors import Error, NotFound, OutOfRange
from neuroweaver.v1 import deployer_pb2 as pb
from neuroweaver.v1 import deployer_pb2_grpc
from neuroweaver.v1.common_pb2 import Heartbeat

BEGIN = datetime(2026, 3, 14, 9, 26, 53, tzinfo=UTC)


def at(seconds: float = 0.0) -> Timestamp:
    time = Timestamp()
    time.FromDatetime(BEGIN + timedelta(seconds=seconds))
    return time


def span(seconds: float) -> Duration:
    made = Duration()
    made.FromMilliseconds(round(seconds * 1000))
    return made


def replica(number: int, revision: int, phase: str, *seconds: float, **changes) -> pb.ReplicaStatus:
    phases = [
        pb.PhaseDuration(phase=kind, duration=span(spent))
        for kind, spent in zip(itertools.count(pb.REPLICA_PHASE_SCHEDULING), seconds)
    ]
    fields = {
        "replica_id": f"advisor-{number}",
        "revision": revision,
        "phase": pb.ReplicaPhase.Value(f"REPLICA_PHASE_{phase}"),
        "phases": phases,
    }
    return pb.ReplicaStatus(**{**fields, **changes})


def revision(number: int, version: str, **changes) -> pb.DeploymentRevision:
    return pb.DeploymentRevision(number=number, version=version, cause="DEPLOY", create_time=at(), **changes)


def deployment(**changes) -> pb.Deployment:
    """Ready: two replicas of revision 4, which follows `production`."""
    fields = {
        "model_id": "advisor",
        "name": "default",
        "state": pb.DEPLOYMENT_STATE_READY,
        "message": "Serves as it was asked for.",
        "spec": pb.DeploymentSpec(
            alias="production", replicas=2, backend=pb.DEPLOYMENT_BACKEND_LOCAL, labels={"team": "service"}
        ),
        "endpoint": "http://127.0.0.1:8100/default/advisor/default/v1",
        "revisions": [
            revision(4, "1.1.0", weight_percent=100, ready_replicas=2, is_proven=True),
            revision(3, "1.0.1"),
            revision(2, "1.0.0", is_proven=True),
        ],
        "stable_revision": 4,
        "replicas": pb.ReplicaCounts(desired=2, current=2, ready=2, updated=2),
        "replica_statuses": [
            replica(1, 4, "READY", 0.0, 0.4, 2.1, 1.0),
            replica(2, 4, "READY", 0.0, 0.5, 2.2, 1.1),
        ],
        "conditions": [
            pb.DeploymentCondition(type="AVAILABLE", is_true=True, time=at()),
            pb.DeploymentCondition(type="DRIFT_FREE", message="The cluster was not asked yet.", time=at()),
        ],
        "generation": 3,
        "observed_generation": 3,
        "etag": "e3",
        "last_sequence": 40,
        "update_time": at(),
        "updated_by": "ada",
    }
    return pb.Deployment(**{**fields, **changes})


def rolling() -> pb.Deployment:
    """In the middle of a canary of revision 5."""
    check = pb.CanaryCheck(metric=pb.ROLLOUT_METRIC_LATENCY_P95, relative=0.1)
    result = pb.CheckResult(
        check=check,
        verdict=pb.ROLLOUT_VERDICT_HOLD,
        candidate=812.0,
        candidate_requests=40,
        baseline_requests=360,
    )
    damaged = "adapter/adapter_model.safetensors: its digest is not that of the version"
    return deployment(
        state=pb.DEPLOYMENT_STATE_PROGRESSING,
        revisions=[
            revision(5, "1.2.0", weight_percent=10, ready_replicas=1),
            revision(4, "1.1.0", weight_percent=90, ready_replicas=2, is_proven=True),
        ],
        rollout=pb.RolloutStatus(
            state=pb.ROLLOUT_STATE_BAKING,
            stable_revision=4,
            candidate_revision=5,
            step=1,
            total_steps=2,
            candidate_weight_percent=10,
            bake_end_time=at(300),
            message="40 of 100 requests.",
            analysis=pb.RolloutAnalysis(verdict=pb.ROLLOUT_VERDICT_HOLD, checks=[result]),
        ),
        replica_statuses=[
            replica(1, 4, "READY", 0.0, 0.4, 2.1, 1.0),
            replica(3, 5, "LOADING", 0.1, 0.5, 1.5),
            replica(4, 5, "CRASH_LOOP", 0.1, restarts=5, last_exit_code=3, message=damaged),
        ],
    )


def planned(api_version: str, kind: str, action: str, **more) -> pb.PlannedObject:
    number = pb.PlannedAction.Value(f"PLANNED_ACTION_{action}")
    return pb.PlannedObject(
        api_version=api_version, kind=kind, namespace="models", name="nw-advisor", action=number, **more
    )


def plan(**changes) -> pb.DeploymentPlan:
    image = pb.FieldChange(
        object="Deployment/nw-advisor",
        path="spec.template.spec.containers[0].image",
        before='"serving:1.0"',
        after='"serving:1.1"',
    )
    label = pb.FieldChange(object="Deployment/nw-advisor", path="metadata.labels.team", after='"service"')
    fields = {
        "is_feasible": True,
        "version": "1.2.0",
        "replacement": pb.REPLACEMENT_MODE_SURGE,
        "replacement_reason": "there is room for one more replica",
        "objects": [
            planned("v1", "Service", "CREATE", manifest="kind: Service\n"),
            planned("apps/v1", "Deployment", "UPDATE", manifest="kind: Deployment\n", changes=[image, label]),
            planned("policy/v1", "PodDisruptionBudget", "DELETE"),
        ],
        "capacity": [
            pb.CapacityCheck(
                resource="memory", required="2Gi", peak_required="3Gi", available="8Gi", is_sufficient=True
            ),
            pb.CapacityCheck(resource="nvidia.com/gpu", required="1", peak_required="2"),
        ],
        "findings": [pb.PlanFinding(reason="CRD_MISSING", message="There is no ServiceMonitor.")],
        "digest": "d1",
    }
    return pb.DeploymentPlan(**{**fields, **changes})


def infeasible() -> pb.DeploymentPlan:
    finding = pb.PlanFinding(
        reason="INSUFFICIENT_GPU",
        field="resources.gpus",
        message="2 are needed at the peak and 1 is free.",
        is_blocking=True,
    )
    note = pb.PlanFinding(reason="CRD_MISSING", message="There is no ServiceMonitor.")
    return plan(is_feasible=False, findings=[note, finding])


class Course:
    """Events with rising sequences, and the deployment after each of them."""

    def __init__(self, now: pb.Deployment) -> None:
        self.events: list[pb.DeploymentEvent] = []
        self._first = now.last_sequence

    def add(self, **event) -> None:
        number = len(self.events) + 1
        self.events.append(
            pb.DeploymentEvent(
                sequence=self._first + number, time=at(number), model_id="advisor", name="default", **event
            )
        )


def cold_start(now: pb.Deployment, *, ends: str = "READY", rollout: str = "PROMOTED") -> Course:
    """Revision 5 comes beside revision 4: a replica through its phases, a canary, an end."""
    course = Course(now)
    course.add(
        state_changed=pb.DeploymentStateChanged(
            from_state=now.state, to_state=pb.DEPLOYMENT_STATE_PROGRESSING, message="Revision 5 comes."
        )
    )
    spent: list[float] = []
    for phase, seconds in (("SCHEDULING", 0.1), ("PULLING", 0.5), ("LOADING", 2.1), ("WARMING", 1.2)):
        spent.append(seconds)
        course.add(replica_changed=pb.ReplicaChanged(replica=replica(3, 5, phase, *spent)))
    course.add(replica_changed=pb.ReplicaChanged(replica=replica(3, 5, "READY", *spent)))
    for state in ("BAKING", rollout):
        course.add(
            rollout=pb.RolloutStatus(
                state=pb.RolloutState.Value(f"ROLLOUT_STATE_{state}"),
                stable_revision=4,
                candidate_revision=5,
                step=1,
                total_steps=1,
                candidate_weight_percent=10,
                message="latency p95 is 40 % worse" if state == "ROLLED_BACK" else "",
            )
        )
    course.add(
        state_changed=pb.DeploymentStateChanged(
            from_state=pb.DEPLOYMENT_STATE_PROGRESSING,
            to_state=pb.DeploymentState.Value(f"DEPLOYMENT_STATE_{ends}"),
            message="Serves as it was asked for." if ends == "READY" else "advisor-3: out of memory",
        )
    )
    return course


@dataclass
class FakeDeployer(deployer_pb2_grpc.DeployerServiceServicer):
    add_to = deployer_pb2_grpc.add_DeployerServiceServicer_to_server
    now: pb.Deployment | None = field(default_factory=deployment)
    """What GetDeployment answers; follows the events that were sent."""
    planned: pb.DeploymentPlan = field(default_factory=plan)
    events: list[pb.DeploymentEvent] = field(default_factory=list)
    """What a watch tells, after the deployment's last sequence."""
    breaks_after: list[int] = field(default_factory=list)
    """The stream breaks after so many events, once for each entry."""
    refusal: Error | None = None
    """What every change answers instead."""
    requests: list = field(default_factory=list)
    lines: list[str] = field(default_factory=lambda: ["loading", "ready", "\x1b[2Jserving"])
    health: pb.ModelHealth = field(default_factory=lambda: health_of(pb.HEALTH_STATE_DEGRADED))

    def sent(self, kind: type):
        """The one request of this type."""
        [found] = [each for each in self.requests if isinstance(each, kind)]
        return found

    def GetDeployment(self, request, context):
        return self._known(request, context)

    def ListDeployments(self, request, context):
        self.requests.append(request)
        if request.page_token:
            return pb.ListDeploymentsResponse(deployments=[deployment(name="staging")])
        return pb.ListDeploymentsResponse(deployments=[self.now], next_page_token="next")

    def PlanDeployment(self, request, context):
        self.requests.append(request)
        if self.refusal:
            abort(context, self.refusal)
        return self.planned

    def DeployModel(self, request, context):
        self.now = self.now or deployment(state=pb.DEPLOYMENT_STATE_PENDING, revisions=[], last_sequence=0)
        return self._changed(request, context)

    def UndeployModel(self, request, context):
        return self._changed(request, context, pb.DEPLOYMENT_STATE_DELETING)

    def WatchDeployment(self, request, context):
        known = self._known(request, context)
        self.requests.append(request)
        if request.since_sequence > max([known.last_sequence, *(each.sequence for each in self.events)]):
            abort(context, OutOfRange("nothing with that sequence has happened yet"))
        limit = self.breaks_after.pop(0) if self.breaks_after else None
        wanted = [each for each in self.events if each.sequence > request.since_sequence]
        for event in wanted[:limit]:
            self._follow(event)
            yield event
            yield pb.DeploymentEvent(sequence=event.sequence, heartbeat=Heartbeat())
        if limit is not None:
            # What a server sends that is stopped: no details, as when the connection itself is gone.
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        if self.now.state != pb.DEPLOYMENT_STATE_DELETED:
            while context.is_active():  # a watch stays open until its caller goes
                yield pb.DeploymentEvent(sequence=request.since_sequence, heartbeat=Heartbeat())
                time.sleep(0.02)

    def WatchDeploymentLogs(self, request, context):
        self._known(request, context)
        self.requests.append(request)
        limit = self.breaks_after.pop(0) if self.breaks_after else None
        numbered = [
            (number, text) for number, text in enumerate(self.lines, 1) if number > request.since_sequence
        ]
        for number, text in numbered[-request.tail_lines :][:limit]:
            yield pb.DeploymentLogLine(
                sequence=number, time=at(number), replica_id="advisor-1", level="INFO", message=text
            )
        if limit is not None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    def GetDeploymentMetrics(self, request, context):
        self._known(request, context)
        self.requests.append(request)
        total = pb.ServingMetrics(
            requests=1200, errors=3, error_rate=0.0025, latency_p95_ms=812.0, memory_bytes=2**30
        )
        single = pb.RevisionMetrics(revision=4, version="1.1.0", metrics=pb.ServingMetrics(requests=1200))
        return pb.DeploymentMetrics(
            start_time=at(), end_time=at(300), total=total, revisions=[single], missing_replicas=["advisor-2"]
        )

    def GetModelHealth(self, request, context):
        self._known(request, context)
        return self.health

    def SetThresholds(self, request, context):
        self._change(request, context)
        self.health.configured_thresholds.CopyFrom(request.thresholds)
        return self.health

    def SwitchModel(self, request, context):
        self._change(request, context)
        to = request.target if request.HasField("target") else pb.BackupModel(model_id="spare")
        self.health.is_switched = to.model_id != "advisor"
        self.health.serving.CopyFrom(to)
        return self.health

    def _known(self, request, context) -> pb.Deployment:
        if self.now is None or request.model_id != "advisor":
            abort(context, NotFound("deployment", f"{request.model_id}/{request.name or 'default'}"))
        return self.now

    def _change(self, request, context) -> None:
        self.requests.append(request)
        self._known(request, context)
        if self.refusal:
            abort(context, self.refusal)

    def _changed(self, request, context, state=None) -> pb.Deployment:
        self._change(request, context)
        answer = pb.Deployment()
        answer.CopyFrom(self.now)
        answer.state = state or answer.state
        answer.generation += 1
        self.now = answer
        if not self.events:
            self.now.observed_generation = self.now.generation
        return answer

    ScaleDeployment = RollbackDeployment = _changed

    def _follow(self, event) -> None:
        """The loop has come so far, and the deployment says so."""
        now = pb.Deployment()
        now.CopyFrom(self.now)
        if event.HasField("state_changed"):
            now.state, now.message = event.state_changed.to_state, event.state_changed.message
        if event.HasField("rollout"):
            now.rollout.CopyFrom(event.rollout)
        now.last_sequence = event.sequence
        if event is self.events[-1]:
            now.observed_generation = now.generation
        self.now = now


def health_of(state: pb.HealthState.ValueType) -> pb.ModelHealth:
    latency = pb.ThresholdStatus(
        kind=pb.THRESHOLD_KIND_LATENCY, limit=2000, value=2412.5, is_breached=True, requests=310
    )
    return pb.ModelHealth(
        model_id="advisor",
        name="default",
        state=state,
        reason="Latency is beyond its limit.",
        version="1.1.0",
        thresholds=[latency, pb.ThresholdStatus(kind=pb.THRESHOLD_KIND_ACCURACY, limit=0.85)],
        ready_replicas=2,
        desired_replicas=2,
        serving=pb.BackupModel(model_id="advisor", name="default"),
        configured_thresholds=pb.ModelThresholds(
            min_accuracy=0.85, max_latency_ms=2000, window=span(300), min_requests=30
        ),
        etag="e3",
    )
