from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from experiment.serving import create, start
from neuroweaver.experiment.intake.events import EXPOSURE, SAMPLE, batches_of
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.mesh.wire.status import reason, violations
from neuroweaver.v1 import experiment_pb2 as pb

YEAR_2026_US = 1_767_225_600_000_000


def now_us() -> int:
    return (datetime.now(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def sampled(values, *, times=None, names=("score",), indexes=None, first="s", units=None):
    count = len(values)
    columns = pb.EventColumns(
        event_ids=[f"{first}{index}" for index in range(count)],
        unit_ids=units or [f"u{index}" for index in range(count)],
        event_times_us=times or [now_us()] * count,
        metrics=pb.MetricColumns(names=names, name_indexes=indexes or [0] * count, values=values),
    )
    return pb.RecordEventsRequest(test_id="t", columns=columns)


def exposed(assigned, *, served=(), variants=("control", "tuned"), first="e", phase=0):
    count = len(assigned)
    exposures = pb.ExposureColumns(variant_ids=variants, assigned=assigned, served=served, phase=phase)
    columns = pb.EventColumns(
        event_ids=[f"{first}{index}" for index in range(count)],
        unit_ids=[f"u{index}" for index in range(count)],
        event_times_us=[now_us()] * count,
        exposures=exposures,
    )
    return pb.RecordEventsRequest(test_id="t", columns=columns)


def refused(request):
    with pytest.raises(InvalidArgument) as error:
        batches_of(request)
    return error.value.violations[0][0]


def test_measurements_in_columns_are_read_by_index():
    (batch,) = batches_of(
        sampled([1.5, -2.0], names=["score", "clicks"], indexes=[1, 0], times=[YEAR_2026_US] * 2)
    )
    assert batch.rows["kind"].tolist() == [SAMPLE, SAMPLE]
    assert [batch.names[place] for place in batch.rows["name"]] == ["clicks", "score"]
    assert batch.rows["value"].tolist() == [1.5, -2.0]
    assert batch.rows["time"].tolist() == [YEAR_2026_US] * 2


def test_exposures_in_columns_were_served_what_was_assigned_unless_they_say_otherwise():
    (batch,) = batches_of(exposed([0, 1], phase=3))
    assert batch.rows["kind"].tolist() == [EXPOSURE, EXPOSURE]
    assert batch.rows["other"].tolist() == [0, 1]
    assert batch.rows["phase"].tolist() == [3, 3]
    (batch,) = batches_of(exposed([0, 1], served=[0, 0]))
    assert batch.rows["other"].tolist() == [0, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2e90])
def test_a_value_that_no_sum_can_hold_is_refused_with_its_index(value):
    assert refused(sampled([1.0, 2.0, value])) == "columns.metrics.values[2]"


def test_an_index_beyond_the_names_is_refused_with_its_place():
    assert refused(sampled([1.0, 2.0], indexes=[0, 1])) == "columns.metrics.name_indexes[1]"
    assert refused(exposed([0, 2])) == "columns.exposures.assigned[1]"
    assert refused(exposed([0, 0], served=[2, 0])) == "columns.exposures.served[0]"


def test_a_column_too_short_is_refused():
    request = sampled([1.0, 2.0])
    request.columns.metrics.values.pop()
    assert refused(request) == "columns.metrics.values"


def test_a_time_before_2000_is_refused_with_its_index():
    assert refused(sampled([1.0, 1.0], times=[YEAR_2026_US, 5])) == "columns.event_times_us[1]"


def test_rows_of_several_experiments_are_a_batch_each():
    events = [
        pb.ExperimentEvent(event_id=str(index), test_id=test_id, unit_id="u", metric={"name": "score"})
        for index, test_id in enumerate(["", "other", ""])
    ]
    for event in events:
        event.event_time.seconds = 1_767_225_600
    batches = batches_of(pb.RecordEventsRequest(test_id="t", rows={"events": events}))
    assert [(batch.test_id, batch.event_ids) for batch in batches] == [("t", ["0", "2"]), ("other", ["1"])]


def test_a_row_without_an_experiment_is_refused_with_its_index():
    event = pb.ExperimentEvent(event_id="1", unit_id="u", metric={"name": "score"})
    event.event_time.seconds = 1_767_225_600
    request = pb.RecordEventsRequest(rows={"events": [event]})
    assert refused(request) == "rows.events[0].test_id"


async def test_a_stream_of_batches_is_answered_when_all_are_durable(mesh):
    await create(mesh)
    await start(mesh)
    answer = await mesh.experiment.RecordEvents(
        iter(
            [
                exposed([0, 1, 1]),
                sampled([1.0, 2.0, 4.0]),
                sampled([1.0, 2.0, 4.0]),
                exposed([3], first="x", variants=["a", "b", "c", "d"]),
            ]
        )
    )
    assert (answer.batches, answer.received, answer.accepted, answer.duplicates) == (4, 10, 6, 3)
    (rejected,) = answer.rejected
    assert (rejected.test_id, rejected.reason, rejected.count) == ("t", pb.EVENT_REJECTION_UNKNOWN_VARIANT, 1)
    assert (list(rejected.names), list(rejected.event_ids)) == (["d"], ["x0"])
    recomputed = await mesh.experiment.RecomputeResults(pb.RecomputeResultsRequest(test_id="t"))
    assert (recomputed.is_equal, recomputed.events) == (True, 6)
    assert recomputed.results.test_id == "t"


async def test_a_batch_that_breaks_a_rule_ends_the_stream_and_the_ones_before_stay(mesh):
    await create(mesh)
    await start(mesh)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await mesh.experiment.RecordEvents(
            iter(
                [
                    exposed([0, 1]),
                    sampled([1.0]),
                    sampled([1.0, math.nan], first="n"),
                    sampled([1.0], first="m"),
                ]
            )
        )
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violations(error.value)[0][0] == "columns.metrics.values[1]"
    assert metadata_of(error.value)["committed_batches"] == "2"
    answer = await mesh.experiment.RecordEvents(iter([sampled([1.0]), sampled([1.0, 1.0], first="n")]))
    assert (answer.accepted, answer.duplicates) == (2, 1)


async def test_an_index_that_only_the_server_can_check_ends_the_stream_too(mesh):
    await create(mesh)
    await start(mesh)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await mesh.experiment.RecordEvents(iter([exposed([0, 1]), exposed([5], first="x")]))
    assert violations(error.value)[0][0] == "columns.exposures.assigned[0]"
    assert metadata_of(error.value)["committed_batches"] == "1"


async def test_an_empty_stream_is_no_batches(mesh):
    answer = await mesh.experiment.RecordEvents(iter([]))
    assert answer == pb.RecordEventsResponse()


async def test_recomputing_an_unknown_experiment_is_not_found(mesh):
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await mesh.experiment.RecomputeResults(pb.RecomputeResultsRequest(test_id="gone"))
    assert reason(error.value) == "NOT_FOUND"


def metadata_of(error):
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    info = error_details_pb2.ErrorInfo()
    rpc_status.from_call(error).details[0].Unpack(info)
    return info.metadata
