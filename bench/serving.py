"""What batching requests as they come is worth, over HTTP and with OpenAI's own client.

    python bench/serving.py --model <folder of a causal language model with chat template>
    python bench/serving.py --tiny

Starts a model server on loopback, then asks the same questions one at a time and sixteen at once, turn and
turn about, so that a change of the machine's load meets both. Figures are medians over the rounds. While all
sixteen run, health is asked again and again: its 99th percentile says whether that starves the HTTP loop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "services"), str(ROOT / "tests")]

import httpx2  # noqa: E402
from openai import AsyncOpenAI  # noqa: E402

from neuroweaver.base_models.folders import digests  # noqa: E402

QUESTIONS = [
    "How often should the engine oil be changed?",
    "My brakes squeal in the morning. What should I check first, and is it safe to drive to the workshop?",
    "Which is cheaper over four years, a lease or a loan?",
    "Is there a warranty on replaced parts?",
]
HEALTH_PERIOD_S = 0.02


async def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        model = _tiny(Path(scratch)) if args.tiny else args.model
        with _server(Path(scratch), model, args) as (url, ready_s):
            figures = {"machine": _machine(), "model": model.name, "cold_start_s": ready_s}
            figures |= await _measured(url, args)
    print(json.dumps(figures, indent=2) if args.json else _table(figures, args))


async def _measured(url: str, args: argparse.Namespace) -> dict[str, Any]:
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)
    await _many(client, 2, args.new_tokens)
    alone, together, first_tokens, health = [], [], [], []
    for _ in range(args.rounds):
        begin = time.perf_counter()
        for number in range(args.alone):
            await _ask(client, number, args.new_tokens)
        alone.append(args.alone * args.new_tokens / (time.perf_counter() - begin))

        watch = asyncio.ensure_future(_watch_health(url, health))
        begin = time.perf_counter()
        first_tokens += await _many(client, args.concurrent, args.new_tokens)
        together.append(args.concurrent * args.new_tokens / (time.perf_counter() - begin))
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
    return {
        "alone_tokens_per_s": statistics.median(alone),
        "together_tokens_per_s": statistics.median(together),
        "ratio": statistics.median(many / one for one, many in zip(alone, together, strict=True)),
        "together_first_token_s": statistics.median(first_tokens),
        "health_asked": len(health),
        "health_p50_ms": 1000 * statistics.median(health),
        "health_p99_ms": 1000 * _percentile(health, 99),
        "health_max_ms": 1000 * max(health),
    }


async def _many(client: AsyncOpenAI, count: int, new_tokens: int) -> list[float]:
    return list(await asyncio.gather(*(_ask(client, number, new_tokens) for number in range(count))))


async def _ask(client: AsyncOpenAI, number: int, new_tokens: int) -> float:
    """Seconds to the first token of an answer of exactly `new_tokens`."""
    begin = time.perf_counter()
    first, usage = math.inf, None
    stream = await client.chat.completions.create(
        model="bench",
        messages=[{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}],
        temperature=0,
        max_tokens=new_tokens,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            first = min(first, time.perf_counter() - begin)
        usage = chunk.usage or usage
    if usage is None or usage.completion_tokens != new_tokens:
        raise RuntimeError(f"asked for {new_tokens} tokens, got {usage}")
    return first


async def _watch_health(url: str, seconds: list[float]) -> None:
    async with httpx2.AsyncClient() as client:
        while True:
            begin = time.perf_counter()
            answer = await client.get(f"{url}/health/live", timeout=30)
            answer.raise_for_status()
            seconds.append(time.perf_counter() - begin)
            await asyncio.sleep(HEALTH_PERIOD_S)


@contextmanager
def _server(scratch: Path, model: Path, args: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """The address of a server that is ready, and how long that took from its start."""
    config = {
        "model": "bench",
        "base_folder": str(model),
        "base_digest": digests(model).base,
        "files_folder": "",
        "weight_type": args.dtype,
        "max_batch_size": args.concurrent,
    }
    (scratch / "server.json").write_text(json.dumps(config))
    log = scratch / "server.log"
    begin = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "neuroweaver.serving", "--config", str(scratch / "server.json")],
            stderr=output,
            env={**os.environ, "PYTHONPATH": str(ROOT / "services")},
        )
    try:
        port = _until(lambda: _port(log), process, log)
        _until(
            lambda: httpx2.get(f"http://127.0.0.1:{port}/health/ready", timeout=30).is_success, process, log
        )
        yield f"http://127.0.0.1:{port}", time.perf_counter() - begin
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _until(found: Any, process: subprocess.Popen[bytes], log: Path) -> Any:
    for _ in range(12_000):
        if process.poll() is not None:
            break
        if value := found():
            return value
        time.sleep(0.01)
    raise RuntimeError(f"the server did not come up:\n{log.read_text()[-4000:]}")


def _port(log: Path) -> int | None:
    for line in log.read_text().splitlines():
        if line.startswith("{") and (told := json.loads(line)).get("message") == "listening":
            return int(told["port"])
    return None


def _tiny(scratch: Path) -> Path:
    from trainer.tiny import tiny_llama  # noqa: PLC0415 (torch, for this choice alone)

    return tiny_llama(scratch / "tiny")


def _percentile(values: list[float], percent: float) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(len(values) * percent / 100) - 1)]


def _machine() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    cpu = names[0] if names else platform.machine()
    return f"{cpu}, {os.cpu_count()} cores; load average {os.getloadavg()[0]:.1f}"


def _table(figures: dict[str, Any], args: argparse.Namespace) -> str:
    asked, worst = figures["health_asked"], figures["health_max_ms"]
    rows = [
        ("cold start", figures["cold_start_s"], "s"),
        ("one at a time", figures["alone_tokens_per_s"], "tokens/s"),
        (f"{args.concurrent} at once", figures["together_tokens_per_s"], "tokens/s"),
        ("ratio", figures["ratio"], ""),
        (f"first token, {args.concurrent} at once", figures["together_first_token_s"], "s"),
        ("health while generating, median", figures["health_p50_ms"], f"ms ({asked} asked)"),
        ("health while generating, p99", figures["health_p99_ms"], f"ms (at most {worst:.1f})"),
    ]
    return "\n".join([
        f"{figures['model']} ({args.dtype or 'as stored'}) on {figures['machine']}",
        f"answers of {args.new_tokens} tokens; medians of {args.rounds} rounds",
        *(f"{name:34}{value:9.1f} {unit}" for name, value, unit in rows),
    ])  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, help="folder of a causal language model")
    source.add_argument("--tiny", action="store_true", help="a random two-layer Llama instead")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrent", type=int, default=16)
    parser.add_argument("--alone", type=int, default=2, help="answers a round that are asked one at a time")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=("", "bf16", "fp16", "fp32"), default="")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main())
