"""A Kubernetes control plane on this machine's loopback, for test_cluster.py and for trying the deployer by hand.

    python tests/deployer/live/control_plane.py FOLDER

etcd, kube-apiserver, kube-controller-manager and kube-scheduler, with RBAC and tokens of service accounts, and node.py
in the place of a kubelet: pods turn Ready and run nothing. FOLDER keeps state and logs, and in `bin` the binaries that
build.py makes. A process that ends is started again after a moment, as a node's own supervisor would; SIGINT or
SIGTERM ends them all. The suite needs the CustomResourceDefinitions of ServiceMonitor and PrometheusRule: --crds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from kubernetes.aio import client, config

_LOG: Final = logging.getLogger("control_plane")
_HOST: Final = "127.0.0.1"
_PATIENCE_S: Final = 60.0
_USERS: Final = {
    "admin": "system:masters",
    "controllers": "system:masters",
    "scheduler": "system:masters",
    "node": "system:masters",
}


@dataclass
class ControlPlane:
    """port: of the API server; the four after it are etcd's, the controllers' and the scheduler's."""

    folder: Path
    port: int
    restart_s: float

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "admin.kubeconfig"

    def prepare(self) -> None:
        """Keys, tokens and kubeconfigs; those that are there stay valid."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key, tokens = self.folder / "service-accounts.pem", self.folder / "tokens.csv"
        if not key.exists():
            made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            key.write_bytes(
                made.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.TraditionalOpenSSL,
                    serialization.NoEncryption(),
                )
            )
        if not tokens.exists():
            tokens.write_text(
                "".join(
                    f'{secrets.token_hex(16)},{name},{name},"{group}"\n' for name, group in _USERS.items()
                )
            )
        for line in tokens.read_text().splitlines():
            token, name, *_ = line.split(",")
            self._write_kubeconfig(name, token)

    def _write_kubeconfig(self, user: str, token: str) -> None:
        # The API server signs its certificate itself.
        cluster = {
            "server": f"https://{_HOST}:{self.port}",
            "certificate-authority": str(self.folder / "certificates" / "apiserver.crt"),
        }
        made = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "loopback",
            "clusters": [{"name": "loopback", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "loopback", "context": {"cluster": "loopback", "user": user}}],
        }
        (self.folder / f"{user}.kubeconfig").write_text(yaml.safe_dump(made))

    def commands(self) -> dict[str, list[str]]:
        store, peers = (f"{_HOST}:{self.port + offset}" for offset in (1, 2))
        key = self.folder / "service-accounts.pem"
        binaries = self.folder / "bin"
        return {
            "etcd": [
                "etcd",
                f"--data-dir={self.folder / 'etcd'}",
                f"--listen-client-urls=http://{store}",
                f"--advertise-client-urls=http://{store}",
                f"--listen-peer-urls=http://{peers}",
                f"--initial-advertise-peer-urls=http://{peers}",
                f"--initial-cluster=default=http://{peers}",
            ],
            "kube-apiserver": [
                str(binaries / "kube-apiserver"),
                f"--etcd-servers=http://{store}",
                # The fields that were added to 1.20 have no place in its protobuf messages.
                "--storage-media-type=application/json",
                f"--bind-address={_HOST}",
                f"--secure-port={self.port}",
                f"--cert-dir={self.folder / 'certificates'}",
                f"--token-auth-file={self.folder / 'tokens.csv'}",
                "--anonymous-auth=false",
                "--authorization-mode=RBAC",
                "--service-cluster-ip-range=10.96.0.0/16",
                "--endpoint-reconciler-type=none",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={key}",
                f"--service-account-signing-key-file={key}",
            ],
            "kube-controller-manager": [
                str(binaries / "kube-controller-manager"),
                f"--kubeconfig={self.folder / 'controllers.kubeconfig'}",
                f"--bind-address={_HOST}",
                f"--secure-port={self.port + 3}",
                "--port=0",
                f"--cert-dir={self.folder / 'certificates'}",
                "--kube-api-content-type=application/json",
                "--leader-elect=false",
                "--use-service-account-credentials=true",
                f"--service-account-private-key-file={key}",
                f"--root-ca-file={self.folder / 'certificates' / 'apiserver.crt'}",
            ],
            "kube-scheduler": [
                str(binaries / "kube-scheduler"),
                f"--kubeconfig={self.folder / 'scheduler.kubeconfig'}",
                f"--bind-address={_HOST}",
                f"--secure-port={self.port + 4}",
                "--port=0",
                f"--cert-dir={self.folder / 'certificates'}",
                "--leader-elect=false",
            ],
            "node": [
                sys.executable,
                str(Path(__file__).with_name("node.py")),
                str(self.folder / "node.kubeconfig"),
            ],
        }

    async def keep(self, name: str, command: Sequence[str]) -> None:
        """Runs it, and again when it ends; until cancelled, when it is ended."""
        while True:
            with (self.folder / f"{name}.log").open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    *command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
                )
            (self.folder / f"{name}.pid").write_text(str(process.pid))
            try:
                await process.wait()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await process.wait()
            _LOG.info("%s ended with %s; its log is %s", name, process.returncode, log.name)
            await asyncio.sleep(self.restart_s)

    async def ready(self) -> Any:
        """The official client, once the API server answers it."""
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                try:
                    configuration = client.Configuration()
                    await config.load_kube_config(
                        config_file=str(self.kubeconfig), client_configuration=configuration
                    )
                except (OSError, config.ConfigException):  # it has not signed its certificate yet
                    await asyncio.sleep(0.5)
                    continue
                api = client.ApiClient(configuration)
                try:
                    await client.CoreV1Api(api).read_namespaced_service_account("default", "default")
                except (OSError, aiohttp.ClientError, client.ApiException):
                    await api.close()
                    await asyncio.sleep(0.5)
                else:
                    return api


async def install(api: Any, files: Iterable[Path]) -> None:
    """Every CustomResourceDefinition that is not there yet."""
    for file in files:
        request = await api.param_serialize(
            method="POST",
            resource_path="/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            header_params={"Content-Type": "application/json"},
            body=yaml.safe_load(file.read_text()),
            auth_settings=["BearerToken"],
        )
        answer = (await api.call_api(*request)).response
        if answer.status not in {201, 409}:
            raise RuntimeError(f"{file}: {(await answer.read()).decode()}")


async def run(plane: ControlPlane, crds: Iterable[Path]) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    plane.prepare()
    kept = [asyncio.create_task(plane.keep(*each)) for each in plane.commands().items()]
    try:
        async with await plane.ready() as api:
            await install(api, crds)
            version = (await client.VersionApi(api).get_code()).git_version
        _LOG.info("Kubernetes %s: export DEPLOYER_TEST_KUBECONFIG=%s", version, plane.kubeconfig)
        await stopped.wait()
    finally:
        for task in reversed(kept):
            task.cancel()
        await asyncio.gather(*kept, return_exceptions=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--port", type=int, default=16443, help="of the API server; the next four are taken too"
    )
    parser.add_argument("--crds", type=Path, help="a folder of CustomResourceDefinitions to install")
    parser.add_argument("--restart-after", type=float, default=2.0, metavar="S")
    told = parser.parse_args()
    plane = ControlPlane(told.folder.resolve(), told.port, told.restart_after)
    for command in plane.commands().values():
        if shutil.which(command[0]) is None:
            parser.error(f"there is no {command[0]}: see build.py")
    os.umask(0o077)
    crds = sorted(told.crds.glob("*.yaml")) if told.crds else []
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asyncio.run(run(plane, crds))


if __name__ == "__main__":
    main()
