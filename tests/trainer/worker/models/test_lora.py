from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch import nn

from neuroweaver.trainer.worker.models.base import load
from neuroweaver.trainer.worker.models.lora import UnknownLayers, lora, require_layers, without_adapter


@pytest.mark.parametrize(
    ("asked", "missing"),
    [
        ([], ()),
        (["q_proj"], ()),
        (["q_proj", "value_proj"], ("value_proj",)),
        (["self_attn.q_proj", "attn.v_proj", "proj"], ("attn.v_proj", "proj")),
        (["model.layers.0.mlp.up_proj"], ()),
    ],
)
def test_names_that_no_layer_has_are_told(folder, asked, missing):
    model = get_peft_model(load(folder)[0], lora(4, 8, target_modules=asked))
    assert without_adapter(model, asked) == missing


@pytest.mark.parametrize("asked", [["query_key_value"], ["attn.v_proj"], ["norm"]])
def test_names_by_which_no_layer_can_get_an_adapter_are_refused_without_the_weights(folder, asked):
    require_layers(folder, ["q_proj", "value_proj"])
    with pytest.raises(UnknownLayers, match=asked[0]):
        require_layers(folder, asked)


class Experts(nn.Module):
    """Weights of many experts in one tensor, as Mixtral's."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.zeros(4, 8, 8))
        self.bias = nn.Parameter(torch.zeros(8))


def test_weights_that_are_no_linear_layer_are_told_once_for_the_stack(folder):
    base = load(folder)[0]
    for layer in base.model.layers:
        layer.mlp.experts = Experts()
        layer.mlp.place = nn.Embedding(8, 8)
    model = get_peft_model(base, lora(4, 8))
    assert without_adapter(model, []) == ("model.layers.mlp.experts.up",)
