from __future__ import annotations

import threading
import time
from collections import defaultdict
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    GenerationConfig,
    MistralConfig,
    Qwen3Config,
)

from neuroweaver.serving.engine.adapters import LoraAdapters
from neuroweaver.serving.engine.engine import Engine, QueueFull
from neuroweaver.serving.engine.generation import LENGTH, STOP, Generation
from neuroweaver.serving.engine.network import CannotServe, Network
from neuroweaver.serving.status import Pulse

PROMPTS = [
    "The brakes squeal",
    "An oil change every year keeps the engine clean and the warranty valid, so why",
    "lease",
    "system user assistant question answer part number price finance",
    "Replace the pads. " * 20,
    "a",
]


class Bench:
    """An engine in its thread, and what it delivered to whom."""

    def __init__(self, network, tokenizer, **options):
        self.tokenizer = tokenizer
        self.pulse = options.pop("pulse", None) or Pulse(30, 30)
        self.engine = Engine(network, tokenizer, self.deliver, self.pulse, **options)
        self.deltas = defaultdict(list)
        self.order = []
        self.ended = threading.Condition()
        self.thread = threading.Thread(target=self.engine.run, daemon=True)

    def deliver(self, made):
        with self.ended:
            for answer, delta in made:
                self.deltas[answer].append(delta)
                self.order.append(answer)
            self.ended.notify_all()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.engine.stop()
        self.thread.join(120)

    def submit(self, text, max_tokens=24, **options):
        prompt = text if isinstance(text, list) else self.tokenizer(text)["input_ids"]
        return self.engine.submit(Generation(prompt, max_tokens, **options))

    def wait(self, *answers):
        with self.ended:
            assert self.ended.wait_for(
                lambda: all(self.deltas[each] and self.deltas[each][-1].is_last for each in answers), 60
            )
        return [self.generated(each) for each in answers]

    def generated(self, answer):
        return answer.tokens[len(answer.generation.prompt) :]

    def run(self, *texts, **options):
        return self.wait(*(self.submit(text, **options) for text in texts))

    def text(self, answer):
        return "".join(delta.text for delta in self.deltas[answer])


@pytest.fixture(scope="module")
def tokenizer(base):
    return AutoTokenizer.from_pretrained(base)


@pytest.fixture(scope="module")
def model(base):
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="sdpa").eval()


def network_of(model, *, max_cells=1 << 14, max_context=512, adapters=None):
    return Network(model, max_context=max_context, max_cells=max_cells, adapters=adapters)


@pytest.fixture
def bench(model, tokenizer):
    with Bench(network_of(model), tokenizer) as running:
        yield running


def reference(model, prompt, count):
    """What transformers itself generates greedily from one prompt."""
    config = GenerationConfig(max_new_tokens=count, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        ids = torch.tensor([prompt])
        return model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[
            0, len(prompt) :
        ].tolist()


def test_an_answer_is_the_same_alone_and_in_a_batch(bench):
    together = bench.run(*PROMPTS)
    alone = [bench.run(prompt)[0] for prompt in PROMPTS]
    assert together == alone
    assert len({tuple(each) for each in together}) == len(PROMPTS)


def test_who_joins_and_leaves_changes_nothing_for_the_others(bench):
    alone = [bench.run(prompt, max_tokens=40)[0] for prompt in PROMPTS]
    answers = []
    for index, prompt in enumerate(PROMPTS):
        answers.append(bench.submit(prompt, max_tokens=40))
        bench.submit(prompt, max_tokens=3 + index)
        time.sleep(0.01)
    assert bench.wait(*answers) == alone


SHAPE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}


@pytest.mark.parametrize(
    "config",
    [
        Qwen3Config(**SHAPE),
        MistralConfig(**SHAPE, sliding_window=8),
        Gemma3TextConfig(
            **SHAPE,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    ],
    ids=["full", "sliding", "mixed"],
)
def test_answers_are_those_of_transformers_for_every_kind_of_attention(config, tokenizer):
    torch.manual_seed(0)
    config.eos_token_id = None
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.copy_(torch.randn_like(weight) * 0.3)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    expected = [reference(model, prompt, 24) for prompt in prompts]
    with Bench(network_of(model), tokenizer) as bench:
        assert bench.run(*prompts) == expected


def test_a_model_with_layers_of_another_kind_is_refused(model):
    model.config.layer_types = ["linear_attention", "full_attention"]
    try:
        with pytest.raises(CannotServe, match="linear_attention"):
            network_of(model)
    finally:
        del model.config.layer_types


@pytest.fixture(scope="module")
def long_model(tmp_path_factory):
    from serving.models import tiny_base

    folder = tiny_base(tmp_path_factory.mktemp("long") / "base", context=2048)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_the_end_of_a_long_prompt_and_what_came_after_it_keep_out_of_each_others_way(long_model, tokenizer):
    # Ten tokens are left after two pieces; the next prompt is longer than the room behind them.
    long = tokenizer("Replace the pads. " * 500)["input_ids"][:1034]
    prompts = [long, *(tokenizer(text)["input_ids"] for text in reversed(PROMPTS[:5])), long[:1030]]
    assert len(prompts[1]) > 64
    expected = [reference(long_model, prompt, 3) for prompt in prompts]
    with Bench(network_of(long_model, max_context=2048), tokenizer) as bench:
        assert bench.run(*prompts, max_tokens=3) == expected


def test_a_long_prompt_goes_through_in_pieces_while_others_make_tokens(long_model, tokenizer):
    model = long_model
    long = tokenizer("Replace the pads. " * 400)["input_ids"][:1500]
    with Bench(network_of(model, max_context=2048), tokenizer) as bench:
        short = bench.submit("lease", max_tokens=200)
        late = bench.submit(long, max_tokens=4)
        assert bench.wait(late) == [reference(model, long, 4)]
        bench.wait(short)
        with bench.ended:
            made_before = bench.order[: bench.order.index(late)].count(short)
    assert made_before >= 2  # one of the pieces of 512 tokens lies between any two of them


def test_memory_for_less_than_all_delays_and_changes_no_answer(model, tokenizer):
    with Bench(network_of(model), tokenizer) as roomy:
        expected = roomy.run(*PROMPTS, max_tokens=100)
    # 512 cells: one row of the whole context, or a few short ones, which grow out of it.
    with Bench(network_of(model, max_cells=512), tokenizer) as tight:
        assert tight.run(*PROMPTS, max_tokens=100) == expected


def test_a_seed_gives_the_same_answer_in_any_company(bench):
    options = {"temperature": 1.0, "top_p": 0.9}
    (alone,) = bench.run(PROMPTS[0], seed=5, **options)
    answers = [bench.submit(text, seed=seed, **options) for seed, text in enumerate(PROMPTS)]
    mine = bench.submit(PROMPTS[0], seed=5, **options)
    bench.submit(PROMPTS[1], temperature=0.7)
    bench.wait(*answers)
    assert bench.wait(mine) == [alone]
    assert bench.run(PROMPTS[0], seed=6, **options) != [alone]


def test_a_stop_text_ends_the_answer_before_it(bench):
    answer = bench.submit(PROMPTS[0], max_tokens=60)
    bench.wait(answer)
    whole = bench.text(answer)
    stop = whole[10:13]
    stopped = bench.submit(PROMPTS[0], max_tokens=60, stops=[stop])
    bench.wait(stopped)
    assert bench.text(stopped) == whole[: whole.index(stop)]
    assert bench.deltas[stopped][-1].finish_reason == STOP
    assert bench.deltas[answer][-1].finish_reason == LENGTH


def test_each_answer_ends_at_its_own_ends_alone(bench):
    (whole,) = bench.run(PROMPTS[1])
    end = whole[3]
    cut = bench.submit(PROMPTS[1], ends=frozenset({end, 10**6}))
    free = bench.submit(PROMPTS[1])
    expected = whole[: whole.index(end) + 1]
    assert bench.wait(cut, free) == [expected, whole]
    assert bench.deltas[cut][-1].finish_reason == STOP
    assert bench.text(cut) == bench.tokenizer.decode(expected[:-1])


def test_the_context_ends_an_answer(model, tokenizer):
    with Bench(network_of(model, max_context=40), tokenizer) as bench:
        answer = bench.submit([5] * 30, max_tokens=1000)
        (made,) = bench.wait(answer)
    assert len(made) == 10
    assert bench.deltas[answer][-1].finish_reason == LENGTH


def test_nothing_more_is_made_for_a_cancelled_answer(bench):
    answer = bench.submit("lease", max_tokens=400)
    other = bench.submit(PROMPTS[0], max_tokens=30)
    with bench.ended:
        assert bench.ended.wait_for(lambda: len(bench.deltas[answer]) > 2, 120)
    bench.engine.cancel(answer)
    (made,) = bench.wait(other)
    (alone,) = bench.run(PROMPTS[0], max_tokens=30)
    assert made == alone
    assert answer.made < 400
    assert not any(delta.is_last for delta in bench.deltas[answer])


def test_a_full_queue_says_when_to_come_again(model, tokenizer):
    bench = Bench(network_of(model), tokenizer, max_batch_size=2, max_queue_size=1)
    for _ in range(3):  # the engine does not run yet: two would start, one waits
        bench.submit("lease")
    with pytest.raises(QueueFull) as raised:
        bench.submit("lease")
    assert 1 <= raised.value.retry_after_s <= 60
    with bench:
        time.sleep(0.5)
        bench.submit("lease")  # there is room again


def test_a_failing_step_ends_its_answers_with_an_error_and_the_next_ones_are_made(model, tokenizer):
    network = network_of(model)
    fails = threading.Event()
    forward = network.forward

    def breaking(*arguments):
        if fails.is_set():
            raise RuntimeError("no memory")
        return forward(*arguments)

    network.forward = breaking
    with Bench(network, tokenizer) as bench:
        fails.set()
        answer = bench.submit("lease")
        bench.wait(answer)
        assert bench.deltas[answer][-1].error
        fails.clear()
        assert len(bench.run("lease")[0]) == 24


def test_work_between_steps_runs_and_its_error_reaches_the_caller(bench):
    assert bench.engine.between_steps(threading.current_thread).result(30) is bench.thread

    def fail():
        raise KeyError("x")

    failed: Future[None] = bench.engine.between_steps(fail)
    with pytest.raises(KeyError):
        failed.result(30)
    assert bench.run("lease")


def test_an_idle_engine_proves_itself_by_a_token_of_its_own(model, tokenizer):
    with Bench(network_of(model), tokenizer, pulse=Pulse(5, 0.05)) as bench:
        seen = set()
        deadline = time.monotonic() + 120
        while len(seen) < 4 and time.monotonic() < deadline:
            seen.add(bench.pulse.last_token_time)
            time.sleep(0.01)
    assert len(seen) >= 4
    assert not bench.deltas


@pytest.fixture
def switched(base, first, second):
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="sdpa").eval()
    adapters = LoraAdapters(plain, "1.0.0", first / "adapter")
    adapters.add("2.0.0", second / "adapter")
    return network_of(adapters.model, adapters=adapters)


def merged(base: Path, folder: Path):
    from peft import PeftModel

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(plain, str(folder / "adapter")).merge_and_unload().eval()


def test_each_row_of_a_batch_answers_with_its_own_adapter(switched, base, first, second, tokenizer):
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    one, two = merged(base, first), merged(base, second)
    with Bench(switched, tokenizer) as bench:
        answers = [bench.submit(each, version=version) for each in prompts for version in ("1.0.0", "2.0.0")]
        made = bench.wait(*answers)
    assert made[0::2] == [reference(one, each, 24) for each in prompts]
    assert made[1::2] == [reference(two, each, 24) for each in prompts]
    assert made[0::2] != made[1::2]


def test_an_adapter_leaves_once_its_last_answer_ended(switched, tokenizer):
    with Bench(switched, tokenizer) as bench:
        answer = bench.submit("lease", max_tokens=60, version="2.0.0")
        other = bench.submit("lease", max_tokens=60, version="1.0.0")
        removed = bench.engine.between_steps(
            lambda: switched.adapters.remove("2.0.0"), version_unused="2.0.0"
        )
        removed.result(30)
        assert bench.deltas[answer][-1].is_last
        bench.wait(other)
        assert bench.run("lease", max_tokens=60, version="1.0.0") == [bench.generated(other)]
    assert list(switched._model.peft_config) == ["adapter_0"]


def test_an_adapter_that_does_not_fit_leaves_nothing_behind(switched, tmp_path, tokenizer):
    from serving.models import adapter
    from trainer.tiny import tiny_llama

    other = adapter(tiny_llama(tmp_path / "wider", hidden_size=96), tmp_path / "misfit", seed=1)
    with pytest.raises(RuntimeError):
        switched.adapters.add("3.0.0", other / "adapter")
    assert sorted(switched._model.peft_config) == ["adapter_0", "adapter_1"]
    with Bench(switched, tokenizer) as bench:
        assert bench.run("lease", version="2.0.0")
