from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from deployer.kubernetes import schemas
from deployer.kubernetes.conftest import QUICK
from deployer.kubernetes.desired import KEY, NAME, SETTINGS, bundle, revision, routed, spec, to, wanted
from deployer.kubernetes.fake import Fake, Fault, kubeconfig, serving
from neuroweaver.cluster import kinds
from neuroweaver.cluster.api import Api
from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.deployer.domain.backend import DesiredState, Observed
from neuroweaver.deployer.kubernetes.backend import KubernetesBackend
from neuroweaver.deployer.kubernetes.manifests import routes
from neuroweaver.deployer.kubernetes.naming import identity
from neuroweaver.deployer.kubernetes.observing import drift
from neuroweaver.deployer.kubernetes.settings import ClusterSettings
from neuroweaver.v1 import deployer_pb2 as pb

CANARY = (revision(1, 9, 90), revision(2, 1, 10))
SCALED = pb.Autoscaling(min_replicas=2, max_replicas=5, target_cpu_percent=70)


async def test_a_wish_becomes_ready_replicas(backend: KubernetesBackend, fake: Fake):
    assert await backend.observe(KEY, NAME, spec()) == Observed()
    await backend.apply(wanted())
    seen = await backend.observe(KEY, NAME, spec())
    assert seen.exists
    assert [each.phase for each in seen.replicas] == [pb.REPLICA_PHASE_READY] * 2
    assert (seen.desired, seen.weights, seen.applied_generation) == ({1: 2}, {1: 100}, 1)
    assert seen.endpoint == f"http://{NAME}.default.svc:8000/v1"
    assert not seen.drift
    assert {found["kind"] for found in fake.objects.values()} == {
        "Namespace",
        "Deployment",
        "Pod",
        "Service",
        "ServiceAccount",
        "Role",
        "RoleBinding",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "ServiceMonitor",
        "PrometheusRule",
        "ConfigMap",
    }


async def test_the_same_wish_again_writes_nothing(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted())
    calls = len(fake.calls)
    await backend.apply(wanted())
    assert {method for method, _ in fake.calls[calls:]} == {"GET"}


async def test_every_body_that_went_out_was_valid(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted(*CANARY))
    while not await backend.remove(KEY, NAME, spec()):
        pass
    assert len(fake.bodies) > 20
    for body in fake.bodies:
        schemas.check(body)


async def test_a_change_of_weights_touches_no_pod(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted(revision(1, 2, 100), revision(2, 1, 0)))
    before = {pod["metadata"]["uid"] for pod in fake.all(kinds.POD)}
    assert fake.get(kinds.SERVICE, NAME)["spec"]["selector"] == {
        identity.DEPLOYMENT: NAME,
        identity.REVISION: "1",
    }
    await backend.apply(wanted(revision(1, 2, 67), revision(2, 1, 33)))
    assert fake.get(kinds.SERVICE, NAME)["spec"]["selector"] == {identity.DEPLOYMENT: NAME}
    await backend.apply(wanted(revision(1, 2, 0), revision(2, 1, 100)))
    assert fake.get(kinds.SERVICE, NAME)["spec"]["selector"][identity.REVISION] == "2"
    assert {pod["metadata"]["uid"] for pod in fake.all(kinds.POD)} == before


async def test_a_wish_is_carried_out_once_no_pod_of_before_is_left(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted())
    deployment = fake.get(kinds.DEPLOYMENT, f"{NAME}-r1")
    for replicas, updated, observed, applied in ((3, 1, 2, 0), (2, 2, 1, 0), (2, 2, 2, 1)):
        deployment["metadata"]["generation"] = 2
        deployment["status"] = {
            "observedGeneration": observed,
            "replicas": replicas,
            "updatedReplicas": updated,
        }
        assert (await backend.observe(KEY, NAME, spec())).applied_generation == applied


async def test_a_scale_touches_no_pod_that_stays(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted(revision(1, 1)))
    before = {pod["metadata"]["uid"] for pod in fake.all(kinds.POD)}
    await backend.apply(wanted(revision(1, 3)))
    after = {pod["metadata"]["uid"] for pod in fake.all(kinds.POD)}
    assert before < after
    assert len(after) == 3


async def test_a_revision_that_is_no_longer_wanted_leaves_nothing(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted(*CANARY))
    await backend.apply(wanted(revision(2, 2, 100)))
    names = {found["metadata"]["name"] for found in fake.objects.values()}
    assert not any(name.startswith(f"{NAME}-r1") for name in names)
    assert {each.revision for each in (await backend.observe(KEY, NAME, spec())).replicas} == {2}


async def test_a_broken_stable_revision_does_not_block_its_fix(backend: KubernetesBackend, fake: Fake):
    fake.pods_become_ready = False
    await backend.apply(wanted(revision(1, 1, 100)))
    fake.pods_become_ready = True
    await backend.apply(wanted(revision(1, 1, 0), revision(2, 1, 100)))
    seen = await backend.observe(KEY, NAME, spec())
    assert {each.revision: each.phase for each in seen.replicas} == {
        1: pb.REPLICA_PHASE_SCHEDULING,
        2: pb.REPLICA_PHASE_READY,
    }
    assert fake.get(kinds.SERVICE, NAME)["spec"]["selector"][identity.REVISION] == "2"


async def test_recreate_waits_until_the_old_pods_are_gone(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted(revision(1, 2)))
    fake.is_draining_slowly = True
    desired = wanted(revision(2, 2), replacement=pb.REPLACEMENT_MODE_RECREATE, generation=2)
    await backend.apply(desired)
    assert fake.get(kinds.DEPLOYMENT, f"{NAME}-r2") is None
    assert {each.phase for each in (await backend.observe(KEY, NAME, spec())).replicas} == {
        pb.REPLICA_PHASE_DRAINING
    }
    assert (await backend.observe(KEY, NAME, spec())).applied_generation == 1
    fake.end_drains()
    await backend.apply(desired)
    assert {each.revision for each in (await backend.observe(KEY, NAME, spec())).replicas} == {2}
    assert (await backend.observe(KEY, NAME, spec())).applied_generation == 2


async def test_an_autoscaler_gets_the_number_that_is_there_and_keeps_its_own(
    backend: KubernetesBackend, fake: Fake
):
    await backend.apply(wanted(revision(1, 4)))
    await backend.apply(wanted(revision(1, 4, autoscaling=SCALED)))
    assert fake.get(kinds.DEPLOYMENT, f"{NAME}-r1")["spec"]["replicas"] == 4
    fake.edit(kinds.DEPLOYMENT, f"{NAME}-r1", ("spec", "replicas"), 5, "kube-controller-manager")
    await backend.apply(wanted(revision(1, 4, autoscaling=SCALED)))
    assert fake.get(kinds.DEPLOYMENT, f"{NAME}-r1")["spec"]["replicas"] == 5
    assert not (await backend.observe(KEY, NAME, spec())).drift
    await backend.apply(wanted(revision(1, 2)))
    assert fake.get(kinds.DEPLOYMENT, f"{NAME}-r1")["spec"]["replicas"] == 2
    assert fake.get(kinds.AUTOSCALER, f"{NAME}-r1") is None


async def test_what_the_autoscaler_did_is_told_with_its_cause(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted(revision(1, 2, autoscaling=SCALED)))
    await backend.observe(KEY, NAME, spec())
    fake.edit(kinds.DEPLOYMENT, f"{NAME}-r1", ("spec", "replicas"), 4, "kube-controller-manager")
    (told,) = (await backend.observe(KEY, NAME, spec())).scalings
    assert (told.revision, told.from_replicas, told.to_replicas, told.cause) == (1, 1, 4, "CPU")
    assert not (await backend.observe(KEY, NAME, spec())).scalings


async def test_each_revision_has_its_own_autoscaler(backend: KubernetesBackend, fake: Fake):
    small = pb.Autoscaling(min_replicas=1, max_replicas=1, target_cpu_percent=70)
    await backend.apply(wanted(revision(1, 2, 90, autoscaling=SCALED), revision(2, 1, 10, autoscaling=small)))
    bounds = {
        each["spec"]["scaleTargetRef"]["name"]: (each["spec"]["minReplicas"], each["spec"]["maxReplicas"])
        for each in fake.all(kinds.AUTOSCALER)
    }
    assert bounds == {f"{NAME}-r1": (2, 5), f"{NAME}-r2": (1, 1)}


async def test_scaling_to_zero_is_refused_without_keda(backend: KubernetesBackend, fake: Fake):
    zero = pb.Autoscaling(min_replicas=0, max_replicas=2)
    with pytest.raises(BackendError, match="KEDA") as caught:
        await backend.apply(wanted(revision(autoscaling=zero)))
    assert (caught.value.trouble, caught.value.field) == (Trouble.REFUSED, "spec.autoscaling.min_replicas")
    assert not fake.all(kinds.DEPLOYMENT)
    assert not fake.all(kinds.SERVICE)


async def test_scaling_to_zero_is_kedas_where_it_is_known_what_wakes_it(
    fake: Fake, settings: ClusterSettings, api: Api
):
    fake.known[kinds.SCALED_OBJECT.api_version, kinds.SCALED_OBJECT.plural] = kinds.SCALED_OBJECT
    told = replace(
        settings,
        prometheus_url="http://prometheus.monitoring.svc:9090",
        activation_query='sum(rate(router_requests_total{deployment="{deployment}"}[1m]))',
    )
    backend = KubernetesBackend(told, api)
    await backend.apply(wanted(revision(autoscaling=pb.Autoscaling(min_replicas=0, max_replicas=2))))
    (made,) = fake.all(kinds.SCALED_OBJECT)
    assert made["spec"]["minReplicaCount"] == 0
    assert NAME in made["spec"]["triggers"][1]["metadata"]["query"]
    assert not fake.all(kinds.AUTOSCALER)
    fake.edit(kinds.DEPLOYMENT, f"{NAME}-r1", ("spec", "replicas"), 0, "keda-operator")
    assert (await backend.observe(KEY, NAME, spec())).is_idle


async def test_requests_that_wait_in_the_router_wake_what_sleeps(
    fake: Fake, settings: ClusterSettings, api: Api
):
    fake.known[kinds.SCALED_OBJECT.api_version, kinds.SCALED_OBJECT.plural] = kinds.SCALED_OBJECT
    backend = KubernetesBackend(
        replace(settings, prometheus_url="http://prometheus.monitoring.svc:9090"), api
    )
    zero = revision(autoscaling=pb.Autoscaling(min_replicas=0, max_replicas=2))
    with pytest.raises(BackendError, match="TRAFFIC_ROUTING_ROUTER"):
        await backend.apply(wanted(zero))
    with pytest.raises(BackendError, match="with monitoring"):
        await backend.apply(wanted(zero, spec=routed(kubernetes=pb.KubernetesOptions(monitoring=False))))
    await backend.apply(wanted(zero, spec=routed()))
    (made,) = fake.all(kinds.SCALED_OBJECT)
    query = made["spec"]["triggers"][1]["metadata"]["query"]
    assert query == (
        f'sum(neuroweaver_router_requests_waiting{{namespace="default",neuroweaver_dev_deployment="{NAME}"}}) '
        "or vector(0)"
    )
    told = fake.get(kinds.CONFIG_MAP, f"{NAME}-router")["data"][routes.ENTRY]
    assert routes.read(told).wake_s > 0


async def test_what_a_controller_made_of_it_is_left_to_the_controller(
    fake: Fake, settings: ClusterSettings, api: Api
):
    fake.known[kinds.SCALED_OBJECT.api_version, kinds.SCALED_OBJECT.plural] = kinds.SCALED_OBJECT
    told = replace(
        settings, prometheus_url="http://prometheus.monitoring.svc:9090", activation_query="vector(0)"
    )
    backend = KubernetesBackend(told, api)
    desired = wanted(revision(autoscaling=pb.Autoscaling(min_replicas=0, max_replicas=2)))
    await backend.apply(desired)
    (scaled,) = fake.all(kinds.SCALED_OBJECT)
    owner = {"kind": "ScaledObject", "name": scaled["metadata"]["name"], "uid": scaled["metadata"]["uid"]}
    metadata = {
        "name": f"keda-hpa-{NAME}-r1",
        "labels": scaled["metadata"]["labels"],
        "ownerReferences": [owner | {"apiVersion": "keda.sh/v1alpha1", "controller": True}],
    }
    made = fake.put(kinds.AUTOSCALER, {"metadata": metadata, "spec": {"minReplicas": 1, "maxReplicas": 2}})
    await backend.apply(desired)
    assert fake.all(kinds.AUTOSCALER) == [made]
    plan = await backend.plan(desired)
    assert not [each for each in plan.objects if each.action == pb.PLANNED_ACTION_DELETE]
    # It goes with its owner, by the garbage collector, which the fake has none of.
    for _ in range(5):
        await backend.remove(KEY, NAME, spec())
    assert await backend.remove(KEY, NAME, spec())
    assert not fake.all(kinds.SCALED_OBJECT)
    assert fake.all(kinds.AUTOSCALER) == [made]


async def test_a_gateway_splits_by_exact_weights(fake: Fake, settings: ClusterSettings, api: Api):
    fake.known[kinds.HTTP_ROUTE.api_version, kinds.HTTP_ROUTE.plural] = kinds.HTTP_ROUTE
    told = replace(settings, gateway="infra/edge", gateway_url="https://models.example.org")
    backend = KubernetesBackend(told, api)
    await backend.apply(wanted(revision(1, 1, 95), revision(2, 1, 5)))
    (made,) = fake.all(kinds.HTTP_ROUTE)
    backends = made["spec"]["rules"][0]["backendRefs"]
    assert [(each["name"], each["weight"]) for each in backends] == [(f"{NAME}-r1", 95), (f"{NAME}-r2", 5)]
    seen = await backend.observe(KEY, NAME, spec())
    assert seen.endpoint == "https://models.example.org/default/support-bot/default/v1"
    assert not seen.reasons


async def test_weights_that_the_numbers_of_replicas_do_not_give_are_told(
    backend: KubernetesBackend, fake: Fake
):
    await backend.apply(wanted(revision(1, 1, 95), revision(2, 1, 5)))
    assert (await backend.observe(KEY, NAME, spec())).reasons == (
        ("WEIGHTS_BY_REPLICAS", "revision 1 gets 50 % for 95 %, revision 2 gets 50 % for 5 %"),
    )
    await backend.apply(wanted(*CANARY))
    assert not (await backend.observe(KEY, NAME, spec())).reasons


async def test_a_switch_leaves_out_what_the_backup_itself_leaves_out(backend: KubernetesBackend, fake: Fake):
    backup = replace(
        wanted(revision(1, 2, 100), revision(2, 1, 0)),
        resource_name="nw-spare",
        key=replace(KEY, name="spare"),
    )
    await backend.apply(backup)
    switched = wanted(redirect=to("http://nw-spare.default.svc:8000/v1"))
    await backend.apply(switched)
    its_own = fake.get(kinds.SERVICE, "nw-spare")["spec"]["selector"]
    assert its_own == {identity.DEPLOYMENT: "nw-spare", identity.REVISION: "1"}
    assert fake.get(kinds.SERVICE, NAME)["spec"]["selector"] == its_own
    await backend.apply(replace(backup, revisions=(revision(2, 1, 100),)))
    await backend.apply(switched)
    assert fake.get(kinds.SERVICE, NAME)["spec"]["selector"][identity.REVISION] == "2"
    assert not (await backend.observe(KEY, NAME, spec())).drift


async def test_a_switch_sends_the_traffic_to_the_other_model(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted(redirect=to("http://nw-backup-default-aaaaaaaaaa.default.svc:8000/v1")))
    assert fake.get(kinds.SERVICE, NAME)["spec"]["selector"] == {
        identity.DEPLOYMENT: "nw-backup-default-aaaaaaaaaa"
    }
    await backend.apply(wanted(redirect=to("http://nw-backup-default-aaaaaaaaaa.other.svc:8000/v1")))
    front = fake.get(kinds.SERVICE, NAME)["spec"]
    assert (front["type"], front["externalName"]) == (
        "ExternalName",
        "nw-backup-default-aaaaaaaaaa.other.svc.cluster.local",
    )
    assert "selector" not in front
    # Where there may be no right to look.
    assert not [path for _, path in fake.calls if path.startswith("/api/v1/namespaces/other/services")]
    await backend.apply(wanted())
    front = fake.get(kinds.SERVICE, NAME)["spec"]
    assert (front["type"], front["selector"][identity.REVISION]) == ("ClusterIP", "1")
    with pytest.raises(BackendError, match="traffic cannot be sent"):
        await backend.apply(wanted(redirect=to("http://127.0.0.1:8100/v1")))


# The router.


async def test_traffic_goes_through_the_router_once_it_is_ready(backend: KubernetesBackend, fake: Fake):
    direct = {identity.DEPLOYMENT: NAME, identity.REVISION: "1"}
    await backend.apply(wanted(spec=routed()))
    assert fake.get(kinds.SERVICE, NAME)["spec"]["selector"] == direct
    seen = await backend.observe(KEY, NAME, routed())
    assert seen.applied_generation == 0
    assert [each.revision for each in seen.replicas] == [1, 1]
    assert seen.desired == {1: 2}
    await backend.apply(wanted(spec=routed()))
    assert fake.get(kinds.SERVICE, NAME)["spec"]["selector"] == {identity.ROUTER: NAME}
    seen = await backend.observe(KEY, NAME, routed())
    assert (seen.applied_generation, seen.drift, seen.reasons) == (1, (), ())
    calls = len(fake.calls)
    await backend.apply(wanted(spec=routed()))
    assert {method for method, _ in fake.calls[calls:]} == {"GET"}
    for body in fake.bodies:
        schemas.check(body)


async def test_without_a_router_that_is_ready_traffic_goes_straight(backend: KubernetesBackend, fake: Fake):
    for _ in range(2):
        await backend.apply(wanted(spec=routed()))
    router = fake.get(kinds.DEPLOYMENT, f"{NAME}-router")
    told = {
        "type": "Available",
        "status": "False",
        "message": "Deployment does not have minimum availability.",
    }
    router["status"] = {"replicas": 2, "availableReplicas": 0, "conditions": [told]}
    ((reason, words),) = (await backend.observe(KEY, NAME, routed())).reasons
    assert reason == "ROUTER_NOT_READY"
    assert "does not have minimum availability" in words
    await backend.apply(wanted(spec=routed()))
    assert fake.get(kinds.SERVICE, NAME)["spec"]["selector"] == {
        identity.DEPLOYMENT: NAME,
        identity.REVISION: "1",
    }
    # What only the router understands waits for it.
    spare = to("http://nw-spare.default.svc:8000/v1", "spare-bot")
    await backend.apply(wanted(spec=routed(), redirect=spare))
    assert fake.get(kinds.SERVICE, NAME)["spec"]["selector"] == {identity.ROUTER: NAME}


async def test_weights_and_a_switch_change_only_the_routes(backend: KubernetesBackend, fake: Fake):
    for _ in range(2):
        await backend.apply(wanted(*CANARY, spec=routed()))
    before = fake.snapshot()
    spare = to("http://nw-spare.other.svc:8000/v1", "spare-bot")
    moved = (replace(CANARY[0], weight_percent=77), replace(CANARY[1], weight_percent=23))
    await backend.apply(wanted(*moved, spec=routed(), redirect=spare))
    after = fake.snapshot()
    differing = {name for name in before | after if before.get(name) != after.get(name)}
    assert differing == {
        f"v1/configmaps/default/{NAME}-router",
        f"v1/configmaps/default/{NAME}",
        # It may reach the other deployment from now on.
        f"networking.k8s.io/v1/networkpolicies/default/{NAME}-router",
    }
    seen = await backend.observe(KEY, NAME, routed())
    assert seen.weights == {1: 77, 2: 23}
    assert (
        not seen.reasons
    )  # 77 and 23 are no weights of nine pods and one; the router gives them all the same


async def test_a_router_that_is_no_longer_wanted_goes(backend: KubernetesBackend, fake: Fake):
    for _ in range(2):
        await backend.apply(wanted(spec=routed()))
    await backend.apply(wanted(generation=2))
    assert not [found for found in fake.objects.values() if "router" in found["metadata"]["name"]]
    assert fake.get(kinds.SERVICE, NAME)["spec"]["selector"][identity.REVISION] == "1"
    assert (await backend.observe(KEY, NAME, spec())).applied_generation == 2


async def test_removal_leaves_no_router(backend: KubernetesBackend, fake: Fake):
    for _ in range(2):
        await backend.apply(wanted(spec=routed()))
    while not await backend.remove(KEY, NAME, routed()):
        pass
    assert {found["kind"] for found in fake.objects.values()} == {"Namespace"}


# Drift.


@pytest.mark.parametrize(
    ("kind", "name", "path", "value"),
    [
        (kinds.DEPLOYMENT, f"{NAME}-r1", ("spec", "replicas"), 7),
        (
            kinds.DEPLOYMENT,
            f"{NAME}-r1",
            ("spec", "template", "spec", "containers", ("k", '{"name": "server"}'), "image"),
            "evil:latest",
        ),
        (kinds.SERVICE, NAME, ("spec", "selector", identity.REVISION), "99"),
        (kinds.NETWORK_POLICY, NAME, ("spec", "ingress"), [{}]),
        (kinds.DEPLOYMENT, f"{NAME}-r1", ("metadata", "labels", identity.DEPLOYMENT), "gone"),
    ],
    ids=lambda value: value.name if hasattr(value, "plural") else None,
)
async def test_what_somebody_edited_is_set_back_and_told_once(
    backend: KubernetesBackend, fake: Fake, kind, name, path, value
):
    await backend.apply(wanted())
    before = fake.snapshot()
    fake.edit(kind, name, path, value)
    if path[-1] == identity.DEPLOYMENT:  # it can no longer be found by its label
        await backend.apply(wanted())
        assert fake.snapshot() == before
        return
    await backend.apply(wanted())
    assert fake.snapshot() == before
    seen = await backend.observe(KEY, NAME, spec())
    assert seen.drift_corrected
    assert {change.object for change in seen.drift} == {f"{kind.name}/{name}"}
    assert all(change.path.startswith("spec.") and change.before != change.after for change in seen.drift)
    assert not (await backend.observe(KEY, NAME, spec())).drift


async def test_what_another_manager_applies_is_left_to_it_and_told(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted())
    path = ("spec", "template", "spec", "containers", ("k", '{"name": "server"}'), "image")
    fake.edit(kinds.DEPLOYMENT, f"{NAME}-r1", path, "mirror/server:1", "gitops", "Apply")
    for _ in range(2):
        await backend.apply(wanted())
        seen = await backend.observe(KEY, NAME, spec())
        assert not seen.drift_corrected
        assert [(change.path, change.after) for change in seen.drift] == [
            ("spec.template.spec.containers[server].image", '"mirror/server:1"')
        ]
    # All the rest is still the deployer's.
    await backend.apply(wanted(revision(1, 3)))
    live = fake.get(kinds.DEPLOYMENT, f"{NAME}-r1")["spec"]
    assert live["replicas"] == 3
    assert live["template"]["spec"]["containers"][0]["image"] == "mirror/server:1"


async def test_what_others_add_is_no_drift(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted())
    fake.edit(kinds.SERVICE, NAME, ("metadata", "annotations", "example.org/note"), "hello")
    fake.edit(
        kinds.DEPLOYMENT, f"{NAME}-r1", ("metadata", "annotations", "deployment.kubernetes.io/revision"), "7"
    )
    await backend.apply(wanted())
    assert not (await backend.observe(KEY, NAME, spec())).drift
    assert fake.get(kinds.SERVICE, NAME)["metadata"]["annotations"]["example.org/note"] == "hello"


async def test_an_amount_written_another_way_is_no_drift(backend: KubernetesBackend, fake: Fake):
    desired = wanted(spec=spec(resources=pb.ReplicaResources(cpu_request="0.5")))
    await backend.apply(desired)
    await backend.apply(desired)
    assert not (await backend.observe(KEY, NAME, spec())).drift


async def test_what_somebody_deleted_comes_back_and_is_told(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted())
    before = fake.snapshot()
    fake._drop(kinds.SERVICE, fake.get(kinds.SERVICE, NAME))
    fake._drop(kinds.DEPLOYMENT, fake.get(kinds.DEPLOYMENT, f"{NAME}-r1"))
    await backend.apply(wanted())
    assert fake.snapshot() == before
    seen = await backend.observe(KEY, NAME, spec())
    assert seen.drift_corrected
    assert {change.object for change in seen.drift} == {f"Service/{NAME}", f"Deployment/{NAME}-r1"}


# Removal.


async def test_removal_drains_first_and_leaves_nothing(backend: KubernetesBackend, fake: Fake):
    before = fake.snapshot()
    await backend.apply(wanted(*CANARY))
    fake.is_draining_slowly = True
    assert not await backend.remove(KEY, NAME, spec())
    assert fake.get(kinds.SERVICE, NAME) is not None
    assert all(pod["metadata"].get("deletionTimestamp") for pod in fake.all(kinds.POD))
    assert not await backend.remove(KEY, NAME, spec())
    fake.end_drains()
    assert await backend.remove(KEY, NAME, spec())
    assert fake.snapshot() == before
    assert await backend.observe(KEY, NAME, spec()) == Observed()
    assert await backend.remove(KEY, NAME, spec())


async def test_removal_touches_nobody_elses_objects(backend: KubernetesBackend, fake: Fake):
    other = replace(wanted(), resource_name="nw-other-default-bbbbbbbbbb", key=replace(KEY, model_id="other"))
    await backend.apply(other)
    before = fake.snapshot()
    await backend.apply(wanted())
    while not await backend.remove(KEY, NAME, spec()):
        pass
    assert fake.snapshot() == before


async def test_a_replica_set_that_was_left_behind_is_removed_too(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted())
    labels = fake.get(kinds.DEPLOYMENT, f"{NAME}-r1")["metadata"]["labels"]
    fake.put(kinds.REPLICA_SET, {"metadata": {"name": "orphan", "labels": labels}})
    for _ in range(3):
        await backend.remove(KEY, NAME, spec())
    assert not fake.all(kinds.REPLICA_SET)


async def test_nothing_is_there_of_a_namespace_that_is_gone(backend: KubernetesBackend, fake: Fake):
    elsewhere = spec(kubernetes=pb.KubernetesOptions(namespace="gone"))
    assert await backend.observe(KEY, NAME, elsewhere) == Observed()
    assert await backend.remove(KEY, NAME, elsewhere)
    with pytest.raises(BackendError, match="namespace gone does not exist") as caught:
        await backend.apply(wanted(spec=elsewhere))
    assert (caught.value.trouble, caught.value.field) == (Trouble.REFUSED, "spec.kubernetes.namespace")


# Faults.

WRITES = {"PATCH", "DELETE"}


def a_write(method: str, path: str) -> bool:
    return method in WRITES


@pytest.mark.parametrize("status", [409, 429, 500, 503, 0, -1], ids=lambda code: f"fault{code}")
@pytest.mark.parametrize("at", [1, 2, 5, 11])
async def test_apply_gets_over_a_fault_of_any_write(
    backend: KubernetesBackend, fake: Fake, status: int, at: int
):
    fake.faults = [Fault(at, status, matches=a_write, times=2)]
    await backend.apply(wanted())
    assert fake.faults[0].seen > at
    async with undisturbed([wanted()]) as world:
        assert fake.snapshot() == world


async def test_apply_waits_as_long_as_it_is_told(backend: KubernetesBackend, fake: Fake):
    moments: list[float] = []

    def matches(method: str, path: str) -> bool:
        if a_write(method, path):
            moments.append(asyncio.get_running_loop().time())
        return a_write(method, path)

    fake.faults = [Fault(1, 429, {"Retry-After": "1"}, matches=matches)]
    await backend.apply(wanted())
    assert moments[1] - moments[0] >= 1.0


async def test_an_answer_that_never_comes_is_no_end(fake: Fake, settings: ClusterSettings):
    api = Api(settings.access, replace(QUICK, attempt_s=0.3))
    fake.faults = [Fault(3, -2, matches=a_write)]
    await KubernetesBackend(settings, api).apply(wanted())
    await api.close()
    assert len(fake.all(kinds.DEPLOYMENT)) == 1


async def test_a_cluster_that_stays_away_is_one_clear_error(fake: Fake, settings: ClusterSettings):
    api = Api(settings.access, replace(QUICK, whole_s=0.2))
    fake.faults = [Fault(1, 503, {"Retry-After": "30"}, times=1000)]
    with pytest.raises(BackendError) as caught:
        await KubernetesBackend(settings, api).apply(wanted())
    await api.close()
    assert (caught.value.trouble, caught.value.retry_after_s) == (Trouble.UNREACHABLE, 30.0)


STORIES: dict[str, list[DesiredState]] = {
    "first": [wanted()],
    "canary": [wanted(), wanted(*CANARY, generation=2), wanted(revision(2, 2, 100), generation=3)],
    "recreate": [wanted(), wanted(revision(2, 2), replacement=pb.REPLACEMENT_MODE_RECREATE, generation=2)],
    "autoscaled": [wanted(revision(1, 3)), wanted(revision(1, 3, autoscaling=SCALED), generation=2)],
}


@contextlib.asynccontextmanager
async def undisturbed(story: list[DesiredState]):
    """The world that a story leads to if nothing goes wrong."""
    async with started() as (backend, fake):
        for desired in story:
            await backend.apply(desired)
            await backend.apply(desired)
        yield fake.snapshot()


@contextlib.asynccontextmanager
async def started():
    with TemporaryDirectory() as folder:
        async with serving(Fake()) as fake:
            settings = replace(SETTINGS, kubeconfig=kubeconfig(fake.url, Path(folder)))
            api = Api(settings.access, QUICK)
            try:
                yield KubernetesBackend(settings, api), fake
            finally:
                await api.close()


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
async def test_a_deployer_killed_after_any_call_leaves_what_the_next_one_finishes(story: list[DesiredState]):
    async with undisturbed(story) as world:
        pass
    async with started() as (backend, fake):
        for desired in story[:-1]:
            await backend.apply(desired)
            await backend.apply(desired)
        before = len(fake.calls)
        await backend.apply(story[-1])
        calls = len(fake.calls) - before
    killed = 0
    for after in range(1, calls + 1):
        async with started() as (backend, fake):
            for desired in story[:-1]:
                await backend.apply(desired)
                await backend.apply(desired)
            killed += await killed_after(backend, fake, after, backend.apply(story[-1]))
            fresh = KubernetesBackend(backend._settings, backend._api)  # it remembers nothing
            await fresh.apply(story[-1])
            await fresh.apply(story[-1])
            assert fake.snapshot() == world, f"killed after call {after}"
    assert killed >= calls - 1


async def killed_after(backend: KubernetesBackend, fake: Fake, calls: int, work: Coroutine) -> bool:
    """The task is cancelled once the fake has answered that many calls: what comes after is never sent."""
    stop = len(fake.calls) + calls
    task = asyncio.create_task(work)
    send = backend._api._once

    async def counting(*arguments):
        answer = await send(*arguments)
        if len(fake.calls) >= stop:
            task.cancel()
        return answer

    backend._api._once = counting
    try:
        await task
    except asyncio.CancelledError:
        return True
    finally:
        backend._api._once = send
    return False


async def removed(backend: KubernetesBackend) -> None:
    while not await backend.remove(KEY, NAME, spec()):
        pass


async def test_a_removal_killed_after_any_call_is_finished_by_the_next_one():
    after, was_killed = 0, True
    while was_killed:
        after += 1
        async with started() as (backend, fake):
            empty = fake.snapshot()
            await backend.apply(wanted(*CANARY))
            was_killed = await killed_after(backend, fake, after, removed(backend))
            await removed(KubernetesBackend(backend._settings, backend._api))
            assert fake.snapshot() == empty, f"killed after call {after}"
    assert after > 40


# Bad input, and nothing left behind.


@pytest.mark.parametrize(
    ("desired", "field"),
    [
        (wanted(revision(1, -1)), "spec.replicas"),
        (wanted(revision(1, 100_000)), "spec.replicas"),
        (wanted(spec=spec(resources=pb.ReplicaResources(memory_request="10GB"))), "spec.resources.memory_request"),
        (wanted(spec=spec(resources=pb.ReplicaResources(memory_limit="1Mi"))), "spec.resources.memory_limit"),
        (wanted(spec=spec(resources=pb.ReplicaResources(cpu_limit="1m"))), "spec.resources.cpu_limit"),
        (wanted(spec=spec(labels={"app.kubernetes.io/name": "x"})), "spec.labels"),
        (wanted(spec=spec(labels={"team": "a\nevil: true"})), "spec.labels[team]"),
        (wanted(spec=spec(labels={"team: x\nevil": "a"})), "spec.labels"),
    ],
)  # fmt: skip
async def test_bad_input_names_its_field_and_leaves_nothing(
    backend: KubernetesBackend, fake: Fake, desired: DesiredState, field: str
):
    before = fake.snapshot()
    with pytest.raises(BackendError) as caught:
        await backend.apply(desired)
    assert (caught.value.trouble, caught.value.field) == (Trouble.REFUSED, field)
    assert fake.snapshot() == before


@pytest.mark.parametrize("name", ["UPPER", "1st", "a" * 46, "a.b", "a\n", "", "-a"])
async def test_a_name_that_is_no_dns_label_is_refused(backend: KubernetesBackend, name: str):
    with pytest.raises(BackendError, match="is not a DNS label"):
        await backend.apply(wanted(resource_name=name))


async def test_yaml_in_a_version_stays_a_text(backend: KubernetesBackend, fake: Fake):
    nasty = '1.0.0"\n  evil: true\n- {{ $x }}'
    desired = wanted(replace(revision(), bundle=replace(bundle(), version=nasty)))
    await backend.apply(desired)
    template = fake.get(kinds.DEPLOYMENT, f"{NAME}-r1")["spec"]["template"]
    assert template["metadata"]["annotations"][identity.VERSION] == nasty
    assert "evil" not in template["metadata"]["labels"]


def test_a_digest_of_the_wish_stands_on_each_object():
    desired = {"metadata": {"name": "a"}, "spec": {"b": 1}}
    assert drift.was_applied(drift.stamped(desired), drift.stamped(desired))
    assert not drift.was_applied(drift.stamped(desired), drift.stamped(desired | {"spec": {"b": 2}}))
