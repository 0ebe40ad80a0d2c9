"""What continuous batching is worth on one accelerator, without HTTP: needs torch and transformers alone.

    python bench/serving_gpu.py                   a random Llama of about a billion weights, made on the spot
    python bench/serving_gpu.py --model <folder>  a causal language model

Three ways to make the same tokens, turn and turn about: transformers' own `generate` for one prompt after the
other, this server's engine for one prompt after the other, and the engine for sixteen at once. Figures are
medians. The answers of the engine, alone and together, are compared with those of `generate`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "services")]

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig  # noqa: E402

from neuroweaver.serving.engine.engine import Engine  # noqa: E402
from neuroweaver.serving.engine.generation import Answer, Delta, Generation  # noqa: E402
from neuroweaver.serving.engine.network import Network  # noqa: E402
from neuroweaver.serving.status import Pulse  # noqa: E402

# The shape of Llama 3.2 1B: 1.24 billion weights.
BILLION = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
SMALL = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


class Letters:
    """Stands in for a tokenizer: what the text is does not matter here, that it is made does."""

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        return "".join(chr(97 + token % 26) for token in tokens)


class Crowd:
    """An engine, and how long it takes to answer many."""

    def __init__(self, network: Network, rows: int) -> None:
        self._ended = threading.Semaphore(0)
        self.engine = Engine(network, Letters(), self._deliver, Pulse(600, 600), max_batch_size=rows)
        self.engine.warm_up()
        threading.Thread(target=self.engine.run, daemon=True).start()

    def _deliver(self, made: Sequence[tuple[Answer, Delta]]) -> None:
        for answer, delta in made:
            if delta.error:
                print(f"FAILED: {delta.error}", file=sys.stderr)
                os._exit(1)
            if delta.is_last and len(answer.generation.prompt) > 16:  # no warm-up
                self._ended.release()

    def answers(self, prompts: Sequence[list[int]], new_tokens: int) -> list[list[int]]:
        asked = [self.engine.submit(Generation(prompt, new_tokens)) for prompt in prompts]
        for _ in asked:
            self._ended.acquire()
        return [answer.tokens[len(answer.generation.prompt) :] for answer in asked]


def main() -> None:
    args = _arguments()
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = _model(args, device)
    longest = args.prompt_tokens + args.new_tokens
    network = Network(model, max_context=longest, max_cells=args.concurrent * (longest + 64))
    crowd = Crowd(network, args.concurrent)
    torch.manual_seed(1)
    vocabulary = model.config.get_text_config().vocab_size
    prompts = torch.randint(3, vocabulary, (args.concurrent, args.prompt_tokens)).tolist()

    plain = _plainly(model, device)
    ways: dict[str, Callable[[], tuple[list[list[int]], float]]] = {
        "generate_alone": lambda: _timed(
            lambda: [plain(each, args.new_tokens) for each in prompts[: args.alone]]
        ),
        "engine_alone": lambda: _timed(
            lambda: [crowd.answers([each], args.new_tokens)[0] for each in prompts[: args.alone]]
        ),
        "engine_together": lambda: _timed(lambda: crowd.answers(prompts, args.new_tokens)),
    }
    made: dict[str, list[list[int]]] = {}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(args.rounds + 1):
        for name, way in ways.items():
            made[name], seconds = way()
            if round_number:  # the first one warms up
                speeds[name].append(sum(map(len, made[name])) / seconds)
    medians = {f"{name}_tokens_per_s": round(statistics.median(each), 1) for name, each in speeds.items()}
    ratios = zip(speeds["engine_alone"], speeds["engine_together"], strict=True)
    figures = {
        "machine": _machine(device),
        "weights": sum(weight.numel() for weight in model.parameters()),
        "dtype": str(model.dtype),
        "concurrent": args.concurrent,
        "prompt_tokens": args.prompt_tokens,
        "new_tokens": args.new_tokens,
        "rounds": args.rounds,
        **medians,
        "ratio": round(statistics.median(many / one for one, many in ratios), 2),
        "ratio_to_generate": round(
            medians["engine_together_tokens_per_s"] / medians["generate_alone_tokens_per_s"], 2
        ),
        # Kernels for other batch sizes round differently; fp32 shows that nothing else differs.
        "same_as_generate": _share(made["engine_alone"], made["generate_alone"]),
        "same_together_as_alone": _share(made["engine_together"], made["engine_alone"]),
    }
    if device.type == "cuda":
        figures["peak_cuda_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    print(json.dumps(figures, indent=2))


def _timed(work: Callable[[], list[list[int]]]) -> tuple[list[list[int]], float]:
    begin = time.perf_counter()
    made = work()  # token ids on the host, so the device is done
    return made, time.perf_counter() - begin


def _plainly(model: Any, device: torch.device) -> Callable[[list[int], int], list[int]]:
    def generate(prompt: list[int], new_tokens: int) -> list[int]:
        config = GenerationConfig(
            max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=0
        )
        ids = torch.tensor([prompt], device=device)
        with torch.inference_mode():
            whole = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        return [int(token) for token in whole[0, len(prompt) :].tolist()]

    return generate


def _share(made: list[list[int]], expected: list[list[int]]) -> float:
    """The share of tokens before the first that differs, over the answers that both made."""
    same = total = 0
    for one, other in zip(made, expected, strict=False):
        first = next(
            (at for at, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), len(one)
        )
        same, total = same + first, total + len(one)
    return round(same / total, 4)


def _model(args: argparse.Namespace, device: torch.device) -> Any:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[args.dtype]
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.model
        if folder is None:
            folder = Path(scratch)
            torch.manual_seed(0)
            LlamaConfig(
                **(SMALL if args.small else BILLION), eos_token_id=None, pad_token_id=0
            ).save_pretrained(folder)
            config = LlamaConfig.from_pretrained(folder)
            with torch.device(device):
                model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        else:
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, attn_implementation="sdpa", use_safetensors=True, local_files_only=True
            )
    model.generation_config.eos_token_id = None
    return model.to(device).eval().requires_grad_(False)


def _machine(device: torch.device) -> str:
    name = (
        torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    )
    return (
        f"{name}, torch {torch.__version__}, transformers {transformers.__version__}; "
        f"load average {os.getloadavg()[0]:.1f}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="folder of a causal language model")
    parser.add_argument(
        "--small", action="store_true", help="a random model of two layers, to try this program"
    )
    parser.add_argument("--device", help="cuda or cpu; default: cuda if there is one")
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), default="bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrent", type=int, default=16)
    parser.add_argument(
        "--alone", type=int, default=4, help="prompts a round that are answered one at a time"
    )
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    return parser.parse_args()


if __name__ == "__main__":
    main()
