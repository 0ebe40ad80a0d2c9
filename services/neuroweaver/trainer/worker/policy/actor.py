"""A PEFT model as PPO sees it: policy, the reference it must stay near, and a value head on one trunk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from neuroweaver.trainer.worker.data.chat import attention_mask, padded
from neuroweaver.trainer.worker.models.generation import end_tokens, generation_config
from neuroweaver.trainer.worker.models.lora import POLICY, REFERENCE
from neuroweaver.trainer.worker.models.nf4_cpu import packed_for_generation
from neuroweaver.trainer.worker.policy.ppo_losses import response_mask
from neuroweaver.trainer.worker.policy.rollout import MicroBatch, Prompt, Rollout


class Policy:
    """The adapter "default" of a PEFT model; the reference is the adapter "reference", or else no adapter.

    model: over a decoder-only transformers model; put into eval mode here. temperature: of sampling and of
    the logits alike. Raises ValueError if the model lacks the adapter, has other trainable weights, or holds
    the adapter in less than fp32.
    """

    def __init__(self, model: Any, tokenizer: Any, temperature: float) -> None:
        if POLICY not in getattr(model, "peft_config", {}):
            raise ValueError(f'the model has no adapter "{POLICY}" to train')
        self.model = model
        self.temperature = temperature
        self.base = model.get_base_model()
        self.head = self.base.get_output_embeddings()
        self.device: torch.device = self.base.device
        self.pad_token_id: int = tokenizer.pad_token_id
        self.eos_token_ids = end_tokens(self.base, tokenizer)
        if not self.eos_token_ids:
            raise ValueError("neither tokenizer nor model names a token that ends a response")
        # No dropout anywhere: it would move the ratio off 1 and the KL off 0 before anything was learnt.
        model.eval()
        self.is_quantised = _ready_quantised_layers(self.base)
        model.set_adapter(POLICY)
        self.parameters = _adapter_parameters(model)
        hidden_size = self.base.config.get_text_config().hidden_size
        self.value_head = nn.Linear(hidden_size, 1, device=self.device, dtype=torch.float32)
        # Values of 0 at first: no random value reaches the advantages or, through its gradient, the trunk.
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """Logits (n, response_len, vocab), fp32 and at temperature, and values (n, response_len), fp32.

        The heads see only the positions that choose a response token: position t - 1 chooses token t. The
        logits are the model's own, for what it does behind its head (capping, scaling) shapes its responses.
        """
        seen: list[Tensor] = []

        def narrowed(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            seen.append(inputs[0][:, -micro.response_len - 1 : -1])
            return (seen[0], *inputs[1:])

        with self.head.register_forward_pre_hook(narrowed):
            logits = self.base(
                input_ids=micro.input_ids,
                attention_mask=micro.attention_mask,
                position_ids=micro.position_ids,
                use_cache=False,
            ).logits
        return logits.float() / self.temperature, self.value_head(seen[0].float()).squeeze(-1)

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], max_new_tokens: int) -> Rollout:
        """One response to each prompt, drawn with torch's global generator.

        Raises ValueError if a prompt is empty or its response may not fit into the model's positions.
        """
        rows = [prompt.input_ids for prompt in prompts]
        if not rows or not all(rows):
            raise ValueError("a rollout needs prompts, and every prompt at least one token")
        longest = max(map(len, rows))
        limit = getattr(self.base.config.get_text_config(), "max_position_embeddings", math.inf)
        if longest + max_new_tokens > limit:
            raise ValueError(
                f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed {limit} positions"
            )
        config = generation_config(
            self.pad_token_id, self.eos_token_ids, max_new_tokens=max_new_tokens, temperature=self.temperature
        )
        # Responses may be sampled through faster 4-bit kernels: they are scored by the trainable ones anyway.
        with packed_for_generation(self.base), self._generating_by(config):
            sequences = self.base.generate(
                input_ids=padded(rows, self.pad_token_id, side="left").to(self.device),
                attention_mask=attention_mask(rows, side="left").to(self.device),
                generation_config=config,
            )
        responses = sequences[:, longest:]
        ended = torch.isin(responses, torch.tensor(self.eos_token_ids, device=self.device)).any(dim=1)
        return Rollout(tuple(prompts), responses, response_mask(responses, self.eos_token_ids), ended)

    def scoring(self) -> AbstractContextManager[None]:
        """Gradients off, unless quantised layers would then round in another way than in the update."""
        return torch.enable_grad() if self.is_quantised else torch.no_grad()

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The model as the reference; as the policy again afterwards."""
        if REFERENCE not in self.model.peft_config:
            with self.model.disable_adapter():
                yield
            return
        self.model.set_adapter(REFERENCE, inference_mode=True)
        try:
            yield
        finally:
            self.model.set_adapter(POLICY)

    @contextmanager
    def checkpointing(self) -> Iterator[None]:
        """Let layers with gradient checkpointing use it, which they do in training mode only.

        Only the layers' own flag is set: their dropout stays off. Where checkpointing is off nothing changes.
        """
        layers = [layer for layer in self.base.modules() if isinstance(layer, GradientCheckpointingLayer)]
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False

    def weights(self) -> dict[str, Tensor]:
        """The adapter's weights by name, shared with the model."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights into the adapter. Raises ValueError if names or shapes are not its own."""
        own = {name: parameter.shape for name, parameter in self.parameters.items()}
        if {name: weight.shape for name, weight in weights.items()} != own:
            raise ValueError("these are the weights of another adapter: names or shapes differ")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])

    @contextmanager
    def _generating_by(self, config: GenerationConfig) -> Iterator[None]:
        """Puts the model's own settings away, which would fill in what `config` leaves open."""
        shipped, self.base.generation_config = self.base.generation_config, config
        try:
            yield
        finally:
            self.base.generation_config = shipped


def _ready_quantised_layers(base: Any) -> bool:
    """Have the layers of bitsandbytes pass gradients, always by one kernel; returns whether there are any.

    In eval mode on a CPU they repack themselves into a layout through which no gradient flows, and an input
    that needs no gradient goes to another kernel. They hold no dropout, so their own flag can say training.
    """
    layers = [module for module in base.modules() if type(module).__module__.startswith("bitsandbytes")]
    for layer in layers:
        layer.state_dict()  # before it saves, a layer that an earlier generation repacked undoes that
        layer.training = True
    if layers:
        base.enable_input_require_grads()
    return bool(layers)


def _adapter_parameters(model: Any) -> dict[str, nn.Parameter]:
    """The policy's weights by name; ValueError if anything else is trainable or they are not fp32."""
    parameters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    others = [name for name in parameters if POLICY not in name.split(".")]
    if others:
        raise ValueError(
            f"weights outside the adapter are trainable and would move the reference: {others[:3]}"
        )
    if not parameters:
        raise ValueError(f'the adapter "{POLICY}" has no weights to train')
    if any(weight.dtype != torch.float32 for weight in parameters.values()):
        raise ValueError("the adapter must be fp32: in less, small steps of the optimiser round to nothing")
    return parameters
