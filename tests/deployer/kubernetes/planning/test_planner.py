from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from deployer.kubernetes.desired import KEY, NAME, bundle, revision, routed, seconds, spec, wanted
from deployer.kubernetes.fake import Fake, Fault
from neuroweaver.cluster import kinds
from neuroweaver.cluster.api import Api
from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.deployer.domain.backend import BackendPlan, Finding, Observed
from neuroweaver.deployer.kubernetes.backend import KubernetesBackend
from neuroweaver.deployer.kubernetes.settings import ClusterSettings
from neuroweaver.v1 import deployer_pb2 as pb

GPU = pb.ReplicaResources(gpus=1)
CANARY = pb.RolloutPolicy(
    canary=pb.CanaryPolicy(steps=[pb.CanaryStep(weight_percent=10, bake_time=seconds(60))])
)


def finding(plan: BackendPlan, reason: str) -> Finding:
    found = [each for each in plan.findings if each.reason == reason]
    assert found, [each.reason for each in plan.findings]
    return found[0]


def blocking(plan: BackendPlan) -> list[str]:
    return [each.reason for each in plan.findings if each.is_blocking]


def place(fake: Fake, node: str) -> None:
    """As the scheduler would."""
    for pod in fake.all(kinds.POD):
        fake._store(kinds.POD, pod | {"spec": pod["spec"] | {"nodeName": node}})


async def placed(backend: KubernetesBackend, fake: Fake, gpus: int, replicas: int = 1) -> None:
    """Replicas of revision 1, with a GPU each, on the only node that has any."""
    fake.node("gpu", **{"nvidia.com/gpu": str(gpus)})
    await backend.apply(wanted(revision(1, replicas), spec=spec(resources=GPU)))
    place(fake, "gpu")


async def test_a_plan_shows_everything_and_changes_nothing(backend: KubernetesBackend, fake: Fake):
    before = fake.snapshot()
    plan = await backend.plan(wanted())
    assert {each.action for each in plan.objects} == {pb.PLANNED_ACTION_CREATE}
    assert ("Deployment", f"{NAME}-r1") in {(each.kind, each.name) for each in plan.objects}
    assert all(yaml.safe_load(each.manifest)["kind"] == each.kind for each in plan.objects)
    assert fake.snapshot() == before
    assert await backend.observe(KEY, NAME, spec()) == Observed()


async def test_the_first_plan_binds_a_role_that_is_not_there_yet(backend: KubernetesBackend, fake: Fake):
    plan = await backend.plan(wanted())
    assert not blocking(plan)
    (binding,) = (each for each in plan.objects if each.kind == "RoleBinding")
    assert binding.action == pb.PLANNED_ACTION_CREATE
    await backend.apply(wanted())
    fake._drop(kinds.ROLE, fake.get(kinds.ROLE, NAME))
    plan = await backend.plan(wanted())
    assert not blocking(plan)
    actions = {each.kind: each.action for each in plan.objects if each.kind in {"Role", "RoleBinding"}}
    assert actions == {"Role": pb.PLANNED_ACTION_CREATE, "RoleBinding": pb.PLANNED_ACTION_UNCHANGED}


async def test_a_plan_of_what_is_there_changes_nothing(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted())
    plan = await backend.plan(wanted())
    assert {each.action for each in plan.objects} == {pb.PLANNED_ACTION_UNCHANGED}


async def test_a_plan_shows_just_the_fields_that_change(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted(revision(1, 2)))
    plan = await backend.plan(wanted(revision(1, 3)))
    (changed,) = (each for each in plan.objects if each.action != pb.PLANNED_ACTION_UNCHANGED)
    assert [(each.path, each.before, each.after) for each in changed.changes] == [("spec.replicas", "2", "3")]


async def test_a_plan_names_what_will_be_deleted(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted(revision(1)))
    plan = await backend.plan(wanted(revision(2)))
    deleted = {(each.kind, each.name) for each in plan.objects if each.action == pb.PLANNED_ACTION_DELETE}
    assert deleted == {(kind, f"{NAME}-r1") for kind in ("Deployment", "Service", "PodDisruptionBudget")}


async def test_handing_the_number_over_to_an_autoscaler_is_no_change_of_it(
    backend: KubernetesBackend, fake: Fake
):
    await backend.apply(wanted(revision(1, 4)))
    scaling = pb.Autoscaling(min_replicas=2, max_replicas=5, target_cpu_percent=70)
    plan = await backend.plan(wanted(revision(1, 4, autoscaling=scaling)))
    assert not [change for each in plan.objects for change in each.changes if change.path == "spec.replicas"]


# Room.


async def test_a_starved_surge_would_deadlock_and_recreate_is_chosen(backend: KubernetesBackend, fake: Fake):
    fake.node("one", nvidia__com_gpu="0")
    fake.put(kinds.NODE, {**fake.get(kinds.NODE, "one", ""), "metadata": {"name": "gpu"}})
    await placed(backend, fake, 1)
    desired = wanted(revision(1, 1, 0), revision(2, 1, 100), spec=spec(resources=GPU))
    plan = await backend.plan(replace(desired, revisions=desired.revisions[1:]))
    assert (plan.replacement, plan.has_downtime) == (pb.REPLACEMENT_MODE_RECREATE, True)
    assert not blocking(plan)

    asked = spec(resources=GPU, rollout=pb.RolloutPolicy(replacement=pb.REPLACEMENT_MODE_SURGE))
    plan = await backend.plan(wanted(revision(2, 1), spec=asked))
    assert blocking(plan) == ["SURGE_WOULD_DEADLOCK"]
    told = finding(plan, "SURGE_WOULD_DEADLOCK")
    assert told.field == "spec.rollout.replacement"
    assert "set rollout.replacement to RECREATE" in told.message
    assert "nvidia.com/gpu" in told.message


async def test_a_canary_without_room_beside_would_deadlock(backend: KubernetesBackend, fake: Fake):
    await placed(backend, fake, 1)
    desired = wanted(revision(1, 1, 90), revision(2, 1, 10), spec=spec(resources=GPU, rollout=CANARY))
    plan = await backend.plan(desired)
    # Both at once never fit on one GPU, so there is no way but more room.
    assert blocking(plan) == ["INSUFFICIENT_GPU"]
    fake.node("gpu2", **{"nvidia.com/gpu": "1"})
    assert not blocking(await backend.plan(desired))


async def test_an_evicted_pod_takes_no_room_and_is_no_replica(backend: KubernetesBackend, fake: Fake):
    await placed(backend, fake, 1)
    for pod in fake.all(kinds.POD):
        fake.status(pod["metadata"]["name"], {"phase": "Failed", "reason": "Evicted"})
    plan = await backend.plan(wanted(revision(2, 1), spec=spec(resources=GPU)))
    assert (plan.replacement_reason, plan.has_downtime, blocking(plan)) == ("nothing is replaced", False, [])
    gpu = next(each for each in plan.capacity if each.resource == "nvidia.com/gpu")
    assert (gpu.peak_required, gpu.available) == ("1", "1")


async def test_a_surge_with_room_has_no_gap(backend: KubernetesBackend, fake: Fake):
    await placed(backend, fake, 2)
    plan = await backend.plan(wanted(revision(2, 1), spec=spec(resources=GPU)))
    assert (plan.replacement, plan.has_downtime) == (pb.REPLACEMENT_MODE_SURGE, False)
    gpu = next(each for each in plan.capacity if each.resource == "nvidia.com/gpu")
    assert (gpu.required, gpu.peak_required, gpu.available, gpu.is_sufficient) == ("1", "1", "1", True)


async def test_room_for_one_more_is_enough_for_a_surge_of_one(backend: KubernetesBackend, fake: Fake):
    await placed(backend, fake, 4, 3)
    plan = await backend.plan(wanted(revision(2, 3), spec=spec(resources=GPU)))
    assert (plan.replacement, blocking(plan)) == (pb.REPLACEMENT_MODE_SURGE, [])
    wide = spec(resources=GPU, rollout=pb.RolloutPolicy(max_surge=2, replacement=pb.REPLACEMENT_MODE_SURGE))
    assert blocking(await backend.plan(wanted(revision(2, 3), spec=wide))) == ["SURGE_WOULD_DEADLOCK"]


async def test_without_a_surge_old_ones_make_the_room(backend: KubernetesBackend, fake: Fake):
    await placed(backend, fake, 1)
    narrow = spec(resources=GPU, rollout=pb.RolloutPolicy(max_surge=0, max_unavailable=1))
    plan = await backend.plan(wanted(revision(2, 1), spec=narrow))
    assert (plan.replacement, blocking(plan), plan.has_downtime) == (pb.REPLACEMENT_MODE_SURGE, [], True)


async def test_two_halves_on_two_nodes_are_no_whole(backend: KubernetesBackend, fake: Fake):
    fake.node("one", **{"nvidia.com/gpu": "1"})
    fake.node("two", **{"nvidia.com/gpu": "1"})
    plan = await backend.plan(wanted(revision(1, 1), spec=spec(resources=pb.ReplicaResources(gpus=2))))
    assert blocking(plan) == ["INSUFFICIENT_GPU"]
    assert next(each for each in plan.capacity if each.resource == "nvidia.com/gpu").available == "2"


CLOSED = pytest.mark.parametrize(
    "change",
    [
        {"spec": {"unschedulable": True}},
        {"status": {"conditions": [{"type": "Ready", "status": "False"}], "allocatable": {"cpu": "8", "memory": "32Gi", "pods": "9"}}},
        {"spec": {"taints": [{"key": "dedicated", "value": "db", "effect": "NoSchedule"}]}},
    ],
    ids=["cordoned", "not ready", "tainted"],
)  # fmt: skip


@CLOSED
async def test_a_node_that_takes_no_pods_has_no_room(backend: KubernetesBackend, fake: Fake, change: dict):
    fake.node("one")
    assert not blocking(await backend.plan(wanted()))
    fake.put(kinds.NODE, fake.get(kinds.NODE, "one", "") | change)
    assert blocking(await backend.plan(wanted())) == ["NO_NODE"]


async def test_a_label_that_no_node_has_is_no_lack_of_cpu(backend: KubernetesBackend, fake: Fake):
    fake.node("one")
    desired = spec()
    desired.kubernetes.node_selector["zone"] = "nowhere"
    plan = await backend.plan(wanted(spec=desired))
    assert blocking(plan) == ["NO_NODE"]
    assert "no node, of 1, is ready" in finding(plan, "NO_NODE").message


@CLOSED
async def test_replicas_that_stay_need_no_room_anew(backend: KubernetesBackend, fake: Fake, change: dict):
    fake.node("one")
    beside = spec(rollout=CANARY)
    await backend.apply(wanted(revision(1, 2, 90), revision(2, 1, 10), spec=beside))
    place(fake, "one")
    fake.put(kinds.NODE, fake.get(kinds.NODE, "one", "") | change)
    for unmoved in (
        wanted(revision(1, 2, 50), revision(2, 1, 50), spec=beside),
        wanted(revision(1, 1, 90), revision(2, 1, 10), spec=beside),
    ):
        plan = await backend.plan(unmoved)
        assert (blocking(plan), plan.has_downtime) == ([], False)
        assert {each.is_sufficient for each in plan.capacity} == {True}
    more = wanted(revision(1, 3, 90), revision(2, 1, 10), spec=beside)
    assert blocking(await backend.plan(more))
    fake.node("two")
    assert not blocking(await backend.plan(more))


async def test_a_tolerated_taint_is_no_obstacle(backend: KubernetesBackend, fake: Fake):
    fake.node("gpu", **{"nvidia.com/gpu": "1"})
    tainted = {"spec": {"taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]}}
    fake.put(kinds.NODE, fake.get(kinds.NODE, "gpu", "") | tainted)
    assert not blocking(await backend.plan(wanted(revision(1, 1), spec=spec(resources=GPU))))


async def test_a_cluster_that_grows_blocks_nothing(fake: Fake, settings: ClusterSettings, api: Api):
    fake.node("one", cpu="1m")
    backend = KubernetesBackend(replace(settings, has_cluster_autoscaler=True), api)
    plan = await backend.plan(wanted())
    assert not blocking(plan)
    assert finding(plan, "INSUFFICIENT_CPU")


async def test_what_cannot_be_known_of_the_nodes_blocks_nothing(backend: KubernetesBackend, fake: Fake):
    plan = await backend.plan(wanted())
    assert "no nodes" in finding(plan, "CAPACITY_UNKNOWN").message
    fake.node("one")
    fake.denied.add(("list", "nodes"))
    plan = await backend.plan(wanted())
    assert "denies list of nodes" in finding(plan, "CAPACITY_UNKNOWN").message
    assert not blocking(plan)
    assert {each.is_sufficient for each in plan.capacity} == {None}


# What stands in the way.


async def test_swapping_an_adapter_is_refused_with_the_reason(backend: KubernetesBackend, fake: Fake):
    asked = spec(rollout=pb.RolloutPolicy(replacement=pb.REPLACEMENT_MODE_SWAP_ADAPTER))
    assert finding(await backend.plan(wanted(spec=asked)), "SWAP_NOT_POSSIBLE").is_blocking


async def test_a_budget_that_would_block_every_drain_is_told(backend: KubernetesBackend, fake: Fake):
    desired = spec(kubernetes=pb.KubernetesOptions(min_available=2))
    told = finding(await backend.plan(wanted(revision(1, 2), spec=desired)), "DRAIN_WOULD_BLOCK")
    assert (told.is_blocking, told.field) == (True, "spec.kubernetes.min_available")
    assert not blocking(await backend.plan(wanted(revision(1, 3), spec=desired)))


async def test_scaling_to_zero_without_keda_is_a_finding_with_its_way_out(
    backend: KubernetesBackend, fake: Fake
):
    zero = pb.Autoscaling(min_replicas=0, max_replicas=2)
    plan = await backend.plan(wanted(revision(autoscaling=zero)))
    told = finding(plan, "CANNOT_SCALE_TO_ZERO")
    assert told.is_blocking
    assert "min_replicas to 1" in told.message
    assert "ScaledObject" in {each.kind for each in plan.objects}


async def test_a_canary_says_how_far_its_weights_and_affinity_hold(backend: KubernetesBackend, fake: Fake):
    plan = await backend.plan(wanted(revision(1, 1, 90), revision(2, 1, 10), spec=spec(rollout=CANARY)))
    assert finding(plan, "AFFINITY_NOT_KEPT").field == "spec.rollout.session_affinity"
    assert "revision 2 gets 50 % for 10 %" in finding(plan, "WEIGHTS_BY_REPLICAS").message


async def test_missing_monitoring_and_metrics_are_told(fake: Fake, backend: KubernetesBackend):
    for kind in (kinds.SERVICE_MONITOR, kinds.PROMETHEUS_RULE):
        del fake.known[kind.api_version, kind.plural]
    scaling = pb.Autoscaling(min_replicas=1, max_replicas=2, target_cpu_percent=50, target_concurrency=4)
    plan = await backend.plan(wanted(revision(autoscaling=scaling)))
    for reason in ("MONITORING_MISSING", "METRICS_MISSING", "CUSTOM_METRICS_MISSING"):
        assert not finding(plan, reason).is_blocking


async def test_a_metrics_server_that_is_away_is_told_at_once(fake: Fake, backend: KubernetesBackend):
    fake.known[kinds.POD_METRICS.api_version, kinds.POD_METRICS.plural] = kinds.POD_METRICS
    scaling = pb.Autoscaling(min_replicas=1, max_replicas=2, target_cpu_percent=50)
    desired = wanted(revision(autoscaling=scaling))
    fake.faults = [Fault(1, 503, times=1000, matches=lambda _, path: "metrics.k8s.io" in path)]
    told = finding(await backend.plan(desired), "METRICS_MISSING")
    assert not told.is_blocking
    assert "does not answer" in told.message
    assert fake.faults[0].seen == 1
    fake.faults = []
    assert "METRICS_MISSING" not in {each.reason for each in (await backend.plan(desired)).findings}


async def test_a_backup_of_another_model_would_know_no_request(backend: KubernetesBackend, fake: Fake):
    def backed(model_id: str) -> pb.DeploymentSpec:
        return spec(recovery=pb.RecoveryPolicy(backup=pb.BackupModel(model_id=model_id, name="spare")))

    plan = await backend.plan(wanted(spec=backed("another-bot")))
    assert blocking(plan) == ["BACKUP_OF_ANOTHER_MODEL"]
    assert finding(plan, "BACKUP_OF_ANOTHER_MODEL").field == "spec.recovery.backup.model_id"
    assert not blocking(await backend.plan(wanted(spec=backed(KEY.model_id))))
    through_router = backed("another-bot")
    through_router.kubernetes.traffic_routing = pb.TRAFFIC_ROUTING_ROUTER
    assert not blocking(await backend.plan(wanted(spec=through_router)))


async def test_a_router_splits_exactly_and_keeps_conversations(backend: KubernetesBackend, fake: Fake):
    canary = pb.RolloutPolicy(canary=pb.CanaryPolicy(steps=[pb.CanaryStep(weight_percent=5)]))
    told = {"AFFINITY_NOT_KEPT", "WEIGHTS_BY_REPLICAS"}
    plan = await backend.plan(wanted(spec=spec(rollout=canary)))
    assert told <= {each.reason for each in plan.findings}
    plan = await backend.plan(wanted(spec=routed(rollout=canary)))
    assert not told & {each.reason for each in plan.findings}
    assert f"{NAME}-router" in {each.name for each in plan.objects if each.kind == "Deployment"}
    for _ in range(2):
        await backend.apply(wanted(spec=routed(rollout=canary)))
    plan = await backend.plan(wanted(spec=routed(rollout=canary)))
    assert {each.action for each in plan.objects} == {pb.PLANNED_ACTION_UNCHANGED}
    deleted = {
        (each.kind, each.name)
        for each in (await backend.plan(wanted())).objects
        if each.action == pb.PLANNED_ACTION_DELETE
    }
    assert ("ConfigMap", f"{NAME}-router") in deleted
    assert ("ConfigMap", NAME) not in deleted


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"resources": GPU}, "ADAPTER_NOT_MERGED", "spec.engine.adapter_mode"),
        ({"recovery": pb.RecoveryPolicy(restart_backoff=seconds(5))}, "BACKOFF_OF_THE_KUBELET", "spec.recovery.restart_backoff"),
        ({"recovery": pb.RecoveryPolicy(max_restart_backoff=seconds(30))}, "BACKOFF_OF_THE_KUBELET", "spec.recovery.max_restart_backoff"),
    ],
)  # fmt: skip
async def test_what_has_no_effect_here_is_told(
    backend: KubernetesBackend, fake: Fake, fields: dict, reason: str, field: str
):
    told = finding(await backend.plan(wanted(spec=spec(**fields))), reason)
    assert (told.field, told.is_blocking) == (field, False)


async def test_what_was_not_asked_for_is_not_told(backend: KubernetesBackend, fake: Fake):
    completed = pb.RecoveryPolicy(restart_backoff=seconds(1), max_restart_backoff=seconds(300))
    switched = pb.EngineOptions(adapter_mode=pb.ADAPTER_MODE_SWITCHED)
    whole = replace(revision(), bundle=bundle(base=""))
    for desired in (
        wanted(spec=spec(recovery=completed)),
        wanted(spec=spec(resources=GPU, engine=switched)),
        wanted(whole, spec=spec(resources=GPU)),
    ):
        reasons = {each.reason for each in (await backend.plan(desired)).findings}
        assert not reasons & {"ADAPTER_NOT_MERGED", "BACKOFF_OF_THE_KUBELET"}


async def test_a_base_model_without_a_digest_is_told_to_be_unverified(
    fake: Fake, backend: KubernetesBackend, settings: ClusterSettings, api: Api
):
    from_hub = KubernetesBackend(replace(settings, base_claim=""), api)
    unpinned = replace(revision(), bundle=replace(bundle(), base_model_digest=""))
    for planner in (backend, from_hub):
        told = finding(
            await planner.plan(wanted(unpinned, spec=spec(resources=GPU))), "BASE_MODEL_NOT_VERIFIED"
        )
        assert not told.is_blocking
        assert "version 1.0.0 has no digest" in told.message
        verified = await planner.plan(wanted(spec=spec(resources=GPU)))
        assert "BASE_MODEL_NOT_VERIFIED" not in {each.reason for each in verified.findings}
        assert not blocking(verified)


async def test_a_base_model_that_is_on_no_hub_is_told_before_pods_look_for_it(
    fake: Fake, backend: KubernetesBackend, settings: ClusterSettings, api: Api
):
    shipped = replace(revision(), bundle=bundle(base="smollm2-135m-instruct"))
    from_hub = KubernetesBackend(replace(settings, base_claim=""), api)
    for resources in (pb.ReplicaResources(), GPU):
        desired = wanted(shipped, spec=spec(resources=resources))
        assert finding(await from_hub.plan(desired), "BASE_MODEL_MISSING").is_blocking
        assert not blocking(await backend.plan(desired))
        assert not blocking(await from_hub.plan(wanted(spec=spec(resources=resources))))


async def test_a_missing_namespace_is_a_finding(backend: KubernetesBackend, fake: Fake):
    plan = await backend.plan(wanted(spec=spec(kubernetes=pb.KubernetesOptions(namespace="gone"))))
    assert finding(plan, "NAMESPACE_MISSING").field == "spec.kubernetes.namespace"
    assert blocking(plan) == ["NAMESPACE_MISSING"]


async def test_what_the_api_server_calls_invalid_is_a_finding_in_its_words(
    backend: KubernetesBackend, fake: Fake
):
    fake.faults = [Fault(1, 422, matches=lambda method, path: path.endswith(f"deployments/{NAME}-r1"))]
    told = finding(await backend.plan(wanted()), "REFUSED")
    assert told.is_blocking
    assert f"deployments.apps {NAME}-r1" in told.message


@pytest.mark.parametrize(
    ("verb", "resource", "words"),
    [
        ("patch", "deployments", "denies patch of deployments.apps in namespace default"),
        (
            "create",
            "networkpolicies",
            "denies create of networkpolicies.networking.k8s.io in namespace default",
        ),
        ("delete", "services", "denies delete of services in namespace default"),
        (
            "patch",
            "servicemonitors",
            "denies patch of servicemonitors.monitoring.coreos.com in namespace default",
        ),
    ],
)
async def test_a_missing_right_is_named_by_the_plan_and_by_the_apply(
    backend: KubernetesBackend, fake: Fake, verb: str, resource: str, words: str
):
    fake.denied.add((verb, resource))
    with pytest.raises(BackendError, match=words) as caught:
        await backend.plan(wanted())
    assert caught.value.trouble == Trouble.FORBIDDEN
    if verb == "patch":
        with pytest.raises(BackendError, match=words) as caught:
            await backend.apply(wanted())
        assert caught.value.trouble == Trouble.FORBIDDEN


async def test_a_right_without_which_less_is_known_is_told_and_blocks_nothing(
    fake: Fake, backend: KubernetesBackend
):
    assert "RIGHT_MISSING" not in {each.reason for each in (await backend.plan(wanted())).findings}
    fake.denied.add(("get", "pods/proxy"))
    plan = await backend.plan(wanted())
    told = [each for each in plan.findings if each.reason == "RIGHT_MISSING"]
    assert [each.message.partition(":")[0] for each in told] == [
        "the cluster denies get of pods/proxy in namespace default"
    ]
    assert not blocking(plan)


async def test_a_missing_right_to_logs_is_named(backend: KubernetesBackend, fake: Fake):
    fake.denied.add(("get", "pods/log"))
    with pytest.raises(BackendError, match="denies get of pods/log in namespace default"):
        await backend.plan(wanted())
