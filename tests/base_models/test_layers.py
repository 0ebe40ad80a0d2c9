from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from neuroweaver.base_models import layers
from neuroweaver.base_models.catalog import BUILTIN, BUILTIN_SHAPE, resolve
from trainer.tiny import tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("layers"))


def test_the_layers_of_a_folder_are_those_with_a_matrix(folder):
    names = layers.layers_of(resolve(str(folder), home=folder))
    assert "model.layers.1.self_attn.q_proj" in names
    assert "model.norm" not in names
    assert layers.repeated(names) == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "unknown"),
    [
        (["q_proj", "self_attn.v_proj", "model.layers.0.mlp.up_proj", "lm_head", "embed_tokens"], []),
        (["query_key_value"], ["query_key_value"]),
        (
            ["q_proj", "value_proj", "proj", "norm", "attn.v_proj"],
            ["value_proj", "proj", "norm", "attn.v_proj"],
        ),
    ],
)
def test_a_layer_has_its_full_name_and_each_end_of_it(folder, asked, unknown):
    assert layers.unknown(asked, layers.layers_of(resolve(str(folder), home=folder))) == unknown


def test_the_shipped_models_layers_are_those_of_its_architecture(tmp_path):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(num_hidden_layers=BUILTIN_SHAPE.layers))
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(layers.layers_of(resolve(BUILTIN, home=tmp_path))) == linear - {"lm_head"}
