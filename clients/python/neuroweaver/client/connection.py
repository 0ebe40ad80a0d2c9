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
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from neuroweaver.mesh import settings
from neuroweaver.mesh.channel import sync_channel
from neuroweaver.v1 import deployer_pb2, experiment_pb2, registry_pb2, trainer_pb2
from neuroweaver.v1.deployer_pb2_grpc import DeployerServiceStub
from neuroweaver.v1.experiment_pb2_grpc import ExperimentServiceStub
from neuroweaver.v1.registry_pb2_grpc import RegistryServiceStub
from neuroweaver.v1.trainer_pb2_grpc import TrainerServiceStub

PAGE_SIZE: Final = 200
HEALTH_TIMEOUT_S: Final = 2.0
_MAX_BACKOFF_S: Final = 5.0

OnBreak = Callable[[grpc.RpcError], None]
"""Told that a watch broke and is about to be resumed."""


class _Sequenced(Protocol):
    @property
    def sequence(self) -> int: ...


class _Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


M = TypeVar("M", bound=_Sequenced)
P = TypeVar("P", bound=_Page)


class Client:
    """Connects on the first call. Not for several threads at once while it is being closed.

    addresses: host:port by service name; those left out come from the environment.
    timeout_s: for a unary call that names none.

    Raises neuroweaver.mesh.settings.SettingsError on the first use of an address that is malformed.
    """

    def __init__(self, addresses: Mapping[str, str] | None = None, *, timeout_s: float = 60.0) -> None:
        self._addresses = dict(addresses or {})
        self._timeout_s = timeout_s
        self._channels: dict[str, grpc.Channel] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()

    def address(self, service: str) -> str:
        return self._addresses.get(service) or settings.address(service)

    @cached_property
    def deployer(self) -> DeployerServiceStub:
        return DeployerServiceStub(self._channel("deployer"))

    @cached_property
    def experiment(self) -> ExperimentServiceStub:
        return ExperimentServiceStub(self._channel("experiment"))

    @cached_property
    def trainer(self) -> TrainerServiceStub:
        return TrainerServiceStub(self._channel("trainer"))

    @cached_property
    def registry(self) -> RegistryServiceStub:
        return RegistryServiceStub(self._channel("registry"))

    def is_healthy(self, service: str, timeout_s: float = HEALTH_TIMEOUT_S) -> bool:
        """Whether the service answers and says that it serves."""
        stub: Any = health_pb2_grpc.HealthStub(self._channel(service))
        try:
            status: int = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s).status
        except grpc.RpcError:
            return False
        return status == health_pb2.HealthCheckResponse.SERVING

    def jobs(self, query: str = "", limit: int | None = None) -> Iterator[trainer_pb2.TrainingJob]:
        """Newest first. query: a filter of ListTrainingJobs."""
        token = ""
        while limit is None or limit > 0:
            page = self.trainer.ListTrainingJobs(
                trainer_pb2.ListTrainingJobsRequest(
                    page_size=min(limit or PAGE_SIZE, PAGE_SIZE), page_token=token, filter=query
                )
            )
            yield from page.jobs
            limit = None if limit is None else limit - len(page.jobs)
            token = page.next_page_token
            if not token:
                return

    def deployments(self, query: str = "") -> Iterator[deployer_pb2.Deployment]:
        """By model and name. query: a filter of ListDeployments."""
        request = deployer_pb2.ListDeploymentsRequest(page_size=PAGE_SIZE, filter=query)
        for page in _pages(self.deployer.ListDeployments, request):
            yield from page.deployments

    def experiments(self, query: str = "") -> Iterator[experiment_pb2.Experiment]:
        """Newest first. query: a filter of ListExperiments."""
        request = experiment_pb2.ListExperimentsRequest(page_size=PAGE_SIZE, filter=query)
        for page in _pages(self.experiment.ListExperiments, request):
            yield from page.experiments

    def past_results(self, test_id: str) -> Iterator[experiment_pb2.ExperimentResults]:
        """Those kept over the experiment's life, oldest first."""
        request = experiment_pb2.ListResultsRequest(test_id=test_id, page_size=PAGE_SIZE)
        for page in _pages(self.experiment.ListResults, request):
            yield from page.results

    def models(self, query: str = "", *, show_deleted: bool = False) -> Iterator[registry_pb2.Model]:
        """By id. query: a filter of ListModels."""
        request = registry_pb2.ListModelsRequest(page_size=PAGE_SIZE, filter=query, show_deleted=show_deleted)
        for page in _pages(self.registry.ListModels, request):
            yield from page.models

    def versions(
        self, model_id: str, query: str = "", *, show_deleted: bool = False
    ) -> Iterator[registry_pb2.ModelVersion]:
        """Highest first. query: a filter of ListModelVersions."""
        request = registry_pb2.ListModelVersionsRequest(
            model_id=model_id, page_size=PAGE_SIZE, filter=query, show_deleted=show_deleted
        )
        for page in _pages(self.registry.ListModelVersions, request):
            yield from page.versions

    def history(self, model_id: str, version: str = "") -> Iterator[registry_pb2.AuditEvent]:
        """Newest first. version: an exact one; empty: everything about the model."""
        request = registry_pb2.GetVersionHistoryRequest(
            model_id=model_id, version=version, page_size=PAGE_SIZE
        )
        for page in _pages(self.registry.GetVersionHistory, request):
            yield from page.events

    def deliveries(
        self,
        webhook_id: str,
        state: registry_pb2.DeliveryState.ValueType = registry_pb2.DELIVERY_STATE_UNSPECIFIED,
    ) -> Iterator[registry_pb2.WebhookDelivery]:
        """Newest first."""
        request = registry_pb2.ListWebhookDeliveriesRequest(
            webhook_id=webhook_id, state=state, page_size=PAGE_SIZE
        )
        for page in _pages(self.registry.ListWebhookDeliveries, request):
            yield from page.deliveries

    def watch_training(
        self,
        job_id: str,
        since_sequence: int = 0,
        *,
        patience_s: float = 60.0,
        on_break: OnBreak | None = None,
    ) -> Iterator[trainer_pb2.TrainingEvent]:
        """The job's events after `since_sequence`, each once, until the job has ended. No heartbeats.

        A broken connection is resumed after the last event seen. When nothing was heard for `patience_s`, the
        last grpc.RpcError is raised.
        """

        def opened(since: int) -> Iterable[trainer_pb2.TrainingEvent]:
            return self.trainer.WatchTraining(
                trainer_pb2.WatchTrainingRequest(job_id=job_id, since_sequence=since)
            )

        for event in resumed(opened, since_sequence, patience_s=patience_s, on_break=on_break):
            if event.WhichOneof("event") != "heartbeat":
                yield event

    def watch_results(
        self,
        test_id: str,
        since_sequence: int = 0,
        *,
        patience_s: float = 60.0,
        on_break: OnBreak | None = None,
    ) -> Iterator[experiment_pb2.ResultsEvent]:
        """The events after `since_sequence` until the experiment is concluded, as `watch_training` gives."""

        def opened(since: int) -> Iterable[experiment_pb2.ResultsEvent]:
            return self.experiment.WatchResults(
                experiment_pb2.WatchResultsRequest(test_id=test_id, since_sequence=since)
            )

        for event in resumed(opened, since_sequence, patience_s=patience_s, on_break=on_break):
            if event.WhichOneof("event") != "heartbeat":
                yield event

    def watch_logs(
        self, job_id: str, since_sequence: int = 0, *, follow: bool = False, patience_s: float = 60.0
    ) -> Iterator[trainer_pb2.LogLine]:
        """The job's log lines after `since_sequence`, as `watch_training` gives events."""

        def opened(since: int) -> Iterable[trainer_pb2.LogLine]:
            return self.trainer.WatchLogs(
                trainer_pb2.WatchLogsRequest(job_id=job_id, since_sequence=since, follow=follow)
            )

        yield from resumed(opened, since_sequence, patience_s=patience_s)

    def watch_deployment(
        self,
        model_id: str,
        name: str = "",
        since_sequence: int = 0,
        *,
        patience_s: float = 60.0,
        on_break: OnBreak | None = None,
    ) -> Iterator[deployer_pb2.DeploymentEvent]:
        """The deployment's events after `since_sequence` until it is gone, as `watch_training` gives."""

        def opened(since: int) -> Iterable[deployer_pb2.DeploymentEvent]:
            return self.deployer.WatchDeployment(
                deployer_pb2.WatchDeploymentRequest(model_id=model_id, name=name, since_sequence=since)
            )

        for event in resumed(opened, since_sequence, patience_s=patience_s, on_break=on_break):
            if event.WhichOneof("event") != "heartbeat":
                yield event

    def watch_deployment_logs(
        self, wanted: deployer_pb2.WatchDeploymentLogsRequest, *, patience_s: float = 60.0
    ) -> Iterator[deployer_pb2.DeploymentLogLine]:
        """The log lines that are wanted, each once, as `watch_training` gives events."""

        def opened(since: int) -> Iterable[deployer_pb2.DeploymentLogLine]:
            again = deployer_pb2.WatchDeploymentLogsRequest()
            again.CopyFrom(wanted)
            again.since_sequence = since
            if since > wanted.since_sequence:
                # Lines are missed since the last one seen, however many there are.
                again.tail_lines = 0
            return self.deployer.WatchDeploymentLogs(again)

        yield from resumed(opened, wanted.since_sequence, patience_s=patience_s)

    def _channel(self, service: str) -> grpc.Channel:
        if service not in self._channels:
            plain = sync_channel(self.address(service))
            self._channels[service] = grpc.intercept_channel(plain, _Deadline(self._timeout_s))
        return self._channels[service]


def _pages(call: Callable[[Any], P], request: Any) -> Iterator[P]:
    """Every page of a list. `request` is asked again and again, with the token of the next page."""
    while True:
        page = call(request)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def resumed(
    opened: Callable[[int], Iterable[M]],
    since: int,
    *,
    patience_s: float,
    on_break: OnBreak | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[M]:
    """What `opened(since)` streams. Broken with UNAVAILABLE, it is opened again after the last sequence.

    Messages that repeat a sequence (heartbeats) prove that the stream lives and are not given. The error is
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


class _Deadline(grpc.UnaryUnaryClientInterceptor):
    """A unary call ends: by its own timeout, or by the default one."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        if client_call_details.timeout is None:
            client_call_details = client_call_details._replace(timeout=self._timeout_s)
        return continuation(client_call_details, request)
