# ruff: noqa: N802 (the names of RPCs)
from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import trace
from prometheus_client import CollectorRegistry

from mesh.echo import NAME, Echo, pb, pb_grpc, started, stub
from neuroweaver.mesh.wire.channel import channel, sync_channel
from neuroweaver.mesh.wire.errors import NotFound, Unavailable
from neuroweaver.mesh.wire.status import describe, violations

SECRET = "password=hunter2"


class Broken(Echo):
    """Every kind of RPC fails with an exception that nobody foresaw."""

    async def Say(self, request, context):
        raise RuntimeError(SECRET)

    async def Count(self, request_iterator, context):
        raise RuntimeError(SECRET)

    async def Repeat(self, request, context):
        yield pb.Answer(text="first")
        raise RuntimeError(SECRET)

    async def Chat(self, request_iterator, context):
        async for _ in request_iterator:
            raise RuntimeError(SECRET)
        yield pb.Answer()


async def asks(*texts: str):
    for text in texts:
        yield pb.Ask(text=text)


async def call(echo, kind: str):
    """One RPC of each kind, as a list of its answers."""
    if kind == "Say":
        return [await echo.Say(pb.Ask(text="a"))]
    if kind == "Count":
        return [await echo.Count(asks("a", "b"))]
    if kind == "Repeat":
        return [answer async for answer in echo.Repeat(pb.Ask(text="a"))]
    return [answer async for answer in echo.Chat(asks("a", "b"))]


@pytest.mark.parametrize(("kind", "answers"), [("Say", 1), ("Count", 1), ("Repeat", 3), ("Chat", 2)])
async def test_every_kind_of_rpc_passes(kind, answers):
    async with stub() as echo:
        assert len(await call(echo, kind)) == answers


SHAPES = {"Say": "unary_unary", "Count": "stream_unary", "Repeat": "unary_stream", "Chat": "stream_stream"}


def refusal(address: str, kind: str, *requests: bytes) -> grpc.RpcError:
    """How an RPC of a kind ends.

    Through the synchronous client: grpc.aio's loses the status of a server that ends a client's stream while it
    still writes (https://github.com/grpc/grpc/issues/36066).
    """
    with sync_channel(address) as client:
        method = getattr(client, SHAPES[kind])(f"/{NAME}/{kind}")
        request = iter(requests) if SHAPES[kind].startswith("stream") else requests[0]
        with pytest.raises(grpc.RpcError) as caught:
            list(method(request))
    return caught.value


def encoded(text: str) -> bytes:
    return pb.Ask(text=text).SerializeToString()


@pytest.mark.parametrize("kind", SHAPES)
async def test_the_text_of_an_uncaught_exception_stays_with_the_server(kind, caplog):
    async with started(Broken()) as server:
        refused = await asyncio.to_thread(refusal, server.address, kind, encoded("a"), encoded("b"))

    assert refused.code() is grpc.StatusCode.INTERNAL
    assert refused.details().startswith("internal error (trace ")
    told = f"{refused.details()} {refused.debug_error_string()} {refused.trailing_metadata()}"
    assert "hunter2" not in told
    assert "RuntimeError" not in told
    logged = [record for record in caplog.records if record.name == "neuroweaver.errors"]
    assert len(logged) == 1
    assert str(logged[0].exc_info[1]) == SECRET
    assert logged[0].trace_id in refused.details()
    assert logged[0].method == f"{NAME}/{kind}"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errno.EDQUOT, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errno.EROFS, grpc.StatusCode.FAILED_PRECONDITION),
        (errno.EACCES, grpc.StatusCode.FAILED_PRECONDITION),
        (errno.ENOENT, grpc.StatusCode.DATA_LOSS),
        (errno.EIO, grpc.StatusCode.UNAVAILABLE),
        (errno.EINVAL, grpc.StatusCode.INTERNAL),
    ],
)
async def test_what_the_servers_disk_refuses_is_told_as_such_and_without_the_path(number, code, caplog):
    class Storing(Echo):
        async def Say(self, request, context):
            raise OSError(number, os.strerror(number), "/srv/secret/place")

    async with started(Storing()) as server:
        refused = await asyncio.to_thread(refusal, server.address, "Say", encoded("a"))

    assert refused.code() is code
    assert "/srv/secret/place" not in f"{refused.details()} {refused.trailing_metadata()}"
    assert "/srv/secret/place" in caplog.text


async def test_an_answer_of_the_wrong_type_is_our_fault_and_not_told():
    class Confused(Echo):
        async def Say(self, request, context):
            return SECRET

    async with stub(Confused()) as echo:
        with pytest.raises(grpc.RpcError) as caught:
            await echo.Say(pb.Ask())

    assert describe(caught.value).startswith("internal: internal error (trace ")


@pytest.mark.parametrize("kind", SHAPES)
async def test_bytes_that_are_no_request_are_refused(kind):
    async with started() as server:
        refused = await asyncio.to_thread(refusal, server.address, kind, b"\xff\xff\xff")

    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.details() == "the request is not a message of this method"


async def test_a_method_that_is_not_written_yet_says_so_by_name():
    async with stub() as echo:
        with pytest.raises(grpc.RpcError) as caught:
            await echo.Missing(pb.Ask())

    assert describe(caught.value) == f"unimplemented: {NAME}/Missing is not implemented by this server"


async def test_a_not_implemented_error_from_within_is_our_fault():
    class Unfinished(Echo):
        async def Say(self, request, context):
            raise NotImplementedError(SECRET)

    async with stub(Unfinished()) as echo:
        with pytest.raises(grpc.RpcError) as caught:
            await echo.Say(pb.Ask())

    assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_a_needed_service_that_is_down_makes_this_one_unavailable():
    class Dependent(Echo):
        async def Say(self, request, context):
            async with grpc.aio.insecure_channel("127.0.0.1:1") as nowhere:
                return await nowhere.unary_unary("/a/b")(b"", timeout=20)

    async with started(Dependent()) as server, grpc.aio.insecure_channel(server.address) as client:
        with pytest.raises(grpc.RpcError) as caught:
            await pb_grpc.EchoServiceStub(client).Say(pb.Ask(), timeout=20)

    assert describe(caught.value) == "unavailable: a service that this one needs is unavailable"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errno.EDQUOT, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errno.EMFILE, grpc.StatusCode.UNAVAILABLE),
        (errno.EIO, grpc.StatusCode.UNAVAILABLE),
        (errno.EROFS, grpc.StatusCode.FAILED_PRECONDITION),
        (errno.EACCES, grpc.StatusCode.FAILED_PRECONDITION),
        (errno.ENOENT, grpc.StatusCode.DATA_LOSS),
        (errno.EBADF, grpc.StatusCode.INTERNAL),
    ],
)
async def test_what_the_file_system_refuses_is_told_as_what_it_is_without_a_path(number, code):
    class Refused(Echo):
        async def Say(self, request, context):
            raise OSError(number, os.strerror(number), "/srv/secret/place")

    async with stub(Refused()) as echo:
        with pytest.raises(grpc.RpcError) as caught:
            await echo.Say(pb.Ask())

    assert caught.value.code() is code
    assert "secret" not in describe(caught.value)


async def test_a_handler_may_abort_by_itself():
    class Aborting(Echo):
        async def Say(self, request, context):
            await context.abort(grpc.StatusCode.DATA_LOSS, "gone")

    registry = CollectorRegistry()
    async with stub(Aborting(), registry=registry) as echo:
        with pytest.raises(grpc.RpcError) as caught:
            await echo.Say(pb.Ask())

    assert caught.value.code() is grpc.StatusCode.DATA_LOSS
    assert (
        registry.get_sample_value("neuroweaver_rpcs_total", {"method": f"{NAME}/Say", "code": "DATA_LOSS"})
        == 1
    )


# Validation


@pytest.mark.parametrize(
    ("ask", "path"),
    [
        (pb.Ask(config=pb.Config(learning_rate=-1)), "config.learning_rate"),
        (pb.Ask(more=[pb.Config(learning_rate=1), pb.Config(learning_rate=0)]), "more[1].learning_rate"),
        (pb.Ask(labels={"team": ""}), 'labels["team"]'),
        (pb.Ask(text="SHOUT"), ""),
    ],
)
async def test_a_request_that_breaks_a_rule_is_refused_with_the_path_of_its_field(ask, path):
    async with stub() as echo:
        with pytest.raises(grpc.RpcError) as caught:
            await echo.Say(ask)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [field for field, _ in violations(caught.value)] == [path]


async def test_the_rule_that_was_broken_is_told():
    async with stub() as echo:
        with pytest.raises(grpc.RpcError) as caught:
            await echo.Say(pb.Ask(config=pb.Config(learning_rate=-1)))
        with pytest.raises(grpc.RpcError) as shouted:
            await echo.Say(pb.Ask(text="SHOUT"))

    assert describe(caught.value) == "invalid argument: config.learning_rate: must be greater than 0"
    assert describe(shouted.value) == "invalid argument: no shouting"


@pytest.mark.parametrize("kind", ["Count", "Chat"])
async def test_every_message_of_a_client_stream_is_validated(kind):
    async with started() as server:
        requests = map(encoded, ("fine", "SHOUT", "never seen"))
        refused = await asyncio.to_thread(refusal, server.address, kind, *requests)

    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT


# Deadlines


class Endless(Echo):
    def __init__(self):
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def Say(self, request, context):
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def Repeat(self, request, context):
        yield pb.Answer(text="first")
        await asyncio.sleep(0.5)
        yield pb.Answer(text="second")


async def test_a_unary_call_without_a_deadline_gets_the_default():
    servicer = Endless()
    async with stub(servicer, deadline_s=0.2) as echo:
        with pytest.raises(grpc.RpcError) as caught:
            await echo.Say(pb.Ask())

    assert describe(caught.value) == "deadline exceeded: the call was not done in 0.2 s"
    assert servicer.cancelled.is_set()


async def test_a_stream_without_a_deadline_stays_open():
    async with stub(Endless(), deadline_s=0.1) as echo:
        assert len(await call(echo, "Repeat")) == 2


@pytest.mark.parametrize("kind", ["Count", "Chat"])
async def test_a_client_stream_that_falls_silent_is_ended(kind):
    released = threading.Event()

    def silent():
        yield encoded("first")
        released.wait()

    def told(address):
        with sync_channel(address) as client:
            with pytest.raises(grpc.RpcError) as caught:
                list(getattr(client, SHAPES[kind])(f"/{NAME}/{kind}")(silent()))
            released.set()
            return describe(caught.value)

    async with started(silence_s=0.1) as server:
        assert (
            await asyncio.to_thread(told, server.address) == "deadline exceeded: nothing was sent for 0.1 s"
        )


async def test_a_server_that_takes_its_time_is_not_the_clients_silence():
    class Thorough(Echo):
        async def Count(self, request_iterator, context):
            async for _ in request_iterator:
                await asyncio.sleep(0.3)
            return pb.Answer()

    async with stub(Thorough(), silence_s=0.2) as echo:
        assert await echo.Count(asks("a", "b")) == pb.Answer()


async def test_a_stream_that_nobody_reads_is_ended():
    ended = asyncio.Event()

    class Long(Echo):
        async def Repeat(self, request, context):
            try:
                for _ in range(100):
                    yield pb.Answer(text="x" * 1_000_000)
            finally:
                ended.set()

    async with stub(Long(), silence_s=0.1) as echo:
        call = echo.Repeat(pb.Ask(text="once"))
        await ended.wait()
        with pytest.raises(grpc.RpcError) as caught:
            [_ async for _ in call]
    assert describe(caught.value) == (
        "deadline exceeded: nothing was read for 0.1 s; call again to go on from what was read last"
    )


async def test_a_server_that_takes_its_time_is_not_the_readers_silence():
    class Thorough(Echo):
        async def Repeat(self, request, context):
            for _ in range(2):
                await asyncio.sleep(0.3)
                yield pb.Answer()

    async with stub(Thorough(), silence_s=0.2) as echo:
        assert len([_ async for _ in echo.Repeat(pb.Ask(text="once"))]) == 2


async def test_a_callers_deadline_ends_the_work():
    servicer, registry = Endless(), CollectorRegistry()
    async with stub(servicer, registry=registry) as echo:
        with pytest.raises(grpc.RpcError) as caught:
            await echo.Say(pb.Ask(), timeout=0.2)
        await servicer.cancelled.wait()

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # The caller gives up and says so, or the server's own clock is faster: either is true.
    counted = [
        registry.get_sample_value("neuroweaver_rpcs_total", {"method": f"{NAME}/Say", "code": code}) or 0
        for code in ("CANCELLED", "DEADLINE_EXCEEDED")
    ]
    assert sum(counted) == 1


async def test_a_timeout_within_a_handler_is_not_taken_for_the_deadline():
    class Impatient(Echo):
        async def Say(self, request, context):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(5)

    async with stub(Impatient()) as echo:
        with pytest.raises(grpc.RpcError) as caught:
            await echo.Say(pb.Ask(), timeout=20)

    assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_a_call_that_its_caller_cancels_is_stopped_and_is_no_error(caplog):
    servicer, registry = Endless(), CollectorRegistry()
    async with stub(servicer, registry=registry) as echo:
        waiting = echo.Say(pb.Ask())
        await servicer.started.wait()
        waiting.cancel()
        await servicer.cancelled.wait()

    labels = {"method": f"{NAME}/Say", "code": "CANCELLED"}
    assert registry.get_sample_value("neuroweaver_rpcs_total", labels) == 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_stream_whose_reader_left_is_closed_and_is_no_error(caplog):
    closed = asyncio.Event()

    class Chatty(Echo):
        async def Repeat(self, request, context):
            try:
                while True:
                    yield pb.Answer(text="x" * 100_000)
            finally:
                closed.set()

    async with stub(Chatty()) as echo:
        stream = echo.Repeat(pb.Ask())
        await stream.read()
        stream.cancel()
        await asyncio.wait_for(closed.wait(), 120)

    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# Metrics, logs, traces


async def test_rpcs_are_counted_by_method_and_code():
    class Picky(Echo):
        async def Say(self, request, context):
            raise NotFound("word", request.text)

    registry = CollectorRegistry()
    async with stub(Picky(), registry=registry) as echo:
        for _ in range(2):
            with pytest.raises(grpc.RpcError):
                await echo.Say(pb.Ask())
        await call(echo, "Repeat")

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"neuroweaver_{name}", labels)

    assert value("rpcs_total", method=f"{NAME}/Say", code="NOT_FOUND") == 2
    assert value("rpcs_total", method=f"{NAME}/Repeat", code="OK") == 1
    assert value("rpc_duration_seconds_count", method=f"{NAME}/Say") == 2
    assert value("rpcs_in_flight", method=f"{NAME}/Say") == 0


async def test_rpcs_under_way_are_counted():
    registry = CollectorRegistry()
    async with stub(registry=registry) as echo:
        watch = echo.WatchWords(pb.Ask())
        await watch.read()
        assert registry.get_sample_value("neuroweaver_rpcs_in_flight", {"method": f"{NAME}/WatchWords"}) == 1
        watch.cancel()


def access(caplog) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "neuroweaver.access"]


async def test_the_access_log_has_a_line_an_rpc(caplog):
    caplog.set_level(logging.INFO, "neuroweaver")
    async with stub() as echo:
        await echo.Say(pb.Ask(text="private words"))

    (line,) = access(caplog)
    assert (line.method, line.code) == (f"{NAME}/Say", "OK")
    assert line.duration_ms > 0
    assert line.peer.startswith("ipv4:127.0.0.1:")
    assert "private words" not in str(vars(line))


async def test_the_access_log_says_why_an_rpc_was_refused(caplog):
    caplog.set_level(logging.INFO, "neuroweaver")
    async with stub() as echo:
        with pytest.raises(grpc.RpcError):
            await echo.Say(pb.Ask(text="SHOUT"))

    (line,) = access(caplog)
    assert (line.code, line.reason) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT")


async def test_debugging_shows_requests_without_their_secrets(caplog):
    caplog.set_level(logging.DEBUG, "neuroweaver")
    async with stub(debug=True) as echo:
        await echo.Say(pb.Ask(text="hello", api_key="sk-123"))
        await echo.Count(asks("one", "two"))

    shown = [record.request for record in access(caplog) if record.message == "request"]
    assert shown == [{"text": "hello", "api_key": "[redacted]"}, {"text": "one"}, {"text": "two"}]


async def test_a_trace_goes_on_from_client_to_server(spans):
    async with stub() as echo:
        with trace.get_tracer("test").start_as_current_span("caller") as caller:
            await echo.Say(pb.Ask())

    served = next(span for span in spans.get_finished_spans() if span.kind is trace.SpanKind.SERVER)
    assert served.name == f"{NAME}/Say"
    assert served.context.trace_id == caller.get_span_context().trace_id
    assert served.parent.span_id == caller.get_span_context().span_id
    assert dict(served.attributes) == {
        "rpc.system.name": "grpc",
        "rpc.method": f"{NAME}/Say",
        "rpc.response.status_code": "OK",
    }


async def test_the_handler_runs_inside_the_span(spans):
    class Telling(Echo):
        async def Say(self, request, context):
            return pb.Answer(text=trace.format_span_id(trace.get_current_span().get_span_context().span_id))

    async with stub(Telling()) as echo:
        answer = await echo.Say(pb.Ask())

    (served,) = spans.get_finished_spans()
    assert answer.text == trace.format_span_id(served.context.span_id)


@pytest.mark.parametrize(
    ("error", "is_fault"),
    [(RuntimeError(), True), (Unavailable("busy"), True), (NotFound("word", "x"), False)],
)
async def test_a_span_is_an_error_only_if_the_server_is_at_fault(error, is_fault, spans):
    class Failing(Echo):
        async def Count(self, request_iterator, context):
            raise error

    async with stub(Failing()) as echo:
        with pytest.raises(grpc.RpcError) as caught:
            await echo.Count(asks())

    served = spans.get_finished_spans()[0]
    assert served.attributes["rpc.response.status_code"] == caught.value.code().name
    assert (served.status.status_code is trace.StatusCode.ERROR) == is_fault
    assert not served.events


async def test_health_checks_are_neither_traced_nor_logged(spans, caplog):
    caplog.set_level(logging.INFO, "neuroweaver")
    async with started() as server, channel(server.address) as client:
        await health_pb2_grpc.HealthStub(client).Check(health_pb2.HealthCheckRequest())

    assert not spans.get_finished_spans()
    assert not access(caplog)


async def test_a_fault_in_an_observer_is_not_told_either(monkeypatch):
    from neuroweaver.mesh.server import interceptors

    async def faulty(rpc, proceed):
        await proceed(rpc)
        raise RuntimeError(SECRET)

    monkeypatch.setattr(interceptors, "logged", faulty)
    async with stub() as echo:
        with pytest.raises(grpc.RpcError) as caught:
            await echo.Say(pb.Ask())

    assert caught.value.details().startswith("internal error (trace ")
