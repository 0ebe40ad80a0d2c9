from __future__ import annotations

import json
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from neuroweaver.trainer.data import dataset
from neuroweaver.trainer.data.files import locate
from neuroweaver.trainer.data.specialization import system_prompts
from neuroweaver.trainer.domain.config import with_defaults
from neuroweaver.trainer.worker import pipeline
from neuroweaver.trainer.worker.context import JobContext
from neuroweaver.trainer.worker.failures import BaseModelChanged
from neuroweaver.trainer.worker.process.monitor import SILENT
from neuroweaver.trainer.worker.process.stages import Stages
from neuroweaver.v1 import trainer_pb2 as pb
from trainer.recorder import Events
from trainer.tiny import tiny_llama


class Noticed(Events):
    @property
    def notices(self):
        return {event.notice.reason: event.notice.message for event in self.seen if event.HasField("notice")}


@pytest.fixture
def home(tmp_path):
    tiny_llama(tmp_path / "models" / "base")
    return tmp_path


@pytest.fixture
def events():
    return Noticed()


@pytest.fixture
def attempt(home, events):
    """A function that gives the context of an attempt of one job."""
    config = with_defaults(
        pb.TrainingConfig(
            base_model="base", specialization="service_advisor", dataset_path="builtin:automotive", seed=1
        ),
        context_length=512,
    )
    path = locate(config.dataset_path, home)
    read = dataset.read(path, system_prompts=system_prompts(), specialization=config.specialization)

    def begin(number):
        return JobContext(
            job=pb.TrainingJob(job_id="job", config=config, dataset_digest=read.digest, attempt=number),
            stages=Stages(home / "job" / "stages", events, threading.Event()),
            folder=home / "job",
            home=home,
            data_folder=home,
            registry=None,
            environ={},
        )

    return begin


def other_weights(base):
    weights = load_file(base / "model.safetensors")
    metadata = {"format": "pt"}
    save_file(
        {name: torch.zeros_like(w) for name, w in weights.items()}, base / "model.safetensors", metadata
    )


def other_tokenizer(base):
    (base / "tokenizer.json").write_text((base / "tokenizer.json").read_text() + "\n")


def other_template(base):
    (base / "chat_template.jinja").write_text("{{ messages }}")


def other_generation(base):
    path = base / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 0}))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (other_weights, "weights"),
        (other_tokenizer, "tokenizer"),
        (other_template, "chat template"),
        (other_generation, "generation settings"),
    ],
)
def test_a_job_resumed_over_another_base_model_ends(attempt, home, change, part):
    pipeline.prepare(attempt(1), SILENT)
    pipeline.prepare(attempt(2), SILENT)
    change(home / "models" / "base")
    with pytest.raises(BaseModelChanged, match=f"the {part} of base model base have changed"):
        pipeline.prepare(attempt(3), SILENT)


def test_a_base_model_that_changes_within_an_attempt_is_not_registered(attempt, home, monkeypatch):
    registered = []
    monkeypatch.setattr(pipeline, "register", lambda registration, registry: registered.append(registration))
    context = attempt(1)
    pipeline.prepare(context, SILENT)
    pipeline.register_over_its_base("version", context)
    other_weights(home / "models" / "base")
    with pytest.raises(BaseModelChanged):
        pipeline.register_over_its_base("version", context)
    assert registered == ["version"]


def test_a_job_that_began_before_its_base_was_pinned_goes_on(attempt, home):
    pipeline.prepare(attempt(2), SILENT)
    assert json.loads((home / "job" / "base.json").read_text()).keys() == {
        "base",
        "tokenizer",
        "chat_template",
        "generation",
    }


def test_a_job_that_began_before_generation_settings_were_pinned_goes_on_over_its_base_alone(attempt, home):
    pipeline.prepare(attempt(1), SILENT)
    pinned = json.loads((home / "job" / "base.json").read_text())
    del pinned["generation"]
    (home / "job" / "base.json").write_text(json.dumps(pinned))
    pipeline.prepare(attempt(2), SILENT)
    other_weights(home / "models" / "base")
    with pytest.raises(BaseModelChanged, match="the weights of"):
        pipeline.prepare(attempt(3), SILENT)
