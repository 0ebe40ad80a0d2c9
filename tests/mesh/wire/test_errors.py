# ruff: noqa: N802 (the names of RPCs)
from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from mesh.echo import Echo, pb, stub
from neuroweaver.mesh.wire import errors
from neuroweaver.mesh.wire import status as statuses
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.mesh.wire.errors import (
    Aborted,
    AlreadyExists,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from neuroweaver.mesh.wire.status import describe, reason, violations


async def refused_with(error: Error) -> grpc.aio.AioRpcError:
    class Refusing(Echo):
        async def Say(self, request, context):
            raise error

    async with stub(Refusing()) as echo:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echo.Say(pb.Ask(), timeout=20)
    return caught.value


def details_of(error: grpc.RpcError) -> list[object]:
    status = rpc_status.from_call(error)
    kinds = {
        kind.DESCRIPTOR.full_name: kind
        for kind in vars(error_details_pb2).values()
        if hasattr(kind, "DESCRIPTOR") and hasattr(kind.DESCRIPTOR, "full_name")
    }
    unpacked = []
    for detail in status.details:
        message = kinds[detail.TypeName()]()
        detail.Unpack(message)
        unpacked.append(message)
    return unpacked


@pytest.mark.parametrize(
    ("error", "code", "stable_reason"),
    [
        (InvalidArgument("config.seed", "is negative"), "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        (NotFound("model", "advisor"), "NOT_FOUND", "NOT_FOUND"),
        (AlreadyExists("model", "advisor"), "ALREADY_EXISTS", "ALREADY_EXISTS"),
        (FailedPrecondition("JOB_RUNNING", "the job runs", "jobs/7"), "FAILED_PRECONDITION", "JOB_RUNNING"),
        (Aborted("ETAG_MISMATCH", "changed since"), "ABORTED", "ETAG_MISMATCH"),
        (OutOfRange("compacted"), "OUT_OF_RANGE", "OUT_OF_RANGE"),
        (ResourceExhausted("disk full"), "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"),
        (PermissionDenied("not yours"), "PERMISSION_DENIED", "PERMISSION_DENIED"),
        (Unimplemented("not here"), "UNIMPLEMENTED", "UNIMPLEMENTED"),
    ],
)
async def test_an_error_arrives_with_its_code_reason_and_description(error, code, stable_reason):
    refused = await refused_with(error)

    assert refused.code().name == code
    assert reason(refused) == stable_reason
    assert refused.details() == error.description
    assert details_of(refused)[0].domain == "neuroweaver"


async def test_unavailable_tells_when_to_come_back():
    status = statuses.to_status(Unavailable("busy", retry_after_s=2.5))

    assert status.code is grpc.StatusCode.UNAVAILABLE
    info = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(info) for detail in _status_proto(status).details)
    assert (info.retry_delay.seconds, info.retry_delay.nanos) == (2, 500_000_000)


async def test_a_missing_resource_is_named_in_the_details():
    info = details_of(await refused_with(NotFound("model", "advisor")))[1]

    assert (info.resource_type, info.resource_name) == ("model", "advisor")


async def test_a_failed_precondition_names_its_subject():
    failure = details_of(await refused_with(FailedPrecondition("JOB_RUNNING", "the job runs", "jobs/7")))[1]

    assert (failure.violations[0].type, failure.violations[0].subject) == ("JOB_RUNNING", "jobs/7")


async def test_several_violations_arrive_each_with_its_field():
    refused = await refused_with(InvalidArgument.of([("config.lora_r", "is 0"), ("dataset", "is empty")]))

    assert violations(refused) == [("config.lora_r", "is 0"), ("dataset", "is empty")]
    assert describe(refused) == "invalid argument: config.lora_r: is 0; dataset: is empty"


async def test_an_error_however_long_reaches_the_caller():
    long = InvalidArgument.of([(f"items[{index}].text", "ü" * 5000) for index in range(1000)])

    refused = await refused_with(long)

    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violations(refused)[0][0] == "items[0].text"


async def test_a_server_that_cannot_be_reached_is_described_in_one_line():
    async with channel("127.0.0.1:1") as nowhere:
        with pytest.raises(grpc.RpcError) as caught:
            await nowhere.unary_unary("/a/b")(b"", timeout=20)

    assert describe(caught.value).startswith("unavailable: ")
    assert "\n" not in describe(caught.value)
    assert violations(caught.value) == []
    assert reason(caught.value) == ""


def test_an_invalid_argument_without_a_violation_is_a_mistake():
    with pytest.raises(ValueError, match="at least one"):
        InvalidArgument.of([])


def test_every_error_has_its_row_in_the_table():
    concrete = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Error)]

    missing = {kind.__name__ for kind in concrete} - {kind.__name__ for kind in statuses._TABLE}
    assert missing == {"Error", "_AboutResource"}


def _status_proto(status):
    from google.rpc import status_pb2

    return status_pb2.Status.FromString(dict(status.trailing_metadata)["grpc-status-details-bin"])


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgument("a\ud800", "b\udcff"),
        NotFound("word", "\ud800"),
        FailedPrecondition("REASON", "\ud800", "\ud800"),
        Unavailable("\ud800"),
    ],
)
def test_halves_of_characters_do_not_keep_an_error_from_being_told(error):
    assert "?" in statuses.to_status(error).details
