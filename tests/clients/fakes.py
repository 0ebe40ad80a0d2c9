"""A Trainer and a Registry over real gRPC on loopback, telling what a script says."""

# ruff: noqa: N802 - methods are named as their RPCs
from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from clients import scripted
from neuroweaver.mesh.wire.errors import Error, NotFound, OutOfRange
from neuroweaver.mesh.wire.status import to_status
from neuroweaver.v1 import registry_pb2, registry_pb2_grpc, trainer_pb2, trainer_pb2_grpc


def abort(context: grpc.ServicerContext, error: Error) -> None:
    context.abort_with_status(to_status(error))


@dataclass
class FakeTrainer(trainer_pb2_grpc.TrainerServiceServicer):
    add_to = trainer_pb2_grpc.add_TrainerServiceServicer_to_server
    events: list[trainer_pb2.TrainingEvent] = field(default_factory=scripted.successful)
    breaks_after: list[int] = field(default_factory=list)
    """The stream breaks after so many events, once for each entry."""
    refusal: Error | None = None
    """What StartTraining answers instead of a job."""
    requests: list = field(default_factory=list)
    is_usable: bool = True
    log: list[str] = field(default_factory=lambda: ["loading", "step 1", "\x1b[2Jdone"])

    @property
    def job(self) -> trainer_pb2.TrainingJob:
        return scripted.job(self.events)

    def StartTraining(self, request, context):
        self.requests.append(request)
        if self.refusal:
            abort(context, self.refusal)
        return self.job

    def GetTrainingJob(self, request, context):
        self._known(request.job_id, context)
        return self.job

    def ListTrainingJobs(self, request, context):
        self.requests.append(request)
        if request.page_token:
            return trainer_pb2.ListTrainingJobsResponse(jobs=[scripted.job(self.events, job_id="older")])
        return trainer_pb2.ListTrainingJobsResponse(jobs=[self.job], next_page_token="next")

    def CancelTraining(self, request, context):
        self._known(request.job_id, context)
        self.requests.append(request)
        return scripted.job(self.events, state=trainer_pb2.JOB_STATE_CANCELLING)

    def ResumeTraining(self, request, context):
        if self.refusal:
            abort(context, self.refusal)
        return scripted.job(self.events, state=trainer_pb2.JOB_STATE_QUEUED)

    def WatchTraining(self, request, context):
        self._known(request.job_id, context)
        self.requests.append(request)
        if request.since_sequence > len(self.events):
            abort(context, OutOfRange("nothing with that sequence has happened yet"))
        limit = self.breaks_after.pop(0) if self.breaks_after else None
        last = request.since_sequence
        for event in self.events[request.since_sequence :][:limit]:
            yield event
            last = event.sequence
            heartbeat = trainer_pb2.TrainingEvent(sequence=last, job_id=event.job_id)
            heartbeat.heartbeat.sequence = last
            yield heartbeat
        if limit is not None:
            # What a server sends that is stopped: no details, as when the connection itself is gone.
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    def WatchLogs(self, request, context):
        self._known(request.job_id, context)
        for sequence, text in enumerate(self.log, 1):
            if sequence > request.since_sequence:
                yield trainer_pb2.LogLine(sequence=sequence, level="INFO", message=text)

    def ValidateDataset(self, request, context):
        self.requests.append(request)
        finding = trainer_pb2.DatasetFinding(line=7, field="answer", is_error=True, reason="is empty")
        return trainer_pb2.ValidateDatasetResponse(
            is_usable=self.is_usable,
            format="question_answer",
            rows=10,
            usable_rows=9,
            findings=[finding],
            preview=[
                trainer_pb2.DatasetSegment(text="<user>"),
                trainer_pb2.DatasetSegment(text="Hi", is_trained=True),
            ],
        )

    def ListTemplates(self, request, context):
        template = trainer_pb2.SpecializationTemplate(id="service_advisor", title="Service advisor")
        return trainer_pb2.ListTemplatesResponse(templates=[template])

    def _known(self, job_id, context):
        if job_id != scripted.JOB_ID:
            abort(context, NotFound("job", job_id))


CONTENT = {"adapter/adapter_config.json": b"{}", "adapter/adapter_model.safetensors": b"weights" * 1000}


@dataclass
class FakeRegistry(registry_pb2_grpc.RegistryServiceServicer):
    add_to = registry_pb2_grpc.add_RegistryServiceServicer_to_server
    requests: list = field(default_factory=list)
    content: dict[str, bytes] = field(default_factory=lambda: dict(CONTENT))
    path: str = ""
    """Put in place of every artifact's path, if set."""

    def ListModels(self, request, context):
        return registry_pb2.ListModelsResponse(
            models=[registry_pb2.Model(model_id="service-advisor", latest_version="1.0.0")]
        )

    def GetModel(self, request, context):
        if request.model_id != "service-advisor":
            abort(context, NotFound("model", request.model_id))
        return registry_pb2.Model(model_id=request.model_id, latest_version="1.0.0")

    def GetModelVersion(self, request, context):
        self.requests.append(request)
        if request.model_id != "service-advisor":
            abort(context, NotFound("model", request.model_id))
        artifacts = [
            registry_pb2.Artifact(
                path=self.path or path, digest=hashlib.sha256(data).hexdigest(), size_bytes=len(data)
            )
            for path, data in CONTENT.items()
        ]
        return scripted.version(artifacts=artifacts)

    def ListModelVersions(self, request, context):
        versions = [scripted.version(number) for number in ("1.1.0", "1.0.0")]
        return registry_pb2.ListModelVersionsResponse(versions=versions)

    def DownloadArtifact(self, request, context):
        data = self.content[request.path]
        yield registry_pb2.DownloadArtifactResponse(artifact=registry_pb2.Artifact(path=request.path))
        for begin in range(0, len(data), 1024):
            yield registry_pb2.DownloadArtifactResponse(chunk=data[begin : begin + 1024])


@contextmanager
def serving(*servicers) -> Iterator[str]:
    """The address of a server of these servicers, with health."""
    server = grpc.server(futures.ThreadPoolExecutor(8))
    for servicer in servicers:
        servicer.add_to(server)
    statuses = health.HealthServicer()
    statuses.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(statuses, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
