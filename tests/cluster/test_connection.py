from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from deployer.kubernetes.conftest import QUICK
from deployer.kubernetes.desired import KEY, NAME, spec
from deployer.kubernetes.fake import Fake, Fault, kubeconfig
from neuroweaver.cluster import kinds
from neuroweaver.cluster.api import Api, Patience
from neuroweaver.cluster.connection import Access
from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.deployer.kubernetes.backend import KubernetesBackend
from neuroweaver.deployer.kubernetes.settings import ClusterSettings
from neuroweaver.mesh.wire.environment import SettingsError

HASTY = Patience(attempt_s=1.0, whole_s=0.2, first_wait_s=0.01)


async def trouble(access: Access) -> BackendError:
    backend = KubernetesBackend(ClusterSettings(), Api(access, HASTY))
    with pytest.raises(BackendError) as caught:
        await backend.observe(KEY, NAME, spec())
    await backend.close()
    return caught.value


async def authorization(api: Api) -> str:
    """As it goes along with each call."""
    client = await api._connected()._connected(is_stream=False)
    return str(await client.configuration.get_api_key_with_prefix("BearerToken"))


async def test_no_kubeconfig_is_told(tmp_path: Path):
    told = await trouble(Access(tmp_path / "none"))
    assert told.trouble == Trouble.NOT_CONFIGURED
    assert str(tmp_path / "none") in str(told)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "a: b", yaml.safe_dump({"apiVersion": "v1", "current-context": "x", "contexts": [], "clusters": [], "users": []})]
)  # fmt: skip
async def test_a_wrong_kubeconfig_is_told(tmp_path: Path, content: str):
    (tmp_path / "config").write_text(content)
    told = await trouble(Access(tmp_path / "config"))
    assert told.trouble == Trouble.NOT_CONFIGURED
    assert "kubeconfig" in str(told)


async def test_a_context_that_is_not_there_is_told(fake: Fake, tmp_path: Path):
    told = await trouble(Access(kubeconfig(fake.url, tmp_path), context="elsewhere"))
    assert told.trouble == Trouble.NOT_CONFIGURED
    assert "elsewhere" in str(told)


async def test_no_cluster_is_unreachable(tmp_path: Path):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        told = await trouble(Access(kubeconfig(f"http://127.0.0.1:{held.getsockname()[1]}", tmp_path)))
    assert told.trouble == Trouble.UNREACHABLE


async def test_what_is_no_api_server_is_told(tmp_path: Path):
    app = web.Application()

    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="<html>hello</html>")

    app.router.add_get("/{path:.*}", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    told = await trouble(
        Access(kubeconfig(f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}", tmp_path))
    )
    await runner.cleanup()
    assert told.trouble == Trouble.NOT_CONFIGURED
    assert "not that of a Kubernetes API server" in str(told)


async def test_credentials_that_are_not_accepted_are_told(fake: Fake, settings: ClusterSettings):
    fake.faults = [Fault(1, 401, times=1000)]
    assert (await trouble(settings.access)).trouble == Trouble.NOT_CONFIGURED


def test_a_deployer_without_a_cluster_never_loads_the_client(tmp_path: Path):
    program = """
import asyncio, pathlib, sys
import neuroweaver.deployer.__main__
from neuroweaver.cluster.api import Api
from neuroweaver.cluster.connection import Access
from neuroweaver.cluster.errors import BackendError
try:
    asyncio.run(Api(Access(pathlib.Path("none"))).version())
except BackendError as error:
    print(error.trouble, *sorted({"kubernetes", "aiohttp", "scipy", "pydantic"} & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == "NOT_CONFIGURED\n"


async def test_watching_no_cluster_is_told_once_and_harms_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "neuroweaver.deployer")
    backend = KubernetesBackend(ClusterSettings(kubeconfig=tmp_path / "none"))
    watching = asyncio.create_task(backend.run(lambda key: None))
    async with asyncio.timeout(120):
        while not caplog.records:  # noqa: ASYNC110  # a log notifies nobody
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    assert not watching.done()
    watching.cancel()
    assert [each.message for each in caplog.records] == ["no cluster is watched"]


async def test_a_token_that_ran_out_is_read_anew(fake: Fake, settings: ClusterSettings):
    api = Api(settings.access, QUICK)
    assert await api.version() == "v1.36.0-fake"
    file = settings.access.kubeconfig
    assert file is not None
    file.write_text(file.read_text().replace("not-a-secret", "a-new-one"))  # a small file
    fake.faults = [Fault(1, 401)]
    assert await asyncio.gather(*(api.version() for _ in range(5))) == ["v1.36.0-fake"] * 5
    assert await authorization(api) == "Bearer a-new-one"
    await api.close()


async def test_the_token_goes_along_and_into_no_error(fake: Fake, settings: ClusterSettings):
    api = Api(settings.access, QUICK)
    assert await authorization(api) == "Bearer not-a-secret"
    fake.denied.add(("list", "pods"))
    with pytest.raises(Exception, match="forbidden") as caught:
        await api.list(kinds.POD, "default")
    assert "not-a-secret" not in repr(caught.value)
    await api.close()


async def test_a_long_list_comes_in_pages(fake: Fake, api: Api):
    for number in range(1203):
        fake.put(kinds.CONFIG_MAP, {"metadata": {"name": f"map-{number}"}})
    assert len((await api.list(kinds.CONFIG_MAP, "default")).items) == 1203


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KUBERNETES_NAMESPACE", "Not_A_Label"),
        ("NEUROWEAVER_VLLM_IMAGE", "image; rm -rf /"),
        ("NEUROWEAVER_CLUSTER_REGISTRY_ADDRESS", "registry"),
        ("NEUROWEAVER_GATEWAY", "edge"),
        ("NEUROWEAVER_PROMETHEUS_URL", "ftp://x"),
        ("NEUROWEAVER_HUB_URL", "mirror.internal"),
        ("NEUROWEAVER_HUB_URL", "http://mirror.internal:99999"),
        ("NEUROWEAVER_HUB_TOKEN_SECRET", "Not A Name"),
        ("NEUROWEAVER_CLUSTER_AUTOSCALER", "maybe"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str):
    with pytest.raises(SettingsError, match=name):
        ClusterSettings.from_environment({name: value})


def test_settings_are_read():
    read = ClusterSettings.from_environment(
        {"KUBERNETES_NAMESPACE": "models", "NEUROWEAVER_GATEWAY": "infra/edge"}
    )
    assert (read.namespace, read.gateway, read.registry_port) == ("models", "infra/edge", 50051)


@pytest.mark.parametrize(
    ("url", "port"),
    [("", 443), ("https://mirror.internal/hub/", 443), ("http://mirror", 80), ("http://mirror:8081", 8081)],
)
def test_the_port_of_the_hub_is_that_of_its_url(url: str, port: int):
    read = ClusterSettings.from_environment(
        {"NEUROWEAVER_HUB_URL": url, "NEUROWEAVER_HUB_TOKEN_SECRET": "hub.token"}
    )
    assert (read.hub_port, read.hub_url, read.hub_token_secret) == (port, url.rstrip("/"), "hub.token")
