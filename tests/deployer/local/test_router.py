"""What callers see of the HTTP front, over real HTTP in front of fake model servers."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from google.protobuf.duration_pb2 import Duration
from prometheus_client import REGISTRY

from deployer.local.replicas.test_processes import FAST, pid_of
from deployer.local.worlds import KEY, NAME, READY, World, revision, servers, spec, wanted, world
from neuroweaver.deployer.domain.backend import Key, Redirect
from neuroweaver.v1 import deployer_pb2 as pb

ZERO = pb.Autoscaling(min_replicas=0, max_replicas=2, target_concurrency=4, idle_timeout=Duration(seconds=2))


async def two_revisions(here: World, weights: tuple[int, int], **fields):
    """Serves 1.0.0 as revision 1 and 2.0.0 as revision 2 by these weights."""
    stable, candidate = here.registry.bundle("1.0.0"), here.registry.bundle("2.0.0")
    desired = wanted(
        revision(stable, 1, weight=weights[0]), revision(candidate, 2, weight=weights[1]), **fields
    )
    await here.serve(desired)
    return desired


async def revisions(here: World, conversations: list[str]) -> dict[str, str]:
    return {each: (await here.ask(each)).headers["x-neuroweaver-revision"] for each in conversations}


async def test_traffic_is_split_by_weight(tmp_path: Path):
    async with world(tmp_path) as here:
        await two_revisions(here, (75, 25))
        answers = await asyncio.gather(*(here.ask() for _ in range(400)))
        counted = Counter(answer.headers["x-neuroweaver-revision"] for answer in answers)
        # 100 are expected with a standard deviation of 8.7; five of them are left on each side.
        assert 56 <= counted["2"] <= 144


async def test_a_conversation_stays_with_its_revision_while_weights_move(tmp_path: Path):
    async with world(tmp_path) as here:
        desired = await two_revisions(here, (80, 20))
        conversations = [f"c{number}" for number in range(60)]
        before = await revisions(here, conversations)
        assert set(before.values()) == {"1", "2"}
        for generation, weights in enumerate([(50, 50), (5, 95), (95, 5)], start=2):
            moved = [
                replace(each, weight_percent=weight)
                for each, weight in zip(desired.revisions, weights, strict=True)
            ]
            await here.serve(replace(desired, revisions=tuple(moved), generation=generation))
            assert await revisions(here, conversations) == before
        ended = [
            replace(desired.revisions[0], weight_percent=100),
            replace(desired.revisions[1], weight_percent=0),
        ]
        await here.serve(replace(desired, revisions=tuple(ended), generation=9))
        assert set((await revisions(here, conversations)).values()) == {"1"}


async def test_without_affinity_the_requests_of_a_conversation_are_split(tmp_path: Path):
    async with world(tmp_path) as here:
        rollout = pb.RolloutPolicy(session_affinity=pb.SESSION_AFFINITY_NONE)
        await two_revisions(here, (50, 50), rollout=rollout)
        answers = [await here.ask("one") for _ in range(40)]
        assert {answer.headers["x-neuroweaver-revision"] for answer in answers} == {"1", "2"}


async def test_a_broken_stable_revision_leaves_the_traffic_to_the_candidate(tmp_path: Path):
    async with world(tmp_path) as here:
        broken, fix = here.registry.bundle("1.0.0", exit=4), here.registry.bundle("2.0.0")
        await here.backend.apply(wanted(revision(broken, 1, weight=90), revision(fix, 2, weight=10)))
        await here.until(lambda observed: observed.weights == {2: 100})
        assert {(await here.ask()).headers["x-neuroweaver-revision"] for _ in range(10)} == {"2"}


async def test_the_least_busy_replica_answers(tmp_path: Path):
    async with world(tmp_path) as here:
        bundle = here.registry.bundle(tokens=1, token_s=0.5)
        await here.serve(wanted(revision(bundle, replicas=3)))
        answers = await asyncio.gather(*(here.ask() for _ in range(3)))
        assert len({answer.json()["pid"] for answer in answers}) == 3


async def test_a_killed_replica_costs_no_request(tmp_path: Path):
    async with world(tmp_path) as here:
        bundle = here.registry.bundle(tokens=1, token_s=0.5)
        await here.serve(wanted(revision(bundle, replicas=2), recovery=FAST))
        waiting = [asyncio.create_task(here.ask()) for _ in range(20)]
        await here.until(lambda _: sum(each.in_flight for each in here.backend.fleet(KEY).replicas) == 20)
        os.kill(pid_of(tmp_path, 1), signal.SIGKILL)
        waiting += [asyncio.create_task(here.ask()) for _ in range(20)]
        assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}


async def test_a_replica_that_somebody_else_ends_costs_no_request(tmp_path: Path):
    async with world(tmp_path, probe_s=30.0) as here:
        bundle = here.registry.bundle(tokens=1, token_s=4.0)
        await here.serve(wanted(revision(bundle, replicas=2), recovery=FAST))
        running = [asyncio.create_task(here.ask()) for _ in range(2)]
        await here.until(lambda _: all(each.in_flight for each in here.backend.fleet(KEY).replicas))
        async with asyncio.timeout(60):
            # What the router has sent need not have come yet.
            while (await here.backend.measure(KEY, NAME, spec()))[0].running != 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        ended = pid_of(tmp_path, 1)
        # It answers 503 to new requests until its running one is done; nobody has looked at its health since.
        os.kill(ended, signal.SIGTERM)
        answers = await asyncio.gather(*running, *(here.ask() for _ in range(6)))
        assert {answer.status_code for answer in answers} == {200}
        assert [answer.json()["pid"] for answer in answers].count(ended) == 1


async def test_a_kept_connection_that_ended_costs_neither_the_request_nor_the_replica(tmp_path: Path):
    async with world(tmp_path, probe_s=30.0) as here:
        await here.serve(wanted(revision(here.registry.bundle())))
        for _ in range(5):
            assert (await here.ask(breaks="next")).status_code == 200
            assert (await here.ask()).status_code == 200
        observed = await here.observe()
        assert [each.phase for each in observed.replicas] == [READY]
        (measured,) = await here.backend.measure(KEY, NAME, spec())
        assert (measured.requests, measured.errors) == (10, 0)
        assert (await broken(here)) == 5


async def test_a_request_that_breaks_its_connections_does_not_go_through_all_replicas(tmp_path: Path):
    async with world(tmp_path, probe_s=30.0) as here:
        await here.serve(wanted(revision(here.registry.bundle(), replicas=4)))
        answer = await here.ask(breaks="this")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "replicas_failed")
        seen = [await broken(here, each.base_url) for each in here.backend.fleet(KEY).replicas]
        assert sorted(seen) == [0, 0, 2, 2]
        observed = await here.observe()
        assert [each.phase for each in observed.replicas] == [READY] * 4
        assert (await here.ask()).status_code == 200


async def broken(here: World, base_url: str = "") -> int:
    """How many requests the fake server, by default that behind the router, has left without an answer."""
    url = f"{base_url}/v1" if base_url else here.backend.endpoint(KEY)
    return int((await here.client.get(f"{url}/models")).json()["broken"])


async def test_a_stream_passes_unbuffered(tmp_path: Path):
    async with world(tmp_path) as here:
        await here.serve(wanted(revision(here.registry.bundle(tokens=3, token_s=0.4))))
        url = f"{here.backend.endpoint(KEY)}/chat/completions"
        async with here.client.stream("POST", url, json={"stream": True}) as answer:
            assert answer.headers["content-type"] == "text/event-stream"
            times = [asyncio.get_running_loop().time() async for _ in answer.aiter_raw()]
        assert times[-1] - times[0] > 0.5


async def test_a_stream_whose_replica_dies_breaks_off_and_counts_as_an_error(tmp_path: Path):
    async with world(tmp_path) as here:
        await here.serve(wanted(revision(here.registry.bundle(tokens=100, token_s=0.1)), recovery=FAST))
        url = f"{here.backend.endpoint(KEY)}/chat/completions"

        async def read_on() -> None:
            async with here.client.stream("POST", url, json={"stream": True}) as answer:
                async for _ in answer.aiter_raw():
                    os.kill(pid_of(tmp_path, 1), signal.SIGKILL)

        with pytest.raises(httpx2.RemoteProtocolError):
            await read_on()
        (measured,) = await here.backend.measure(KEY, NAME, spec())
        assert (measured.requests, measured.errors) == (1, 1)


async def test_a_caller_who_leaves_frees_the_replica(tmp_path: Path):
    async with world(tmp_path) as here:
        await here.serve(wanted(revision(here.registry.bundle(tokens=1000, token_s=0.05))))
        (replica,) = here.backend.fleet(KEY).replicas
        url = f"{here.backend.endpoint(KEY)}/chat/completions"
        async with here.client.stream("POST", url, json={"stream": True}) as answer:
            chunks = answer.aiter_raw()
            await anext(chunks)
            await here.until(lambda _: replica.in_flight == 1)
        await here.until(lambda _: not replica.in_flight)
        (measured,) = await here.backend.measure(KEY, NAME, spec())
        assert (measured.requests, measured.errors) == (0, 0)


async def test_a_sleeping_deployment_is_woken_by_a_request_and_falls_asleep_again(tmp_path: Path):
    async with world(tmp_path) as here:
        bundle = here.registry.bundle(load_s=0.3)
        await here.serve(wanted(revision(bundle, replicas=0, autoscaling=ZERO)))
        asleep = await here.until(lambda observed: observed.is_idle)
        assert (asleep.replicas, asleep.desired, asleep.weights) == ((), {1: 0}, {})
        assert servers(tmp_path) == []
        answers = await asyncio.gather(*(here.ask() for _ in range(5)))
        assert {answer.status_code for answer in answers} == {200}
        await here.until(lambda observed: observed.is_idle)
        told = [
            (each.from_replicas, each.to_replicas, each.cause) for seen in here.seen for each in seen.scalings
        ]
        assert told == [(1, 0, "IDLE"), (0, 1, "FIRST_REQUEST"), (1, 0, "IDLE")]


async def test_what_a_request_woke_stays_awake_until_the_request_is_reported(tmp_path: Path):
    async with world(tmp_path) as here:
        await here.serve(wanted(revision(here.registry.bundle(), replicas=0, autoscaling=ZERO)))
        await here.until(lambda observed: observed.is_idle)
        fleet = here.backend.fleet(KEY)
        fleet.wake()
        fleet._size(time.monotonic())
        assert (await here.observe()).desired == {1: 1}


async def test_waiting_for_a_sleeping_deployment_has_an_end(tmp_path: Path):
    async with world(tmp_path, wake_s=0.3) as here:
        fine, slow = here.registry.bundle("1.0.0"), here.registry.bundle("2.0.0", load_s=600)
        await here.serve(wanted(revision(fine, replicas=0, autoscaling=ZERO)))
        await here.until(lambda observed: observed.is_idle)
        await here.backend.apply(wanted(revision(slow, 2, autoscaling=ZERO), generation=2))
        answer = await here.ask()
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "2"


async def test_what_is_not_ready_is_said_in_the_error_format_of_the_interface(tmp_path: Path):
    async with world(tmp_path) as here:
        assert (await here.ask()).status_code == 404
        await here.backend.apply(wanted(revision(here.registry.bundle(load_s=600))))
        answer = await here.ask()
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert answer.json() == {
            "error": {
                "message": "no replica of advisor/default is ready yet",
                "type": "server_error",
                "param": None,
                "code": "not_ready",
            }
        }
        await here.serve(wanted(revision(here.registry.bundle(), replicas=0), generation=2))
        assert (await here.ask()).json()["error"]["code"] == "scaled_to_zero"


async def test_only_the_public_interface_is_reached(tmp_path: Path):
    async with world(tmp_path) as here:
        await here.serve(wanted(revision(here.registry.bundle())))
        address = httpx2.URL(here.backend.endpoint(KEY))
        for path in (
            "/admin/adapters",
            "/v1/../admin/adapters",
            "/v1/%2e%2e/fake/wedge",
            "/health/live",
            "/v1",
        ):
            raw = f"/default/advisor/default{path}".encode()
            answer = await here.client.post(address.copy_with(raw_path=raw), json={})
            assert answer.status_code == 404, path
        assert (await here.client.delete(f"{address}/models")).status_code == 405
        foreign = await here.client.get(f"{address}/models", headers={"host": "evil.example:80"})
        assert foreign.status_code == 421
        for origin, status in [("https://evil.example", 403), ("null", 403), ("http://127.0.0.1:8001", 200)]:
            answer = await here.client.get(f"{address}/models", headers={"origin": origin})
            assert answer.status_code == status
        assert (await here.client.get(f"{address}/models")).json()["data"] == [{"id": "advisor@1.0.0"}]


async def test_a_page_of_this_machine_may_call_after_its_browser_asked(tmp_path: Path):
    page = "http://localhost:5173"
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    async with world(tmp_path) as here:
        await here.serve(wanted(revision(here.registry.bundle())))
        chat = f"{here.backend.endpoint(KEY)}/chat/completions"

        allowed = await here.client.request("OPTIONS", chat, headers={"origin": page, **asked})
        assert (allowed.status_code, allowed.content) == (204, b"")
        assert allowed.headers["access-control-allow-origin"] == page
        assert allowed.headers["access-control-allow-methods"] == "GET, HEAD, POST"
        assert allowed.headers["access-control-allow-headers"] == "authorization, content-type"
        assert allowed.headers["vary"] == "Origin"

        body = {"model": "advisor", "messages": [{"role": "user", "content": "hi"}]}
        for path, status in (("/chat/completions", 200), ("/nowhere", 404)):
            address = f"{here.backend.endpoint(KEY)}{path}"
            answer = await here.client.post(address, json=body, headers={"origin": page})
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == page
            assert "x-neuroweaver-revision" in answer.headers["access-control-expose-headers"]

        foreign = await here.client.request(
            "OPTIONS", chat, headers={"origin": "https://evil.example", **asked}
        )
        assert foreign.status_code == 403
        assert "access-control-allow-origin" not in foreign.headers
        # No page, or no preflight: OPTIONS is a method like any other that is not served.
        for headers in ({}, asked, {"origin": page}):
            refused = await here.client.request("OPTIONS", chat, headers=headers)
            assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, POST")
            assert refused.json()["error"]["type"] == "invalid_request_error"


async def test_after_a_switch_another_deployment_answers(tmp_path: Path):
    async with world(tmp_path) as here:
        desired = wanted(revision(here.registry.bundle("1.0.0")))
        backup = Key("default", "backup", "default")
        other = replace(
            wanted(revision(here.registry.bundle("7.0.0"), 3)),
            key=backup,
            resource_name="default-backup-default",
        )
        await here.serve(desired)
        await here.backend.apply(other)
        await here.until(lambda _: here.backend.fleet(backup).weights())
        await here.backend.apply(
            replace(desired, redirect=Redirect(here.backend.endpoint(backup), backup.model_id))
        )
        answer = await here.ask()
        assert (answer.json()["version"], answer.json()["model"]) == ("7.0.0", "backup")
        assert answer.headers["x-neuroweaver-revision"] == "3"
        chat = f"{here.backend.endpoint(KEY)}/chat/completions"
        for body in (
            b'{"model": "advisor", "user": "\\ud83d"}',
            b'{"model": "advisor", "user": ' + b"[" * 500_000,
        ):
            # What is wrong with it is for the model server to say.
            answer = await here.client.post(chat, content=body)
            assert answer.status_code in (200, 400)
        await here.backend.apply(replace(other, redirect=Redirect(here.backend.endpoint(KEY), KEY.model_id)))
        assert (await here.ask()).status_code == 508
        await here.backend.apply(desired)
        assert (await here.ask()).json()["version"] == "1.0.0"


async def test_requests_errors_and_times_are_counted_by_revision(tmp_path: Path):
    async with world(tmp_path) as here:
        good = here.registry.bundle("1.0.0", tokens=3, token_s=0.01)
        bad = here.registry.bundle("2.0.0", status=500)
        await here.serve(wanted(revision(good, 1, weight=50), revision(bad, 2, weight=50)))
        answers = [await here.ask() for _ in range(40)]
        counted = Counter(answer.status_code for answer in answers)
        one, two = await here.backend.measure(KEY, NAME, spec())
        assert (one.revision, one.requests, one.errors) == (1, counted[200], 0)
        assert (two.revision, two.requests, two.errors) == (2, counted[500], counted[500])
        assert counted[200]
        assert counted[500]
        assert one.tokens == 3 * counted[200]
        assert one.latency_ms[float("inf")] == counted[200]
        assert one.latency_ms[25.0] == 0
        assert one.first_token_ms[float("inf")] == 0
        assert two.latency_ms[float("inf")] == 0
        assert one.running == 0
        labels = {"deployment": NAME, "revision": "2"}
        assert REGISTRY.get_sample_value("neuroweaver_router_errors_total", labels) == counted[500]
        assert REGISTRY.get_sample_value("neuroweaver_router_turned_away_total", labels) == 0
        assert one.memory_bytes > 1 << 20
        async with asyncio.timeout(60):
            # The use of a CPU shows between two looks.
            while (await here.backend.measure(KEY, NAME, spec()))[0].cpu_cores is None:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        os.kill(pid_of(tmp_path, 2), signal.SIGSTOP)
        async with asyncio.timeout(60):
            # On a busy machine the other one may be slow to answer, too.
            while True:
                one, two = await here.backend.measure(KEY, NAME, spec())
                assert two.missing_replicas == (f"{NAME}-2",)
                if not one.missing_replicas:
                    break


async def test_a_stream_tells_the_time_of_its_first_token_and_a_mistake_is_no_error(tmp_path: Path):
    async with world(tmp_path) as here:
        await here.serve(wanted(revision(here.registry.bundle(tokens=2, token_s=0.3))))
        assert (await here.ask(stream=True)).status_code == 200
        assert (await here.client.get(f"{here.backend.endpoint(KEY)}/nothing")).status_code == 404
        (measured,) = await here.backend.measure(KEY, NAME, spec())
        assert (measured.requests, measured.errors) == (2, 0)
        assert measured.first_token_ms[200.0] == 0
        assert measured.first_token_ms[float("inf")] == measured.latency_ms[float("inf")] == 1
        assert measured.latency_ms[500.0] == 0


async def test_load_adds_replicas_and_quiet_takes_them_away(tmp_path: Path):
    bounds = pb.Autoscaling(
        min_replicas=1, max_replicas=3, target_concurrency=2, scale_down_delay=Duration(seconds=1)
    )
    async with world(tmp_path) as here:
        await here.serve(wanted(revision(here.registry.bundle(tokens=1, token_s=1), autoscaling=bounds)))
        has_grown = asyncio.Event()

        async def ask_on() -> None:
            while not has_grown.is_set():
                await here.ask()

        calls = [asyncio.create_task(ask_on()) for _ in range(6)]
        await here.until(lambda observed: [each.phase for each in observed.replicas] == [READY] * 3)
        has_grown.set()
        await asyncio.gather(*calls)
        await here.until(lambda observed: [each.phase for each in observed.replicas] == [READY])
        causes = {each.cause for seen in here.seen for each in seen.scalings}
        assert causes == {"CONCURRENCY"}


async def test_no_prompt_is_logged_or_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async with world(tmp_path) as here:
        caplog.set_level("DEBUG", logger="neuroweaver")
        await here.serve(wanted(revision(here.registry.bundle())))
        secret = "the-brakes-of-my-car-squeak"
        await here.ask("conversation-77", messages=[{"role": "user", "content": secret}])
        assert secret not in caplog.text
        assert holding(tmp_path, secret) == []


def holding(folder: Path, text: str) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and text.encode() in file.read_bytes()]


async def test_what_an_earlier_deployer_left_is_not_called_unknown_before_it_was_looked_at(tmp_path: Path):
    (tmp_path / "deployments" / NAME).mkdir(parents=True)
    async with world(tmp_path) as started:
        early = await started.ask()
        assert (early.status_code, early.json()["error"]["code"]) == (503, "not_ready")
        await started.gone()
        assert (await started.ask()).status_code == 404
