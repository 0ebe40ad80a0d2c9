"""What runs deployments, behind one interface: processes of this machine, or a cluster.

The reconcile loop asks for the whole desired state again and again (`apply`), looks at what is there
(`observe`), and decides. A backend remembers nothing: killed after any call, it goes on from what it finds.
All of its calls are idempotent, and end in a `BackendError` or in the truth.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from neuroweaver.artifacts.file import File
from neuroweaver.v1 import deployer_pb2 as pb


@dataclass(frozen=True, order=True)
class Key:
    """A deployment. `project` is the tenant, `name` the one within the model."""

    project: str
    model_id: str
    name: str

    def __str__(self) -> str:
        """As people name it within a project."""
        return f"{self.model_id}/{self.name}"


@dataclass(frozen=True)
class Bundle:
    """What a revision serves. base_*: of the model that an adapter fits on; base_name is empty where the
    files are a whole model by themselves. digest: SHA-256 over the digests of the files, in hexadecimal.
    """

    version: str
    files: tuple[File, ...]
    digest: str
    base_name: str = ""
    base_model_digest: str = ""
    base_tokenizer_digest: str = ""
    base_chat_template_digest: str = ""

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True)
class DesiredRevision:
    """replicas: the number wanted now, where it is fixed; with `autoscaling` the backend chooses within its
    bounds, which are this revision's own. weight_percent: its share of the traffic; those of all revisions
    add up to 100, or to 0 while nothing serves.
    """

    number: int
    bundle: Bundle
    replicas: int
    weight_percent: int
    autoscaling: pb.Autoscaling | None = None


@dataclass(frozen=True)
class Redirect:
    """Who takes all traffic after a switch. url: the endpoint of another deployment. model_id: the name that
    its model server knows.
    """

    url: str
    model_id: str


@dataclass(frozen=True)
class DesiredState:
    """All that one deployment should be. spec: completed with every default. resource_name: a DNS label.

    revisions: the stable one first; the candidate of a rollout after it. redirect: None while the deployment
    has its traffic itself.
    """

    key: Key
    resource_name: str
    spec: pb.DeploymentSpec
    revisions: tuple[DesiredRevision, ...]
    replacement: pb.ReplacementMode.ValueType = pb.REPLACEMENT_MODE_UNSPECIFIED
    redirect: Redirect | None = None
    generation: int = 0


@dataclass(frozen=True)
class Replica:
    """A pod, or a process. last_exit: the exit code of its last end. last_token_time: proof that its engine
    works. restart_at: when a failed one is started again. phases: how long each phase of the cold start took,
    in order.
    """

    replica_id: str
    revision: int
    phase: pb.ReplicaPhase.ValueType
    message: str = ""
    node: str = ""
    restarts: int = 0
    last_exit: int | None = None
    loaded_versions: tuple[str, ...] = ()
    phases: tuple[tuple[pb.ReplicaPhase.ValueType, timedelta], ...] = ()
    start_time: datetime | None = None
    ready_time: datetime | None = None
    last_token_time: datetime | None = None
    restart_at: datetime | None = None

    @property
    def is_ready(self) -> bool:
        return self.phase == pb.REPLICA_PHASE_READY

    @property
    def is_failing(self) -> bool:
        return self.phase in {pb.REPLICA_PHASE_FAILED, pb.REPLICA_PHASE_CRASH_LOOP}


@dataclass(frozen=True)
class FieldChange:
    """before, after: JSON, empty for nothing; never a secret's value."""

    object: str
    path: str
    before: str
    after: str


@dataclass(frozen=True)
class Scaling:
    """A change of the number of replicas that the backend made. cause: as `DeploymentScaled.cause`."""

    revision: int
    from_replicas: int
    to_replicas: int
    cause: str


@dataclass(frozen=True)
class Observed:
    """What is there. desired: replicas that the backend aims at now, by revision. is_idle: scaled to zero and
    able to start by the first request. drift: what others changed; `drift_corrected` says whether `apply` set
    it back. reasons: why it does not come further, such as (INSUFFICIENT_GPU, "0/3 nodes …").
    applied_generation: of the last spec that was carried out as a whole, nothing being left of what it
    replaces; 0 if none was.
    """

    exists: bool = False
    endpoint: str = ""
    replicas: tuple[Replica, ...] = ()
    desired: Mapping[int, int] = field(default_factory=dict)
    weights: Mapping[int, int] = field(default_factory=dict)
    is_idle: bool = False
    drift: tuple[FieldChange, ...] = ()
    drift_corrected: bool = False
    scalings: tuple[Scaling, ...] = ()
    reasons: tuple[tuple[str, str], ...] = ()
    applied_generation: int = 0


@dataclass(frozen=True)
class Planned:
    """One object of a plan. manifest: YAML."""

    api_version: str
    kind: str
    namespace: str
    name: str
    action: pb.PlannedAction.ValueType
    manifest: str
    changes: tuple[FieldChange, ...] = ()


@dataclass(frozen=True)
class Finding:
    """field: of the spec; empty: none. is_blocking: the plan is not feasible because of it."""

    reason: str
    message: str
    field: str = ""
    is_blocking: bool = False


@dataclass(frozen=True)
class Capacity:
    """Quantities as Kubernetes writes them. is_sufficient: None where it is not known."""

    resource: str
    required: str
    peak_required: str
    available: str = ""
    is_sufficient: bool | None = None


@dataclass(frozen=True)
class BackendPlan:
    """replacement: the mode chosen, with its reason in words."""

    objects: tuple[Planned, ...]
    findings: tuple[Finding, ...]
    capacity: tuple[Capacity, ...]
    replacement: pb.ReplacementMode.ValueType
    replacement_reason: str
    has_downtime: bool


@dataclass(frozen=True)
class Line:
    """A log line of a replica. cursor: opaque; orders one replica's lines, and is where `logs` goes on."""

    replica_id: str
    revision: int
    time: datetime
    message: str
    level: str = ""
    cursor: str = ""


@dataclass(frozen=True)
class Measured:
    """What one revision's replicas counted since they started: the sums of their Prometheus counters.

    latency_ms, first_token_ms: histogram buckets, upper bound (inf for the last) to cumulative count.
    """

    revision: int
    requests: int = 0
    errors: int = 0
    tokens: int = 0
    running: float | None = None
    waiting: float | None = None
    latency_ms: Mapping[float, int] = field(default_factory=dict)
    first_token_ms: Mapping[float, int] = field(default_factory=dict)
    cpu_cores: float | None = None
    memory_bytes: int | None = None
    gpu_utilization: float | None = None
    gpu_memory_bytes: int | None = None
    missing_replicas: tuple[str, ...] = ()


class Backend(Protocol):
    """Every call may raise BackendError. None blocks the event loop, none takes longer than some seconds."""

    async def plan(self, wanted: DesiredState) -> BackendPlan:
        """What `apply` would do, changing nothing."""

    async def apply(self, wanted: DesiredState) -> None:
        """Brings what is there nearer to the desired state, as far as possible now; called until it is."""

    async def observe(self, key: Key, resource_name: str, spec: pb.DeploymentSpec) -> Observed:
        """What is there now. Of something unknown: `Observed()`."""

    async def remove(self, key: Key, resource_name: str, spec: pb.DeploymentSpec) -> bool:
        """Drains and removes; True once nothing of it is left. Called again until then."""

    def logs(
        self, key: Key, resource_name: str, spec: pb.DeploymentSpec, since: Mapping[str, str]
    ) -> AsyncIterator[Line]:
        """The lines that are there, each replica's after its cursor in `since`; then it ends."""

    async def measure(self, key: Key, resource_name: str, spec: pb.DeploymentSpec) -> Sequence[Measured]:
        """What the replicas counted."""

    async def run(self, changed: Callable[[Key], None]) -> None:
        """Watches until cancelled; calls `changed` when something moved, at the latest seconds after."""


FetchFile = Callable[[File], Awaitable[AsyncIterator[bytes]]]
"""Reads a file of a version from the Registry in order, verified by the reader against its digest."""
