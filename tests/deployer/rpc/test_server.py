from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import pytest

from deployer.control.test_rollouts import Clock
from deployer.fakes import COURSE, unreachable
from deployer.worlds import KEY, deploy, get, publish, refusal, served
from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.deployer.domain.backend import FieldChange, Finding, Scaling
from neuroweaver.mesh.wire import status
from neuroweaver.v1 import deployer_pb2 as pb
from neuroweaver.v1 import registry_pb2

CODE = grpc.StatusCode


async def test_from_the_wish_to_an_endpoint_and_away(mesh):
    await publish(mesh.registry, "1.0.0")
    mesh.backend.is_quick = False
    accepted = await deploy(mesh, reason="first")

    assert accepted.state == pb.DEPLOYMENT_STATE_PENDING
    assert (accepted.spec.alias, accepted.spec.replicas) == ("production", 1)
    assert accepted.resource_name.startswith("nw-advisor-default-")
    assert (accepted.generation, accepted.etag, accepted.updated_by) == (1, "1", "local")
    ready = await mesh.settle()
    assert ready == await get(mesh)
    assert ready.state == pb.DEPLOYMENT_STATE_READY
    assert ready.endpoint == f"http://127.0.0.1:1/{ready.resource_name}/v1"
    assert (ready.stable_revision, ready.observed_generation) == (1, 1)
    assert (ready.replicas.desired, ready.replicas.ready, ready.replicas.updated) == (1, 1, 1)
    (revision,) = ready.revisions
    assert (revision.version, revision.cause, revision.is_proven) == ("1.0.0", "DEPLOY", True)
    assert (revision.weight_percent, revision.alias) == (100, "production")
    assert ready.HasField("ready_time")
    conditions = {each.type: each.is_true for each in ready.conditions}
    assert all(conditions[kind] for kind in ("AVAILABLE", "ARTIFACTS_VERIFIED", "ROLLED_OUT"))

    gone = await mesh.deployer.UndeployModel(pb.UndeployModelRequest(model_id="advisor"))
    assert gone.state == pb.DEPLOYMENT_STATE_DELETING
    ended = await mesh.settle()
    assert ended.state == pb.DEPLOYMENT_STATE_DELETED
    assert not mesh.backend.places
    assert (await refusal(get(mesh))).code() == CODE.NOT_FOUND
    listed = await mesh.deployer.ListDeployments(pb.ListDeploymentsRequest())
    assert not listed.deployments
    listed = await mesh.deployer.ListDeployments(pb.ListDeploymentsRequest(filter="state=DELETED"))
    assert [each.model_id for each in listed.deployments] == ["advisor"]


async def test_a_cold_start_is_told_phase_by_phase(lone):
    await publish(lone.registry, "1.0.0")
    lone.backend.is_quick = False
    await deploy(lone)
    await lone.settle()
    events = await lone.events()
    phases = [
        event.replica_changed.replica.phase
        for event in events
        if event.WhichOneof("event") == "replica_changed"
    ]
    assert phases == list(COURSE)
    states = [
        event.state_changed.to_state for event in events if event.WhichOneof("event") == "state_changed"
    ]
    assert states == [pb.DEPLOYMENT_STATE_PENDING, pb.DEPLOYMENT_STATE_PROGRESSING, pb.DEPLOYMENT_STATE_READY]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    followed = next(event.alias_followed for event in events if event.WhichOneof("event") == "alias_followed")
    assert (followed.alias, followed.from_version, followed.to_version) == ("production", "", "1.0.0")


async def test_the_same_spec_again_changes_nothing(mesh):
    ready = await served(mesh)
    assert await deploy(mesh) == ready
    assert await deploy(mesh, pb.DeploymentSpec(alias="production", replicas=1)) == ready
    other = await deploy(mesh, pb.DeploymentSpec(replicas=2))
    assert other.generation == 2


async def test_a_retry_reads_the_first_answer(mesh):
    await publish(mesh.registry, "1.0.0")
    first = await deploy(mesh, request_id="r1")
    await mesh.settle()
    assert await deploy(mesh, request_id="r1") == first
    refused = await refusal(deploy(mesh, pb.DeploymentSpec(replicas=3), request_id="r1"))
    assert status.violations(refused)[0][0] == "request_id"
    scale = pb.ScaleDeploymentRequest(model_id="advisor", replicas=2, request_id="r2")
    answer = await mesh.deployer.ScaleDeployment(scale)
    await mesh.deployer.ScaleDeployment(pb.ScaleDeploymentRequest(model_id="advisor", replicas=4))
    assert await mesh.deployer.ScaleDeployment(scale) == answer
    assert (await get(mesh)).spec.replicas == 4


async def test_an_old_etag_is_refused(mesh):
    await publish(mesh.registry, "1.0.0")
    etag = (await deploy(mesh)).etag
    await deploy(mesh, pb.DeploymentSpec(replicas=2), etag=etag)
    calls = [
        deploy(mesh, pb.DeploymentSpec(replicas=3), etag=etag),
        mesh.deployer.ScaleDeployment(pb.ScaleDeploymentRequest(model_id="advisor", replicas=3, etag=etag)),
        mesh.deployer.RollbackDeployment(pb.RollbackDeploymentRequest(model_id="advisor", etag=etag)),
        mesh.deployer.UndeployModel(pb.UndeployModelRequest(model_id="advisor", etag=etag)),
        mesh.deployer.SetThresholds(
            pb.SetThresholdsRequest(model_id="advisor", thresholds=pb.ModelThresholds(), etag=etag)
        ),
        mesh.deployer.SwitchModel(
            pb.SwitchModelRequest(
                model_id="advisor", reason="x", target=pb.BackupModel(model_id="advisor"), etag=etag
            )
        ),
        deploy(mesh, name="other", etag="1"),
    ]
    for call in calls:
        assert (await refusal(call)).code() == CODE.ABORTED
    assert (await get(mesh)).spec.replicas == 2


async def test_what_is_not_there_is_not_found(lone):
    await publish(lone.registry, "1.0.0")
    stub = lone.deployer
    reason = "x"
    calls = [
        stub.GetDeployment(pb.GetDeploymentRequest(model_id="advisor")),
        stub.GetDeployment(pb.GetDeploymentRequest(model_id="No Label!")),
        stub.UndeployModel(pb.UndeployModelRequest(model_id="advisor")),
        stub.ScaleDeployment(pb.ScaleDeploymentRequest(model_id="advisor", replicas=1)),
        stub.RollbackDeployment(pb.RollbackDeploymentRequest(model_id="advisor")),
        stub.GetDeploymentMetrics(pb.GetDeploymentMetricsRequest(model_id="advisor")),
        stub.GetModelHealth(pb.GetModelHealthRequest(model_id="advisor")),
        stub.SetThresholds(pb.SetThresholdsRequest(model_id="advisor", thresholds=pb.ModelThresholds())),
        stub.SwitchModel(pb.SwitchModelRequest(model_id="advisor", reason=reason)),
        stub.ReportPerformance(
            pb.ReportPerformanceRequest(model_id="advisor", samples=[pb.PerformanceSample(accuracy=1.0)])
        ),
        stub.WatchDeployment(pb.WatchDeploymentRequest(model_id="advisor")).read(),
        stub.WatchDeploymentLogs(pb.WatchDeploymentLogsRequest(model_id="advisor")).read(),
        deploy(lone, pb.DeploymentSpec(version="9.9.9")),
        deploy(lone, pb.DeploymentSpec(alias="nowhere")),
        deploy(lone, model_id="nobody"),
        stub.PlanDeployment(pb.PlanDeploymentRequest(model_id="nobody", spec=pb.DeploymentSpec())),
    ]
    for call in calls:
        assert (await refusal(call)).code() == CODE.NOT_FOUND


async def test_a_plan_changes_nothing_and_can_be_agreed_to(mesh):
    await publish(mesh.registry, "1.0.0")
    request = pb.PlanDeploymentRequest(model_id="advisor", spec=pb.DeploymentSpec(replicas=2))
    plan = await mesh.deployer.PlanDeployment(request)
    assert plan.is_feasible
    assert (plan.version, plan.replacement) == ("1.0.0", pb.REPLACEMENT_MODE_SURGE)
    assert plan.objects[0].action == pb.PLANNED_ACTION_CREATE
    assert not mesh.backend.places
    assert (await refusal(get(mesh))).code() == CODE.NOT_FOUND
    assert (await mesh.deployer.PlanDeployment(request)).digest == plan.digest

    refused = await refusal(deploy(mesh, pb.DeploymentSpec(replicas=3), plan_digest=plan.digest))
    assert status.reason(refused) == "PLAN_CHANGED"
    await deploy(mesh, pb.DeploymentSpec(replicas=2), plan_digest=plan.digest)
    again = await mesh.deployer.PlanDeployment(request)
    assert again.digest
    await mesh.settle()
    assert (await mesh.deployer.PlanDeployment(request)).objects[0].action == pb.PLANNED_ACTION_UNCHANGED


async def test_a_plan_that_cannot_be_carried_out_is_an_answer_and_no_deployment(lone):
    await publish(lone.registry, "1.0.0")
    lone.backend.findings = (
        Finding("SURGE_WOULD_DEADLOCK", "No room for two.", "rollout.replacement", is_blocking=True),
    )
    request = pb.PlanDeploymentRequest(model_id="advisor", spec=pb.DeploymentSpec())
    plan = await lone.deployer.PlanDeployment(request)
    assert not plan.is_feasible
    assert plan.findings[0].reason == "SURGE_WOULD_DEADLOCK"
    refused = await refusal(deploy(lone))
    assert (refused.code(), status.reason(refused)) == (CODE.FAILED_PRECONDITION, "SURGE_WOULD_DEADLOCK")
    assert not await lone.events()


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (Trouble.UNREACHABLE, CODE.UNAVAILABLE),
        (Trouble.NOT_CONFIGURED, CODE.UNAVAILABLE),
        (Trouble.FORBIDDEN, CODE.PERMISSION_DENIED),
        (Trouble.NO_ROOM, CODE.FAILED_PRECONDITION),
        (Trouble.REFUSED, CODE.FAILED_PRECONDITION),
    ],
)
async def test_a_backends_trouble_is_told_and_leaves_nothing(lone, trouble, code):
    await publish(lone.registry, "1.0.0")

    def fail(_number, _name):
        raise BackendError(trouble, "may not create deployments.apps in default")

    lone.backend.fail = fail
    refused = await refusal(
        lone.deployer.PlanDeployment(
            pb.PlanDeploymentRequest(model_id="advisor", spec=pb.DeploymentSpec()), timeout=5
        )
    )
    assert (refused.code(), refused.details()) == (code, "may not create deployments.apps in default")
    assert (await refusal(deploy(lone))).code() == code
    lone.backend.fail = lambda _number, _name: None
    assert not await lone.events()


async def test_corrupt_and_missing_files_are_found_before_anything_starts(lone):
    await publish(lone.registry, "1.0.0")
    for file in (lone.folder / "artifacts").rglob("*"):
        if file.is_file() and file.stat().st_size and "sha256" in str(file):
            content = file.read_bytes()
            file.chmod(0o600)
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    plan = await lone.deployer.PlanDeployment(
        pb.PlanDeploymentRequest(model_id="advisor", spec=pb.DeploymentSpec())
    )
    assert (plan.is_feasible, plan.findings[0].reason) == (False, "ARTIFACT_CORRUPT")
    refused = await refusal(deploy(lone))
    assert (refused.code(), status.reason(refused)) == (CODE.FAILED_PRECONDITION, "ARTIFACT_CORRUPT")

    for file in (lone.folder / "artifacts").rglob("*"):
        if file.is_file():
            file.unlink()
    refused = await refusal(deploy(lone))
    assert refused.code() == CODE.FAILED_PRECONDITION
    assert status.reason(refused) in {"ARTIFACT_MISSING", "ARTIFACT_CORRUPT"}
    assert not await lone.events()
    assert not lone.backend.places


async def test_a_version_without_files_cannot_be_deployed(lone):
    await publish(lone.registry, "1.0.0")
    await lone.registry.CreateModelVersion(
        registry_pb2.CreateModelVersionRequest(
            model_id="advisor", version="2.0.0", state=registry_pb2.VERSION_STATE_DRAFT
        )
    )
    refused = await refusal(deploy(lone, pb.DeploymentSpec(version="2.0.0")))
    assert (refused.code(), status.reason(refused)) == (CODE.FAILED_PRECONDITION, "ARTIFACT_MISSING")


async def test_a_change_of_replicas_that_stay_is_done_once_all_are_replaced(mesh):
    before = await served(mesh)
    assert before.state == pb.DEPLOYMENT_STATE_READY
    mesh.backend.is_replacing = True
    await deploy(mesh, pb.DeploymentSpec(resources=pb.ReplicaResources(memory_request="3Gi")))
    after = await mesh.settle()
    assert len(after.revisions) == 1
    assert (after.state, after.observed_generation) == (pb.DEPLOYMENT_STATE_PROGRESSING, after.generation)
    assert "are being replaced" in after.message
    mesh.backend.is_replacing = False
    assert (await mesh.settle()).state == pb.DEPLOYMENT_STATE_READY


async def test_scaling_touches_nothing_else(mesh):
    await served(mesh, pb.DeploymentSpec(labels={"team": "search"}))
    scaled = await mesh.deployer.ScaleDeployment(
        pb.ScaleDeploymentRequest(model_id="advisor", replicas=3, reason="more")
    )
    assert (scaled.spec.replicas, scaled.spec.labels["team"], len(scaled.revisions)) == (3, "search", 1)
    ready = await mesh.settle()
    assert (ready.state, ready.replicas.ready) == (pb.DEPLOYMENT_STATE_READY, 3)
    event = next(e for e in reversed(await mesh.events()) if e.WhichOneof("event") == "scaled")
    assert (event.scaled.from_replicas, event.scaled.to_replicas) == (1, 3)
    assert (event.scaled.cause, event.actor) == ("REQUEST", "local")

    scaled = await mesh.deployer.ScaleDeployment(
        pb.ScaleDeploymentRequest(
            model_id="advisor", autoscaling=pb.Autoscaling(min_replicas=1, max_replicas=4)
        )
    )
    assert scaled.spec.autoscaling.target_cpu_percent == 80
    await mesh.deployer.ScaleDeployment(pb.ScaleDeploymentRequest(model_id="advisor", replicas=0))
    idle = await mesh.settle()
    assert (idle.state, idle.replicas.current) == (pb.DEPLOYMENT_STATE_IDLE, 0)


async def test_what_an_autoscaler_did_is_told_with_its_cause(lone):
    await served(lone, pb.DeploymentSpec(autoscaling=pb.Autoscaling(min_replicas=1, max_replicas=4)))
    lone.backend.desired = {1: 3}
    lone.backend.scalings = (Scaling(1, 2, 2, "SPEC"), Scaling(1, 1, 3, "CPU"), Scaling(1, 3, 3, "MEMORY"))
    await lone.settle()
    event = next(e for e in reversed(await lone.events()) if e.WhichOneof("event") == "scaled")
    assert (event.scaled.from_replicas, event.scaled.to_replicas) == (1, 3)
    assert (event.scaled.cause, event.actor) == ("CPU", "system")


async def test_scaling_without_room_is_refused(lone):
    await served(lone)
    lone.backend.findings = (Finding("INSUFFICIENT_GPU", "0 of 1 GPUs are free.", is_blocking=True),)
    refused = await refusal(
        lone.deployer.ScaleDeployment(pb.ScaleDeploymentRequest(model_id="advisor", replicas=9))
    )
    assert (refused.code(), status.reason(refused)) == (CODE.FAILED_PRECONDITION, "INSUFFICIENT_GPU")
    assert (await get(lone)).spec.replicas == 1


async def test_scaling_reads_no_files(lone):
    await served(lone)
    lone.planner.versions._verified.clear()
    for file in (lone.folder / "artifacts").rglob("*"):
        if file.is_file():
            file.unlink()
    scale = pb.ScaleDeploymentRequest(model_id="advisor", replicas=2)
    assert (await lone.deployer.ScaleDeployment(scale)).spec.replicas == 2


async def test_what_begins_no_rollout_needs_no_room_for_a_canary(lone):
    await publish(lone.registry, "1.0.0", "2.0.0")
    steps = [pb.CanaryStep(weight_percent=10)]
    spec = pb.DeploymentSpec(version="1.0.0", rollout=pb.RolloutPolicy(canary=pb.CanaryPolicy(steps=steps)))
    await deploy(lone, spec)
    await lone.settle()
    plan, full = lone.backend.plan, Finding("INSUFFICIENT_CPU", "No room beside it.", is_blocking=True)

    async def planning(wanted):
        found = await plan(wanted)
        return replace(found, findings=(full,)) if wanted.spec.rollout.HasField("canary") else found

    lone.backend.plan = planning
    scaled = await lone.deployer.ScaleDeployment(pb.ScaleDeploymentRequest(model_id="advisor", replicas=2))
    assert scaled.spec.rollout.canary.steps[0].weight_percent == 10
    spec.replicas = 3
    assert (await deploy(lone, spec)).spec.replicas == 3
    spec.version = "2.0.0"
    assert status.reason(await refusal(deploy(lone, spec))) == "INSUFFICIENT_CPU"


async def test_while_it_is_removed_nothing_else_can_be_done(lone):
    await served(lone)
    removed = await lone.deployer.UndeployModel(pb.UndeployModelRequest(model_id="advisor"))
    assert await lone.deployer.UndeployModel(pb.UndeployModelRequest(model_id="advisor")) == removed
    for call in (
        deploy(lone, pb.DeploymentSpec(replicas=2)),
        lone.deployer.ScaleDeployment(pb.ScaleDeploymentRequest(model_id="advisor", replicas=2)),
        lone.deployer.RollbackDeployment(pb.RollbackDeploymentRequest(model_id="advisor")),
    ):
        assert (await refusal(call)).code() == CODE.FAILED_PRECONDITION
    ended = await lone.settle()
    assert (await lone.deployer.UndeployModel(pb.UndeployModelRequest(model_id="advisor"))) == ended


async def test_what_was_removed_can_be_made_again_and_goes_on_counting(mesh):
    await served(mesh)
    await mesh.deployer.UndeployModel(pb.UndeployModelRequest(model_id="advisor"))
    ended = await mesh.settle()
    again = await deploy(mesh, pb.DeploymentSpec(version="1.0.0"))
    assert again.generation == ended.generation + 1
    assert again.last_sequence > ended.last_sequence
    assert (await mesh.settle()).state == pb.DEPLOYMENT_STATE_READY

    watch = mesh.deployer.WatchDeployment(pb.WatchDeploymentRequest(model_id="advisor"))
    first = await watch.read()
    assert first.sequence == ended.last_sequence + 1
    assert first.WhichOneof("event") == "spec_changed"
    watch.cancel()
    old = mesh.deployer.WatchDeployment(pb.WatchDeploymentRequest(model_id="advisor", since_sequence=1))
    assert (await refusal(old.read())).code() == CODE.OUT_OF_RANGE
    # Whoever saw the end goes on with what came after it.
    on = mesh.deployer.WatchDeployment(
        pb.WatchDeploymentRequest(model_id="advisor", since_sequence=ended.last_sequence)
    )
    assert (await on.read()).sequence == ended.last_sequence + 1
    on.cancel()


async def test_a_watch_tells_everything_and_ends_with_the_end(mesh):
    await publish(mesh.registry, "1.0.0")
    await deploy(mesh)
    watching = asyncio.create_task(
        _all(mesh.deployer.WatchDeployment(pb.WatchDeploymentRequest(model_id="advisor")))
    )
    await mesh.settle()
    await mesh.deployer.UndeployModel(pb.UndeployModelRequest(model_id="advisor", reason="over"))
    await mesh.settle()
    events = await asyncio.wait_for(watching, 120)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[-1].state_changed.to_state == pb.DEPLOYMENT_STATE_DELETED
    assert events == await mesh.events()

    half = len(events) // 2
    rest = await _all(
        mesh.deployer.WatchDeployment(pb.WatchDeploymentRequest(model_id="advisor", since_sequence=half))
    )
    assert rest == events[half:]
    last = await _all(
        mesh.deployer.WatchDeployment(
            pb.WatchDeploymentRequest(model_id="advisor", since_sequence=len(events))
        )
    )
    assert last == []
    beyond = mesh.deployer.WatchDeployment(
        pb.WatchDeploymentRequest(model_id="advisor", since_sequence=len(events) + 1)
    )
    assert (await refusal(beyond.read())).code() == CODE.OUT_OF_RANGE


async def test_lists_are_filtered_and_paged(mesh):
    for index, model_id in enumerate(["advisor", "buyer", "clerk"]):
        await publish(mesh.registry, "1.0.0", model_id=model_id)
        labels = {"team": "search" if index else "sales"}
        await deploy(mesh, pb.DeploymentSpec(labels=labels), model_id=model_id)
    await deploy(mesh, pb.DeploymentSpec(version="1.0.0"), name="staging")

    async def listed(**fields):
        answer = await mesh.deployer.ListDeployments(pb.ListDeploymentsRequest(**fields))
        return [f"{each.model_id}/{each.name}" for each in answer.deployments], answer.next_page_token

    everything = ["advisor/default", "advisor/staging", "buyer/default", "clerk/default"]
    assert await listed() == (everything, "")
    first, token = await listed(page_size=3)
    assert (first, (await listed(page_size=3, page_token=token))[0]) == (everything[:3], everything[3:])
    assert (await listed(filter="labels.team=search"))[0] == everything[2:]
    assert (await listed(filter="alias=production AND model_id=advisor"))[0] == everything[:1]
    assert (await listed(filter="state=READY"))[0] == []
    assert (await listed(order_by="create_time desc"))[0][0] == "advisor/staging"
    assert (await refusal(listed(filter="state=HAPPY"))).code() == CODE.INVALID_ARGUMENT
    assert (await refusal(listed(page_token=token, filter="state=READY"))).code() == CODE.INVALID_ARGUMENT


async def test_a_backup_is_not_removed_from_under_its_deployment(lone):
    for model_id in ("advisor", "spare"):
        await publish(lone.registry, "1.0.0", model_id=model_id)
    await deploy(lone, model_id="spare")
    backed = pb.DeploymentSpec(recovery=pb.RecoveryPolicy(backup=pb.BackupModel(model_id="spare")))
    await deploy(lone, backed)
    remove = pb.UndeployModelRequest(model_id="spare")
    refused = await refusal(lone.deployer.UndeployModel(remove))
    assert (refused.code(), status.reason(refused)) == (CODE.FAILED_PRECONDITION, "IS_BACKUP")
    remove.force = True
    assert (await lone.deployer.UndeployModel(remove)).state == pb.DEPLOYMENT_STATE_DELETING


async def test_backups_never_lead_in_a_circle(lone):
    for model_id in ("advisor", "spare", "third"):
        await publish(lone.registry, "1.0.0", model_id=model_id)

    def backed_by(model_id):
        return pb.DeploymentSpec(recovery=pb.RecoveryPolicy(backup=pb.BackupModel(model_id=model_id)))

    await deploy(lone, backed_by("spare"))
    await deploy(lone, backed_by("third"), model_id="spare")
    for model_id, backup in (("third", "advisor"), ("third", "third")):
        refused = await refusal(deploy(lone, backed_by(backup), model_id=model_id))
        assert status.violations(refused)[0][0] == "spec.recovery.backup"
    await deploy(lone, backed_by("nobody-yet"), model_id="third")


async def test_log_lines_can_be_read_followed_and_resumed(mesh):
    await served(mesh)
    for number in range(5):
        mesh.backend.log(KEY, f"r-{number % 2}", f"line {number}", level="WARNING" if number else "")
    await mesh.reconciler.logs.collect(KEY)
    await mesh.reconciler.logs.collect(KEY)  # nothing twice

    async def lines(**fields):
        request = pb.WatchDeploymentLogsRequest(model_id="advisor", **fields)
        return [line.message for line in await _all(mesh.deployer.WatchDeploymentLogs(request))]

    assert await lines() == [f"line {number}" for number in range(5)]
    assert await lines(since_sequence=3) == ["line 3", "line 4"]
    assert await lines(tail_lines=2) == ["line 3", "line 4"]
    assert await lines(replica_id="r-1", tail_lines=1) == ["line 3"]
    assert await lines(revision=7) == []
    following = mesh.deployer.WatchDeploymentLogs(
        pb.WatchDeploymentLogsRequest(model_id="advisor", tail_lines=1, follow=True)
    )
    assert (await following.read()).message == "line 4"
    mesh.backend.log(KEY, "r-0", "é" * 20_000)
    await mesh.reconciler.logs.collect(KEY)
    long = (await following.read()).message
    assert len(long.encode()) <= 16 * 1024
    assert long.endswith("…")
    following.cancel()
    refused = await refusal(lines(since_sequence=99))
    assert refused.code() == CODE.OUT_OF_RANGE


async def test_the_log_of_one_that_was_made_anew_begins_anew(lone):
    await served(lone)
    for number in range(3):
        lone.backend.log(KEY, "r", f"old {number}")
    await lone.reconciler.logs.collect(KEY)
    await lone.deployer.UndeployModel(pb.UndeployModelRequest(model_id="advisor"))
    await lone.settle()

    async def lines(**fields):
        request = pb.WatchDeploymentLogsRequest(model_id="advisor", **fields)
        return [line.message for line in await _all(lone.deployer.WatchDeploymentLogs(request))]

    assert await lines(tail_lines=1) == ["old 2"]
    lone.backend.lines.clear()
    await deploy(lone)
    await lone.settle()
    assert await lines() == []
    lone.backend.log(KEY, "s", "new")
    await lone.reconciler.logs.collect(KEY)
    assert await lines() == await lines(tail_lines=9) == await lines(since_sequence=3) == ["new"]
    refused = await refusal(lines(since_sequence=1))
    assert refused.code() == CODE.OUT_OF_RANGE
    assert status.metadata(refused)["oldest_sequence"] == "4"


async def test_where_the_logs_of_gone_replicas_were_read_to_is_forgotten(lone):
    await served(lone)
    (there,) = lone.backend.places[KEY].replicas
    for replica_id in (there, "gone"):
        lone.backend.log(KEY, replica_id, "hello")
    await lone.reconciler.logs.collect(KEY)

    async def known():
        async with lone.store.read("default") as deployments:
            return set(await deployments.cursors(KEY))

    clock = Clock(lone)
    await lone.reconciler.look(KEY)
    assert await known() == {there, "gone"}
    clock.advance(2 * 3600)
    await lone.reconciler.look(KEY)
    assert await known() == {there}


async def test_a_followed_log_ends_when_the_deployment_is_gone(lone):
    await served(lone)
    lone.backend.log(KEY, "r", "hello")
    await lone.reconciler.logs.collect(KEY)
    request = pb.WatchDeploymentLogsRequest(model_id="advisor", follow=True)
    reading = asyncio.create_task(_all(lone.deployer.WatchDeploymentLogs(request)))
    await lone.deployer.UndeployModel(pb.UndeployModelRequest(model_id="advisor"))
    await lone.settle()
    assert [line.message for line in await asyncio.wait_for(reading, 120)] == ["hello"]


async def test_drift_is_shown_until_it_is_set_back(lone):
    await served(lone)
    lone.backend.drift = (FieldChange("Deployment/x", "spec.replicas", "9", "1"),)
    shown = await lone.settle()
    assert [each.object for each in shown.drift] == ["Deployment/x"]
    assert {each.type: each.reason for each in shown.conditions}["DRIFT_FREE"] == "DRIFT"
    lone.backend.drift = ()
    after = await lone.settle()
    assert not after.drift
    assert (await lone.kinds()).count("drift_found") == 1


@pytest.mark.parametrize(
    ("reason", "is_scheduled"),
    [
        ("INSUFFICIENT_GPU", False),
        ("QUOTA_EXCEEDED", False),
        ("UNSCHEDULABLE", False),
        ("WEIGHTS_BY_REPLICAS", True),
        ("AUTOSCALING_BLIND", True),
        ("PROGRESS_DEADLINE_EXCEEDED", True),
    ],
)
async def test_only_what_keeps_replicas_from_a_place_is_a_matter_of_scheduling(lone, reason, is_scheduled):
    await publish(lone.registry, "1.0.0")
    lone.backend.reasons = (("AUTOSCALING_BLIND", "No figures."), (reason, "In words."))
    await deploy(lone)
    conditions = {each.type: each for each in (await lone.settle()).conditions}
    scheduled, available = conditions["SCHEDULED"], conditions["AVAILABLE"]
    assert (scheduled.is_true, scheduled.reason) == (is_scheduled, "PLACED" if is_scheduled else reason)
    assert (available.is_true, available.reason) == (True, "AUTOSCALING_BLIND")
    assert "No figures." in available.message
    assert ("In words." in available.message) == is_scheduled


async def test_an_unreachable_backend_is_a_condition_and_no_alarm(lone):
    ready = await served(lone)

    def fail(_number, _name):
        raise unreachable()

    lone.backend.fail = fail
    look = await lone.reconciler.look(KEY)
    assert look.trouble is not None
    seen = await get(lone)
    assert seen.state == ready.state
    condition = next(each for each in seen.conditions if each.type == "BACKEND_REACHABLE")
    assert (condition.is_true, condition.reason) == (False, "UNREACHABLE")
    lone.backend.fail = lambda _number, _name: None
    assert (await lone.settle()).state == pb.DEPLOYMENT_STATE_READY


async def test_what_ended_for_its_memory_is_a_failure_with_that_reason(lone):
    await served(lone)
    used = "used 2355Mi of memory, more than its limit of 2Gi (OOM_KILLED)"
    lone.backend.reasons = (("OOM_KILLED", used),)
    lone.backend.set_phase(KEY, pb.REPLICA_PHASE_FAILED, message=used, last_exit=137)
    failed = await lone.settle()
    assert (failed.state, failed.message) == (pb.DEPLOYMENT_STATE_FAILED, used)
    available = {each.type: each for each in failed.conditions}["AVAILABLE"]
    assert (available.is_true, available.reason, available.message) == (False, "OOM_KILLED", used)


async def test_a_crash_loop_is_a_failure_with_its_reason(lone):
    await publish(lone.registry, "1.0.0")
    lone.backend.broken = {"1.0.0"}
    await deploy(lone)
    failed = await lone.settle()
    assert failed.state == pb.DEPLOYMENT_STATE_FAILED
    assert "no such layer" in failed.message
    reasons = {each.type: each.reason for each in failed.conditions}
    assert reasons["AVAILABLE"] == "CRASH_LOOP"
    event = next(e for e in await lone.events() if e.WhichOneof("event") == "replica_changed")
    assert event.replica_changed.restart_delay.seconds > 200
    # A fix gets through, although nothing ever served.
    fixed = await served(lone, pb.DeploymentSpec(version="1.0.1"), versions=("1.0.1",))
    assert (fixed.state, fixed.stable_revision) == (pb.DEPLOYMENT_STATE_READY, 2)


async def test_too_few_replicas_degrade_what_was_ready(lone):
    await served(lone, pb.DeploymentSpec(replicas=2))
    replicas = lone.backend.places[KEY].replicas
    first = next(iter(replicas))
    replicas[first] = replace(replicas[first], phase=pb.REPLICA_PHASE_FAILED)
    await lone.reconciler.look(KEY)
    assert (await get(lone)).state == pb.DEPLOYMENT_STATE_DEGRADED


async def _all(call):
    return [message async for message in call]


async def test_a_version_that_was_deleted_is_refused_with_the_way_back(mesh):
    await publish(mesh.registry, "1.0.0", "2.0.0")
    await mesh.registry.DeleteModelVersion(
        registry_pb2.DeleteModelVersionRequest(model_id="advisor", version="2.0.0")
    )
    error = await refusal(deploy(mesh, pb.DeploymentSpec(version="2.0.0")))
    assert error.code() == CODE.NOT_FOUND
    assert error.details().startswith('model version "advisor@2.0.0" is gone: ')
    assert "neuroweaver model undelete advisor@2.0.0" in error.details()
