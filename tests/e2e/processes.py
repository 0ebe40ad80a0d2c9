"""The real services as processes on free loopback ports, ended by their ids."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ports import free_port

SERVICES = ("registry", "trainer", "deployer", "experiment")


@dataclass
class Mesh:
    home: Path
    environ: dict[str, str]
    addresses: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, service: str) -> None:
        with (self.home / f"{service}.log").open("ab") as log:
            self.processes[service] = subprocess.Popen(
                [sys.executable, "-m", f"neuroweaver.{service}"], env=self.environ, stdout=log, stderr=log
            )
        self.wait_healthy(service)

    def wait_healthy(self, service: str) -> None:
        give_up = time.monotonic() + 300
        while time.monotonic() < give_up:
            assert self.processes[service].poll() is None, self.log(service)
            try:
                with grpc.insecure_channel(self.addresses[service]) as channel:
                    answer = health_pb2_grpc.HealthStub(channel).Check(
                        health_pb2.HealthCheckRequest(), timeout=2
                    )
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            except grpc.RpcError:
                time.sleep(0.1)
        raise AssertionError(f"{service} did not become healthy: {self.log(service)}")

    def stop(self, service: str, number: signal.Signals = signal.SIGTERM) -> int:
        process = self.processes.pop(service)
        process.send_signal(number)
        return process.wait(timeout=300)

    def log(self, service: str) -> str:
        return (self.home / f"{service}.log").read_text()

    def worker_log(self, job_id: str) -> str:
        return (self.home / "jobs" / job_id / "worker.log").read_text()

    def worker_of(self, job_id: str) -> psutil.Process:
        """The process of the job's worker."""
        give_up = time.monotonic() + 300
        while time.monotonic() < give_up:
            for process in psutil.process_iter(["cmdline"]):
                if "neuroweaver.trainer.worker" in (process.info["cmdline"] or []):
                    environ = process.environ()
                    mine = environ.get("NEUROWEAVER_HOME") == str(self.home)
                    if mine and environ.get("NEUROWEAVER_JOB_ID") == job_id:
                        return process
            time.sleep(0.1)
        raise AssertionError("there is no worker")


@contextmanager
def mesh(home: Path, *services: str, **environ: str) -> Iterator[Mesh]:
    chosen = services or SERVICES
    ports = {service: free_port() for service in SERVICES}
    settings: Mapping[str, str] = {
        "NEUROWEAVER_HOME": str(home),
        "NEUROWEAVER_DRAIN_S": "2",
        "NEUROWEAVER_SERVING_PORT": "0",
        # A tiny model gains nothing from a second thread, and threads that wait for each other crawl on a busy machine.
        "OMP_NUM_THREADS": "1",
        **{f"NEUROWEAVER_{service.upper()}_PORT": str(port) for service, port in ports.items()},
        **{f"NEUROWEAVER_{service.upper()}_METRICS_PORT": str(free_port()) for service in SERVICES},
        **environ,
    }
    home.mkdir(parents=True, exist_ok=True)
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("NEUROWEAVER", "OPENAI"))
    }
    running = Mesh(home, inherited | settings, {name: f"127.0.0.1:{port}" for name, port in ports.items()})
    try:
        for service in chosen:
            running.start(service)
        yield running
    finally:
        for process in running.processes.values():
            process.terminate()
        try:
            for process in running.processes.values():
                process.wait(timeout=300)
        finally:
            for process in running.processes.values():
                process.kill()
