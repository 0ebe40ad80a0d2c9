"""Adapters merged at load, or switched while the server runs."""

from __future__ import annotations

import json
import shutil

import httpx2
import openai
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from serving.models import config_for, files_in
from serving.processes import served

MESSAGES = [{"role": "user", "content": "Which oil does a diesel want?"}]


def tokens_of(base, folder, count=24):
    """What transformers and PEFT themselves answer greedily with the adapter in `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(folder / "adapter")).eval()
    text = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        made = model.generate(**ids, max_new_tokens=count, do_sample=False)[0, ids["input_ids"].shape[1] :]
    return made.tolist()


def text_of(base, folder):
    return AutoTokenizer.from_pretrained(base).decode(tokens_of(base, folder), skip_special_tokens=True)


def said(server, model="tiny"):
    answer = server.openai.chat.completions.create(
        model=model, messages=MESSAGES, temperature=0, max_tokens=24
    )
    return answer.choices[0].message.content


def post(server, version, folder, /, **changes):
    body = {"version": version, "files_folder": str(folder), "files": files_in(folder), **changes}
    return httpx2.post(f"{server.url}/admin/adapters", json=body, timeout=60)


def delete(server, version):
    return httpx2.delete(f"{server.url}/admin/adapters/{version}", timeout=60)


@pytest.fixture(scope="module")
def switched(base, first, tmp_path_factory):
    config = config_for(base, first, adapter_mode="switched")
    with served(tmp_path_factory.mktemp("switched"), config) as running:
        yield running


def test_a_merged_adapter_answers_as_peft_does(base, first, tmp_path):
    files = shutil.copytree(first, tmp_path / "files")
    config = config_for(base, files)
    # Not among the verified files, so it is nothing: PEFT would load it if it lay beside the adapter.
    (files / "adapter" / "adapter_model.bin").write_bytes(b"not to be unpickled")
    with served(tmp_path / "s", config) as server:
        assert said(server) == text_of(base, first)
        answer = post(server, "2.0.0", first)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "merged")


def test_a_whole_model_needs_no_base(base, tmp_path):
    config = config_for(base, base, base_folder="", base_digest="")
    with served(tmp_path / "s", config) as server:
        assert said(server)


def test_versions_are_loaded_chosen_made_current_and_dropped(switched, base, first, second):
    one, two = text_of(base, first), text_of(base, second)
    assert one != two
    assert said(switched) == one
    with pytest.raises(openai.NotFoundError):
        said(switched, "tiny@2.0.0")

    answer = post(switched, "2.0.0", second)
    assert (answer.status_code, answer.json()) == (
        200,
        {"current": "1.0.0", "loaded_versions": ["1.0.0", "2.0.0"]},
    )
    assert post(switched, "2.0.0", second).json() == answer.json()
    assert switched.until("/health/live", 200)["loaded_versions"] == ["1.0.0", "2.0.0"]
    assert [model.id for model in switched.openai.models.list()] == ["tiny", "tiny@1.0.0", "tiny@2.0.0"]
    assert (said(switched), said(switched, "tiny@2.0.0")) == (one, two)

    assert post(switched, "2.0.0", second, make_current=True).json()["current"] == "2.0.0"
    assert (said(switched), said(switched, "tiny@1.0.0")) == (two, one)
    assert delete(switched, "2.0.0").status_code == 409

    post(switched, "1.0.0", first, make_current=True)
    assert delete(switched, "2.0.0").json() == {"current": "1.0.0", "loaded_versions": ["1.0.0"]}
    assert delete(switched, "2.0.0").status_code == 404
    assert said(switched) == one


def test_a_versions_answers_end_where_its_training_ended_them(switched, base, first, second, tmp_path):
    """What ends them travels among its files; the base model knows nothing of it."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    copy = shutil.copytree(second, tmp_path / "copy")
    config = copy / "adapter" / "generation_config.json"
    config.write_text(json.dumps({"eos_token_id": "<|im_end|>"}))
    assert post(switched, "2.1.0", copy).json()["error"]["code"] == "damaged_artifacts"
    whole = tokens_of(base, second)
    config.write_text(json.dumps({"eos_token_id": [whole[2]]}))
    assert post(switched, "2.1.0", copy).status_code == 200
    expected = tokenizer.decode(whole[: whole.index(whole[2])], skip_special_tokens=True)
    assert said(switched, "tiny@2.1.0") == expected != text_of(base, second)
    assert said(switched) == text_of(base, first)
    assert delete(switched, "2.1.0").status_code == 200

    with served(tmp_path / "s", config_for(base, copy)) as merged:
        assert said(merged) == expected


def test_a_corrupt_adapter_is_refused_and_nothing_changes(switched, base, first, second, tmp_path):
    files = files_in(second)
    copy = shutil.copytree(second, tmp_path / "copy")
    weights = copy / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    answer = post(switched, "3.0.0", copy, files=files)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "damaged_artifacts")
    assert "adapter_model.safetensors" in answer.json()["error"]["message"]
    assert switched.until("/health/live", 200)["loaded_versions"] == ["1.0.0"]
    assert said(switched) == text_of(base, first)


def test_a_version_is_not_replaced_by_other_files(switched, second):
    assert post(switched, "1.0.0", second).status_code == 409


@pytest.mark.parametrize(
    ("changes", "parameter"),
    [
        ({"version": ""}, "version"),
        ({"files_folder": 5}, "files_folder"),
        ({"files": [{"path": "../x", "digest": "0" * 64, "size_bytes": 1}]}, "files[0].path"),
        ({"files": None}, "files"),
        ({"make_current": "yes"}, "make_current"),
    ],
)
def test_a_bad_load_names_its_parameter(switched, second, changes, parameter):
    answer = post(switched, "4.0.0", second, **changes)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, parameter)


def test_a_form_of_a_web_page_loads_nothing(switched):
    answer = httpx2.post(
        f"{switched.url}/admin/adapters", content="{}", headers={"content-type": "text/plain"}
    )
    assert answer.status_code == 415
