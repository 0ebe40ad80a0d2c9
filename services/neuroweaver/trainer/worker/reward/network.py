"""A reward model: a LoRA adapter and a score head that order responses as the judge did."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from neuroweaver.trainer.data.encoding import encode
from neuroweaver.trainer.data.turns import Messages
from neuroweaver.trainer.worker.data.chat import attention_mask, padded
from neuroweaver.trainer.worker.models.lora import train_in_full_precision
from neuroweaver.trainer.worker.process.reproducibility import evaluating

HEAD = "score_head.safetensors"
SCALE = "reward_scale.json"


@dataclass(frozen=True)
class RewardScale:
    """Mean and standard deviation of the raw scores of the training responses."""

    mean: float = 0.0
    std: float = 1.0


class RewardModel:
    """Scores a response to a conversation; the trunk is the base model's, the head one fp32 linear layer.

    The score is read at the last real token, found by length: padding may share the end of sequence's id.
    """

    def __init__(self, model: Any, tokenizer: Any, head: nn.Linear, scale: RewardScale | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.head = head
        self.scale = scale or RewardScale()
        self.device: torch.device = model.device

    @classmethod
    def fresh(cls, model: Any, tokenizer: Any, adapter: LoraConfig) -> RewardModel:
        """A reward model to be trained: a new adapter on the base model and a small random head."""
        trunk = get_peft_model(model, adapter)
        train_in_full_precision(trunk)
        hidden_size = model.config.get_text_config().hidden_size
        head = nn.Linear(hidden_size, 1, bias=False, dtype=torch.float32, device=model.device)
        # As in Stiennon et al. 2020, arXiv 2009.01325, appendix B: scores begin near 0.
        nn.init.normal_(head.weight, std=1 / (hidden_size + 1) ** 0.5)
        return cls(trunk, tokenizer, head)

    @classmethod
    def load(cls, folder: Path, base: Any, tokenizer: Any) -> RewardModel:
        """The reward model that `save` wrote into `folder`, over its base model."""
        model = PeftModel.from_pretrained(base, str(folder)).eval()
        weight = load_file(folder / HEAD)["weight"]
        head = nn.Linear(weight.shape[1], 1, bias=False, dtype=torch.float32)
        head.load_state_dict({"weight": weight})
        scale = RewardScale(**json.loads((folder / SCALE).read_text(encoding="utf-8")))
        return cls(model, tokenizer, head.to(base.device), scale)

    def save(self, folder: Path) -> None:
        """Write adapter, head and scale into `folder`, without the base model."""
        self.model.save_pretrained(folder)
        save_file({"weight": self.head.weight.detach().contiguous()}, folder / HEAD)
        (folder / SCALE).write_text(json.dumps(asdict(self.scale)), encoding="utf-8")

    def score(self, prompts: Sequence[Messages], responses: Sequence[str]) -> Tensor:
        """Normalised scores (n,), fp32 on the CPU: the training responses have mean 0 and deviation 1."""
        rows = [self.encode(prompt, text) for prompt, text in zip(prompts, responses, strict=True)]
        return (self.raw_scores(rows) - self.scale.mean) / self.scale.std

    def raw_scores(self, rows: Sequence[Sequence[int]], batch_size: int = 16) -> Tensor:
        """Scores (n,) of token rows before normalisation, fp32 on the CPU, without gradients or dropout."""
        scores = torch.empty(len(rows))
        by_length = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        with evaluating(self.model), torch.no_grad():
            for start in range(0, len(rows), batch_size):
                batch = by_length[start : start + batch_size]
                scores[batch] = self.forward([rows[index] for index in batch]).cpu()
        return scores

    def encode(self, prompt: Messages, response: str) -> list[int]:
        """Token ids of the conversation with the response, its end of turn last."""
        return encode(self.tokenizer, [*prompt, {"role": "assistant", "content": response}])[-1].input_ids

    def forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Scores (len(rows),), fp32, with gradients."""
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._is_half()):
            hidden = (
                self.model.get_base_model()
                .base_model(
                    # On the right every padding id will do: no real token sees what comes after it.
                    input_ids=padded(rows, 0).to(self.device),
                    attention_mask=attention_mask(rows).to(self.device),
                    use_cache=False,
                )
                .last_hidden_state
            )  # (len(rows), longest row, hidden)
        last = hidden[torch.arange(len(rows), device=self.device), lengths - 1]
        scores: Tensor = self.head(last.float()).squeeze(-1)
        return scores

    def adapter(self) -> dict[str, nn.Parameter]:
        """The adapter's weights by name."""
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    def _is_half(self) -> bool:
        return self.model.get_base_model().dtype in {torch.bfloat16, torch.float16}


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Mean of -log sigmoid(chosen - rejected) over the pairs (n,).

    Bradley & Terry 1952, doi 10.2307/2334029, as in Stiennon et al. 2020, arXiv 2009.01325, equation 1.
    """
    return -nn.functional.logsigmoid(chosen - rejected).mean()
