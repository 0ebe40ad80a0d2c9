from __future__ import annotations

import asyncio
import threading
from concurrent.futures import wait

import grpc
import pytest
from google.protobuf import timestamp_pb2
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.echo import pb, stub
from mesh.hostile import REQUESTS, flooded, framed, is_text, paths, shown
from neuroweaver.mesh.server import decoding
from neuroweaver.mesh.server.decoding import Decoder
from neuroweaver.mesh.server.message_size import count_elements
from neuroweaver.mesh.server.message_values import check_values
from neuroweaver.mesh.server.stack import Method
from neuroweaver.mesh.server.validation import validated
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.mesh.wire.status import describe
from neuroweaver.v1 import experiment_pb2, registry_pb2

MEGABYTE = 1024 * 1024
SAY = Method("meshtest.EchoService/Say", is_request_stream=False, is_response_stream=False)


async def refused(kind, data: bytes) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        await Decoder(GetMessageClass(kind).FromString, [])(data)
    return caught.value


# One second or nanosecond too many.
OUT_OF_RANGE = {
    "google.protobuf.Timestamp": [(253_402_300_800, 0), (-62_135_596_801, 0), (0, -1), (0, 10**9)],
    "google.protobuf.Duration": [(315_576_000_001, 0), (-315_576_000_001, 0), (1, -1), (0, 10**9)],
}


def kind_of(field) -> str:
    return field.message_type.full_name if field.message_type else ""


def many(name: str, is_wanted) -> list:
    found = [path for path in paths(REQUESTS[name]) if is_wanted(path[-1])]
    return [
        pytest.param(REQUESTS[name], path, id=f"{name.rpartition('.')[2]}.{shown(path)}") for path in found
    ]


REPEATED = [each for name in REQUESTS for each in many(name, lambda field: field.is_repeated)]
TEXTS = [each for name in REQUESTS for each in many(name, is_text)]
TIMES = [each for name in REQUESTS for each in many(name, lambda field: kind_of(field) in OUT_OF_RANGE)]


@pytest.mark.parametrize(("kind", "path"), REPEATED)
def test_a_flood_of_elements_is_refused_before_a_message_is_made_of_it(kind, path):
    with pytest.raises(InvalidArgument) as caught:
        count_elements(kind, flooded(path, MEGABYTE))

    ((field, rule),) = caught.value.violations
    assert field == shown(path).removesuffix("[0]")
    assert "no more than" in rule or "at most" in rule or "too many" in rule


async def test_what_comes_in_parts_is_counted_together():
    part = experiment_pb2.RecordEventsRequest(rows={"events": [{}] * 600}).SerializeToString()

    refusal = await refused(experiment_pb2.RecordEventsRequest.DESCRIPTOR, part + part)

    assert refusal.violations == [("rows.events", "must contain no more than 1000 item(s)")]


@pytest.mark.parametrize("count", [1000, 1001])
async def test_as_many_as_the_rule_allows_pass(count):
    request = experiment_pb2.BatchAssignVariantsRequest()
    for number in range(count):
        attributes = request.requests.add(test_id="t", unit_id=f"u{number}").attributes
        for index in range(64):
            attributes[f"attribute{index}"].number_value = index
    data = request.SerializeToString()

    if count == 1000:
        decoded = await Decoder(experiment_pb2.BatchAssignVariantsRequest.FromString, [])(data)
        assert decoded == request
    else:
        refusal = await refused(request.DESCRIPTOR, data)
        assert refusal.violations == [("requests", "must contain no more than 1000 item(s)")]


async def test_the_path_of_too_many_elements_names_keys_and_places():
    request = registry_pb2.CreateModelVersionRequest()
    request.metrics["a"].samples.append(1)
    request.metrics['win "rate"'].samples.extend([1.0] * 10_001)

    refusal = await refused(request.DESCRIPTOR, request.SerializeToString())

    ((field, _),) = refusal.violations
    assert field == 'metrics["win \\"rate\\""].samples'


async def test_a_message_that_its_parser_makes_anew_each_time_counts_each_time():
    event = experiment_pb2.ExperimentEvent.DESCRIPTOR.fields_by_name
    turns = framed((event["exposure"],), b"") + framed((event["metric"],), b"")
    outer = (
        experiment_pb2.RecordEventsRequest.DESCRIPTOR.fields_by_name["rows"],
        experiment_pb2.EventRows.DESCRIPTOR.fields_by_name["events"],
    )

    refusal = await refused(
        experiment_pb2.RecordEventsRequest.DESCRIPTOR, framed(outer, turns * (MEGABYTE // len(turns)))
    )

    ((field, rule),) = refusal.violations
    assert field.startswith("rows.events[0].")
    assert rule == "holds too many small elements"


@pytest.mark.parametrize(("kind", "path"), TEXTS)
async def test_a_text_that_is_none_is_refused_with_its_path(kind, path):
    not_utf8 = await refused(kind, framed(path, b"\xed\xa0\x80"))
    with pytest.raises(InvalidArgument) as caught:
        check_values(GetMessageClass(kind).FromString(framed(path, b"a\0b")))

    for refusal, rule in ((not_utf8, "is not UTF-8"), (caught.value, "holds a NUL character")):
        ((field, told),) = refusal.violations
        assert told == rule
        assert "\0" not in field
        if path[-1].name != "key":  # a key stands in its own path
            assert field == shown(path)


@pytest.mark.parametrize(("kind", "path"), TIMES)
def test_a_time_that_cannot_be_is_refused_with_its_path(kind, path):
    time = path[-1].message_type
    for seconds, nanos in OUT_OF_RANGE[time.full_name]:
        content = GetMessageClass(time)(seconds=seconds, nanos=nanos).SerializeToString()
        with pytest.raises(InvalidArgument) as caught:
            check_values(GetMessageClass(kind).FromString(framed(path, content)))
        assert [field for field, _ in caught.value.violations] == [shown(path)]


@pytest.mark.parametrize(("seconds", "nanos"), [(-62_135_596_800, 0), (253_402_300_799, 999_999_999)])
def test_the_first_and_the_last_time_are_times(seconds, nanos):
    time = timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos)
    check_values(registry_pb2.ResolveAliasRequest(at=time))


@st.composite
def messages(draw, kind=None, depth=3):
    """Encoded messages of any request: some fields of some, with any content, now and then with what is none."""
    kind = kind or draw(st.sampled_from(list(REQUESTS.values())))
    parts = []
    for field in draw(st.lists(st.sampled_from(list(kind.fields)), max_size=4)) if kind.fields else []:
        if field.message_type is not None and depth:
            content = draw(messages(field.message_type, depth - 1))[1]
        else:
            content = draw(st.one_of(st.text().map(str.encode), st.binary(max_size=20)))
        parts.append(framed((field,), content))
    parts += draw(st.lists(st.binary(max_size=3), max_size=1))
    return kind, b"".join(parts)


@settings(max_examples=300, deadline=None)
@given(messages())
def test_whatever_comes_is_a_message_or_an_invalid_argument(hostile):
    kind, data = hostile
    decoder = Decoder(GetMessageClass(kind).FromString, [lambda message: validated(SAY, message)])

    try:
        message = asyncio.run(decoder(data))
    except InvalidArgument:
        return
    assert message == GetMessageClass(kind).FromString(data)
    assert count_elements(kind, data) >= elements(message)


def elements(message: Message) -> int:
    """How many a message holds, counted in itself."""
    count = 0
    for field, value in message.ListFields():
        inner = []
        if field.is_repeated:
            count += len(value)
            is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
            inner = list(value.values() if is_map else value)
        elif field.message_type is not None:
            inner = [value]
        count += sum(elements(each) for each in inner if isinstance(each, Message))
    return count


UNKNOWN = b"\xf8\x7f\x00"


async def test_unknown_fields_reach_the_handler_and_not_the_validator():
    seen = []
    message = await Decoder(pb.Ask.FromString, [lambda each: seen.append(each.ByteSize())])(UNKNOWN * 100)

    assert seen == [0]
    assert message.SerializeToString() == UNKNOWN * 100


async def test_a_flood_of_unknown_fields_is_refused():
    for kind in (pb.Ask.DESCRIPTOR, pb.Config.DESCRIPTOR):
        refusal = await refused(kind, UNKNOWN * 70_000)

        assert refusal.violations == [
            ("", "holds more than 65536 bytes of fields that this server does not know")
        ]


def test_a_flood_of_unknown_fields_is_refused_before_all_are_seen():
    with pytest.raises(InvalidArgument, match="does not know"):
        count_elements(pb.Ask.DESCRIPTOR, UNKNOWN * 70_000 + b"\xff")


def test_elements_are_bounded_in_all():
    request = experiment_pb2.CreateExperimentRequest()
    for _ in range(3):
        rule = request.spec.targeting.add()
        for _ in range(24):
            condition = rule.conditions.add()
            for _ in range(1000):
                condition.values.add(number_value=1)
    with pytest.raises(InvalidArgument, match="holds too many elements: at most 70000 in all"):
        count_elements(request.DESCRIPTOR, request.SerializeToString())


def asked(count: int) -> bytes:
    return pb.Ask(more=[pb.Config(learning_rate=-1)] * count).SerializeToString()


@pytest.mark.parametrize(("count", "told"), [(3, 3), (64, 64), (65, 65), (20_000, 100)])
async def test_of_very_many_broken_rules_a_hundred_are_told(count, told):
    data = asked(count)
    with pytest.raises(InvalidArgument) as caught:
        await Decoder(pb.Ask.FromString, [lambda message: validated(SAY, message)])(data)

    assert len(caught.value.violations) == told
    assert caught.value.violations == [
        (f"more[{index}].learning_rate", "must be greater than 0") for index in range(told)
    ]


def test_each_wrong_element_of_many_is_named():
    request = experiment_pb2.RecordEventsRequest()
    for number in range(100):
        event = request.rows.events.add(event_id=f"e{number}", test_id="t", unit_id="u", metric={"name": "m"})
        event.event_time.seconds = 1_700_000_000
    validated(SAY, request)
    request.rows.events[7].event_id = "two words"
    request.rows.events[70].ClearField("metric")

    with pytest.raises(InvalidArgument) as caught:
        validated(SAY, request)

    assert [field for field, _ in caught.value.violations] == [
        "rows.events[7].event_id",
        "rows.events[70].body",
    ]


@pytest.mark.parametrize(("count", "is_aside"), [(10, False), (1000, True)])
async def test_large_requests_are_decoded_and_checked_beside_the_event_loop(count, is_aside):
    threads = []

    await Decoder(pb.Ask.FromString, [lambda _: threads.append(threading.current_thread())])(asked(count))

    assert (threads != [threading.main_thread()]) == is_aside


async def test_a_request_whose_caller_left_before_its_turn_is_dropped():
    held, release, seen = threading.Semaphore(0), threading.Event(), []

    def hold(_: Message) -> None:
        held.release()
        release.wait()

    busy = [asyncio.create_task(Decoder(pb.Ask.FromString, [hold])(asked(1000))) for _ in range(2)]
    for _ in busy:
        await asyncio.to_thread(held.acquire)
    left = asyncio.create_task(Decoder(pb.Ask.FromString, [seen.append])(asked(1000)))
    await asyncio.sleep(0)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    release.set()
    await asyncio.gather(*busy)
    await asyncio.wrap_future(decoding._THREADS.submit(int))

    assert seen == []


async def test_a_request_whose_caller_leaves_is_dropped_between_two_checks():
    held, release, seen = threading.Event(), threading.Event(), []

    def hold(_: Message) -> None:
        held.set()
        release.wait()

    working = asyncio.create_task(Decoder(pb.Ask.FromString, [hold, seen.append])(asked(1000)))
    await asyncio.to_thread(held.wait)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    release.set()
    both = threading.Barrier(2)  # each waits for a thread of its own, and so for what that did before
    await asyncio.gather(*(asyncio.wrap_future(decoding._THREADS.submit(both.wait)) for _ in range(2)))

    assert seen == []


async def test_a_deadline_ends_a_request_that_waits_to_be_decoded():
    release = threading.Event()
    busy = [decoding._THREADS.submit(release.wait) for _ in range(2)]
    try:
        async with stub(deadline_s=0.2) as echo:
            with pytest.raises(grpc.RpcError) as caught:
                await echo.Say(pb.Ask(more=[pb.Config(learning_rate=1)] * 1000))
    finally:
        release.set()
        wait(busy)

    assert describe(caught.value) == "deadline exceeded: the call was not done in 0.2 s"
