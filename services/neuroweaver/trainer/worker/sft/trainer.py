"""TRL's SFTTrainer as a job needs it: it reports, stops, saves whole checkpoints, gives the model back."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from trl import SFTTrainer

from neuroweaver.mesh.machine.files import whole_folder
from neuroweaver.trainer.worker.data.chat import target_losses
from neuroweaver.trainer.worker.process.checkpoints import checkpoints
from neuroweaver.trainer.worker.process.monitor import Monitor
from neuroweaver.trainer.worker.process.optimizer import TrainingDiverged

CHECKPOINTS_KEPT = 2
# Batches whose chats are sorted by length together: more saves padding, fewer keeps the order random.
SORTED_BATCHES = 8


class ByLength(Sampler[int]):
    """A random order of examples in which each batch holds examples of like length.

    It depends on seed and epoch alone, so that a resumed run draws the batches the first one would have.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        batches: list[list[int]] = []
        for group in _slices(order, SORTED_BATCHES * self.batch_size):
            batches += _slices(sorted(group, key=self.lengths.__getitem__), self.batch_size)
        # The loader cuts the order into batches again: an incomplete one before the end would shift them.
        rest = batches.pop() if len(batches[-1]) < self.batch_size else []
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[index]
        yield from rest

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class ChatTrainer(SFTTrainer):
    """Trains an adapter on tokenised, labelled chats, and answers to a monitor at every batch.

    On a CPU the language-model head sees target positions alone; SFTTrainer's own saving of that kind needs a
    GPU. A checkpoint is whole and durable, or absent. A loss or gradient that is not finite
    raises TrainingDiverged before it is saved.
    """

    def __init__(self, *, monitor: Monitor, model: Any, **kwargs: Any) -> None:
        self.monitor = monitor
        self.own_forward = model.__dict__.get("forward")
        super().__init__(model=model, callbacks=[_StartReport(monitor)], **kwargs)
        self.remove_callback(PrinterCallback)

    def train_on(self, checkpoint: Path | None) -> None:
        """Train to the end, from a checkpoint if there is one.

        A final one is only loaded: in the middle of an epoch, `train` would take one more step from it.
        """
        if checkpoint is None:
            self.train()
            return
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.global_step < state.max_steps:
            self.train(resume_from_checkpoint=str(checkpoint))
        else:
            self._load_from_checkpoint(str(checkpoint))
            self.state = state

    def release(self) -> None:
        """Take the adapter and every patch off the base model."""
        base = self.model.get_base_model()
        if self.args.gradient_checkpointing:
            base.gradient_checkpointing_disable()
            base.disable_input_require_grads()
        # The fused head is a `forward` on the instance, which hides the model's own.
        base.__dict__.pop("forward", None)
        if self.own_forward is not None:
            base.forward = self.own_forward
        self.model.unload()
        base.eval()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if self.args.device.type != "cpu" or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        losses = target_losses(model, inputs)
        return losses.sum() / (len(losses) if num_items_in_batch is None else num_items_in_batch)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.monitor.check()
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise TrainingDiverged(f"the loss is {loss.item()} at step {self.state.global_step + 1}")
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if "grad_norm" not in logs:
            return
        if not math.isfinite(logs["grad_norm"]):
            raise TrainingDiverged(f"the gradient is {logs['grad_norm']} at step {self.state.global_step}")
        self.monitor.report(
            step=self.state.global_step,
            total_steps=self.state.max_steps,
            tokens=int(self.state.num_input_tokens_seen),
            metrics={name: float(logs[name]) for name in ("loss", "learning_rate", "grad_norm")},
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> ByLength:
        rows = self.train_dataset if train_dataset is None else train_dataset
        lengths = [len(ids) for ids in rows["input_ids"]]
        return ByLength(lengths, self.args.train_batch_size, seed=self.args.seed)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = self.args.output_dir
        name = f"checkpoint-{self.state.global_step}"
        with whole_folder(Path(run) / name) as partial:
            try:
                self.args.output_dir = str(partial)
                # Past SFTTrainer's own method, which adds a model card.
                Trainer._save_checkpoint(self, model, trial)
            finally:
                self.args.output_dir = run
            for file in (partial / name).iterdir():
                file.rename(partial / file.name)
            (partial / name).rmdir()
        for outdated in checkpoints(Path(run))[:-CHECKPOINTS_KEPT]:
            shutil.rmtree(outdated)


class _StartReport(TrainerCallback):
    """Reports the step at which training begins; after a resume, it lies before the last one reported."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        del args, control, kwargs
        self.monitor.report(
            step=state.global_step, total_steps=state.max_steps, tokens=int(state.num_input_tokens_seen)
        )


def _slices(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
