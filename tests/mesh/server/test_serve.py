# ruff: noqa: N802 (the names of RPCs)
from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from mesh.echo import NAME, Echo, pb, pb_grpc, service, settings, started, stub
from neuroweaver.mesh.handlers import loop
from neuroweaver.mesh.server import serve as serve_module
from neuroweaver.mesh.server.serve import ALIVE, StartError, running, serve
from neuroweaver.mesh.wire.channel import KEEPALIVE_MS, MAX_MESSAGE_BYTES, channel, sync_channel
from neuroweaver.mesh.wire.errors import Unavailable
from ports import free_port

ROOT = Path(__file__).parents[3]
SERVING = health_pb2.HealthCheckResponse.SERVING
PING, GOAWAY = 6, 7
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("name", ["", NAME])
async def test_a_running_server_is_healthy_as_a_whole_and_by_name(name):
    async with started() as server, channel(server.address) as client:
        checked = await health_pb2_grpc.HealthStub(client).Check(health_pb2.HealthCheckRequest(service=name))

    assert checked.status == SERVING


async def test_a_server_listens_on_a_socket_of_its_user_too(tmp_path):
    path = tmp_path / "run" / "echo.sock"
    opened = running(service(Echo(), socket=path), settings(), registry=CollectorRegistry())
    async with opened, channel(f"unix:{path}") as client:
        assert (await pb_grpc.EchoServiceStub(client).Say(pb.Ask(text="hello"))).text
        assert path.parent.stat().st_mode & 0o077 == 0


async def test_a_socket_that_cannot_be_is_told_in_one_line(tmp_path):
    (tmp_path / "taken").touch()
    for path in (tmp_path / "taken", tmp_path / ("long" * 30)):
        opened = running(service(Echo(), socket=path), settings(), registry=CollectorRegistry())
        with pytest.raises(StartError, match="NEUROWEAVER_HOME"):
            async with opened:
                pass


async def test_the_health_of_a_stranger_is_not_found():
    async with started() as server, channel(server.address) as client:
        with pytest.raises(grpc.RpcError) as caught:
            await health_pb2_grpc.HealthStub(client).Check(health_pb2.HealthCheckRequest(service="other"))

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_who_watches_the_health_hears_of_the_end_first_and_does_not_hold_it_up():
    async with started(drain_s=60) as server:
        client = channel(server.address)
        watch = health_pb2_grpc.HealthStub(client).Watch(health_pb2.HealthCheckRequest(service=NAME))
        assert (await watch.read()).status == SERVING

    assert (await watch.read()).status == NOT_SERVING
    assert await watch.code() is grpc.StatusCode.UNAVAILABLE
    await client.close()


async def test_open_watches_end_with_unavailable_so_that_their_clients_resume():
    async with started(drain_s=60) as server:
        client = channel(server.address)
        watch = pb_grpc.EchoServiceStub(client).WatchWords(pb.Ask())
        await watch.read()

    with pytest.raises(grpc.RpcError) as caught:
        await watch.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "resume" in caught.value.details()
    await client.close()


async def test_thousands_of_watches_may_come_at_once():
    async with started() as server, channel(server.address) as client:
        echo = pb_grpc.EchoServiceStub(client)
        watches = [echo.WatchWords(pb.Ask()) for _ in range(2500)]
        answers = await asyncio.wait_for(asyncio.gather(*(watch.read() for watch in watches)), 240)

    assert {answer.text for answer in answers} == {"watching"}


async def test_a_client_may_ping_a_quiet_stream_as_often_as_the_server_says(monkeypatch):
    """With no time between pings at all, so that the test need not wait; by default it would be 5 minutes."""
    options = [(name, 0 if "ping_interval" in name else value) for name, value in serve_module._OPTIONS]
    monkeypatch.setattr(serve_module, "_OPTIONS", options)
    async with started() as server:
        answers = await _pinged(server.address, 10)

    assert answers == {GOAWAY: 0, PING: 10}


def test_our_clients_ping_less_often_than_the_server_allows():
    assert 2 * serve_module.MIN_PING_MS <= KEEPALIVE_MS


async def _pinged(address: str, times: int) -> dict[int, int]:
    """How many frames of each kind came back for pings on an HTTP/2 connection without a stream."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    seen = {GOAWAY: 0, PING: 0}
    try:
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        for _ in range(times):
            writer.write(bytes((0, 0, 8, PING, 0, 0, 0, 0, 0)) + bytes(8))
        while sum(seen.values()) < times and not seen[GOAWAY]:
            head = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] in seen and (head[3] == GOAWAY or head[4] & 1):
                seen[head[3]] += 1
    finally:
        writer.close()
    return seen


async def test_a_call_under_way_may_finish_while_the_server_stops():
    arrived, go_on = asyncio.Event(), asyncio.Event()

    class Held(Echo):
        async def Say(self, request, context):
            arrived.set()
            await go_on.wait()
            return pb.Answer(text="done")

        async def Repeat(self, request, context):
            await go_on.wait()
            yield pb.Answer(text="last")

    async with started(Held(), drain_s=60) as server:
        client = channel(server.address)
        echo = pb_grpc.EchoServiceStub(client)
        said = asyncio.ensure_future(echo.Say(pb.Ask()))
        repeated = echo.Repeat(pb.Ask())
        await arrived.wait()
        asyncio.get_running_loop().call_later(0.3, go_on.set)

    assert (await said).text == "done"
    assert [answer.text async for answer in repeated] == ["last"]
    await client.close()


async def test_a_call_that_outlasts_the_grace_is_cut_off():
    class Endless(Echo):
        async def Say(self, request, context):
            arrived.set()
            await asyncio.Event().wait()

    arrived = asyncio.Event()
    async with started(Endless(), drain_s=0.2) as server:
        client = channel(server.address)
        said = asyncio.ensure_future(pb_grpc.EchoServiceStub(client).Say(pb.Ask()))
        await arrived.wait()

    with pytest.raises(grpc.RpcError):
        await said
    await client.close()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_answers_under_both_of_its_names(version):
    from grpc_reflection.v1alpha import reflection_pb2

    async with started() as server, channel(server.address) as client:
        asked = client.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answers = [answer async for answer in asked]

    assert NAME in [found.name for found in answers[0].list_services_response.service]


@pytest.mark.parametrize(
    ("symbol", "is_known"),
    [
        (NAME, True),
        (f"{NAME}.Say", True),
        (f"{NAME}.WatchWords", True),
        ("meshtest.Ask.text", True),
        ("grpc.health.v1.Health.Check", True),
        (f"{NAME}.Sing", False),
        ("meshtest.Nothing", False),
        ("", False),
    ],
)
async def test_reflection_finds_the_file_of_a_service_and_of_each_of_its_methods(symbol, is_known):
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    async with started() as server, channel(server.address) as client:
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
        asked = reflection_pb2_grpc.ServerReflectionStub(client).ServerReflectionInfo(iter([request]))
        answers = [answer async for answer in asked]

    assert len(answers) == 1
    if is_known:
        assert answers[0].file_descriptor_response.file_descriptor_proto
    else:
        assert answers[0].error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_buf_curl_calls_a_method_it_knows_only_from_reflection():
    async with started() as server:
        curl = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("buf"), "curl", "--protocol", "grpc", "--http2-prior-knowledge",
            "-d", '{"text": "hello"}', f"http://{server.address}/{NAME}/Say",
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        out, err = await curl.communicate()

    assert json.loads(out) == {"text": "hello"}, err


async def test_messages_up_to_4_mb_pass_and_larger_ones_are_refused():
    async with stub() as echo:
        fits = pb.Ask(text="x" * (MAX_MESSAGE_BYTES - 100))
        assert len((await echo.Say(fits)).text) == len(fits.text)


async def test_a_larger_message_is_refused_by_the_server():
    async with started() as server, grpc.aio.insecure_channel(server.address) as client:
        with pytest.raises(grpc.RpcError) as caught:
            await pb_grpc.EchoServiceStub(client).Say(pb.Ask(text="x" * (MAX_MESSAGE_BYTES + 1)))

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


async def test_a_taken_port_is_told_in_one_line():
    with (
        taken_port() as port,
        pytest.raises(StartError, match=rf"127\.0\.0\.1:{port}.*NEUROWEAVER_ECHO_PORT"),
    ):
        async with started(port=port):
            pass


async def test_two_servers_do_not_share_a_port():
    async with started() as first:
        port = int(first.address.rpartition(":")[2])
        with pytest.raises(StartError):
            async with started(port=port):
                pass


async def test_a_taken_metrics_port_is_told_in_one_line():
    with taken_port() as port, pytest.raises(StartError, match=rf"metrics on 127\.0\.0\.1:{port}"):
        async with started(metrics_port=port):
            pass


async def test_a_service_that_cannot_start_is_closed_all_the_same():
    closed = asyncio.Event()

    async def close():
        closed.set()

    with taken_port() as port, pytest.raises(StartError):
        await serve(service(Echo(), close=close), settings(port=port))

    assert closed.is_set()


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=20) as page:
            return page.status, page.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def test_metrics_are_served_to_prometheus():
    port = free_port()
    async with stub(metrics_port=port) as echo:
        await echo.Say(pb.Ask())
        status, text = await asyncio.to_thread(_get, f"http://127.0.0.1:{port}/metrics")
        lost, _ = await asyncio.to_thread(_get, f"http://127.0.0.1:{port}/other")

    assert status == 200
    assert f'neuroweaver_rpcs_total{{code="OK",method="{NAME}/Say"}} 1.0' in text
    assert lost == 404


async def test_a_background_task_that_fails_is_started_again_and_the_service_goes_on(monkeypatch):
    monkeypatch.setattr(loop, "FIRST_BACKOFF_S", 0.001)
    starts, started_again = 0, asyncio.Event()

    async def fail():
        nonlocal starts
        starts += 1
        if starts == 3:
            started_again.set()
            await asyncio.Event().wait()
        raise LookupError("the lease table is gone")

    async with running(service(Echo(), background=[fail]), settings()) as server:
        await asyncio.wait_for(started_again.wait(), 60)
        async with channel(server.address) as client:
            assert (await pb_grpc.EchoServiceStub(client).Say(pb.Ask(text="0"))).text == "0"


async def test_health_follows_what_the_service_needs_and_liveness_does_not(monkeypatch):
    monkeypatch.setattr(serve_module, "_CHECK_S", 0.001)
    monkeypatch.setattr(loop, "FIRST_BACKOFF_S", 0.001)
    is_away = False

    async def check():
        if is_away:
            raise Unavailable("the database cannot be reached")

    async with (
        running(service(Echo(), check=check), settings()) as server,
        channel(server.address) as client,
        asyncio.timeout(60),
    ):
        stub = health_pb2_grpc.HealthStub(client)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=NAME))
        assert (await watch.read()).status == SERVING

        is_away = True
        assert (await watch.read()).status == NOT_SERVING
        assert (await stub.Check(health_pb2.HealthCheckRequest(service=ALIVE))).status == SERVING

        is_away = False
        assert (await watch.read()).status == SERVING
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING


async def test_background_tasks_run_beside_the_server_and_end_with_it():
    started_, stopped = asyncio.Event(), asyncio.Event()

    async def work():
        started_.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with running(service(Echo(), background=[work]), settings()):
        await asyncio.wait_for(started_.wait(), 120)
        assert not stopped.is_set()
    assert stopped.is_set()


# The program


@contextmanager
def program(home: Path, **environ: str) -> Iterator[subprocess.Popen[str]]:
    source = [str(ROOT / part) for part in ("services", "gen/python", "tests")]
    process = subprocess.Popen(
        [sys.executable, "-m", "mesh.echo"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(source), "NEUROWEAVER_HOME": str(home), **environ},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def address_of(process: subprocess.Popen[str]) -> str:
    for line in process.stderr:
        told = json.loads(line)
        if told["message"] == "serving":
            return f"127.0.0.1:{told['port']}"
    raise AssertionError("the program ended before it served")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_the_program(number, tmp_path):
    with program(tmp_path) as process:
        with sync_channel(address_of(process)) as client:
            echo = pb_grpc.EchoServiceStub(client)
            health = health_pb2_grpc.HealthStub(client).Watch(health_pb2.HealthCheckRequest())
            assert next(health).status == SERVING
            watch = echo.WatchWords(pb.Ask())
            next(watch)
            slow = echo.Say.future(pb.Ask(text="1"))
            quick = echo.Say(pb.Ask(text="0"))  # by now the slow one has arrived as well
            process.send_signal(number)

            assert quick.text == "done"
            assert next(health).status == NOT_SERVING
            with pytest.raises(grpc.RpcError) as caught:
                next(watch)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert slow.result(timeout=20).text == "done"
        assert process.wait(timeout=20) == 0


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"NEUROWEAVER_HOST": "0.0.0.0"}, "NEUROWEAVER_ALLOW_INSECURE"),
        ({"NEUROWEAVER_ECHO_PORT": "http"}, "NEUROWEAVER_ECHO_PORT=http is not a port"),
        ({"NEUROWEAVER_HOST": "127.0.0.1", "NEUROWEAVER_ECHO_PORT": "1"}, ""),
    ],
)
def test_what_prevents_the_start_is_told_in_one_line(environ, told, tmp_path):
    if environ.get("NEUROWEAVER_ECHO_PORT") == "1":
        with taken_port() as port:
            environ = {**environ, "NEUROWEAVER_ECHO_PORT": str(port)}
            code, lines = _failed_start(tmp_path, environ)
        told = f"cannot listen on 127.0.0.1:{port}"
    else:
        code, lines = _failed_start(tmp_path, environ)

    assert code == 1
    assert len(lines) == 1
    assert lines[0].startswith("neuroweaver echo: ")
    assert told in lines[0]


def _failed_start(home: Path, environ: dict[str, str]) -> tuple[int, list[str]]:
    with program(home, **environ) as process:
        _, err = process.communicate(timeout=60)
        return process.returncode, err.splitlines()


async def test_the_rules_of_requests_are_compiled_at_the_start(monkeypatch):
    names, is_done = [], threading.Event()

    def prepare(services):
        names.extend(services)
        is_done.set()

    monkeypatch.setattr("neuroweaver.mesh.server.serve.prepare", prepare)
    async with started():
        await asyncio.to_thread(is_done.wait)
    assert names == [NAME]
