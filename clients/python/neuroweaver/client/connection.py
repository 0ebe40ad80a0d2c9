"""One object for the whole mesh: a stub a service, over channels that retry and carry the caller's trace.

with Client() as client:
    job = client.trainer.GetTrainingJob(trainer_pb2.GetTrainingJobRequest(job_id="…"))
    for event in client.watch_training(job.job_id):
        print(event)
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypedDict, TypeVar, Unpack, cast

import grpc

from neuroweaver.mesh.wire.channel import sync_channel
from neuroweaver.mesh.wire.ids import new_id
from neuroweaver.mesh.wire.settings import address

if TYPE_CHECKING:
    from neuroweaver.v1 import deployer_pb2, experiment_pb2, registry_pb2, trainer_pb2
    from neuroweaver.v1.deployer_pb2_grpc import DeployerServiceStub
    from neuroweaver.v1.experiment_pb2_grpc import ExperimentServiceStub
    from neuroweaver.v1.registry_pb2_grpc import RegistryServiceStub
    from neuroweaver.v1.trainer_pb2_grpc import TrainerServiceStub

PAGE_SIZE: Final = 200
HEALTH_TIMEOUT_S: Final = 2.0
_MAX_BACKOFF_S: Final = 5.0

OnBreak = Callable[[grpc.RpcError], None]


class Resuming(TypedDict, total=False):
    """How long a watch may hear nothing before its error is raised, and who is told before it is resumed."""

    patience_s: float
    on_break: OnBreak


class _Sequenced(Protocol):
    @property
    def sequence(self) -> int: ...


M = TypeVar("M", bound=_Sequenced)


class Client:
    """Connects on the first call; a service's stubs are imported when they are first used.

    A request for a change that has no `request_id` gets one, so that a retry does not repeat the change.
    Not for several threads at once while it is being closed.

    addresses: host:port by service name; those left out come from the environment.
    timeout_s: for a unary call that names none.

    Raises neuroweaver.mesh.wire.environment.SettingsError on the first use of an address that is malformed.
    """

    def __init__(self, addresses: Mapping[str, str] | None = None, *, timeout_s: float = 60.0) -> None:
        self._addresses = dict(addresses or {})
        self._timeout_s = timeout_s
        self._channels: dict[str, grpc.Channel] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()

    def address(self, service: str) -> str:
        return self._addresses.get(service) or address(service)

    @cached_property
    def deployer(self) -> DeployerServiceStub:
        return cast("DeployerServiceStub", self._stub("deployer"))

    @cached_property
    def experiment(self) -> ExperimentServiceStub:
        return cast("ExperimentServiceStub", self._stub("experiment"))

    @cached_property
    def trainer(self) -> TrainerServiceStub:
        return cast("TrainerServiceStub", self._stub("trainer"))

    @cached_property
    def registry(self) -> RegistryServiceStub:
        return cast("RegistryServiceStub", self._stub("registry"))

    def is_healthy(self, service: str, timeout_s: float = HEALTH_TIMEOUT_S) -> bool:
        """Whether the service answers and says that it serves."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: PLC0415  few programs ask

        stub: Any = health_pb2_grpc.HealthStub(self._channel(service))
        try:
            status: int = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s).status
        except grpc.RpcError:
            return False
        return status == health_pb2.HealthCheckResponse.SERVING

    def jobs(self, query: str = "", limit: int | None = None) -> Iterator[trainer_pb2.TrainingJob]:
        """Newest first. query: a filter of ListTrainingJobs."""
        return self._items("trainer", "ListTrainingJobs", limit, filter=query)

    def job(self, job_id: str) -> trainer_pb2.TrainingJob:
        return self.trainer.GetTrainingJob(_request("trainer", "GetTrainingJob", job_id=job_id))

    def deployments(self, query: str = "") -> Iterator[deployer_pb2.Deployment]:
        """By model and name. query: a filter of ListDeployments."""
        return self._items("deployer", "ListDeployments", filter=query)

    def experiments(self, query: str = "") -> Iterator[experiment_pb2.Experiment]:
        """Newest first. query: a filter of ListExperiments."""
        return self._items("experiment", "ListExperiments", filter=query)

    def past_results(self, test_id: str) -> Iterator[experiment_pb2.ExperimentResults]:
        """Those kept over the experiment's life, oldest first."""
        return self._items("experiment", "ListResults", test_id=test_id)

    def models(self, query: str = "", *, show_deleted: bool = False) -> Iterator[registry_pb2.Model]:
        """By id. query: a filter of ListModels."""
        return self._items("registry", "ListModels", filter=query, show_deleted=show_deleted)

    def versions(
        self, model_id: str, query: str = "", *, show_deleted: bool = False
    ) -> Iterator[registry_pb2.ModelVersion]:
        """Highest first. query: a filter of ListModelVersions."""
        return self._items(
            "registry", "ListModelVersions", model_id=model_id, filter=query, show_deleted=show_deleted
        )

    def version(self, model_id: str, version: str = "") -> registry_pb2.ModelVersion:
        """version: as RPCs name it, such as 1.2.0, ^1.2 or @production; empty for the latest."""
        request = _request("registry", "GetModelVersion", model_id=model_id, version=version or "latest")
        return self.registry.GetModelVersion(request)

    def history(self, model_id: str, version: str = "") -> Iterator[registry_pb2.AuditEvent]:
        """Newest first. version: an exact one; empty: everything about the model."""
        return self._items("registry", "GetVersionHistory", model_id=model_id, version=version)

    def deliveries(
        self, webhook_id: str, state: registry_pb2.DeliveryState.ValueType | None = None
    ) -> Iterator[registry_pb2.WebhookDelivery]:
        """Newest first. state: only those in it."""
        return self._items("registry", "ListWebhookDeliveries", webhook_id=webhook_id, state=state)

    def watch_training(
        self, job_id: str, since_sequence: int = 0, **resuming: Unpack[Resuming]
    ) -> Iterator[trainer_pb2.TrainingEvent]:
        """The job's events after `since_sequence`, each once, until the job has ended. No heartbeats.

        A broken connection is resumed after the last event seen. When nothing was heard for `patience_s`, by
        default 60 s, the last grpc.RpcError is raised.
        """
        request = _request("trainer", "WatchTraining", job_id=job_id, since_sequence=since_sequence)
        return _watched(self.trainer.WatchTraining, request, **resuming)

    def watch_results(
        self, test_id: str, since_sequence: int = 0, **resuming: Unpack[Resuming]
    ) -> Iterator[experiment_pb2.ResultsEvent]:
        """As `watch_training`: the events after `since_sequence` until the experiment is concluded."""
        request = _request("experiment", "WatchResults", test_id=test_id, since_sequence=since_sequence)
        return _watched(self.experiment.WatchResults, request, **resuming)

    def watch_logs(
        self, job_id: str, since_sequence: int = 0, *, follow: bool = False, **resuming: Unpack[Resuming]
    ) -> Iterator[trainer_pb2.LogLine]:
        """As `watch_training`: the job's log lines after `since_sequence`."""
        request = _request(
            "trainer", "WatchLogs", job_id=job_id, since_sequence=since_sequence, follow=follow
        )
        return _watched(self.trainer.WatchLogs, request, **resuming)

    def watch_deployment(
        self, model_id: str, name: str = "", since_sequence: int = 0, **resuming: Unpack[Resuming]
    ) -> Iterator[deployer_pb2.DeploymentEvent]:
        """As `watch_training`: the deployment's events after `since_sequence` until it is removed."""
        where = {"model_id": model_id, "name": name, "since_sequence": since_sequence}
        return _watched(
            self.deployer.WatchDeployment, _request("deployer", "WatchDeployment", **where), **resuming
        )

    def watch_deployment_logs(
        self, request: deployer_pb2.WatchDeploymentLogsRequest, **resuming: Unpack[Resuming]
    ) -> Iterator[deployer_pb2.DeploymentLogLine]:
        """As `watch_training`: the log lines that are asked for."""
        return _watched(self.deployer.WatchDeploymentLogs, request, **resuming)

    def _stub(self, service: str) -> Any:
        stubs = import_module(f"neuroweaver.v1.{service}_pb2_grpc")
        return getattr(stubs, f"{service.title()}ServiceStub")(self._channel(service))

    def _channel(self, service: str) -> grpc.Channel:
        if service not in self._channels:
            plain = sync_channel(self.address(service))
            self._channels[service] = grpc.intercept_channel(plain, _Unary(self._timeout_s))
        return self._channels[service]

    def _items(self, service: str, rpc: str, limit: int | None = None, **fields: Any) -> Iterator[Any]:
        """What a list holds over all its pages, at most `limit`; the first field of a response holds it."""
        call = getattr(getattr(self, service), rpc)
        request = _request(service, rpc, page_size=min(limit or PAGE_SIZE, PAGE_SIZE), **fields)

        def pages() -> Iterator[Any]:
            while True:
                page = call(request)
                yield from getattr(page, page.DESCRIPTOR.fields[0].name)
                request.page_token = page.next_page_token
                if not request.page_token:
                    return

        return islice(pages(), limit)


def _request(service: str, rpc: str, **fields: Any) -> Any:
    return getattr(import_module(f"neuroweaver.v1.{service}_pb2"), f"{rpc}Request")(**fields)


def _watched(
    call: Callable[[Any], Iterable[Any]], request: Any, **resuming: Unpack[Resuming]
) -> Iterator[Any]:
    """What `call` streams from the request's `since_sequence` on, resumed and without heartbeats."""

    def opened(since: int) -> Iterable[Any]:
        again = type(request)()
        again.CopyFrom(request)
        again.since_sequence = since
        if since > request.since_sequence and "tail_lines" in again.DESCRIPTOR.fields_by_name:
            # Lines are missing since the last one seen, however many they are.
            again.tail_lines = 0
        return call(again)

    for message in resumed(opened, request.since_sequence, **resuming):
        if "heartbeat" not in message.DESCRIPTOR.fields_by_name or not message.HasField("heartbeat"):
            yield message


def resumed(
    opened: Callable[[int], Iterable[M]],
    since: int,
    *,
    patience_s: float = 60.0,
    on_break: OnBreak | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[M]:
    """What `opened(since)` streams. Broken with UNAVAILABLE, it is opened again after the last sequence.

    Messages that repeat a sequence (heartbeats) prove that the stream lives and are left out. The error is
    raised if nothing was ever heard, or nothing for `patience_s`.
    """
    last, failures = since, 0
    heard: float | None = None
    while True:
        stream = opened(last)
        try:
            for message in stream:
                heard, failures = time.monotonic(), 0
                if message.sequence > last:
                    last = message.sequence
                    yield message
        except grpc.RpcError as error:
            is_lost = heard is None or time.monotonic() - heard > patience_s
            if is_lost or error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            if on_break:
                on_break(error)
        else:
            return
        finally:
            if isinstance(stream, grpc.RpcContext):
                stream.cancel()
        failures += 1
        sleep(random.uniform(0.5, 1.0) * min(0.2 * 2**failures, _MAX_BACKOFF_S))


class _Unary(grpc.UnaryUnaryClientInterceptor):
    """Gives a call the default timeout unless it has one, and a change a request_id."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        if client_call_details.timeout is None:
            client_call_details = client_call_details._replace(timeout=self._timeout_s)
        if "request_id" in request.DESCRIPTOR.fields_by_name and not request.request_id:
            anonymous, request = request, type(request)(request_id=new_id())
            request.MergeFrom(anonymous)
        return continuation(client_call_details, request)
