"""The Deployer as a process of its own, the real model server, a tiny model, a real Registry: no fake takes part."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx2
import psutil
import pytest

from deployer.worlds import move, registry_of, until
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.v1 import deployer_pb2 as pb
from neuroweaver.v1 import registry_pb2
from neuroweaver.v1.deployer_pb2_grpc import DeployerServiceStub
from ports import free_port
from registry.calls import upload

models = pytest.importorskip(
    "serving.models", reason="torch is not installed: no model is served from end to end"
)

SPEC = pb.DeploymentSpec(
    engine=pb.EngineOptions(weight_type=pb.WEIGHT_TYPE_FP32, max_batch_size=2),
    resources=pb.ReplicaResources(cpu_request="100m", memory_request="64Mi", memory_limit="4Gi"),
    drain_timeout={"seconds": 10},
)


@dataclass
class Deployer:
    """The process, started again and again over one home."""

    home: Path
    port: int
    serving_port: int
    registry: str
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environ = dict(os.environ) | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "NEUROWEAVER_HOME": str(self.home),
            "NEUROWEAVER_DEPLOYER_PORT": str(self.port),
            "NEUROWEAVER_DEPLOYER_METRICS_PORT": "0",
            "NEUROWEAVER_REGISTRY_ADDRESS": self.registry,
            "NEUROWEAVER_SERVING_PORT": str(self.serving_port),
            "NEUROWEAVER_DEPLOYMENT_BACKEND": "local",
        }
        with (self.home / "deployer.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "neuroweaver.deployer"], env=environ, stdout=log, stderr=log
            )

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(timeout=60)
        self.process = None
        return code

    def servers(self, module: str = "neuroweaver.serving") -> list[int]:
        """The model servers, or others, that were started below this home."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            words = process.info["cmdline"] or []
            is_alive = process.info["status"] != psutil.STATUS_ZOMBIE
            if is_alive and module in words and str(self.home) in " ".join(words):
                found.append(process.pid)
        return found


@asynccontextmanager
async def running_deployer(home: Path) -> AsyncIterator[tuple[Deployer, Any, Any]]:
    """With stubs of the Registry and of the Deployer."""
    async with registry_of(f"sqlite:///{home / 'registry.db'}", home) as (registry, address):
        deployer = Deployer(home, free_port(), free_port(), address)
        deployer.start()
        try:
            async with channel(f"127.0.0.1:{deployer.port}") as client:
                yield deployer, registry, DeployerServiceStub(client)
        finally:
            if deployer.process is not None:
                deployer.end(signal.SIGTERM)
            # Of a test that failed half-way.
            for pid in deployer.servers() + deployer.servers("neuroweaver.deployer.local.front"):
                os.kill(pid, signal.SIGKILL)


async def publish_adapters(registry: Any, base: Path, *folders: Path, model_id: str = "advisor") -> None:
    await registry.RegisterModel(
        registry_pb2.RegisterModelRequest(model=registry_pb2.Model(model_id=model_id))
    )
    digest = models.digests(base).base
    for number, folder in enumerate(folders, 1):
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        artifacts = [
            await upload(registry, path.read_bytes(), path.relative_to(folder).as_posix()) for path in files
        ]
        await registry.CreateModelVersion(
            registry_pb2.CreateModelVersionRequest(
                model_id=model_id,
                version=f"{number}.0.0",
                artifacts=artifacts,
                base=registry_pb2.BasePin(name="tiny", model_digest=digest),
                state=registry_pb2.VERSION_STATE_VALIDATED,
            )
        )
    await move(registry, "1.0.0", model_id=model_id)


async def ask(client: httpx2.AsyncClient, endpoint: str) -> tuple[str, str]:
    """The answer, and the revision that gave it."""
    answer = await client.post(
        f"{endpoint}/chat/completions",
        json={
            "model": "advisor",
            "messages": [{"role": "user", "content": "hello"}],
            "temperature": 0,
            "max_tokens": 8,
        },
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"], answer.headers["x-neuroweaver-revision"]


async def test_an_adapter_is_served_followed_survives_a_kill_and_goes_without_a_trace(tmp_path: Path):
    base = await asyncio.to_thread(models.tiny_base, tmp_path / "models" / "tiny")
    adapters = [
        await asyncio.to_thread(models.adapter, base, tmp_path / f"adapter-{seed}", seed=seed)
        for seed in (1, 2)
    ]
    async with (
        running_deployer(tmp_path) as (process, registry, deployer),
        httpx2.AsyncClient(trust_env=False, timeout=60) as client,
    ):
        await publish_adapters(registry, base, *adapters)

        async def state(wanted: int) -> pb.Deployment | None:
            try:
                seen = await deployer.GetDeployment(pb.GetDeploymentRequest(model_id="advisor"), timeout=10)
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
                return None
            return seen if seen.state == wanted else None

        async def serves(revision: int) -> pb.Deployment | None:
            seen = await state(pb.DEPLOYMENT_STATE_READY)
            return seen if seen and seen.stable_revision == revision else None

        await until(lambda: up(deployer), 60)
        await deployer.DeployModel(pb.DeployModelRequest(model_id="advisor", spec=SPEC), timeout=30)
        ready = await until(lambda: serves(1), 120)
        first, revision = await ask(client, ready.endpoint)
        assert revision == "1"
        (replica,) = ready.replica_statuses
        assert [each.phase for each in replica.phases][-1] == pb.REPLICA_PHASE_WARMING
        assert replica.HasField("last_token_time")

        # The alias moves; whoever asks meanwhile is answered.
        await move(registry, "2.0.0")
        answered = 0
        give_up = time.monotonic() + 120
        while not await serves(2):
            await ask(client, ready.endpoint)
            answered += 1
            assert time.monotonic() < give_up, (tmp_path / "deployer.log").read_text()[-4000:]
        second, revision = await ask(client, ready.endpoint)
        assert (revision, answered > 0) == ("2", True)
        assert second != first

        # Killed, and started again: the replica is the same process.
        (before,) = process.servers()
        process.end(signal.SIGKILL)
        process.start()

        async def answers() -> bool:
            try:
                return (await ask(client, ready.endpoint))[1] == "2"
            except (httpx2.TransportError, AssertionError):  # not up yet
                return False

        await until(answers, 60)
        assert await until(lambda: serves(2), 60)
        assert process.servers() == [before]

        lines = deployer.WatchDeploymentLogs(pb.WatchDeploymentLogsRequest(model_id="advisor"))
        assert [line async for line in lines]
        await deployer.UndeployModel(pb.UndeployModelRequest(model_id="advisor"))
        events = deployer.WatchDeployment(pb.WatchDeploymentRequest(model_id="advisor"), timeout=60)
        *_, last = [event async for event in events]
        assert last.state_changed.to_state == pb.DEPLOYMENT_STATE_DELETED
        assert process.servers() == []
        assert process.end(signal.SIGTERM) == 0


async def up(deployer: Any) -> bool:
    try:
        await deployer.ListDeployments(pb.ListDeploymentsRequest(), timeout=5)
    except grpc.RpcError as error:
        if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
            raise
        return False
    return True
