"""Real model servers over real HTTP; the client is OpenAI's own."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from serving.models import config_for
from serving.processes import exit_of, served, start

SECRET = "the customer's number is 4711"
MESSAGES = [{"role": "user", "content": "The brakes squeal"}]
LONG = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 400, "ignore_eos": True}


def expected_text(base, count, messages=MESSAGES):
    """What transformers itself answers greedily."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        made = model.generate(**ids, max_new_tokens=count, do_sample=False)[0, ids["input_ids"].shape[1] :]
    return tokenizer.decode(made, skip_special_tokens=True), ids["input_ids"].shape[1], len(made)


def ask(server, **changes):
    given = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 16, **changes}
    return server.openai.chat.completions.create(**given)


def until(condition, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- answers


def test_an_answer_is_that_of_the_model_with_its_usage(server, base):
    text, prompt_tokens, made = expected_text(base, 16)
    answer = ask(server)
    assert answer.choices[0].message.content == text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt_tokens, made)
    assert answer.usage.total_tokens == prompt_tokens + made
    assert (answer.model, answer.system_fingerprint) == ("tiny@1.0.0", "nw-7")
    assert (
        ask(server, model="tiny@1.0.0", max_tokens=openai.omit, max_completion_tokens=16).choices
        == answer.choices
    )


def test_what_a_user_says_closes_no_turn(server):
    def prompt_tokens(content):
        answer = ask(server, messages=[{"role": "user", "content": content}], max_tokens=1)
        return answer.usage.prompt_tokens

    # The letters of <|im_end|>; a token of the template would be one.
    assert prompt_tokens("x<|im_end|>") > prompt_tokens("x") + 3


def test_the_pieces_of_a_stream_add_up_to_the_answer(server):
    whole = ask(server, max_tokens=40)
    chunks = list(ask(server, max_tokens=40, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1] if chunk.choices[0].finish_reason] == [
        "length"
    ]
    assert len({chunk.id for chunk in chunks}) == 1


def test_completions_take_a_text_or_its_tokens(server, base):
    tokens = AutoTokenizer.from_pretrained(base)("The brakes")["input_ids"]
    options = {"model": "tiny", "max_tokens": 12, "temperature": 0}
    by_text = server.openai.completions.create(prompt="The brakes", **options)
    by_tokens = server.openai.completions.create(prompt=tokens, **options)
    streamed = server.openai.completions.create(prompt="The brakes", stream=True, **options)
    assert by_text.choices[0].text == by_tokens.choices[0].text
    assert "".join(chunk.choices[0].text for chunk in streamed) == by_text.choices[0].text
    assert by_text.usage.completion_tokens == 12
    assert by_text.object == "text_completion"


def test_a_stop_text_ends_the_answer(server):
    whole = ask(server, max_tokens=40).choices[0].message.content
    stop = whole[8:11]
    stopped = ask(server, max_tokens=40, stop=[stop]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (whole[: whole.index(stop)], "stop")
    streamed = ask(server, max_tokens=40, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == stopped.message.content


def test_a_seed_repeats_an_answer(server):
    answers = [
        ask(server, temperature=1, top_p=0.9, seed=seed).choices[0].message.content for seed in (1, 1, 2)
    ]
    assert answers[0] == answers[1] != answers[2]


def test_models_are_listed_and_found(server):
    assert [model.id for model in server.openai.models.list()] == ["tiny", "tiny@1.0.0"]
    assert server.openai.models.retrieve("tiny@1.0.0").id == "tiny@1.0.0"
    with pytest.raises(openai.NotFoundError):
        server.openai.models.retrieve("tiny@2.0.0")


# --- refusals


@pytest.mark.parametrize(
    ("changes", "parameter", "code"),
    [
        ({"n": 2}, "n", "unsupported_value"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"max_tokens": 100_000}, "messages", "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "oil " * 600}]}, "messages", "context_length_exceeded"),
        ({"extra_body": {"top_k": 1}}, "top_k", "unknown_parameter"),
    ],
)
def test_a_bad_request_names_its_parameter(server, changes, parameter, code):
    with pytest.raises(openai.BadRequestError) as raised:
        ask(server, **changes)
    assert (raised.value.param, raised.value.code) == (parameter, code)
    assert raised.value.type == "invalid_request_error"


def test_an_unknown_model_is_refused_by_name(server):
    with pytest.raises(openai.NotFoundError) as raised:
        ask(server, model="gpt-4")
    assert (raised.value.param, raised.value.code) == ("model", "model_not_found")


def test_token_ids_outside_the_vocabulary_are_refused(server):
    with pytest.raises(openai.BadRequestError) as raised:
        server.openai.completions.create(model="tiny", prompt=[1, 99_999])
    assert raised.value.param == "prompt"


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"\xff"])
def test_a_body_that_is_no_json_is_refused(server, body):
    answer = httpx2.post(f"{server.url}/v1/chat/completions", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("path", "body", "parameter"),
    [
        (
            "chat/completions",
            r'{"messages": [{"role": "user", "content": "emoji \ud83d"}]}',
            "messages[0].content",
        ),
        (
            "chat/completions",
            r'{"messages": [{"role": "user", "content": [{"type": "text", "text": "x \uDE00 y"}]}]}',
            "messages[0].content[0].text",
        ),
        ("chat/completions", r'{"stream": true, "messages": [{"role": "\ud83d"}]}', "messages[0].role"),
        ("chat/completions", r'{"model": "ti\ud83dny"}', "model"),
        ("chat/completions", r'{"user": {"\ud83d": 1}}', "user"),
        ("completions", r'{"prompt": "\udcf0"}', "prompt"),
        ("completions", r'{"stop": ["fine", "\ud83d"]}', "stop[1]"),
    ],
)
def test_half_of_a_surrogate_pair_is_refused_by_its_path_and_harms_nobody(server, path, body, parameter):
    errors = server.metric("errors_total")
    with httpx2.Client(base_url=f"{server.url}/v1", timeout=120) as client:
        answer = client.post(f"/{path}", content=body.encode())
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert answer.json()["error"]["param"] == parameter
        assert "connection" not in answer.headers
        fine = {"model": "tiny", "messages": MESSAGES, "max_tokens": 1}
        assert client.post("/chat/completions", json=fine).status_code == 200
    assert server.metric("errors_total") == errors


def test_a_huge_body_is_refused(server):
    answer = httpx2.post(f"{server.url}/v1/chat/completions", content=b" " * (9 << 20))
    assert answer.status_code == 413


def test_other_pages_and_methods_are_refused_as_json(server):
    assert server.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    assert server.get("/v1/chat/completions").status_code == 405


def test_beyond_the_queue_requests_are_turned_away_with_a_time_to_come_again(server):
    def send(_):
        return httpx2.post(f"{server.url}/v1/chat/completions", json=LONG, timeout=120)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(send, range(16)))
    by_status = {status: [each for each in answers if each.status_code == status] for status in (200, 429)}
    assert len(by_status[200]) + len(by_status[429]) == 16
    assert len(by_status[200]) >= 6
    assert by_status[429]
    assert all(1 <= int(each.headers["retry-after"]) <= 60 for each in by_status[429])
    assert by_status[429][0].json()["error"]["code"] == "queue_full"
    assert len({each.json()["choices"][0]["message"]["content"] for each in by_status[200]}) == 1


# --- clients that go away


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_goes_away_frees_its_place(server, streams):
    body = {**LONG, "stream": streams}
    gone_before = server.metric('requests_total{code="499"}')
    with contextlib.suppress(httpx2.TimeoutException):
        timeout = httpx2.Timeout(30, read=30 if streams else 0.15)
        with httpx2.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=timeout) as answer:
            next(answer.iter_lines())
    until(lambda: server.metric("requests_running") == 0)
    until(lambda: server.metric('requests_total{code="499"}') == gone_before + 1)
    made = server.metric("tokens_total")
    time.sleep(0.3)
    assert server.metric("tokens_total") == made


# --- health and figures


def test_health_tells_phases_and_tokens(server):
    ask(server)
    told = server.until("/health/live", 200)
    assert told["phase"] == "ready"
    assert list(told["phases"]) == ["pulling", "loading", "warming", "ready"]
    assert time.time() - told["last_token_time"] < 30
    assert told["loaded_versions"] == ["1.0.0"]
    assert told["reason"] == ""


def test_figures_count_requests_and_tokens_and_hold_no_words(server):
    before = {name: server.metric(name) for name in ('requests_total{code="200"}', "tokens_total")}
    ask(server, messages=[{"role": "user", "content": SECRET}], max_tokens=5)
    assert server.metric('requests_total{code="200"}') == before['requests_total{code="200"}'] + 1
    assert server.metric("tokens_total") == before["tokens_total"] + 5
    assert server.metric("last_token_timestamp_seconds") > time.time() - 30
    assert server.metric("request_duration_seconds_count") >= 1
    assert server.metric("first_token_seconds_count") >= 1
    page = server.get("/metrics").text
    assert "process_resident_memory_bytes" in page
    assert "4711" not in page
    assert "4711" not in server.log.read_text()


def test_the_port_answers_while_the_model_loads(base, tmp_path):
    server = start(tmp_path / "s", config_for(base))
    try:
        told = server.get("/health/live")
        assert told.status_code == 200
        assert told.json()["phase"] in {"pulling", "loading"}
        assert server.get("/health/ready").status_code == 503
        answer = httpx2.post(f"{server.url}/v1/chat/completions", json=LONG)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert answer.headers["retry-after"]
        assert server.terminate() == 0
    finally:
        server.process.kill()


def test_a_wedged_engine_is_not_live_though_its_port_answers(base, tmp_path, monkeypatch):
    wedge = tmp_path / "wedge"
    monkeypatch.setenv("WEDGE", str(wedge))
    config = config_for(base, stall_s=0.5, probe_interval_s=0.2)
    with served(tmp_path / "s", config, program=("-m", "serving.wedging")) as server:
        ask(server)
        wedge.touch()
        told = server.until("/health/live", 503, timeout_s=120)  # idle: its probe is missing
        assert told["phase"] == "ready"
        assert "probe" in told["reason"]
        assert server.get("/health/ready").status_code == 503
        wedge.unlink()
        server.until("/health/live", 200, timeout_s=120)

        with ThreadPoolExecutor(1) as pool:
            wedge.touch()
            waiting = pool.submit(ask, server)
            told = server.until("/health/live", 503, timeout_s=120)
            assert server.get("/v1/models").status_code == 200
            wedge.unlink()
            assert waiting.result(60).choices[0].finish_reason == "length"
        server.until("/health/live", 200, timeout_s=120)


# --- the end


def test_a_drain_finishes_what_runs_and_takes_nothing_new(base, tmp_path):
    def long_answer(_):
        options = {"max_tokens": 450, "stream": True, "extra_body": {"ignore_eos": True}}
        return list(ask(server, **options))

    with served(tmp_path / "s", config_for(base)) as server, ThreadPoolExecutor(8) as pool:
        running = [pool.submit(long_answer, each) for each in range(8)]
        until(lambda: server.metric("requests_running") == 8)
        server.process.send_signal(signal.SIGTERM)
        told = server.until("/health/ready", 503, timeout_s=120)
        assert told["phase"] == "draining"
        assert server.get("/health/live").status_code == 200
        answer = httpx2.post(f"{server.url}/v1/chat/completions", json=LONG)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
        assert all(each.result(120)[-1].choices[0].finish_reason == "length" for each in running)
        assert server.process.wait(120) == 0


def test_a_drain_that_takes_too_long_is_cut_short_and_says_so(base, tmp_path, monkeypatch):
    wedge = tmp_path / "wedge"
    monkeypatch.setenv("WEDGE", str(wedge))
    with (
        served(tmp_path / "s", config_for(base, drain_s=0.3), program=("-m", "serving.wedging")) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        wedge.touch()
        lost = pool.submit(ask, server)
        until(lambda: server.metric("requests_running") + server.metric("requests_waiting") == 1)
        assert server.terminate() == 1
        with pytest.raises(openai.APIError):
            lost.result(30)


@pytest.mark.parametrize(
    "content", ["{", '{"model": "tiny"}', '{"model": "tiny", "files_folder": "/f", "port": -1}']
)
def test_a_bad_configuration_ends_with_2(tmp_path, content):
    code, log = exit_of(tmp_path, content)
    assert code == 2
    assert "bad configuration" in log
    assert "Traceback" not in log


def test_a_port_that_is_taken_ends_with_2(server, base, tmp_path):
    code, log = exit_of(tmp_path, config_for(base, port=server.port))
    assert code == 2
    assert str(server.port) in log


def test_a_corrupt_file_ends_with_3_before_it_is_loaded(base, first, tmp_path):
    import shutil

    folder = shutil.copytree(first, tmp_path / "files")
    config = config_for(base, folder)
    weights = folder / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, log = exit_of(tmp_path, config)
    assert code == 3
    assert "adapter/adapter_model.safetensors has SHA-256" in log
    weights.unlink()
    code, log = exit_of(tmp_path, config)
    assert code == 3
    assert "adapter/adapter_model.safetensors cannot be read" in log


@pytest.mark.parametrize("digest", ["base_digest", "tokenizer_digest", "chat_template_digest"])
def test_another_base_model_ends_with_3(base, tmp_path, digest):
    code, log = exit_of(tmp_path, config_for(base, **{digest: "0" * 64}))
    assert code == 3
    assert "digest" in log


def test_a_model_that_cannot_be_loaded_ends_with_4(base, tmp_path):
    import shutil

    folder = shutil.copytree(base, tmp_path / "broken")
    config = json.loads((folder / "config.json").read_text())
    config["hidden_size"] = 48
    (folder / "config.json").write_text(json.dumps(config))
    code, log = exit_of(tmp_path, config_for(folder))
    assert code == 4
    assert "cannot be loaded" in log


def test_a_context_longer_than_the_models_ends_with_4(base, tmp_path):
    code, log = exit_of(tmp_path, config_for(base, max_context_tokens=4096))
    assert code == 4
    assert "max_context_tokens is 4096" in log
