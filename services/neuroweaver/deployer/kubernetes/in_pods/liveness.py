"""Whether a vLLM server still makes tokens; run by the kubelet in vLLM's own container, which has Python and
nothing of ours.

    python3 liveness.py --port 8000 --state /scratch/liveness.json --stall-s 120

vLLM's `/health` says that its engine has not died. An engine that hangs has not died either: it keeps its
requests and answers none. So besides, tokens have to move while there is work, by the counters of `/metrics`.
What they were at an earlier look, and since when they stand still, is kept in the state file.

An engine that hangs tells of no new work: `/metrics` goes on showing what the engine said last, "idle" maybe.
The front end counts the requests that it holds by itself (`/load`). Where it holds some, the engine claims to
have none, and no token moved for the whole time, one token is asked for, and the answer decides.

Exits 0 if it is alive, 1 if not; the line that it writes is shown in the pod's events. Whatever it cannot
know counts as alive: a page that is missing or a disk that is full is no reason to end a server.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import re
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

HTTP_S = 4.0
"""For each of at most four requests, so that the probe's own limit must be above 16."""
LOOKS_S = 60.0
"""Looks further apart say nothing together: the server was started anew in between, or the node slept."""
_SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
_MODEL = re.compile(r'model_name="((?:[^"\\]|\\.)*)"')
_WORK = ("vllm:num_requests_running", "vllm:num_requests_waiting")
_TOKENS = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total")


@dataclass(frozen=True)
class Figures:
    """started: of the server's process, in seconds since 1970; 0 where it does not tell. tokens: read and
    made since then.
    """

    started: float
    requests: float
    tokens: float
    model: str


@dataclass(frozen=True)
class State:
    """since, seen: when tokens began to stand still and when that was last looked at, in seconds of the
    monotonic clock, which all processes of a node share and nobody sets.
    """

    started: float
    tokens: float
    since: float
    seen: float


def figures(page: str) -> Figures | None:
    """None if the page does not tell of work and tokens."""
    sums: dict[str, float] = {}
    model = ""
    for line in page.splitlines():
        match = _SAMPLE.match(line)
        if match is None:
            continue
        name, labels, value = match.groups()
        try:
            sums[name] = sums.get(name, 0.0) + float(value)
        except ValueError:
            continue
        if name == _WORK[0] and (found := _MODEL.search(labels or "")):
            model = found[1]
    if not sums.keys() >= {*_WORK, *_TOKENS}:
        return None
    requests, tokens = (sum(sums[name] for name in names) for names in (_WORK, _TOKENS))
    if not (math.isfinite(requests) and math.isfinite(tokens)):
        return None
    return Figures(sums.get("process_start_time_seconds", 0.0), requests, tokens, model)


def read(file: Path) -> State | None:
    """None if there is none, or it is damaged."""
    try:
        told = json.loads(file.read_text())
        state = State(*(float(told[name]) for name in ("started", "tokens", "since", "seen")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if all(map(math.isfinite, asdict(state).values())) else None


def write(file: Path, state: State) -> None:
    """As a whole or not at all. Raises OSError."""
    part = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps(asdict(state)))
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def ask(port: int, path: str, body: object = None) -> tuple[int, str]:
    """The status and text of an answer. Raises OSError and http.client.HTTPException if there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HTTP_S)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


def held(port: int) -> float:
    """How many requests the front end holds; 0 where it does not tell."""
    try:
        status, text = ask(port, "/load")
        return float(json.loads(text)["server_load"]) if status == http.client.OK else 0.0
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return 0.0


def makes_a_token(port: int, model: str) -> bool:
    """Any answer counts, also that it cannot be asked this way: only silence says that the engine hangs."""
    try:
        ask(port, "/v1/completions", {"model": model, "prompt": "a", "max_tokens": 1})
    except (OSError, http.client.HTTPException):
        return False
    return True


def trouble(port: int, file: Path, stall_s: float) -> str:
    """Why it is not alive; empty if it is."""
    try:
        status, _ = ask(port, "/health")
    except (OSError, http.client.HTTPException) as error:
        return f"/health does not answer: {type(error).__name__}"
    if status != http.client.OK:
        return f"/health answers {status}"
    try:
        status, page = ask(port, "/metrics")
    except (OSError, http.client.HTTPException):
        return ""
    now = figures(page) if status == http.client.OK else None
    return stall(port, now, file, stall_s) if now is not None else ""


def stall(port: int, now: Figures, file: Path, stall_s: float) -> str:
    """Why it counts as hanging; empty if it does not. Writes down what was seen."""
    at = time.monotonic()
    before = read(file)
    has_work = now.requests > 0 or held(port) > 0
    is_still = (
        has_work
        and before is not None
        and (before.started, before.tokens) == (now.started, now.tokens)
        and before.since <= before.seen <= at <= before.seen + LOOKS_S
    )
    since = before.since if is_still and before is not None else at
    try:
        write(file, State(now.started, now.tokens, since, at))
    except OSError:
        return ""
    still_s = at - since
    if still_s < stall_s or (now.requests <= 0 and makes_a_token(port, now.model)):
        return ""
    return f"there is work, and no token moved for {still_s:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--stall-s", type=float, required=True)
    given = parser.parse_args()
    found = trouble(given.port, given.state, given.stall_s)
    sys.stdout.write(f"{found or 'alive'}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
