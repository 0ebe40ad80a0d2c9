"""Real model servers: processes of their own, and their health."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from openai import OpenAI

from serving.models import write

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 600.0


@dataclass
class Served:
    process: subprocess.Popen[bytes]
    log: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S)

    def get(self, path: str) -> httpx2.Response:
        return httpx2.get(f"{self.url}{path}", timeout=10)

    def metric(self, line: str) -> float:
        """The value of a sample, named as it stands on the page."""
        return next(
            (
                float(each.rpartition(" ")[2])
                for each in self.get("/metrics").text.splitlines()
                if each.startswith(f"neuroweaver_serving_{line} ")
            ),
            0.0,
        )

    def until(self, path: str, status: int, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """The answer of `path` once it has `status`."""
        deadline = time.monotonic() + timeout_s
        while True:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            answer = self.get(path)
            if answer.status_code == status:
                return answer.json()
            assert time.monotonic() < deadline, (
                answer.status_code,
                answer.text,
                self.log.read_text()[-4000:],
            )
            time.sleep(0.05)

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


def start(folder: Path, config: dict[str, Any], *, program: tuple[str, ...] = ()) -> Served:
    """Started; its port is bound, its model is not loaded yet."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "server.log"
    command = [
        sys.executable,
        *(program or ("-m", "neuroweaver.serving")),
        "--config",
        str(write(folder / "server.json", config)),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment())
    deadline = time.monotonic() + PATIENCE_S
    while (port := port_in(log)) is None:
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return Served(process, log, port)


def port_in(log: Path) -> int | None:
    for line in log.read_text().splitlines():
        if line.startswith("{") and (told := json.loads(line)).get("message") == "listening":
            return int(told["port"])
    return None


def environment() -> dict[str, str]:
    places = [ROOT / "services", ROOT / "gen" / "python", ROOT / "clients" / "python", ROOT / "tests"]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places)), "HF_HUB_OFFLINE": "1"}


@contextmanager
def served(folder: Path, config: dict[str, Any], *, program: tuple[str, ...] = ()) -> Iterator[Served]:
    """Ready; killed at the end if it still runs."""
    server = start(folder, config, program=program)
    try:
        server.until("/health/ready", 200)
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait(PATIENCE_S)


def exit_of(folder: Path, config: dict[str, Any] | str) -> tuple[int, str]:
    """The exit code and the log of a server that ends by itself."""
    path = folder / "server.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "neuroweaver.serving", "--config", str(path)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=PATIENCE_S,
        check=False,
    )
    return done.returncode, done.stderr
