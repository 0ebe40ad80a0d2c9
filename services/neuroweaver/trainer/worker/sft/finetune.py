"""Supervised fine-tuning of a LoRA adapter on chats, over a plain or quantised base model."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig as TrainerConfig

from neuroweaver.mesh.machine.files import whole_folder, write_whole
from neuroweaver.trainer.worker.data.chat import EncodedChat, Messages, encode_chat
from neuroweaver.trainer.worker.process.checkpoints import TrainingDiverged, checkpoint_step, checkpoints
from neuroweaver.trainer.worker.process.monitor import Monitor
from neuroweaver.trainer.worker.sft.trainer import ChatTrainer
from neuroweaver.trainer.worker.validation.measures import TokenLoss, token_loss

__all__ = ["NothingToLearn", "SFTConfig", "SFTResult", "TrainingDiverged", "finetune"]

ADAPTER = "adapter"
RESULT = "result.json"


class NothingToLearn(ValueError):
    """No row has words of an assistant that the loss could see."""


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Hyper-parameters of supervised fine-tuning.

    target_modules: names of the layers that get an adapter; empty for every linear layer but the head.
    epochs: passes over the examples, fractions allowed; max_steps, where given, rules instead.
    batch_size: examples in one forward pass; an optimiser step sees batch_size * gradient_accumulation_steps.
    max_seq_length: tokens of an example that are kept, from its start.
    warmup_steps: optimiser steps in which the learning rate rises; afterwards it falls linearly to 0.
    save_steps: optimiser steps between two checkpoints; 0 for none.
    mixed_precision: the type of activations; adapters and their optimiser stay in fp32.
    """

    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    target_modules: tuple[str, ...] = ()
    epochs: float = 3.0
    learning_rate: float = 2e-4
    batch_size: int = 8
    gradient_accumulation_steps: int = 4
    max_seq_length: int = 2048
    warmup_steps: int = 0
    weight_decay: float = 0.0
    gradient_checkpointing: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] = "bf16"
    seed: int = 0
    save_steps: int = 50
    max_steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class SFTResult:
    """What fine-tuning gave.

    adapter: folder of the LoRA weights and their configuration.
    loss_before, loss_after: nats an assistant token on the validation examples; None without any.
    losses: training loss of each optimiser step, also of those before a resume.
    tokens: real tokens trained on, padding not counted; seconds: time spent training since the last resume.
    resumed_from: step of the checkpoint training went on from; 0 if it started anew.
    examples: how many were trained on; truncated of them were cut at max_seq_length; dropped ones have no
        assistant token within it and were not trained on.
    """

    adapter: Path
    loss_before: float | None
    loss_after: float | None
    losses: tuple[float, ...]
    tokens: int
    seconds: float
    resumed_from: int
    examples: int
    truncated: int
    dropped: int


def finetune(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Messages],
    validation_examples: Sequence[Messages],
    *,
    config: SFTConfig,
    folder: Path,
    monitor: Monitor,
    resume: bool,
) -> SFTResult:
    """Train an adapter of `model` on `examples`, saved under `folder`; the model comes back without it.

    The loss sees assistant turns alone. With `resume`, a finished run's result is given at once and an
    unfinished one goes on from its last whole checkpoint, to the same weights bit by bit; without, `folder`
    is emptied. Raises Stopped before the next batch, TrainingDiverged, and NothingToLearn if no example has
    an assistant turn.
    """
    if resume and (folder / RESULT).is_file():
        return _read_result(folder)
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    chats = [encode_chat(tokenizer, example, max_length=config.max_seq_length) for example in examples]
    useful = [chat for chat in chats if chat.target_tokens]
    if not useful:
        raise NothingToLearn("no training example has an assistant turn within max_seq_length")
    held_out = [
        encode_chat(tokenizer, example, max_length=config.max_seq_length) for example in validation_examples
    ]
    before = token_loss(model, held_out, tokenizer.pad_token_id, monitor)
    checkpoint = next(reversed(checkpoints(folder)), None)
    started = time.monotonic()
    trainer = _trainer(model, tokenizer, useful, config=config, folder=folder, monitor=monitor)
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        seconds = time.monotonic() - started
        after = token_loss(trainer.model, held_out, tokenizer.pad_token_id, monitor)
        with whole_folder(folder / ADAPTER) as partial:
            trainer.model.save_pretrained(partial)
    finally:
        trainer.release()
    result = SFTResult(
        adapter=folder / ADAPTER,
        loss_before=_mean(before),
        loss_after=_mean(after),
        losses=tuple(entry["loss"] for entry in trainer.state.log_history if "loss" in entry),
        tokens=trainer.state.num_input_tokens_seen,
        seconds=seconds,
        resumed_from=0 if checkpoint is None else checkpoint_step(checkpoint),
        examples=len(useful),
        truncated=sum(chat.is_truncated for chat in useful),
        dropped=len(chats) - len(useful),
    )
    write_whole(folder / RESULT, json.dumps(dataclasses.asdict(result) | {"adapter": ADAPTER}))
    return result


def _read_result(folder: Path) -> SFTResult:
    fields = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    return SFTResult(**fields | {"adapter": folder / fields["adapter"], "losses": tuple(fields["losses"])})


def _mean(loss: TokenLoss) -> float | None:
    return loss.mean if loss.tokens else None


def _trainer(
    model: Any,
    tokenizer: Any,
    chats: Sequence[EncodedChat],
    *,
    config: SFTConfig,
    folder: Path,
    monitor: Monitor,
) -> ChatTrainer:
    rows = Dataset.from_list([{"input_ids": chat.input_ids, "labels": chat.labels} for chat in chats])
    adapter = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.target_modules) or "all-linear",
        task_type="CAUSAL_LM",
    )
    trainer = ChatTrainer(
        monitor=monitor,
        model=model,
        args=_arguments(config, folder, uses_cpu=model.device.type == "cpu"),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=adapter,
    )
    # TRL leaves the adapter of a quantised model in bf16, where small updates round away.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def _arguments(config: SFTConfig, folder: Path, *, uses_cpu: bool) -> TrainerConfig:
    return TrainerConfig(
        output_dir=str(folder),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        gradient_checkpointing=config.gradient_checkpointing,
        bf16=config.mixed_precision == "bf16",
        fp16=config.mixed_precision == "fp16",
        use_cpu=uses_cpu,
        seed=config.seed,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 1,
        logging_steps=1,
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        disable_tqdm=True,
        report_to=_trackers(),
        # The chats come tokenised, labelled and cut already.
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
    )


def _trackers() -> list[str]:
    wants_wandb = bool(os.environ.get("WANDB_API_KEY"))
    return ["wandb"] if wants_wandb and importlib.util.find_spec("wandb") is not None else []
