"""Routers as processes, before model servers over real HTTP; their routes come from the fake API server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from aiohttp import web

from deployer.kubernetes.desired import KEY, NAME, to
from deployer.kubernetes.fake import Fake, Fault, kubeconfig
from neuroweaver.cluster import kinds
from neuroweaver.deployer.domain.backend import Redirect
from neuroweaver.deployer.kubernetes.manifests.routes import ENTRY, BadRoutes, Route, Table, read, written
from neuroweaver.deployer.kubernetes.naming import identity
from ports import free_port

CONFIG_MAP = f"{NAME}-router"
PATIENCE_S = 90


class Model:
    """A model server that says who it is and what it was asked. status: of its answers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.status = 200
        self.url = ""
        self.headers: list[dict[str, str]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        asked = json.loads(await request.read() or b"{}")
        if asked.get("stream"):
            stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await stream.prepare(request)
            for _ in range(asked.get("events", 3)):
                await stream.write(b"data: {}\n\n")
                await asyncio.sleep(0.2)
            return stream
        told = {"from": self.name, "model": asked.get("model"), "path": request.path}
        return web.json_response(told, status=self.status)

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[Model]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()


class Routers:
    """Some routers, and who calls them."""

    def __init__(self, fake: Fake, folder: Path, client: httpx2.AsyncClient) -> None:
        self._fake = fake
        self._folder = folder
        self.client = client
        self.urls: list[str] = []
        self.processes: list[asyncio.subprocess.Process] = []

    def write(self, *routes: Route, redirect: Redirect | None = None, is_affine: bool = True) -> None:
        self.write_text(written(Table(KEY, is_affine, routes, redirect)))

    def write_text(self, text: str) -> None:
        labels = {identity.MANAGED_BY: "neuroweaver-deployer"}
        metadata = {
            "name": CONFIG_MAP,
            "labels": labels,
            "annotations": {identity.KEY: identity.key_annotation(KEY)},
        }
        self._fake.put(kinds.CONFIG_MAP, {"metadata": metadata, "data": {ENTRY: text}})

    async def start(self) -> str:
        """One more; its URL."""
        port = free_port()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "neuroweaver.deployer.kubernetes.in_pods.router", "--namespace=default"),
            *(f"--config-map={CONFIG_MAP}", "--host=127.0.0.1", f"--port={port}", "--drain-s=20"),
            env=os.environ | {"KUBECONFIG": str(kubeconfig(self._fake.url, self._folder))},
        )
        self.processes.append(process)
        url = f"http://127.0.0.1:{port}"
        self.urls.append(url)
        await eventually(lambda: self.answers(f"{url}/health/live"))
        return url

    async def serve(self, *routes: Route, **options: Any) -> str:
        """Starts one that answers by these routes; its URL."""
        self.write(*routes, **options)
        url = await self.start()
        await self.come_to(lambda answer: answer.status_code == 200)
        return url

    async def answers(self, url: str) -> bool:
        try:
            return (await self.client.get(url)).status_code == 200
        except httpx2.TransportError:
            return False

    async def ask(self, conversation: str = "", url: str = "", **headers: str) -> httpx2.Response:
        told = {"x-conversation-id": conversation} if conversation else {}
        return await self.client.post(
            f"{url or self.urls[0]}/v1/chat/completions",
            json={"model": KEY.model_id},
            headers=told | {name.replace("_", "-"): value for name, value in headers.items()},
        )

    async def come_to(self, expected: Callable[[httpx2.Response], bool]) -> None:
        async def is_so() -> bool:
            return all([expected(await self.ask(url=url)) for url in self.urls])

        await eventually(is_so)


async def eventually(is_so: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await is_so():  # noqa: ASYNC110  # another process is asked
            await asyncio.sleep(0.05)


@pytest.fixture
async def models() -> AsyncIterator[tuple[Model, Model]]:
    async with Model("stable").serving() as stable, Model("candidate").serving() as candidate:
        yield stable, candidate


@pytest.fixture
async def routers(fake: Fake, tmp_path: Path) -> AsyncIterator[Routers]:
    async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:
        made = Routers(fake, tmp_path, client)
        try:
            yield made
        finally:
            for process in made.processes:
                if process.returncode is None:
                    process.kill()
                await process.wait()


def shares(models: tuple[Model, Model], *weights: int) -> list[Route]:
    return [
        Route(number, model.url, weight)
        for number, (model, weight) in enumerate(zip(models, weights, strict=True), 1)
    ]


def who(answer: httpx2.Response) -> str:
    """Empty for a refusal by the router itself."""
    return str(answer.json().get("from", ""))


async def test_it_is_ready_once_it_knows_its_routes(routers: Routers, models: tuple[Model, Model]):
    url = await routers.start()
    assert (await routers.client.get(f"{url}/health/ready")).status_code == 503
    refused = await routers.ask()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
    assert refused.headers["retry-after"]
    routers.write(*shares(models, 100, 0))
    await eventually(lambda: routers.answers(f"{url}/health/ready"))
    answer = await routers.ask()
    assert answer.json() == {"from": "stable", "model": KEY.model_id, "path": "/v1/chat/completions"}
    assert answer.headers["x-neuroweaver-revision"] == "1"
    assert len(answer.headers.get_list("date")) == 1
    assert (await routers.client.get(f"{url}/admin/adapters")).status_code == 404
    assert (await routers.client.get(f"{url}/v1/../admin/adapters")).status_code == 404


async def test_all_routers_send_a_conversation_to_the_same_revision(
    routers: Routers, models: tuple[Model, Model]
):
    routers.write(*shares(models, 70, 30))
    one, other = await routers.start(), await routers.start()
    await routers.come_to(lambda answer: answer.status_code == 200)
    conversations = [f"c{number}" for number in range(100)]
    before = {each: who(await routers.ask(each, one)) for each in conversations}
    assert {each: who(await routers.ask(each, other)) for each in conversations} == before
    # 30 are expected with a standard deviation of 4.6; five of them are left on each side.
    assert 7 <= Counter(before.values())["candidate"] <= 53
    routers.write(*shares(models, 40, 60))
    await eventually(lambda: _all_moved(routers, conversations, before))
    after = {each: who(await routers.ask(each, other)) for each in conversations}
    assert after == {each: who(await routers.ask(each, one)) for each in conversations}
    # Conversations move only towards what gained.
    assert all(after[each] == "candidate" for each in conversations if before[each] == "candidate")
    routers.write(*shares(models, 100, 0))
    await routers.come_to(lambda answer: who(answer) == "stable")
    assert {who(await routers.ask(each)) for each in conversations} == {"stable"}


async def _all_moved(routers: Routers, conversations: list[str], before: dict[str, str]) -> bool:
    """Whether both routers know the new weights: some conversation is now answered by another one."""
    moved = [
        any([who(await routers.ask(each, url)) != before[each] for each in conversations])
        for url in routers.urls
    ]
    return all(moved)


async def test_without_affinity_requests_are_split_one_by_one(routers: Routers, models: tuple[Model, Model]):
    await routers.serve(*shares(models, 50, 50), is_affine=False)
    assert {who(await routers.ask("one")) for _ in range(40)} == {"stable", "candidate"}


async def test_a_revision_without_pods_leaves_its_requests_to_the_other(
    routers: Routers, models: tuple[Model, Model]
):
    _, candidate = models
    async with Model("nobody").serving() as gone:
        nobody = gone.url
    await routers.serve(Route(1, nobody, 90), Route(2, candidate.url, 10))
    answers = [await routers.ask(f"c{number}") for number in range(30)]
    assert {who(answer) for answer in answers} == {"candidate"}
    candidate.status = 503
    assert (await routers.ask()).status_code == 503
    routers.write(Route(1, nobody, 100))
    await routers.come_to(lambda answer: answer.status_code == 503)
    assert (await routers.ask()).json()["error"]["code"] == "replicas_failed"


async def test_a_request_waits_for_a_deployment_that_sleeps(routers: Routers, models: tuple[Model, Model]):
    async with Model("woken").serving() as woken:
        url_when_awake = woken.url
    routers.write_text(
        written(Table(KEY, is_affine=True, routes=(Route(1, url_when_awake, 100),), wake_s=60.0))
    )
    url = await routers.start()
    await eventually(lambda: routers.answers(f"{url}/health/ready"))
    assert (await _figures(routers, url))["neuroweaver_router_requests_waiting"] == 0
    asking = asyncio.create_task(routers.ask("one"))
    leaving = asyncio.create_task(routers.ask("two"))
    await eventually(lambda: _are_waiting(routers, url, 2))
    leaving.cancel()
    await eventually(lambda: _are_waiting(routers, url, 1))
    async with woken.serving(int(url_when_awake.rpartition(":")[2])):
        assert who(await asking) == "woken"
        assert who(await routers.ask()) == "woken"
        await eventually(lambda: _are_waiting(routers, url, 0))
    routers.write_text(
        written(Table(KEY, is_affine=True, routes=(Route(1, url_when_awake, 100),), wake_s=0.5))
    )
    await routers.come_to(lambda answer: answer.status_code == 503)
    assert (await routers.ask()).json()["error"]["code"] == "not_ready"


async def _are_waiting(routers: Routers, url: str, count: int) -> bool:
    return bool((await _figures(routers, url))["neuroweaver_router_requests_waiting"] == count)


async def test_another_model_is_asked_by_its_own_name(routers: Routers, models: tuple[Model, Model]):
    async with Model("spare").serving() as spare:
        routers.write(*shares(models, 100, 0), redirect=to(f"{spare.url}/v1", "spare-bot"))
        url = await routers.start()
        await routers.come_to(lambda answer: who(answer) == "spare")
        answer = (await routers.ask(authorization="Bearer secret")).json()
        assert answer == {"from": "spare", "model": "spare-bot", "path": "/v1/chat/completions"}
        assert not [told for told in spare.headers if "authorization" in told]
        assert spare.headers[-1]["x-neuroweaver-hops"] == "1"
        looped = await routers.ask(x_neuroweaver_hops="4")
        assert (looped.status_code, looped.json()["error"]["code"]) == (508, "redirect_loop")
        # Two that hand traffic to each other end, too.
        routers.write(*shares(models, 100, 0), redirect=to(f"{url}/v1", KEY.model_id))
        await routers.come_to(lambda answer: answer.status_code == 508)
    routers.write(*shares(models, 100, 0))
    await routers.come_to(lambda answer: answer.status_code == 200 and who(answer) == "stable")


async def test_what_it_knows_outlives_the_api_server(
    routers: Routers, models: tuple[Model, Model], fake: Fake
):
    await routers.serve(*shares(models, 100, 0))
    fake.faults = [Fault(1, 503, times=10_000, matches=lambda *_: True)]
    fake.drop_watches()
    assert who(await routers.ask()) == "stable"
    routers.write(*shares(models, 0, 100))
    assert who(await routers.ask()) == "stable"
    fake.faults = []
    fake.forget_history()  # 410 Gone for where it was
    await routers.come_to(lambda answer: who(answer) == "candidate")


async def test_routes_that_cannot_be_read_change_nothing(routers: Routers, models: tuple[Model, Model]):
    await routers.serve(*shares(models, 100, 0))
    for text in (
        "",
        "{",
        "[]",
        '{"key": ["a"], "is_affine": true, "routes": [], "redirect": null, "wake_s": 0}',
    ):
        with pytest.raises(BadRoutes):
            read(text)
        routers.write_text(text)
    routers.write(*shares(models, 0, 100))
    await routers.come_to(lambda answer: who(answer) == "candidate")


async def test_another_ones_routes_are_not_its_own(routers: Routers, models: tuple[Model, Model], fake: Fake):
    await routers.serve(*shares(models, 100, 0))
    asked = [path for method, path in fake.calls if method == "GET"]
    # It may see no more than this one object, and asks for no more.
    assert {path.rpartition("/")[2] for path in asked} <= {"configmaps", CONFIG_MAP}


async def test_at_its_end_it_finishes_what_it_began(routers: Routers, models: tuple[Model, Model]):
    url = await routers.serve(*shares(models, 100, 0))
    stream = routers.client.stream("POST", f"{url}/v1/chat/completions", json={"stream": True, "events": 5})
    async with stream as answer:
        events = answer.aiter_raw()
        text = await anext(events)
        routers.processes[0].send_signal(signal.SIGTERM)
        async for chunk in events:
            text += chunk
    assert text.count(b"data:") == 5
    async with asyncio.timeout(PATIENCE_S):
        assert await routers.processes[0].wait() == 0


async def test_it_counts_by_revision(routers: Routers, models: tuple[Model, Model]):
    stable, candidate = models
    candidate.status = 500
    routers.write(*shares(models, 50, 50))
    url = await routers.start()
    await routers.come_to(lambda answer: answer.status_code != 503)
    answers = Counter([who(await routers.ask()) for _ in range(40)])
    told = await _figures(routers, url)
    asked = len(stable.headers), len(candidate.headers)
    assert told['neuroweaver_router_requests_total{revision="1"}'] == asked[0]
    assert told['neuroweaver_router_errors_total{revision="2"}'] == asked[1]
    assert told['neuroweaver_router_errors_total{revision="1"}'] == 0
    assert told['neuroweaver_router_request_duration_seconds_count{revision="1"}'] == asked[0]
    assert told['neuroweaver_router_request_duration_seconds_sum{revision="1"}'] > 0
    assert answers["stable"]
    assert answers["candidate"]
    routers.write(*shares(models, 100, 0)[:1])
    await eventually(lambda: _is_forgotten(routers, url))


async def _is_forgotten(routers: Routers, url: str) -> bool:
    return 'neuroweaver_router_requests_total{revision="2"}' not in await _figures(routers, url)


async def _figures(routers: Routers, url: str) -> dict[str, Any]:
    page = (await routers.client.get(f"{url}/metrics")).text
    lines = [line.rsplit(" ", 1) for line in page.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in lines}
