"""What was measured and reported, the health that follows, and who serves instead."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import REGISTRY

from deployer.control.test_rollouts import Clock
from deployer.worlds import KEY, beside, deploy, get, publish, refusal, served, until
from neuroweaver.deployer.domain.backend import Key, Measured, Redirect
from neuroweaver.deployer.domain.metrics.measurement import Tally
from neuroweaver.deployer.domain.metrics.proof import first
from neuroweaver.mesh.wire import status
from neuroweaver.v1 import deployer_pb2 as pb

CODE = grpc.StatusCode
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SPARE = Key("default", "spare", "default")


async def report(mesh, *samples: pb.PerformanceSample, **fields) -> pb.ModelHealth:
    request = pb.ReportPerformanceRequest(model_id="advisor", samples=samples, source="router", **fields)
    return await mesh.deployer.ReportPerformance(request)


async def health(mesh) -> pb.ModelHealth:
    return await mesh.deployer.GetModelHealth(pb.GetModelHealthRequest(model_id="advisor"))


def of(answer: pb.ModelHealth, kind: int) -> pb.ThresholdStatus:
    return next(each for each in answer.thresholds if each.kind == kind)


async def test_reports_make_health(mesh):
    await served(mesh)
    good = await report(mesh, pb.PerformanceSample(accuracy=0.9, latency_ms=100, requests=50))
    assert good.state == pb.HEALTH_STATE_HEALTHY
    assert of(good, pb.THRESHOLD_KIND_ACCURACY).value == pytest.approx(0.9)
    assert not of(good, pb.THRESHOLD_KIND_COST).HasField("value")
    assert (good.version, good.ready_replicas, good.serving.model_id) == ("1.0.0", 1, "advisor")
    assert good.configured_thresholds.min_accuracy == 0.85

    bad = await report(mesh, pb.PerformanceSample(accuracy=0.2, requests=1000))
    assert bad.state == pb.HEALTH_STATE_DEGRADED
    assert of(bad, pb.THRESHOLD_KIND_ACCURACY).is_breached
    assert of(bad, pb.THRESHOLD_KIND_ACCURACY).requests == 1050
    degraded = await mesh.settle()
    assert degraded.state == pb.DEPLOYMENT_STATE_DEGRADED
    assert (await health(mesh)).state == pb.HEALTH_STATE_DEGRADED
    crossed = [
        e.threshold_crossed for e in await mesh.events() if e.WhichOneof("event") == "threshold_crossed"
    ]
    assert [(e.threshold.kind, e.is_breached) for e in crossed] == [(pb.THRESHOLD_KIND_ACCURACY, True)]


async def test_one_that_is_made_again_is_not_judged_by_what_it_was(lone):
    await served(lone)
    clock = Clock(lone)
    await report(lone, pb.PerformanceSample(accuracy=0.2, requests=1000))
    await lone.reconciler.look(KEY)
    await lone.deployer.UndeployModel(pb.UndeployModelRequest(model_id="advisor"))
    assert (await lone.settle()).state == pb.DEPLOYMENT_STATE_DELETED
    clock.advance(1)
    await deploy(lone)
    assert (await lone.settle()).state == pb.DEPLOYMENT_STATE_READY
    assert of(await health(lone), pb.THRESHOLD_KIND_ACCURACY).requests == 0
    metrics = await lone.deployer.GetDeploymentMetrics(pb.GetDeploymentMetricsRequest(model_id="advisor"))
    assert not metrics.total.HasField("accuracy")
    again = await report(lone, pb.PerformanceSample(accuracy=0.9, requests=50))
    assert of(again, pb.THRESHOLD_KIND_ACCURACY).value == pytest.approx(0.9)


async def test_a_repeated_report_counts_once(mesh):
    await served(mesh)
    for _ in range(3):
        answer = await report(mesh, pb.PerformanceSample(accuracy=0.9, requests=20), request_id="r")
    assert of(answer, pb.THRESHOLD_KIND_ACCURACY).requests == 20


async def test_reports_from_the_future_are_refused(lone):
    await served(lone)
    time = Timestamp()
    time.FromDatetime(lone.store.clock() + timedelta(minutes=6))
    refused = await refusal(
        report(lone, pb.PerformanceSample(accuracy=1.0), pb.PerformanceSample(accuracy=1.0, time=time))
    )
    assert status.violations(refused)[0][0] == "samples[1].time"
    assert of(await health(lone), pb.THRESHOLD_KIND_ACCURACY).requests == 0


def shown_accuracy(deployment: pb.Deployment) -> float | None:
    labels = {"deployment": deployment.resource_name}
    return REGISTRY.get_sample_value("neuroweaver_deployment_accuracy", labels)


async def test_prometheus_reads_the_accuracy_while_it_is_known(lone):
    await served(lone)
    clock, deployment = Clock(lone), await lone.settle()
    assert shown_accuracy(deployment) is None
    await report(lone, pb.PerformanceSample(accuracy=0.8, requests=29))
    await lone.reconciler.look(KEY)
    assert shown_accuracy(deployment) is None
    await report(lone, pb.PerformanceSample(accuracy=0.2, requests=29))
    await lone.reconciler.look(KEY)
    assert shown_accuracy(deployment) == pytest.approx(0.5)
    clock.advance(301)
    await lone.reconciler.look(KEY)
    assert shown_accuracy(deployment) is None


async def test_prometheus_reads_nothing_of_a_deployment_that_is_gone(lone):
    await served(lone)
    deployment = await lone.settle()
    await report(lone, pb.PerformanceSample(accuracy=0.9, requests=50))
    await lone.reconciler.look(KEY)
    assert shown_accuracy(deployment) == pytest.approx(0.9)
    await lone.deployer.UndeployModel(pb.UndeployModelRequest(model_id="advisor"))
    gone = await lone.settle()
    assert gone.state == pb.DEPLOYMENT_STATE_DELETED
    assert shown_accuracy(deployment) is None


async def test_prometheus_reads_nothing_of_a_deployer_that_leads_no_more(lone):
    await served(lone)
    deployment = await lone.settle()
    await report(lone, pb.PerformanceSample(accuracy=0.9, requests=50))

    async def is_shown() -> bool:
        return shown_accuracy(deployment) is not None

    async with beside(lone.reconciler.lead()):
        await until(is_shown)
    assert shown_accuracy(deployment) is None


@pytest.mark.parametrize(
    "sample",
    [
        pb.PerformanceSample(),
        pb.PerformanceSample(accuracy=1.1),
        pb.PerformanceSample(accuracy=math.nan),
        pb.PerformanceSample(latency_ms=-1.0),
        pb.PerformanceSample(latency_ms=1.0, requests=0),
        pb.PerformanceSample(latency_ms=1.0, version="'; drop table samples"),
    ],
)
async def test_a_report_that_is_none_is_refused(lone, sample):
    await served(lone)
    assert (await refusal(report(lone, sample))).code() == CODE.INVALID_ARGUMENT


async def test_thresholds_are_replaced_without_a_rollout(mesh):
    await served(mesh)
    await report(mesh, pb.PerformanceSample(accuracy=0.9, requests=100))
    request = pb.SetThresholdsRequest(
        model_id="advisor", thresholds=pb.ModelThresholds(min_accuracy=0.95), reason="stricter"
    )
    answer = await mesh.deployer.SetThresholds(request)
    assert of(answer, pb.THRESHOLD_KIND_ACCURACY).is_breached
    assert answer.configured_thresholds.max_latency_ms == 2000
    seen = await get(mesh)
    assert (seen.spec.thresholds.min_accuracy, len(seen.revisions), seen.generation) == (0.95, 1, 2)
    event = next(e for e in reversed(await mesh.events()) if e.WhichOneof("event") == "spec_changed")
    assert (event.spec_changed.reason, event.spec_changed.revision, event.actor) == ("stricter", 0, "local")
    request.thresholds.Clear()
    request.thresholds.SetInParent()
    assert (await mesh.deployer.SetThresholds(request)).configured_thresholds.min_accuracy == 0.85


async def test_counters_become_metrics(mesh):
    await served(mesh, pb.DeploymentSpec(engine=pb.EngineOptions(replica_hour_usd=3600.0)))
    clock = Clock(mesh)

    async def counted(requests, latency):
        mesh.backend.counts = {
            1: Measured(
                1,
                requests=requests,
                errors=requests // 10,
                tokens=10 * requests,
                running=2.0,
                latency_ms=latency,
                missing_replicas=("r-9",),
            )
        }
        await mesh.reconciler.look(KEY)

    await counted(100, {50.0: 100, 100.0: 100, math.inf: 100})
    clock.advance(10)
    await counted(300, {50.0: 200, 100.0: 300, math.inf: 300})
    answer = await mesh.deployer.GetDeploymentMetrics(pb.GetDeploymentMetricsRequest(model_id="advisor"))
    total = answer.total
    assert (total.requests, total.errors) == (200, 20)
    assert total.throughput_rps == pytest.approx(20.0)
    assert total.tokens_per_second == pytest.approx(200.0)
    assert total.error_rate == pytest.approx(0.1)
    # Half of the 200 took at most 50 ms, the others 50 to 100: the 95th percentile is at nine tenths of those.
    assert total.latency_p50_ms == pytest.approx(50.0)
    assert total.latency_p95_ms == pytest.approx(95.0)
    # One replica at one dollar a second for ten seconds.
    assert total.cost_per_request == pytest.approx(10 / 200)
    assert not total.HasField("accuracy")
    assert not total.HasField("gpu_utilization")
    assert total.running_requests == 2
    assert [each.revision for each in answer.revisions] == [1]
    assert list(answer.missing_replicas) == ["r-9"]
    # A replica that was started again counts from 0: what cannot be told is left out.
    clock.advance(10)
    await counted(5, {50.0: 5, 100.0: 5, math.inf: 5})
    answer = await mesh.deployer.GetDeploymentMetrics(pb.GetDeploymentMetricsRequest(model_id="advisor"))
    assert (answer.total.requests, answer.total.throughput_rps) == (200, pytest.approx(20.0))


async def test_in_a_cluster_traffic_moves_only_to_the_same_model(mesh):
    in_cluster = pb.DeploymentSpec(backend=pb.DEPLOYMENT_BACKEND_KUBERNETES)
    await served(mesh, in_cluster)
    await served(mesh, in_cluster, model_id="spare")
    await deploy(mesh, in_cluster, name="second")
    await mesh.settle(Key("default", "advisor", "second"))
    spare = pb.BackupModel(model_id="spare")
    request = pb.SwitchModelRequest(model_id="advisor", target=spare, reason="maintenance")
    assert status.reason(await refusal(mesh.deployer.SwitchModel(request))) == "TARGET_OF_ANOTHER_MODEL"
    request.target.CopyFrom(pb.BackupModel(model_id="advisor", name="second"))
    assert (await mesh.deployer.SwitchModel(request)).is_switched
    request.target.name = "default"
    assert not (await mesh.deployer.SwitchModel(request)).is_switched


async def test_a_router_hands_traffic_to_any_model(mesh):
    await served(mesh, pb.DeploymentSpec(backend=pb.DEPLOYMENT_BACKEND_KUBERNETES), model_id="spare")
    spare = pb.BackupModel(model_id="spare")
    # A backup of another model brings the router along.
    backed = pb.DeploymentSpec(
        backend=pb.DEPLOYMENT_BACKEND_KUBERNETES, recovery=pb.RecoveryPolicy(backup=spare)
    )
    await served(mesh, backed)
    request = pb.SwitchModelRequest(model_id="advisor", reason="maintenance")
    assert (await mesh.deployer.SwitchModel(request)).is_switched
    await mesh.settle()
    assert mesh.backend.places[KEY].wanted.redirect.model_id == "spare"


async def test_traffic_moves_only_to_what_is_ready(mesh):
    await served(mesh)
    switch = mesh.deployer.SwitchModel
    request = pb.SwitchModelRequest(model_id="advisor", reason="maintenance")
    assert status.reason(await refusal(switch(request))) == "NO_BACKUP"
    request.target.model_id = "spare"
    assert status.reason(await refusal(switch(request))) == "TARGET_NOT_READY"
    await publish(mesh.registry, "1.0.0", model_id="spare")
    await deploy(mesh, model_id="spare")
    assert status.reason(await refusal(switch(request))) == "TARGET_NOT_READY"
    spare = await mesh.settle(SPARE)

    switched = await switch(request)
    assert (switched.serving.model_id, switched.is_switched) == ("spare", True)
    assert (await switch(request)).serving == switched.serving
    seen = await mesh.settle()
    assert seen.switched_to.model_id == "spare"
    assert mesh.backend.places[KEY].wanted.redirect == Redirect(spare.endpoint, "spare")
    events = [e for e in await mesh.events() if e.WhichOneof("event") == "model_switched"]
    assert len(events) == 1
    assert (events[0].model_switched.reason, events[0].model_switched.is_automatic) == ("maintenance", False)
    assert events[0].actor == "local"

    request.target.model_id = "advisor"
    assert not (await switch(request)).is_switched
    await mesh.settle()
    assert mesh.backend.places[KEY].wanted.redirect is None


class Pair:
    """A model with a backup that is always fit, and a clock."""

    def __init__(self, mesh) -> None:
        self._mesh, self.clock = mesh, Clock(mesh)

    @classmethod
    async def ready(cls, mesh) -> Pair:
        await served(mesh, model_id="spare")
        recovery = pb.RecoveryPolicy(
            backup=pb.BackupModel(model_id="spare"), switch_after={"seconds": 30}, auto_switch_back=True
        )
        await served(mesh, pb.DeploymentSpec(recovery=recovery))
        return cls(mesh)

    async def look(self) -> str:
        """Who has the traffic after it; empty: the model itself."""
        mesh = self._mesh
        mesh.backend.set_phase(SPARE, pb.REPLICA_PHASE_READY, last_token_time=mesh.store.clock())
        await mesh.reconciler.look(SPARE)
        await mesh.reconciler.look(KEY)
        return (await get(mesh)).switched_to.model_id

    async def fail(self) -> str:
        """Until the backup takes over."""
        self._mesh.backend.set_phase(KEY, pb.REPLICA_PHASE_CRASH_LOOP, message="boom")
        await self.look()
        self.clock.advance(31)
        return await self.look()

    async def heal(self) -> str:
        """For longer than it takes to be trusted again."""
        for _ in range(8):
            self.clock.advance(60)
            now = self._mesh.store.clock()
            self._mesh.backend.set_phase(KEY, pb.REPLICA_PHASE_READY, last_token_time=now)
            serving = await self.look()
        return serving


async def test_an_unfit_model_is_relieved_by_its_backup_and_comes_back(lone):
    pair = await Pair.ready(lone)
    lone.backend.set_phase(KEY, pb.REPLICA_PHASE_CRASH_LOOP, message="boom")
    assert await pair.look() == ""
    pair.clock.advance(29)
    assert await pair.look() == ""
    pair.clock.advance(2)
    assert await pair.look() == "spare"
    event = next(e for e in await lone.events() if e.WhichOneof("event") == "model_switched")
    assert event.model_switched.is_automatic
    assert event.actor == "system"
    assert "boom" in event.model_switched.reason
    assert await pair.heal() == ""


async def test_asking_for_the_switch_that_is_in_force_changes_nothing(lone):
    pair = await Pair.ready(lone)
    assert await pair.fail() == "spare"
    count = len(await lone.events())
    request = pb.SwitchModelRequest(
        model_id="advisor", target=pb.BackupModel(model_id="spare"), reason="to be sure"
    )
    assert (await lone.deployer.SwitchModel(request)).is_switched
    assert len(await lone.events()) == count
    assert await pair.heal() == ""


async def test_an_open_port_proves_nothing(lone):
    """Ready replicas whose engine makes no tokens although requests wait for some."""
    await served(lone)
    clock = Clock(lone)
    lone.backend.counts = {1: Measured(1, requests=5, running=3.0, waiting=2.0)}
    clock.advance(120)
    await lone.reconciler.look(KEY)
    answer = await health(lone)
    assert answer.state == pb.HEALTH_STATE_UNHEALTHY
    assert "No token" in answer.reason
    assert answer.ready_replicas == 1
    assert (await get(lone)).state == pb.DEPLOYMENT_STATE_DEGRADED


class Engine:
    """Stands for one that counts its tokens and does not tell when it made one, as vLLM does."""

    def __init__(self, mesh) -> None:
        self._mesh, self._clock, self.tokens = mesh, Clock(mesh), 0

    async def run(self, seconds: int, *, tokens: int = 0, running: float = 0.0) -> list[int]:
        """The states of health at looks 5 s apart; tokens: made between two of them."""
        states = []
        for _ in range(seconds // 5):
            self._clock.advance(5)
            self.tokens += tokens
            self._mesh.backend.set_phase(KEY, pb.REPLICA_PHASE_READY, last_token_time=None)
            self._mesh.backend.counts = {1: Measured(1, tokens=self.tokens, running=running)}
            await self._mesh.reconciler.look(KEY)
            states.append((await health(self._mesh)).state)
        return states


async def test_counters_prove_tokens_where_replicas_tell_of_none(lone):
    await served(lone)
    engine = Engine(lone)
    assert set(await engine.run(30)) == {pb.HEALTH_STATE_UNKNOWN}
    busy = await engine.run(300, tokens=100, running=3.0)
    assert set(busy) == {pb.HEALTH_STATE_HEALTHY}
    stuck = await engine.run(90, running=3.0)
    assert stuck == [pb.HEALTH_STATE_HEALTHY] * 12 + [pb.HEALTH_STATE_UNHEALTHY] * 6


async def test_a_first_request_after_a_long_rest_is_given_time_for_its_token(lone):
    await served(lone)
    engine = Engine(lone)
    await engine.run(10, tokens=100, running=1.0)
    assert (await engine.run(120))[-1] == pb.HEALTH_STATE_UNKNOWN
    waiting = await engine.run(90, running=1.0)
    assert waiting == [pb.HEALTH_STATE_UNKNOWN] * 13 + [pb.HEALTH_STATE_UNHEALTHY] * 5
    assert (await engine.run(5, tokens=1, running=1.0)) == [pb.HEALTH_STATE_HEALTHY]


async def test_requests_of_a_revision_that_is_gone_ask_for_nothing(lone):
    await served(lone)
    await Engine(lone).run(10, running=5.0)
    await publish(lone.registry, "2.0.0")
    await deploy(lone, pb.DeploymentSpec(version="2.0.0"))
    lone.backend.counts = {}
    assert (await lone.settle()).stable_revision == 2
    old = lone.store.clock() - timedelta(seconds=90)
    lone.backend.set_phase(KEY, pb.REPLICA_PHASE_READY, last_token_time=old)
    lone.backend.counts = {2: Measured(2, running=0.0)}
    await lone.reconciler.look(KEY)
    assert (await health(lone)).state == pb.HEALTH_STATE_UNKNOWN


async def test_what_was_counted_long_ago_asks_for_nothing(lone):
    await served(lone)
    await Engine(lone).run(10, tokens=100, running=5.0)
    lone.backend.counts = {}
    Clock(lone).advance(90)
    await lone.reconciler.look(KEY)
    assert (await health(lone)).state == pb.HEALTH_STATE_UNKNOWN


def test_a_replica_that_can_be_asked_again_proves_nothing():
    before = Tally(NOW, Measured(1, tokens=50, running=1.0, missing_replicas=("b",)))
    after = Tally(NOW + timedelta(seconds=5), Measured(1, tokens=90, running=1.0))
    proof = first(before).followed_by(after)
    assert (proof.token_time, proof.asked_since) == (None, NOW)
