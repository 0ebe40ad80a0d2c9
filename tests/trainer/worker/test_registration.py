from __future__ import annotations

import json
import os
import struct

from e2e.processes import mesh
from neuroweaver.artifacts.content import digest_of
from neuroweaver.artifacts.transfer import download
from neuroweaver.base_models.folders import Digests
from neuroweaver.mesh.wire.channel import sync_channel
from neuroweaver.trainer.worker.registration import Registration, metrics_of, register
from neuroweaver.v1 import registry_pb2, registry_pb2_grpc
from neuroweaver.v1 import trainer_pb2 as pb


def test_what_nobody_could_judge_is_not_registered_as_measured():
    result = pb.TrainingResult(loss_before=4.0, loss_after=3.0, perplexity_before=50, perplexity_after=20)
    assert metrics_of(result).keys() == {"loss", "loss_base", "perplexity", "perplexity_base"}


def test_judgements_are_registered_with_their_samples():
    result = pb.TrainingResult(
        samples=[pb.JudgedSample(tuned_score=7.0)],
        win_rate={"wins": 1, "rate": 1.0},
    )
    result.metrics["tuned_score"] = 7.0
    found = metrics_of(result)
    assert (found["judge_score"].value, list(found["judge_score"].samples)) == (7.0, [7.0])
    assert found["win_rate"].value == 1.0
    assert "judge_score_base" not in found


def test_a_repeated_registration_gives_the_same_version_with_the_files_of_the_job(tmp_path):
    data = os.urandom(2 << 20)
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    adapter = tmp_path / "job" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "/a/folder/here"}')
    (adapter / "generation_config.json").write_text('{"eos_token_id": [2]}')
    config = pb.TrainingConfig(model_name="advisor", base_model="tiny", specialization="service_advisor")
    registration = Registration(
        job=pb.TrainingJob(job_id="01J", config=config, dataset_digest="d" * 64),
        result=pb.TrainingResult(loss_before=4.0, loss_after=3.0),
        adapter=adapter,
        folder=tmp_path / "job",
        digests=Digests("a" * 64, "b" * 64, None),
    )
    with (
        mesh(tmp_path / "home", "registry") as running,
        sync_channel(running.addresses["registry"]) as channel,
    ):
        registry = registry_pb2_grpc.RegistryServiceStub(channel)
        first, again = register(registration, registry), register(registration, registry)
        version = registry.GetModelVersion(
            registry_pb2.GetModelVersionRequest(model_id="advisor", version=first["version"])
        )
        files = download(registry, version, tmp_path / "down")

    assert again == first
    assert {file.path: file.digest for file in version.artifacts} == first["artifacts"]
    contents = {path.relative_to(tmp_path / "down").as_posix(): path for path in files}
    assert digest_of(contents["adapter/adapter_model.safetensors"]) == digest_of(
        adapter / "adapter_model.safetensors"
    )
    assert json.loads(contents["adapter/generation_config.json"].read_text()) == {"eos_token_id": [2]}
    assert json.loads(contents["adapter/adapter_config.json"].read_text()) == {
        "base_model_name_or_path": "tiny"
    }
