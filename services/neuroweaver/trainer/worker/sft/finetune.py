"""Supervised fine-tuning of a LoRA adapter on chats, over a plain or quantised base model."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from datasets import Dataset
from trl import SFTConfig

from neuroweaver.mesh.machine.files import whole_folder
from neuroweaver.trainer.data.encoding import EncodedChat, encode
from neuroweaver.trainer.data.turns import Messages
from neuroweaver.trainer.worker.models.generation import save_ends
from neuroweaver.trainer.worker.models.lora import lora, train_in_full_precision, without_adapter
from neuroweaver.trainer.worker.process.checkpoints import SAVE_EVERY, checkpoint_step, last_checkpoint
from neuroweaver.trainer.worker.process.monitor import Monitor
from neuroweaver.trainer.worker.sft.trainer import ChatTrainer
from neuroweaver.trainer.worker.validation.measures import token_loss
from neuroweaver.v1 import trainer_pb2 as pb

ADAPTER: Final = "adapter"


class NothingToLearn(ValueError):
    """No row, or none that is held out, has words of an assistant that the loss could see."""


@dataclass(frozen=True, kw_only=True)
class SFTResult:
    """What fine-tuning gave.

    adapter: folder of the LoRA weights and their configuration.
    loss_before, loss_after: nats an assistant token on the validation examples; NaN without any.
    losses: training loss of each optimiser step, also of those before a resume.
    tokens: real tokens trained on, padding not counted.
    resumed_from: step of the checkpoint training went on from; 0 if it started anew.
    examples: how many were trained on; truncated of them were cut at max_seq_length; dropped ones have no
        assistant token within it and were not trained on.
    unmeasured: validation examples that have none, and count in neither loss.
    without_adapter: see `lora.without_adapter`.
    """

    adapter: Path
    loss_before: float
    loss_after: float
    losses: tuple[float, ...]
    tokens: int
    resumed_from: int
    examples: int
    truncated: int
    dropped: int
    unmeasured: int = 0
    without_adapter: tuple[str, ...] = ()


def finetune(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Messages],
    validation_examples: Sequence[Messages],
    *,
    config: pb.TrainingConfig,
    folder: Path,
    monitor: Monitor,
    resume: bool,
    save_steps: int = SAVE_EVERY,
) -> SFTResult:
    """Train an adapter of `model` on `examples`, saved under `folder`; the model comes back without it.

    The loss sees assistant turns alone. config: complete, with no default left open. save_steps: optimiser
    steps between two checkpoints. With `resume`, an unfinished run goes on from its last whole checkpoint, to
    the same weights bit by bit; without, `folder` is emptied. Raises Stopped before the next batch,
    TemplateRefuses, TrainingDiverged, and NothingToLearn if no example, or none held out, has an assistant
    turn.
    """
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    train, heldout = (
        _Rows.encoded(tokenizer, part, config.max_seq_length, monitor)
        for part in (examples, validation_examples)
    )
    if not train.chats:
        raise NothingToLearn(
            f"no training example has an assistant turn within max_seq_length, {config.max_seq_length} tokens"
        )
    if validation_examples and not heldout.chats:
        raise NothingToLearn(
            f"none of the {len(validation_examples)} validation rows has an answer within max_seq_length, "
            f"{config.max_seq_length} tokens: raise it, or shorten the rows"
        )
    before = token_loss(model, heldout.chats, tokenizer.pad_token_id, monitor)
    checkpoint = last_checkpoint(folder)
    trainer = ChatTrainer(
        monitor=monitor,
        model=model,
        args=_arguments(config, folder, save_steps, uses_cpu=model.device.type == "cpu"),
        train_dataset=train.dataset(),
        processing_class=tokenizer,
        peft_config=lora(
            config.lora_r,
            config.lora_alpha,
            dropout=config.lora_dropout,
            target_modules=config.target_modules,
        ),
    )
    train_in_full_precision(trainer.model)
    untrained = without_adapter(trainer.model, config.target_modules)
    try:
        trainer.train_on(checkpoint)
        after = token_loss(trainer.model, heldout.chats, tokenizer.pad_token_id, monitor)
        with whole_folder(folder / ADAPTER) as partial:
            trainer.model.save_pretrained(partial)
            save_ends(model, tokenizer, partial)
    finally:
        trainer.release()
    return SFTResult(
        adapter=folder / ADAPTER,
        loss_before=before.mean,
        loss_after=after.mean,
        losses=tuple(entry["loss"] for entry in trainer.state.log_history if "loss" in entry),
        tokens=trainer.state.num_input_tokens_seen,
        resumed_from=0 if checkpoint is None else checkpoint_step(checkpoint),
        examples=train.used,
        truncated=train.truncated,
        dropped=train.dropped,
        unmeasured=heldout.dropped,
        without_adapter=untrained,
    )


@dataclass
class _Rows:
    """Rows as the chats that the loss sees something of; how many were used, cut, and left out."""

    chats: list[EncodedChat] = field(default_factory=list)
    used: int = 0
    truncated: int = 0
    dropped: int = 0

    @classmethod
    def encoded(
        cls, tokenizer: Any, examples: Sequence[Messages], max_length: int, monitor: Monitor
    ) -> _Rows:
        rows = cls()
        for example in examples:
            monitor.check()  # a template may be slow
            chats = [chat.cut(max_length) for chat in encode(tokenizer, example)]
            useful = [chat for chat in chats if chat.target_tokens]
            rows.chats += useful
            rows.used += bool(useful)
            rows.dropped += not useful
            rows.truncated += bool(useful) and any(chat.is_truncated for chat in chats)
        return rows

    def dataset(self) -> Dataset:
        return Dataset.from_list(
            [{"input_ids": chat.input_ids, "labels": chat.labels} for chat in self.chats]
        )


def _arguments(config: pb.TrainingConfig, folder: Path, save_steps: int, *, uses_cpu: bool) -> SFTConfig:
    return SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        gradient_checkpointing=config.gradient_checkpointing,
        bf16=config.mixed_precision == pb.MIXED_PRECISION_BF16,
        fp16=config.mixed_precision == pb.MIXED_PRECISION_FP16,
        use_cpu=uses_cpu,
        seed=config.seed,
        save_strategy="steps",
        save_steps=save_steps,
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
