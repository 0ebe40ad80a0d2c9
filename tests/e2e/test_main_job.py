"""The main job through real processes: registry, trainer, worker."""

from __future__ import annotations

import itertools
import json
import re
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from e2e.processes import Mesh, mesh
from neuroweaver.mesh.wire import telemetry
from neuroweaver.mesh.wire.channel import sync_channel
from neuroweaver.v1 import registry_pb2, registry_pb2_grpc, trainer_pb2_grpc
from neuroweaver.v1 import trainer_pb2 as pb
from trainer.openai_server import Reply, serving
from trainer.tiny import tiny_llama

DONE = {pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED}


KEY = "sk-test-this-must-stay-secret"


def judge(body: dict[str, Any], number: int) -> Reply:
    """Scores by a sum over the answer's characters: a tiny random model's words differ in nothing better."""
    del number
    task, texts = (message["content"] for message in body["messages"])
    parts = dict(re.findall(r"<(answer|first|second) \w+>\n(.*?)\n</", texts, re.DOTALL))
    scores = {name: sum(map(ord, text)) % 101 / 10 for name, text in parts.items()}
    if "first" in scores:
        better = "first" if scores["first"] > scores["second"] else "second"
        return Reply(json.dumps({"reason": "characters", "better": better}))
    names = re.findall(r'- "(\w+)" \(weight', task)
    return Reply(json.dumps({"reason": "characters", "criteria": dict.fromkeys(names, scores["answer"])}))


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OpenTelemetry collector that remembers which service was part of which trace."""

    services: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    endpoint: str = ""

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        for resource in request.resource_spans:
            attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
            for span in itertools.chain.from_iterable(scope.spans for scope in resource.scope_spans):
                self.services[span.trace_id.hex()].add(attributes["service.name"])
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    found = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(found, server)
    found.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield found
    server.stop(None)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Mesh]:
    home = tmp_path_factory.mktemp("home")
    tiny_llama(home / "models" / "tiny", context=2048)
    with (
        serving(judge) as endpoint,
        mesh(
            home,
            "registry",
            "trainer",
            OPENAI_API_KEY=KEY,
            OPENAI_BASE_URL=endpoint.base_url,
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
        ) as started,
    ):
        yield started


@pytest.fixture
def trainer(running: Mesh) -> Iterator[trainer_pb2_grpc.TrainerServiceStub]:
    with sync_channel(running.addresses["trainer"]) as channel:
        yield trainer_pb2_grpc.TrainerServiceStub(channel)


@pytest.fixture
def registry(running: Mesh) -> Iterator[registry_pb2_grpc.RegistryServiceStub]:
    with sync_channel(running.addresses["registry"]) as channel:
        yield registry_pb2_grpc.RegistryServiceStub(channel)


def config(**changes: object) -> pb.TrainingConfig:
    settings = {
        "model_name": "advisor",
        "base_model": "tiny",
        "specialization": "service_advisor",
        "dataset_path": "builtin:automotive",
        "lora_r": 4,
        "epochs": 0.5,
        "learning_rate": 1e-3,
        "batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_seq_length": 1024,
        "rlaif_samples": 12,
        "responses_per_prompt": 4,
        "feedback_model": "test-judge",
        "ppo_steps": 4,
        "ppo_batch_size": 4,
        "max_new_tokens": 16,
        **changes,
    }
    return pb.TrainingConfig(**settings)


def events(
    trainer: trainer_pb2_grpc.TrainerServiceStub, job_id: str, since: int = 0
) -> list[pb.TrainingEvent]:
    """Everything that happens in the job until it ends."""
    watch = trainer.WatchTraining(pb.WatchTrainingRequest(job_id=job_id, since_sequence=since), timeout=1500)
    return [event for event in watch if not event.HasField("heartbeat")]


def wait_for(
    trainer: trainer_pb2_grpc.TrainerServiceStub, job_id: str, found: Callable[[pb.TrainingEvent], bool]
) -> pb.TrainingEvent:
    watch = trainer.WatchTraining(pb.WatchTrainingRequest(job_id=job_id), timeout=1500)
    for event in watch:
        if found(event):
            watch.cancel()
            return event
        assert not event.HasField("finished"), event
    raise AssertionError("the job ended first")


def started(trainer: trainer_pb2_grpc.TrainerServiceStub, job_id: str, **changes: object) -> None:
    trainer.StartTraining(pb.StartTrainingRequest(job_id=job_id, config=config(**changes)))


def test_the_main_job_ends_with_a_registered_version(
    running: Mesh,
    trainer: trainer_pb2_grpc.TrainerServiceStub,
    registry: registry_pb2_grpc.RegistryServiceStub,
) -> None:
    started(trainer, "whole")
    seen = events(trainer, "whole")
    end = seen[-1].finished

    assert end.state == pb.JOB_STATE_SUCCEEDED, (end.failure, running.worker_log("whole"))
    assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))
    stages = [event.stage_finished.stage for event in seen if event.HasField("stage_finished")]
    assert stages == [
        pb.STAGE_PREPARING,
        pb.STAGE_SFT,
        pb.STAGE_RESPONSES,
        pb.STAGE_FEEDBACK,
        pb.STAGE_REWARD_MODEL,
        pb.STAGE_PPO,
        pb.STAGE_VALIDATION,
        pb.STAGE_REGISTERING,
    ]
    ppo = [event.progress for event in seen if event.progress.stage == pb.STAGE_PPO]
    assert ppo[0].metrics["ratio_first"] == 1.0
    assert ppo[0].kl == 0.0
    assert all(step.HasField("reward") and step.HasField("eta") for step in ppo)

    result = end.result
    assert result.rlaif_outcome == pb.RLAIF_OUTCOME_APPLIED
    assert result.loss_after < result.loss_before
    assert result.policy_optimization.steps == 4
    assert len(result.samples) == 20
    assert (
        result.win_rate.wins + result.win_rate.losses + result.win_rate.ties + result.win_rate.missing == 20
    )
    assert result.win_rate.interval.lower <= result.win_rate.rate <= result.win_rate.interval.upper

    version = registry.GetModelVersion(
        registry_pb2.GetModelVersionRequest(model_id="advisor", version=result.version)
    )
    assert version.lineage.training_job_id == "whole"
    assert len(version.base.model_digest) == 64
    assert version.config["lora_r"] == 4
    assert version.metrics["win_rate"].value == pytest.approx(result.win_rate.rate)
    paths = {artifact.path for artifact in version.artifacts}
    assert {"adapter/adapter_model.safetensors", "adapter/adapter_config.json"} <= paths
    download = registry.DownloadArtifact(
        registry_pb2.DownloadArtifactRequest(
            model_id="advisor", version=result.version, path="adapter/adapter_config.json"
        )
    )
    content = b"".join(part.chunk for part in download)
    assert json.loads(content)["base_model_name_or_path"] == "tiny"
    assert str(running.home) not in content.decode()


@pytest.fixture(scope="module")
def plain(running: Mesh) -> tuple[pb.JobFinished, str]:
    """How a job without RLAIF ended, and the trace that it was started in."""
    with sync_channel(running.addresses["trainer"]) as channel:
        trainer = trainer_pb2_grpc.TrainerServiceStub(channel)
        with telemetry.tracer.start_as_current_span("a user's call"):
            started(trainer, "plain", enable_rlaif=False, epochs=0.2)
            trace_id = telemetry.current_trace_id()
        return events(trainer, "plain")[-1].finished, trace_id


def test_rlaif_can_be_left_out(plain: tuple[pb.JobFinished, str]) -> None:
    result = plain[0].result

    assert result.rlaif_outcome == pb.RLAIF_OUTCOME_NOT_REQUESTED
    assert not result.HasField("reward_model")
    assert result.version


def test_one_trace_spans_client_trainer_worker_and_registry(
    plain: tuple[pb.JobFinished, str], collector: Collector
) -> None:
    end, trace_id = plain
    assert end.state == pb.JOB_STATE_SUCCEEDED

    give_up = time.monotonic() + 120  # spans leave in batches
    while len(collector.services[trace_id]) < 3 and time.monotonic() < give_up:
        time.sleep(0.2)
    assert collector.services[trace_id] == {"trainer", "trainer-worker", "registry"}


@pytest.mark.parametrize("allowed", [True, False])
def test_a_failing_rlaif_falls_back_only_if_the_job_says_so(
    allowed: bool, trainer: trainer_pb2_grpc.TrainerServiceStub
) -> None:
    # Nothing scores below 0, so no response is bad enough to form a pair.
    job_id = f"fallback-{allowed}"
    started(trainer, job_id, rlaif_threshold=0.0, fall_back_to_sft=allowed, epochs=0.2)
    seen = events(trainer, job_id)
    end = seen[-1].finished
    if not allowed:
        assert (end.state, end.failure.reason) == (pb.JOB_STATE_FAILED, "NOT_ENOUGH_FEEDBACK")
        assert end.failure.stage == pb.STAGE_REWARD_MODEL
        return
    assert end.state == pb.JOB_STATE_SUCCEEDED
    assert end.result.rlaif_outcome == pb.RLAIF_OUTCOME_FELL_BACK_TO_SFT
    assert "NOT_ENOUGH_FEEDBACK" in end.result.rlaif_failure
    assert "RLAIF_FELL_BACK" in [event.notice.reason for event in seen if event.HasField("notice")]


def test_a_cancelled_job_stops_within_a_step_keeps_what_is_whole_and_can_go_on(
    running: Mesh, trainer: trainer_pb2_grpc.TrainerServiceStub
) -> None:
    started(trainer, "cancelled", epochs=0.2, ppo_steps=200)
    wait_for(
        trainer, "cancelled", lambda event: event.progress.stage == pb.STAGE_PPO and event.progress.step >= 3
    )
    trainer.CancelTraining(pb.CancelTrainingRequest(job_id="cancelled"))
    seen = events(trainer, "cancelled")

    assert seen[-1].finished.state == pb.JOB_STATE_CANCELLED
    asked = next(e.sequence for e in seen if e.state_changed.to_state == pb.JOB_STATE_CANCELLING)
    later = [e for e in seen if e.sequence > asked and e.HasField("progress")]
    assert len(later) <= 1
    [checkpoint] = (running.home / "jobs/cancelled/ppo").glob("checkpoint-*")
    assert int(checkpoint.name.removeprefix("checkpoint-")) >= 3
    assert (running.home / "jobs/cancelled/sft/adapter/adapter_model.safetensors").is_file()


def test_a_killed_worker_fails_the_job_and_a_resume_goes_on_where_it_was(
    running: Mesh, trainer: trainer_pb2_grpc.TrainerServiceStub
) -> None:
    started(trainer, "killed", epochs=0.2, ppo_steps=12)
    wait_for(trainer, "killed", lambda e: e.checkpoint_saved.stage == pb.STAGE_PPO)
    running.worker_of("killed").send_signal(signal.SIGKILL)
    first = events(trainer, "killed")
    assert first[-1].finished.failure.reason in {"WORKER_KILLED", "OUT_OF_MEMORY"}
    assert first[-1].finished.failure.is_resumable

    trainer.ResumeTraining(pb.ResumeTrainingRequest(job_id="killed"))
    second = events(trainer, "killed", since=first[-1].sequence)

    assert second[-1].finished.state == pb.JOB_STATE_SUCCEEDED, running.worker_log("killed")
    reused = {e.stage_finished.stage for e in second if e.stage_finished.is_reused}
    assert {pb.STAGE_SFT, pb.STAGE_RESPONSES, pb.STAGE_FEEDBACK, pb.STAGE_REWARD_MODEL} <= reused
    rewound = next(e.rewound for e in second if e.HasField("rewound"))
    steps = [e.progress.step for e in second if e.progress.stage == pb.STAGE_PPO]
    assert rewound.step >= 5
    assert steps[0] == rewound.step + 1
    assert steps[-1] == 12


def test_a_data_set_that_changed_after_acceptance_is_not_trained_on(
    running: Mesh, trainer: trainer_pb2_grpc.TrainerServiceStub
) -> None:
    rows = [
        json.dumps({"question": f"What is part {n}?", "answer": f"Part {n} is a filter."}) for n in range(20)
    ]
    file = running.home / "data" / "changing.jsonl"
    file.write_text("\n".join(rows[:10]))
    started(trainer, "blocking", epochs=0.2, ppo_steps=100)
    started(trainer, "changed", dataset_path="changing.jsonl", enable_rlaif=False)
    file.write_text("\n".join(rows))
    trainer.CancelTraining(pb.CancelTrainingRequest(job_id="blocking"))
    failure = events(trainer, "changed")[-1].finished.failure

    assert (failure.reason, failure.is_resumable) == ("DATASET_CHANGED", False)
    with pytest.raises(grpc.RpcError, match="FAILED_PRECONDITION"):
        trainer.ResumeTraining(pb.ResumeTrainingRequest(job_id="changed"))


def test_the_key_of_the_judge_is_written_nowhere(running: Mesh) -> None:
    files = [path for path in running.home.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_no_worker_outlives_its_job(running: Mesh) -> None:
    def mine(process: psutil.Process) -> bool:
        try:
            is_worker = "neuroweaver.trainer.worker" in process.cmdline()
            return is_worker and process.environ().get("NEUROWEAVER_HOME") == str(running.home)
        except psutil.Error:
            return False

    _, alive = psutil.wait_procs([each for each in psutil.process_iter() if mine(each)], timeout=120)
    assert alive == []


def test_a_trainer_that_is_shut_down_resumes_its_job_when_it_starts_again(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "models" / "tiny", context=2048)
    with (
        serving(judge) as endpoint,
        mesh(tmp_path, "registry", "trainer", OPENAI_BASE_URL=endpoint.base_url) as own,
        sync_channel(own.addresses["trainer"]) as channel,
    ):
        stub = trainer_pb2_grpc.TrainerServiceStub(channel)
        started(stub, "interrupted", epochs=0.2, ppo_steps=12)
        wait_for(stub, "interrupted", lambda e: e.progress.stage == pb.STAGE_PPO)
        assert own.stop("trainer") == 0
        own.start("trainer")
        seen = events(stub, "interrupted")

        assert seen[-1].finished.state == pb.JOB_STATE_SUCCEEDED, own.worker_log("interrupted")
        assert stub.GetTrainingJob(pb.GetTrainingJobRequest(job_id="interrupted")).attempt == 2


def test_a_trainer_that_is_killed_finds_its_worker_again(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "models" / "tiny", context=2048)
    with (
        serving(judge) as endpoint,
        mesh(tmp_path, "registry", "trainer", OPENAI_BASE_URL=endpoint.base_url) as own,
        sync_channel(own.addresses["trainer"]) as channel,
    ):
        stub = trainer_pb2_grpc.TrainerServiceStub(channel)
        started(stub, "orphan", epochs=0.2, ppo_steps=12)
        wait_for(stub, "orphan", lambda e: e.progress.stage == pb.STAGE_PPO)
        own.stop("trainer", signal.SIGKILL)
        own.start("trainer")
        seen = events(stub, "orphan")

        assert seen[-1].finished.state == pb.JOB_STATE_SUCCEEDED, own.worker_log("orphan")
        steps = [e.progress.step for e in seen if e.progress.stage == pb.STAGE_PPO]
        assert steps == list(range(1, 13))
        assert stub.GetTrainingJob(pb.GetTrainingJobRequest(job_id="orphan")).attempt == 1
