"""A deployer that is killed at any moment leaves nothing that the next one does not find."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil
import pytest

from deployer.local.worlds import FOLDER, NAME, PATIENCE_S, children_environment, routers, servers

DEPLOYER = str(Path(__file__).parents[1] / "deployer_process.py")


class Deployer:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def until(self, is_so: Callable[[dict], object]) -> dict:
        assert self.process.stdout
        give_up = time.monotonic() + PATIENCE_S
        for line in self.process.stdout:
            told = json.loads(line)
            if is_so(told):
                return told
            assert time.monotonic() < give_up, told
        raise AssertionError("the deployer ended")

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        assert self.process.stdout
        self.process.stdout.read()
        return self.process.wait()


@contextmanager
def deployer(
    home: Path, version: str = "1.0.0", replicas: int = 2, *, machine_gpus: str = "", **resources: object
) -> Iterator[Deployer]:
    """resources: of each replica."""
    options = [machine_gpus, json.dumps(resources)]
    command = [sys.executable, DEPLOYER, str(home), "0", version, str(replicas), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=children_environment()) as process:
        try:
            yield Deployer(process)
        finally:
            process.kill()


def left_behind(home: Path, *options: object, ready: int = 1, **resources: object) -> list[int]:
    """The servers of a deployer that was killed once so many were ready."""
    with deployer(home, *options, **resources) as killed:
        killed.until(lambda told: len(told["ready"]) == ready)
        killed.kill()
    return servers(home)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for pid in servers(tmp_path) + routers(tmp_path):
        psutil.Process(pid).kill()


def test_a_killed_deployer_finds_its_replicas_again(home: Path):
    with deployer(home) as first:
        first.until(lambda told: len(told["ready"]) == 2)
        before = servers(home)
        first.kill()
    assert servers(home) == before
    with deployer(home) as second:
        told = second.until(lambda told: len(told["ready"]) == 2 and told["weights"])
        assert told["replicas"] == [f"{NAME}-1", f"{NAME}-2"]
        assert servers(home) == before
        answer = httpx2.post(f"{told['endpoint']}/chat/completions", json={"model": "advisor"}, timeout=30)
        assert answer.json()["pid"] in before
        assert second.stop() == 0
    assert servers(home) == routers(home) == []


def ask(endpoint: str) -> int:
    """The status of an answer; 0 for none."""
    try:
        url = f"{endpoint}/chat/completions"
        return httpx2.post(url, json={"model": "advisor"}, timeout=60, trust_env=False).status_code
    except httpx2.TransportError:
        return 0


def answered(endpoint: str) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while (status := ask(endpoint)) != 200:
        assert time.monotonic() < give_up, status
        time.sleep(0.05)


def test_requests_are_answered_while_the_deployer_is_dead_and_when_it_is_back(home: Path):
    with deployer(home) as first:
        endpoint = first.until(lambda told: len(told["ready"]) == 2)["endpoint"]
        router = routers(home)
        own = home / "deployments" / FOLDER
        assert [path for path in (own, *own.iterdir()) if path.stat().st_mode & 0o077] == []
        first.kill()
        assert [ask(endpoint) for _ in range(10)] == [200] * 10
    # One that does not know the deployment yet, as while another holds the lease.
    with deployer(home, "") as second:
        told = second.until(lambda told: True)
        assert [ask(endpoint) for _ in range(10)] == [200] * 10
        second.until(lambda told: len(told["ready"]) == 2)
        assert [ask(endpoint) for _ in range(10)] == [200] * 10
        assert told["endpoint"] == endpoint
        assert routers(home) == router
        assert second.stop() == 0
    assert routers(home) == []


def test_a_new_router_knows_the_deployments_of_a_deployer_that_was_killed_with_the_old_one(home: Path):
    with deployer(home) as first:
        first.until(lambda told: len(told["ready"]) == 2)
        first.kill()
    (router,) = routers(home)
    os.kill(router, signal.SIGKILL)
    with deployer(home, "") as second:
        answered(second.until(lambda told: True)["endpoint"])


def test_a_router_that_is_killed_is_started_again_at_the_same_address(home: Path):
    with deployer(home, replicas=1) as running:
        endpoint = running.until(lambda told: told["ready"])["endpoint"]
        (router,) = routers(home)
        os.kill(router, signal.SIGKILL)
        answered(endpoint)
        assert router not in routers(home)
        assert running.stop() == 0
    assert routers(home) == []


def test_an_adopted_replica_heals(home: Path):
    (adopted,) = left_behind(home, replicas=1)
    with deployer(home, replicas=1) as second:
        second.until(lambda told: told["ready"])
        os.kill(adopted, signal.SIGKILL)
        second.until(lambda told: not told["ready"])
        second.until(lambda told: told["ready"])
        (healed,) = servers(home)
        assert healed != adopted


@pytest.mark.parametrize("version", ["1.0.0", ""], ids=["wished for", "not wished for yet"])
def test_an_adopted_replica_keeps_to_its_memory_limit(home: Path, version: str):
    (adopted,) = left_behind(home, replicas=1, memory_limit="128Mi")
    port = json.loads((home / "deployments" / NAME / "1" / "replica.json").read_text())["port"]
    with deployer(home, version, replicas=1, memory_limit="128Mi") as second:
        second.until(lambda told: told["ready"])
        holding = httpx2.post(f"http://127.0.0.1:{port}/fake/hold", json={"mib": 200}, timeout=30)
        assert holding.status_code == 200
        second.until(lambda told: any(each.endswith("(OOM_KILLED)") for each in told["messages"]))
        assert adopted not in servers(home)


def test_adopted_replicas_keep_their_gpus(home: Path):
    def seen() -> list[str]:
        return [psutil.Process(pid).environ()["CUDA_VISIBLE_DEVICES"] for pid in before & set(servers(home))]

    with deployer(home, replicas=2, machine_gpus="GPU-a,GPU-b,GPU-c", gpus=1) as first:
        first.until(lambda told: len(told["ready"]) == 2)
        before = set(servers(home))
        has = sorted(seen())
        first.kill()
    # In another order, as after a change of the deployer's own environment.
    with deployer(home, replicas=3, machine_gpus="GPU-c,GPU-b,GPU-a", gpus=1) as second:
        second.until(lambda told: len(told["ready"]) == 3)
        assert sorted(seen()) == has
        (new,) = set(servers(home)) - before
        assert {psutil.Process(new).environ()["CUDA_VISIBLE_DEVICES"], *has} == {"GPU-a", "GPU-b", "GPU-c"}


def test_another_wish_after_a_kill_replaces_what_runs(home: Path):
    before = left_behind(home, "1.0.0", 2, ready=2)
    with deployer(home, "2.0.0", replicas=1) as second:
        second.until(lambda told: told["replicas"] == told["ready"] and len(told["ready"]) == 1)
        assert len(servers(home)) == 1
        assert not set(before) & set(servers(home))


def test_killed_at_any_moment_it_leaves_no_double_and_no_orphan(home: Path):
    for delay_ms in (0, 20, 40, 60, 80, 120, 200):
        with deployer(home, replicas=3) as killed:
            killed.until(lambda told: True)
            time.sleep(delay_ms / 1000)
            killed.kill()
        assert len(servers(home)) <= 3
    with deployer(home, replicas=3) as last:
        last.until(lambda told: len(told["ready"]) == len(told["replicas"]) == 3)
        assert len(servers(home)) == 3
        assert last.stop() == 0
    assert servers(home) == []


def test_a_pid_of_another_program_is_never_touched(home: Path):
    """The folder of a replica says that it ran; its process has ended, and its pid may be anybody's."""
    (old,) = left_behind(home, replicas=1)
    psutil.Process(old).kill()
    config = str(home / "deployments" / NAME / "1" / "config.json")
    # It names the same file, but not as a model server does.
    bystander = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)", config], start_new_session=True
    )
    try:
        with deployer(home, replicas=1) as second:
            second.until(lambda told: told["ready"] == [f"{NAME}-2"])
            assert second.stop() == 0
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
