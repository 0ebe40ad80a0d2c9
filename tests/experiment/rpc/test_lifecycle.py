"""Experiments from creation to conclusion, through real servers over both databases."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Value

from experiment.serving import World, assign, create, metric, models_spec, publish, spec, start
from neuroweaver.mesh.wire import errors, status
from neuroweaver.mesh.wire.assignment import buckets
from neuroweaver.v1 import experiment_pb2 as pb
from neuroweaver.v1 import registry_pb2 as registry_pb
from registry.calls import refusal

RUNNING, CREATED = pb.EXPERIMENT_STATE_RUNNING, pb.EXPERIMENT_STATE_CREATED
STOPPED, PAUSED = pb.EXPERIMENT_STATE_STOPPED, pb.EXPERIMENT_STATE_PAUSED
CONCLUDED, CONCLUDING = pb.EXPERIMENT_STATE_CONCLUDED, pb.EXPERIMENT_STATE_CONCLUDING


async def get(mesh: World, test_id: str = "t") -> pb.Experiment:
    return await mesh.experiment.GetExperiment(pb.GetExperimentRequest(test_id=test_id))


async def stop(mesh: World, test_id: str = "t", **fields: Any) -> pb.Experiment:
    return await mesh.experiment.StopExperiment(pb.StopExperimentRequest(test_id=test_id, **fields))


async def pause(mesh: World, test_id: str = "t", **fields: Any) -> pb.Experiment:
    return await mesh.experiment.PauseExperiment(pb.PauseExperimentRequest(test_id=test_id, **fields))


async def reweigh(mesh: World, weights: dict[str, float], test_id: str = "t", **fields: Any) -> pb.Experiment:
    request = pb.UpdateWeightsRequest(
        test_id=test_id,
        weights=[pb.VariantWeight(variant_id=name, weight=weight) for name, weight in weights.items()],
        **fields,
    )
    return await mesh.experiment.UpdateWeights(request)


async def conclude(mesh: World, test_id: str = "t", **fields: Any) -> pb.Experiment:
    return await mesh.experiment.ConcludeExperiment(pb.ConcludeExperimentRequest(test_id=test_id, **fields))


async def production(mesh: World) -> str:
    request = registry_pb.ResolveAliasRequest(model_id="advisor", alias="production")
    return (await mesh.registry.ResolveAlias(request)).version


def later(mesh: World, length: timedelta) -> None:
    """Sets the service's clock forward."""
    clock = mesh.store.clock
    mesh.store.clock = lambda: clock() + length


async def test_an_experiment_shows_every_default_that_is_in_force(mesh):
    made = await create(mesh)

    assert (made.state, made.coverage, made.created_by) == (CREATED, 1.0, "local")
    filled = made.spec
    assert (filled.unit, filled.alias) == ("user", "production")
    assert (filled.min_units_per_variant, filled.confidence_level) == (1000, 0.95)
    assert filled.planned_units_per_variant == 1000
    assert filled.verdict_method == pb.INFERENCE_METHOD_ALWAYS_VALID
    assert filled.multiplicity_correction == pb.MULTIPLICITY_CORRECTION_HOLM
    assert filled.stop_on_guardrail_breach
    assert filled.raw_event_retention.ToTimedelta() == timedelta(days=90)
    assert filled.metrics[0].mean.source.aggregation == pb.UNIT_AGGREGATION_SUM
    (criterion,) = filled.decision_rule.all_of
    assert (criterion.metric_id, criterion.superiority.absolute) == ("score", 0.0)
    assert await get(mesh) == made


async def test_an_experiment_lives_from_creation_to_conclusion(mesh):
    states = [(await create(mesh)).state, (await start(mesh)).state, (await pause(mesh)).state]
    states += [(await start(mesh)).state, (await stop(mesh, reason="enough")).state]
    mesh.said.verdict = pb.ExperimentVerdict(
        decision=pb.DECISION_KEEP, variant_id="control", reason="No gain."
    )
    done = await conclude(mesh)

    assert [*states, done.state] == [CREATED, RUNNING, PAUSED, RUNNING, STOPPED, CONCLUDED]
    assert done.conclusion.state == pb.CONCLUSION_STATE_NOTHING_TO_MOVE
    watch = mesh.experiment.ListExperiments(pb.ListExperimentsRequest(filter="state=CONCLUDED"))
    assert [each.test_id for each in (await watch).experiments] == ["t"]
    for call in (start(mesh), pause(mesh), stop(mesh), reweigh(mesh, {"control": 0.1, "tuned": 0.9})):
        assert (await refusal(call)).code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_repeating_a_step_gives_the_experiment_unchanged(mesh):
    await create(mesh)
    first = await start(mesh)
    assert await start(mesh) == first
    paused = await pause(mesh, reason="lunch")
    assert await pause(mesh, reason="again") == paused
    stopped = await stop(mesh)
    assert await stop(mesh) == stopped


async def test_a_retry_reads_the_first_answer(mesh):
    request = pb.CreateExperimentRequest(spec=spec(), request_id="once")
    first = await mesh.experiment.CreateExperiment(request)
    assert await mesh.experiment.CreateExperiment(request) == first
    assert (await refusal(create(mesh, first.test_id))).code() == grpc.StatusCode.ALREADY_EXISTS


async def test_checking_only_stores_nothing(mesh):
    request = pb.CreateExperimentRequest(
        test_id="t", spec=spec(layer=pb.LayerShare(layer_id="l", share=0.5)), validate_only=True
    )
    shown = await mesh.experiment.CreateExperiment(request)
    assert shown.spec.min_units_per_variant == 1000
    assert (await refusal(get(mesh))).code() == grpc.StatusCode.NOT_FOUND
    assert not (await mesh.experiment.ListLayers(pb.ListLayersRequest())).layers
    await create(mesh)
    assert (await refusal(mesh.experiment.CreateExperiment(request))).code() == grpc.StatusCode.ALREADY_EXISTS


async def test_a_stale_etag_changes_nothing(mesh):
    made = await create(mesh)
    await start(mesh)
    error = await refusal(pause(mesh, etag=made.etag))
    assert (error.code(), status.reason(error)) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert (await get(mesh)).state == RUNNING


async def test_units_are_assigned_by_their_buckets_while_it_runs(mesh):
    made = await create(mesh)
    before = await assign(mesh, "u")
    assert (before.variant_id, before.is_participant) == ("control", False)
    assert before.reason == pb.ASSIGNMENT_REASON_NOT_RUNNING
    await start(mesh)
    for number in range(50):
        found = await assign(mesh, f"u{number}")
        bucket, _ = buckets(made.salt, f"u{number}")
        assert found.bucket == bucket
        assert found.variant_id == ("control" if bucket < 500_000 else "tuned")
        assert (found.is_participant, found.phase, found.unit_id) == (True, 1, f"u{number}")
    await pause(mesh)
    assert (await assign(mesh, "u")).reason == pb.ASSIGNMENT_REASON_NOT_RUNNING


async def test_an_assignment_carries_what_the_variant_serves(mesh):
    await publish(mesh.registry, "1.0.0", "2.0.0")
    made = models_spec()
    made.variants[1].parameters.update({"temperature": 0.2})
    made.overrides["tester"] = "tuned"
    await create(mesh, made=made)
    await start(mesh)
    found = await assign(mesh, "tester")
    assert (found.target.model_id, found.target.version) == ("advisor", "2.0.0")
    assert (found.target.deployment, found.parameters["temperature"]) == ("default", 0.2)
    assert (found.reason, found.is_participant) == (pb.ASSIGNMENT_REASON_OVERRIDE, False)


async def test_targeting_looks_at_attributes(mesh):
    condition = pb.TargetingCondition(
        attribute="plan", operator=pb.TARGETING_OPERATOR_IN, values=[pb.AttributeValue(string_value="pro")]
    )
    await create(mesh, made=spec(targeting=[pb.TargetingRule(conditions=[condition])]))
    await start(mesh)
    assert (await assign(mesh, "u", attributes={"plan": Value(string_value="pro")})).is_participant
    assert (await assign(mesh, "u")).reason == pb.ASSIGNMENT_REASON_NOT_TARGETED


async def test_a_batch_answers_in_order_and_one_unknown_spoils_none(mesh):
    await create(mesh)
    await start(mesh)
    pairs = [("t", "a"), ("nope", "b"), ("t", "c")]
    answer = await mesh.experiment.BatchAssignVariants(
        pb.BatchAssignVariantsRequest(
            requests=[pb.AssignVariantRequest(test_id=test_id, unit_id=unit) for test_id, unit in pairs]
        )
    )
    assert [each.unit_id for each in answer.assignments] == ["a", "b", "c"]
    assert [each.reason == pb.ASSIGNMENT_REASON_NOT_FOUND for each in answer.assignments] == [
        False, True, False,
    ]  # fmt: skip
    assert answer.assignments[0] == await assign(mesh, "a")
    assert (await refusal(assign(mesh, "u", "nope"))).code() == grpc.StatusCode.NOT_FOUND


async def test_new_weights_open_a_phase_and_move_only_the_difference(mesh):
    await create(mesh)
    await start(mesh)
    before = {f"u{number}": (await assign(mesh, f"u{number}")).variant_id for number in range(200)}

    changed = await reweigh(mesh, {"control": 0.3, "tuned": 0.7}, reason="it looks good")

    assert [phase.number for phase in changed.phases] == [1, 2]
    assert changed.phases[0].end_time == changed.phases[1].start_time
    assert (changed.phases[1].moved_share, changed.phases[1].reason) == (0.2, "it looks good")
    after = {unit: await assign(mesh, unit) for unit in before}
    assert {found.phase for found in after.values()} == {2}
    moved = Counter((before[unit], found.variant_id) for unit, found in after.items())
    assert moved[("tuned", "control")] == 0
    assert 20 <= moved[("control", "tuned")] <= 60
    assert await reweigh(mesh, {"tuned": 0.7, "control": 0.3}) == changed


async def test_weights_changed_and_changed_back_leave_everybody_where_they_were(mesh):
    weights = {"control": 0.34, "short": 0.33, "long": 0.33}
    variants = [pb.ExperimentVariant(variant_id=name, weight=weight) for name, weight in weights.items()]
    await create(mesh, made=spec(variants=variants))
    await start(mesh)
    before = [(await assign(mesh, f"u{number}")).variant_id for number in range(300)]

    changed = await reweigh(mesh, {"control": 0.3, "short": 0.3, "long": 0.4})
    undone = await reweigh(mesh, weights)

    assert changed.phases[-1].moved_share == undone.phases[-1].moved_share == 0.07
    assert undone.phases[2].allocations == undone.phases[0].allocations
    assert [(await assign(mesh, f"u{number}")).variant_id for number in range(300)] == before


@pytest.mark.parametrize(
    ("weights", "field"),
    [
        ({"control": 0.5, "tuned": 0.6}, "weights"),
        ({"control": 0.5, "other": 0.5}, "weights"),
        ({"control": 0.0, "tuned": 1.0}, "weights"),
        ({"control": float("nan"), "tuned": 0.5}, "weights[0].weight"),
        ({"control": -0.5, "tuned": 1.5}, "weights[0].weight"),
    ],
)
async def test_bad_weights_are_refused(mesh, weights, field):
    await create(mesh)
    error = await refusal(reweigh(mesh, weights))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert status.violations(error)[0][0] == field


async def test_layers_keep_experiments_apart_and_run_full(mesh):
    layer = pb.LayerShare(layer_id="ranking", share=0.6)
    await create(mesh, "a", spec(layer=layer))
    error = await refusal(create(mesh, "b", spec(layer=layer)))
    assert (error.code(), status.reason(error)) == (grpc.StatusCode.FAILED_PRECONDITION, "LAYER_FULL")
    await create(mesh, "c", spec(layer=pb.LayerShare(layer_id="ranking", share=0.4)))
    await start(mesh, "a")
    await start(mesh, "c")
    for number in range(100):
        a, c = await assign(mesh, f"u{number}", "a"), await assign(mesh, f"u{number}", "c")
        assert a.is_participant != c.is_participant
    (shown,) = (await mesh.experiment.ListLayers(pb.ListLayersRequest())).layers
    assert (shown.layer_id, shown.free_share) == ("ranking", 0.0)
    assert [slot.test_id for slot in shown.slots] == ["a", "c"]
    await stop(mesh, "a")
    await create(mesh, "b", spec(layer=layer))


async def test_experiments_are_listed_and_filtered(mesh):
    await create(mesh, "a", spec(labels={"team": "search"}))
    await create(mesh, "b")
    await start(mesh, "b")

    async def listed(text: str, **fields: Any) -> list[str]:
        request = pb.ListExperimentsRequest(filter=text, **fields)
        return [each.test_id for each in (await mesh.experiment.ListExperiments(request)).experiments]

    assert await listed("") == ["b", "a"]
    assert await listed("", order_by="create_time") == ["a", "b"]
    assert await listed("state=RUNNING") == ["b"]
    assert await listed("labels.team=search AND state=CREATED") == ["a"]
    assert await listed("model_id=advisor") == []
    for bad in ("state=SLEEPING", "owner=me"):
        error = await refusal(listed(bad))
        assert status.violations(error)[0][0] == "filter"


async def test_a_watch_of_assignments_begins_with_everything_and_goes_on(mesh):
    await create(mesh, "a")
    await create(mesh, "b")
    watch = mesh.experiment.WatchAssignments(pb.WatchAssignmentsRequest())
    begun = [await watch.read() for _ in range(3)]
    assert [each.WhichOneof("event") for each in begun] == ["config", "config", "snapshot_complete"]
    assert begun[2].snapshot_complete.configs == 2
    await start(mesh, "a")
    changed = await watch.read()
    assert (changed.config.test_id, changed.config.state) == ("a", RUNNING)
    await pause(mesh, "a")
    paused = await watch.read()  # and no second snapshot
    assert (paused.config.test_id, paused.config.state) == ("a", PAUSED)
    watch.cancel()

    await start(mesh, "b")
    resumed = mesh.experiment.WatchAssignments(pb.WatchAssignmentsRequest(since_sequence=changed.sequence))
    seen = [await resumed.read() for _ in range(2)]
    assert [(each.config.test_id, each.config.state) for each in seen] == [("a", PAUSED), ("b", RUNNING)]
    resumed.cancel()
    ahead = mesh.experiment.WatchAssignments(pb.WatchAssignmentsRequest(since_sequence=10**6))
    assert (await refusal(ahead.read())).code() == grpc.StatusCode.OUT_OF_RANGE


async def test_a_ramp_rises_step_by_step_and_waits_while_it_is_paused(mesh):
    hour = Duration(seconds=3600)
    ramp = [pb.RampStep(coverage=share, hold=hour) for share in (0.1, 0.5, 1.0)]
    await create(mesh, made=spec(ramp=ramp))
    begun = await start(mesh)
    assert (begun.coverage, begun.ramp_step) == (0.1, 1)
    later(mesh, timedelta(minutes=50))
    await mesh.controller.look()
    await pause(mesh)
    later(mesh, timedelta(hours=5))
    await start(mesh)
    await mesh.controller.look()
    assert (await get(mesh)).ramp_step == 1
    later(mesh, timedelta(minutes=11))
    await mesh.controller.look()
    assert (await get(mesh)).coverage == 0.5
    covered = [(await assign(mesh, f"u{number}")).is_participant for number in range(200)]
    assert 60 < sum(covered) < 140
    later(mesh, timedelta(hours=2))
    await mesh.controller.look()
    assert (await get(mesh)).coverage == 1.0


async def test_a_ramp_that_began_while_the_clock_ran_ahead_rises_once_it_is_set_back(mesh):
    ramp = [pb.RampStep(coverage=share, hold=Duration(seconds=3600)) for share in (0.1, 1.0)]
    await create(mesh, made=spec(ramp=ramp))
    years = timedelta(days=3653)
    later(mesh, years)
    await start(mesh)
    later(mesh, -years)
    await mesh.controller.look()
    assert (await get(mesh)).start_time.ToDatetime(UTC) <= mesh.store.clock()
    later(mesh, timedelta(minutes=61))
    await mesh.controller.look()
    assert (await get(mesh)).coverage == 1.0


async def test_an_experiment_ends_when_its_end_has_come(mesh):
    made = spec()
    made.end_time.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
    await create(mesh, made=made)
    await start(mesh)
    await mesh.controller.look()
    assert (await get(mesh)).state == RUNNING
    later(mesh, timedelta(hours=2))
    await mesh.controller.look()
    ended = await get(mesh)
    assert (ended.state, ended.stop_cause) == (STOPPED, pb.STOP_CAUSE_END_TIME)
    await create(mesh, "late", spec())
    made.end_time.FromDatetime(datetime.now(UTC))
    assert status.violations(await refusal(create(mesh, "past", made)))[0][0] == "spec.end_time"


async def test_aliases_among_the_variants_are_pinned_at_the_start(mesh):
    await publish(mesh.registry, "1.0.0", "2.0.0")
    created = await create(mesh, made=models_spec())
    assert created.spec.variants[0].target.alias == "production"
    started = await start(mesh)
    assert started.spec.variants[0].target.version == "1.0.0"


async def test_a_version_that_is_not_in_the_registry_is_not_found(mesh):
    await publish(mesh.registry, "1.0.0")
    error = await refusal(create(mesh, made=models_spec()))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert "spec.variants[1].target" in error.details()
    assert "advisor@2.0.0" in error.details()


def ship(variant: str = "tuned") -> pb.ExperimentVerdict:
    return pb.ExperimentVerdict(
        decision=pb.DECISION_SHIP, variant_id=variant, reason="The tuned one is better."
    )


@pytest.fixture
async def advisor(mesh) -> World:
    """A running experiment between production, 1.0.0, and 2.0.0."""
    await publish(mesh.registry, "1.0.0", "2.0.0", "3.0.0")
    await create(mesh, made=models_spec())
    await start(mesh)
    return mesh


async def test_the_winners_alias_moves_in_one_audited_step(advisor):
    advisor.said.verdict = ship()

    done = await conclude(advisor, reason="ship it", request_id="once")

    assert (done.state, done.stop_cause) == (CONCLUDED, pb.STOP_CAUSE_CONCLUDED)
    conclusion = done.conclusion
    assert (conclusion.winner_variant_id, conclusion.state) == ("tuned", pb.CONCLUSION_STATE_APPLIED)
    assert (conclusion.previous_version, conclusion.version) == ("1.0.0", "2.0.0")
    assert await production(advisor) == "2.0.0"
    history = await advisor.registry.GetVersionHistory(
        registry_pb.GetVersionHistoryRequest(model_id="advisor", version="2.0.0", page_size=1)
    )
    assert (str(history.events[0].sequence), history.events[0].reason) == (
        conclusion.audit_event_id, "ship it",
    )  # fmt: skip
    assert (await assign(advisor, "anyone")).reason == pb.ASSIGNMENT_REASON_CONCLUDED
    assert (await assign(advisor, "anyone")).variant_id == "tuned"
    assert (await conclude(advisor, reason="ship it", request_id="once")).state in {CONCLUDED, CONCLUDING}
    assert (await get(advisor)).conclusion == conclusion


async def test_a_decision_against_the_verdict_needs_force_and_a_reason(advisor):
    error = await refusal(conclude(advisor, winner_variant_id="tuned"))
    assert (error.code(), status.reason(error)) == (
        grpc.StatusCode.FAILED_PRECONDITION, "NOT_THE_VERDICT",
    )  # fmt: skip
    assert "Too early." in error.details()
    for call in (
        conclude(advisor, winner_variant_id="tuned", force=True),
        conclude(advisor, force=True, reason="because"),
    ):
        assert (await refusal(call)).code() == grpc.StatusCode.INVALID_ARGUMENT
    assert (await get(advisor)).state == RUNNING

    done = await conclude(advisor, winner_variant_id="tuned", force=True, reason="the old one is recalled")
    assert done.conclusion.is_forced
    assert await production(advisor) == "2.0.0"


async def test_an_alias_that_moved_meanwhile_stops_the_conclusion(advisor):
    advisor.said.verdict = ship()
    await advisor.registry.SetAlias(
        registry_pb.SetAliasRequest(model_id="advisor", alias="production", version="3.0.0")
    )

    error = await refusal(conclude(advisor))

    assert (error.code(), status.reason(error)) == (grpc.StatusCode.FAILED_PRECONDITION, "ALIAS_MOVED")
    assert (await get(advisor)).state == RUNNING
    done = await conclude(advisor, expected_version="3.0.0")
    assert done.state == CONCLUDED
    assert await production(advisor) == "2.0.0"


async def test_a_variant_whose_version_was_deleted_is_refused_with_the_way_back(advisor):
    delete = registry_pb.DeleteModelVersionRequest(model_id="advisor", version="2.0.0")
    await advisor.registry.DeleteModelVersion(delete)
    error = await refusal(create(advisor, "another", models_spec()))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert 'spec.variants[1].target: model version "advisor@2.0.0" is gone: ' in error.details()
    assert "neuroweaver model undelete advisor@2.0.0" in error.details()


async def test_a_refusal_of_the_registry_waits_for_another_decision(advisor):
    """Between the decision and the move somebody deletes the winner."""
    advisor.said.verdict = ship()
    delete = registry_pb.DeleteModelVersionRequest(model_id="advisor", version="2.0.0")
    await advisor.registry.DeleteModelVersion(delete)

    done = await conclude(advisor)

    assert (done.state, done.conclusion.state) == (CONCLUDING, pb.CONCLUSION_STATE_REFUSED)
    assert "2.0.0" in done.conclusion.last_error
    assert await production(advisor) == "1.0.0"
    assert (await refusal(conclude(advisor, winner_variant_id="control", force=True, reason="x"))).code() == (
        grpc.StatusCode.FAILED_PRECONDITION
    )


async def test_a_registry_that_is_away_is_asked_until_it_is_back(advisor, monkeypatch):
    advisor.said.verdict = ship()
    moves = []
    releases = advisor.controller._releases
    real = releases.move

    async def away(conclusion: pb.ExperimentConclusion, request_id: str) -> str:
        moves.append(request_id)
        if len(moves) == 1:
            raise errors.Unavailable("the Registry cannot be reached")
        if len(moves) == 2:
            await real(conclusion, request_id)
            raise errors.Unavailable("the answer was lost")
        return await real(conclusion, request_id)

    monkeypatch.setattr(releases, "move", away)
    waiting = await conclude(advisor)
    assert (waiting.state, waiting.conclusion.state) == (CONCLUDING, pb.CONCLUSION_STATE_PENDING)
    assert "cannot be reached" in waiting.conclusion.last_error
    await advisor.controller.look()
    assert (await get(advisor)).state == CONCLUDING
    await advisor.controller.look()
    assert len(moves) == 2  # the back-off holds
    advisor.controller._next_attempt.clear()
    await advisor.controller.look()

    done = await get(advisor)
    assert (done.state, done.conclusion.state, done.conclusion.last_error) == (
        CONCLUDED, pb.CONCLUSION_STATE_APPLIED, "",
    )  # fmt: skip
    assert len(set(moves)) == 1
    history = await advisor.registry.ListAuditEvents(
        registry_pb.ListAuditEventsRequest(filter="action=alias.set")
    )
    assert len(history.events) == 2  # the first publication, and this move, once


async def test_keeping_the_control_moves_nothing(advisor):
    advisor.said.verdict = pb.ExperimentVerdict(decision=pb.DECISION_KEEP, variant_id="control", reason="No.")
    done = await conclude(advisor)
    assert (done.state, done.conclusion.state) == (CONCLUDED, pb.CONCLUSION_STATE_NOTHING_TO_MOVE)
    assert await production(advisor) == "1.0.0"


async def test_what_never_ran_is_not_concluded(mesh):
    await create(mesh)
    mesh.said.verdict = ship()
    error = await refusal(conclude(mesh))
    assert status.reason(error) == "NEVER_STARTED"


async def test_changes_of_one_experiment_at_once_all_happen_or_are_refused(mesh):
    await create(mesh)
    await start(mesh)
    shares = [0.1 + number / 100 for number in range(12)]
    await asyncio.gather(*(reweigh(mesh, {"control": share, "tuned": 1 - share}) for share in shares))
    phases = (await get(mesh)).phases
    assert [phase.number for phase in phases] == list(range(1, 14))
    assert all(phase.HasField("end_time") for phase in phases[:-1])


@pytest.mark.parametrize(
    ("broken", "field"),
    [
        ({"variants": [pb.ExperimentVariant(variant_id="control", weight=1.0)]}, "spec.variants"),
        (
            {
                "variants": [
                    pb.ExperimentVariant(variant_id="control", weight=0.5),
                    pb.ExperimentVariant(variant_id="b", weight=0.4),
                ]
            },
            "spec.variants",
        ),
        (
            {
                "variants": [
                    pb.ExperimentVariant(variant_id="control", weight=float("nan")),
                    pb.ExperimentVariant(variant_id="b", weight=0.5),
                ]
            },
            "spec.variants[0].weight",
        ),
        ({"control_variant_id": "nobody"}, "spec.control_variant_id"),
        ({"target_metric_id": "nothing"}, "spec.target_metric_id"),
        ({"confidence_level": 1.5}, "spec.confidence_level"),
        ({"title": "a\x07b"}, "spec.title"),
        ({"ramp": [pb.RampStep(coverage=0.5), pb.RampStep(coverage=0.2)]}, "spec.ramp[1].coverage"),
        ({"coverage": 0.0}, "spec.coverage"),
        ({"metrics": [metric("a"), metric("a")]}, "spec.metrics"),
        ({"thompson": pb.ThompsonAllocation(min_weight=0.5), "variants": [
            pb.ExperimentVariant(variant_id=name, weight=0.25) for name in ("control", "b", "c", "d")
        ]}, "spec.thompson.min_weight"),
    ],
)  # fmt: skip
async def test_a_broken_specification_is_refused_by_name(mesh, broken, field):
    error = await refusal(create(mesh, made=spec(**broken)))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    fields = [name for name, _ in status.violations(error)]
    assert field in fields or fields == ["spec"], status.describe(error)
    assert not (await mesh.experiment.ListExperiments(pb.ListExperimentsRequest())).experiments


@pytest.mark.parametrize("unit_id", ["", "a\0b", "x" * 257, "y" * 1_000_000])
async def test_what_is_no_unit_id_is_refused(mesh, unit_id):
    await create(mesh)
    error = await refusal(assign(mesh, unit_id))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert status.violations(error)[0][0] == "unit_id"
