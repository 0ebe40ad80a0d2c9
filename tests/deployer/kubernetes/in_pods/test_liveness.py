from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from neuroweaver.deployer.kubernetes.in_pods import liveness
from ports import free_port

SCRIPT = Path(liveness.__file__)
STALL_S = 60.0


class Vllm:
    """A fake: `/health`, `/metrics`, `/load` and completions of a server whose engine does what the test says."""

    def __init__(self) -> None:
        self.health = 200
        self.running, self.waiting, self.held = 0, 0, 0
        self.generated, self.prompts = 100, 1000
        self.started = 1.7e9
        self.metrics: Callable[[], tuple[int, str]] = lambda: (200, self.page())
        self.answers_completions = True
        self.asked: list[str] = []
        self._over = threading.Event()
        vllm = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                vllm.asked.append(self.path)
                load = json.dumps({"server_load": vllm.held})
                pages = {"/health": (vllm.health, ""), "/load": (200, load)}
                self.reply(*(vllm.metrics() if self.path == "/metrics" else pages[self.path]))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                vllm.asked.append(f"{self.path} {body['model']} {body['max_tokens']}")
                if not vllm.answers_completions:
                    vllm._over.wait()  # as an engine that hangs
                vllm.generated += 1
                self.reply(200, "{}")

            def reply(self, status: int, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_):
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def page(self) -> str:
        labels = '{engine="0",model_name="acme/base"}'
        return (
            "# HELP vllm:num_requests_running Number of requests in model execution batches.\n"
            "# TYPE vllm:num_requests_running gauge\n"
            f"process_start_time_seconds {self.started}\n"
            f"vllm:num_requests_running{labels} {float(self.running)}\n"
            f"vllm:num_requests_waiting{labels} {float(self.waiting)}\n"
            f"vllm:prompt_tokens_total{labels} {float(self.prompts)}\n"
            f"vllm:generation_tokens_total{labels} {float(self.generated)}\n"
            f"vllm:generation_tokens_created{labels} 1.7e+09\n"
        )

    def close(self) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def vllm() -> Iterator[Vllm]:
    made = Vllm()
    yield made
    made.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "liveness.json"


def assert_stalled(outcome: tuple[bool, str]) -> None:
    is_alive, why = outcome
    assert not is_alive
    assert re.fullmatch(r"there is work, and no token moved for 6\d s", why), why


def look(vllm: Vllm | int, file: Path, stall_s: float = STALL_S) -> tuple[bool, str]:
    """As the kubelet runs it: a process of its own, without site packages. Whether it is alive, and the words."""
    port = vllm if isinstance(vllm, int) else vllm.port
    command = [sys.executable, "-IS", str(SCRIPT), f"--port={port}", f"--state={file}"]
    done = subprocess.run(
        [*command, f"--stall-s={stall_s}"],
        capture_output=True,
        text=True,
        check=False,
        # A proxy for the pod's way out is none to the server beside it.
        env=os.environ | {"http_proxy": "http://127.0.0.1:1"},
    )
    assert done.stderr == ""
    assert done.returncode in {0, 1}
    return done.returncode == 0, done.stdout.strip()


def earlier(file: Path, since_s: float, seen_s: float = 10.0) -> None:
    """Has the figures that were written down come from an earlier look."""
    told = json.loads(file.read_text())
    now = time.monotonic()
    file.write_text(json.dumps(told | {"since": now - since_s, "seen": now - seen_s}))


def test_an_idle_server_is_alive_for_ever(vllm: Vllm, file: Path):
    assert look(vllm, file) == (True, "alive")
    earlier(file, since_s=86_400)
    assert look(vllm, file) == (True, "alive")


def test_a_server_whose_tokens_move_is_alive(vllm: Vllm, file: Path):
    vllm.running = 2
    look(vllm, file)
    for name in ("generated", "prompts"):
        earlier(file, since_s=500)
        setattr(vllm, name, getattr(vllm, name) + 1)
        assert look(vllm, file) == (True, "alive")


@pytest.mark.parametrize("kind", ["running", "waiting"])
def test_a_server_that_has_work_and_makes_no_token_is_not_alive(vllm: Vllm, file: Path, kind: str):
    setattr(vllm, kind, 2)
    assert look(vllm, file)[0]
    earlier(file, since_s=61)
    assert_stalled(look(vllm, file))
    # It stays so until a token moves.
    assert not look(vllm, file)[0]
    vllm.generated += 1
    assert look(vllm, file)[0]


def test_the_stall_is_measured_from_look_to_look_without_help(vllm: Vllm, file: Path):
    vllm.running = 1
    assert look(vllm, file, stall_s=1.0)[0]
    time.sleep(1.1)
    assert not look(vllm, file, stall_s=1.0)[0]


def test_a_long_prompt_may_take_its_time(vllm: Vllm, file: Path):
    vllm.running = 1
    look(vllm, file)
    earlier(file, since_s=55)
    assert look(vllm, file)[0]
    vllm.prompts += 100_000  # vLLM counts a prompt once it is read to its end
    earlier(file, since_s=65)
    assert look(vllm, file)[0]


def test_time_without_work_is_no_stall(vllm: Vllm, file: Path):
    look(vllm, file)
    earlier(file, since_s=3600)
    look(vllm, file)
    vllm.running = 1
    assert look(vllm, file)[0]


@pytest.mark.parametrize("tokens", [0, 5, 100])
def test_a_server_that_was_started_anew_is_judged_anew(vllm: Vllm, file: Path, tokens: int):
    vllm.running, vllm.generated = 1, tokens
    look(vllm, file)
    earlier(file, since_s=500)
    vllm.started += 30
    vllm.generated, vllm.prompts = min(tokens, 5), 1000
    assert look(vllm, file) == (True, "alive")


def test_a_counter_that_falls_has_moved(vllm: Vllm, file: Path):
    vllm.running = 1
    look(vllm, file)
    earlier(file, since_s=500)
    vllm.generated = 3
    assert look(vllm, file)[0]


def test_looks_far_apart_say_nothing_together(vllm: Vllm, file: Path):
    vllm.running = 1
    look(vllm, file)
    earlier(file, since_s=500, seen_s=300)
    assert look(vllm, file)[0]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"tokens": 1}',
        '{"started": 1, "tokens": "x", "since": 0, "seen": 0}',
        "\x00\xff",
    ],
)
def test_a_damaged_file_is_as_good_as_none(vllm: Vllm, file: Path, content: str):
    vllm.running = 1
    file.write_bytes(content.encode("latin-1"))
    assert look(vllm, file) == (True, "alive")
    earlier(file, since_s=61)
    assert not look(vllm, file)[0]


def test_a_file_from_the_future_is_as_good_as_none(vllm: Vllm, file: Path):
    vllm.running = 1
    look(vllm, file)
    earlier(file, since_s=500, seen_s=-100)  # the node was booted since
    assert look(vllm, file)[0]


def test_nothing_is_left_beside_the_file(vllm: Vllm, file: Path):
    look(vllm, file)
    assert list(file.parent.iterdir()) == [file]


def test_a_file_that_cannot_be_written_ends_no_server(vllm: Vllm, file: Path):
    vllm.running = 1
    assert look(vllm, file.parent / "none" / file.name) == (True, "alive")


NO_NUMBER = "vllm:num_requests_running NaN\nvllm:num_requests_waiting 0\n"


@pytest.mark.parametrize(
    "page",
    [
        (404, "not found"),
        (500, ""),
        (200, ""),
        (200, "vllm:num_requests_running 3\nvllm:num_requests_waiting 0\n"),
        (200, f"{NO_NUMBER}vllm:prompt_tokens_total 1\nvllm:generation_tokens_total 1\n"),
        (200, "\x00 nonsense } {\nvllm:num_requests_running many\n"),
    ],
)
def test_where_metrics_are_missing_health_decides(vllm: Vllm, file: Path, page: tuple[int, str]):
    vllm.running = 1
    look(vllm, file)
    earlier(file, since_s=500)
    vllm.metrics = lambda: page
    assert look(vllm, file) == (True, "alive")
    vllm.health = 500
    assert not look(vllm, file)[0]


@pytest.mark.parametrize("status", [500, 503, 404])
def test_a_server_whose_health_is_bad_is_not_alive(vllm: Vllm, file: Path, status: int):
    vllm.health = status
    assert look(vllm, file) == (False, f"/health answers {status}")


def test_a_server_that_does_not_listen_is_not_alive(file: Path):
    assert look(free_port(), file) == (False, "/health does not answer: ConnectionRefusedError")


def test_an_engine_that_hangs_and_says_it_is_idle_is_found_out(vllm: Vllm, file: Path):
    """It fell asleep before it told of the request that woke it."""
    vllm.held = 1
    vllm.answers_completions = False
    assert look(vllm, file)[0]
    earlier(file, since_s=61)
    assert_stalled(look(vllm, file))
    assert vllm.asked[-1] == "/v1/completions acme/base 1"


def test_a_count_of_requests_that_is_wrong_ends_no_server(vllm: Vllm, file: Path):
    vllm.held = 1
    look(vllm, file)
    earlier(file, since_s=61)
    assert look(vllm, file) == (True, "alive")
    assert vllm.asked[-1] == "/v1/completions acme/base 1"


def test_no_token_is_asked_for_otherwise(vllm: Vllm, file: Path):
    for running, held in ((0, 0), (1, 1), (0, 1)):
        vllm.running, vllm.held = running, held
        look(vllm, file)
    earlier(file, since_s=59)
    look(vllm, file)
    assert not [each for each in vllm.asked if each.startswith("/v1")]


def test_names_are_those_that_are_measured():
    from neuroweaver.deployer.model_servers.metrics import VLLM

    assert (VLLM.running, VLLM.waiting) == liveness._WORK
    assert VLLM.tokens in liveness._TOKENS
