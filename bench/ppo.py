"""What a PPO step costs on this machine, and what two of its choices are worth.

    python bench/ppo.py --model <folder of a causal language model with chat template>
    python bench/ppo.py --tiny

Each dtype runs in a process of its own, so that its peak memory is its own. The first step warms up and is
not counted; the figures are medians over the others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "services"), str(ROOT / "tests")]

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402

from neuroweaver.trainer.worker.models.base import load  # noqa: E402
from neuroweaver.trainer.worker.policy.ppo_losses import PPOConfig, token_logprobs  # noqa: E402
from neuroweaver.trainer.worker.policy.ppo_trainer import PPOTrainer  # noqa: E402
from neuroweaver.trainer.worker.policy.rollout import MicroBatch, Prompt  # noqa: E402
from trainer.tiny import tiny_llama  # noqa: E402

QUESTIONS = [
    "How often should the engine oil be changed?",
    "My brakes squeal in the morning. What should I check first, and is it safe to drive to the workshop?",
    "Which is cheaper over four years, a lease or a loan?",
    "Is there a warranty on replaced parts?",
]
PHASES = ("rollout", "scoring", "update")


def main() -> None:
    args = _arguments()
    if args.worker:
        print(json.dumps(measure(args)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        model = tiny_llama(Path(scratch)) if args.tiny else args.model
        runs = {dtype: _in_own_process(args, model, dtype) for dtype in ("bf16", "fp32")}
    figures = {"machine": _machine(), "model": "tiny" if args.tiny else model.name, **runs}
    print(json.dumps(figures, indent=2) if args.json else _table(figures, args))


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Medians of one dtype: seconds of each phase, tokens per second, peak memory; and the LM head's cost."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer, prompts = _trainer(args, device)
    steps = [trainer.step(prompts) for _ in range(args.steps + 1)][1:]
    seconds = {f"{phase}_s": [getattr(step, f"{phase}_s") for step in steps] for phase in PHASES}
    figures = {name: statistics.median(each) for name, each in seconds.items()}
    whole = [sum(each) for each in zip(*seconds.values(), strict=True)]
    figures["step_s"] = statistics.median(whole)
    figures["tokens_per_s"] = statistics.median(
        step.response_tokens / spent for step, spent in zip(steps, whole, strict=True)
    )
    figures["response_tokens"] = statistics.median(step.response_tokens for step in steps)
    figures["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device.type == "cuda":
        figures["peak_cuda_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return {**figures, **_head_alternatives(trainer, prompts)}


def _head_alternatives(trainer: PPOTrainer, prompts: list[Prompt]) -> dict[str, float]:
    """Seconds forward and back through one micro-batch, the LM head on response positions or on all."""
    rollout = trainer.policy.sample(prompts, trainer.config.max_new_tokens)
    micro = trainer.partition(rollout)[0][0]

    def on_response_positions(micro: MicroBatch) -> torch.Tensor:
        return trainer.policy.forward(micro)[0]

    def on_all_positions(micro: MicroBatch) -> torch.Tensor:
        output = trainer.policy.base(
            input_ids=micro.input_ids,
            attention_mask=micro.attention_mask,
            position_ids=micro.position_ids,
            use_cache=False,
        )
        return (output.logits.float() / trainer.config.temperature)[:, -micro.response_len - 1 : -1]

    def seconds(logits_of: Callable[[MicroBatch], torch.Tensor]) -> float:
        start = time.perf_counter()
        token_logprobs(logits_of(micro), micro.responses).sum().backward()
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    # Turn and turn about, so that a change of the machine's load meets both.
    pairs = [(seconds(on_response_positions), seconds(on_all_positions)) for _ in range(6)][1:]
    response, everywhere = (statistics.median(each) for each in zip(*pairs, strict=True))
    return {
        "head_on_response_s": response,
        "head_on_all_s": everywhere,
        "head_positions_share": micro.response_len / micro.input_ids.shape[1],
    }


def _trainer(args: argparse.Namespace, device: torch.device) -> tuple[PPOTrainer, list[Prompt]]:
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    base, tokenizer = load(args.model, dtype=dtype, device=device)
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    config = PPOConfig(
        batch_size=args.batch,
        minibatch_size=max(1, args.batch // 2),
        micro_batch_size=max(1, args.batch // 2),
        epochs=2,
        max_new_tokens=args.new_tokens,
        learning_rate=1e-4,
        kl_coeff=0.05,
        target_kl=6.0,
        seed=0,
        max_kl=None,
        update_kl_limit=None,
    )

    def vowels(_: list[str], responses: list[str]) -> list[float | None]:
        return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in responses]

    chats = [[{"role": "user", "content": QUESTIONS[i % len(QUESTIONS)]}] for i in range(args.batch)]
    texts = [
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats
    ]
    prompts = [Prompt(text, tuple(tokenizer(text, add_special_tokens=False).input_ids)) for text in texts]
    return PPOTrainer(model, tokenizer, vowels, config), prompts


def _in_own_process(args: argparse.Namespace, model: Path, dtype: str) -> dict[str, float]:
    options = ["--steps", str(args.steps), "--batch", str(args.batch), "--new-tokens", str(args.new_tokens)]
    command = [sys.executable, __file__, "--worker", "--dtype", dtype, "--model", str(model), *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    load = os.getloadavg()[0]
    return (
        f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}{gpu}; load average {load:.1f}"
    )


def _table(figures: dict[str, Any], args: argparse.Namespace) -> str:
    bf16, fp32 = figures["bf16"], figures["fp32"]
    lines = [
        f"{figures['model']} on {figures['machine']}",
        f"{args.batch} prompts, up to {args.new_tokens} new tokens; medians of {args.steps} steps",
        f"{'':22}{'bf16':>10}{'fp32':>10}{'bf16/fp32':>12}",
    ]
    for name in bf16:
        ratio = bf16[name] / fp32[name] if fp32[name] else float("nan")
        lines.append(f"{name:22}{bf16[name]:10.3f}{fp32[name]:10.3f}{ratio:12.2f}")
    lines.append(
        "LM head on response positions, time against on all positions: "
        f"bf16 {bf16['head_on_response_s'] / bf16['head_on_all_s']:.2f}, "
        f"fp32 {fp32['head_on_response_s'] / fp32['head_on_all_s']:.2f}"
    )
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, help="folder of a causal language model")
    source.add_argument("--tiny", action="store_true", help="a random two-layer Llama instead")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
