"""The cluster backend against a real Kubernetes API server: the one that the kubeconfig DEPLOYER_TEST_KUBECONFIG names.

Needs kube-controller-manager and the CustomResourceDefinitions of ServiceMonitor and PrometheusRule. Pods must turn
Ready, but need not run: nothing here reads a log or asks a pod. Every test has a namespace of its own.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.aio import client, config

from deployer.kubernetes import desired
from deployer.kubernetes.desired import KEY, NAME, SETTINGS, bundle, spec
from deployer.worlds import beside
from neuroweaver.cluster import kinds
from neuroweaver.cluster.api import Api
from neuroweaver.cluster.connection import Access
from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.cluster.failures import Refusal
from neuroweaver.cluster.kinds import OWNED, Kind, Object
from neuroweaver.deployer.domain.backend import DesiredRevision, DesiredState, Observed, Redirect
from neuroweaver.deployer.kubernetes.backend import KubernetesBackend
from neuroweaver.deployer.kubernetes.in_pods.router import Routes, follow
from neuroweaver.deployer.kubernetes.naming import identity
from neuroweaver.v1 import deployer_pb2 as pb

RIGHTS = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes" / "cluster" / "deployer-rights.yaml"
KUBECONFIG = os.environ.get("DEPLOYER_TEST_KUBECONFIG", "")
PATIENCE_S = float(os.environ.get("DEPLOYER_TEST_PATIENCE_S", "120"))

pytestmark = [
    pytest.mark.skipif(
        not KUBECONFIG,
        reason="DEPLOYER_TEST_KUBECONFIG names no cluster: nothing is tried on a real API server",
    ),
    pytest.mark.timeout(600),
]


def revision(number: int = 1, *counts: int, **fields: Any) -> DesiredRevision:
    """Of a whole model: a scheduler would wait for the volume with an adapter's base model."""
    return replace(desired.revision(number, *counts, **fields), bundle=bundle(f"{number}.0.0", base=""))


class Cluster:
    """A namespace, a backend over it, and the official client's own view."""

    def __init__(self, namespace: str, api: Api, official: Any) -> None:
        self.namespace = namespace
        self.api = api
        self.official = official
        self.settings = replace(SETTINGS, kubeconfig=Path(KUBECONFIG), namespace=namespace)
        self.backend = KubernetesBackend(self.settings, api)

    def spec(self, **fields: Any) -> pb.DeploymentSpec:
        made = spec(**fields)
        made.kubernetes.namespace = self.namespace
        made.drain_timeout.FromSeconds(0)
        return made

    def wanted(self, *revisions: Any, **fields: Any) -> DesiredState:
        whole = revisions or (revision(),)
        return desired.wanted(*whole, spec=fields.pop("spec", None) or self.spec(), **fields)

    async def observe(self) -> Observed:
        return await self.backend.observe(KEY, NAME, self.spec())

    async def settled(self, desired: DesiredState, **ready: int) -> Observed:
        """Applies until as many replicas of each revision are ready (`r1=2`) and no others are there."""
        counts = {int(name[1:]): count for name, count in ready.items() if count}

        async def is_settled() -> Observed | None:
            await self.backend.apply(desired)
            seen = await self.observe()
            there = [each.revision for each in seen.replicas]
            are_ready = all(each.phase == pb.REPLICA_PHASE_READY for each in seen.replicas)
            is_whole = seen.applied_generation == desired.generation
            return seen if is_whole and are_ready and {n: there.count(n) for n in there} == counts else None

        return await eventually(is_settled)

    async def get(self, kind: Kind, name: str) -> Object:
        found = await self.api.get(kind, self.namespace, name)
        assert found is not None, f"there is no {kind.name} {name}"
        return found

    async def gone(self, kind: Kind, name: str) -> None:
        async def is_gone() -> bool:
            return await self.api.get(kind, self.namespace, name) is None

        await eventually(is_gone)

    async def patch(
        self, kind: Kind, name: str, body: Object, manager: str, *, is_applied: bool = False
    ) -> None:
        """As another client would."""
        header = "application/apply-patch+yaml" if is_applied else "application/merge-patch+json"
        query = [("fieldManager", manager)] + ([("force", "true")] if is_applied else [])
        path = kind.path(self.namespace, name)
        await self.api._bytes("PATCH", path, "patch", query=query, body=body, content_type=header)

    async def versions(self) -> dict[str, str]:
        """The resource version of everything that is the deployer's; a write that changes nothing moves none."""
        return {
            f"{kind.name}/{item['metadata']['name']}": item["metadata"]["resourceVersion"]
            for kind in OWNED
            # Their status is the controllers' business.
            if kind not in {kinds.DEPLOYMENT, kinds.AUTOSCALER, kinds.DISRUPTION_BUDGET}
            and await self.api.has(kind)
            for item in (await self.api.list(kind, self.namespace, identity.MANAGED)).items
        }


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    api = Api(Access(Path(KUBECONFIG)))
    configuration = client.Configuration()
    await config.load_kube_config(config_file=KUBECONFIG, client_configuration=configuration)
    official = client.ApiClient(configuration)
    namespace = f"nw-test-{uuid.uuid4().hex[:10]}"
    core = client.CoreV1Api(official)
    await core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=namespace)))
    made = Cluster(namespace, api, official)
    try:
        yield made
    finally:
        await core.delete_namespace(namespace)
        await official.close()
        await api.close()


async def eventually(found: Callable[[], Awaitable[Any]], pause_s: float = 0.3) -> Any:
    """What `found` gives once it gives something."""
    last: Any = None
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not (last := await found()):  # noqa: ASYNC110  # a cluster is asked again and again
                await asyncio.sleep(pause_s)
            return last
    except TimeoutError:
        pytest.fail(f"did not come to be within {PATIENCE_S:g} s")


async def test_a_wish_becomes_ready_replicas(cluster: Cluster):
    assert await cluster.observe() == Observed()
    seen = await cluster.settled(cluster.wanted(), r1=2)
    assert seen.endpoint == f"http://{NAME}.{cluster.namespace}.svc:8000/v1"
    assert (seen.desired, seen.weights, seen.applied_generation) == ({1: 2}, {1: 100}, 1)
    assert all(each.start_time and each.ready_time for each in seen.replicas)
    for kind in (kinds.SERVICE, kinds.SERVICE_ACCOUNT, kinds.ROLE, kinds.ROLE_BINDING, kinds.NETWORK_POLICY):
        await cluster.get(kind, NAME)
    for kind in (kinds.SERVICE_MONITOR, kinds.PROMETHEUS_RULE):
        await cluster.get(kind, NAME)
    pods = (await cluster.api.list(kinds.POD, cluster.namespace)).items
    assert {pod["metadata"]["labels"][identity.REVISION] for pod in pods} == {"1"}


async def test_a_wish_that_is_fulfilled_is_no_drift_and_writes_nothing(cluster: Cluster):
    await cluster.settled(cluster.wanted(), r1=2)
    before = await cluster.versions()
    for _ in range(3):
        await cluster.backend.apply(cluster.wanted())
        assert not (await cluster.observe()).drift
    assert await cluster.versions() == before
    plan = await cluster.backend.plan(cluster.wanted())
    changed = [each for each in plan.objects if each.action != pb.PLANNED_ACTION_UNCHANGED]
    assert not changed, changed


async def test_a_plan_shows_the_objects_and_makes_none(cluster: Cluster):
    plan = await cluster.backend.plan(cluster.wanted())
    assert {each.action for each in plan.objects} == {pb.PLANNED_ACTION_CREATE}
    # Nodes of a test cluster need not have room for anything.
    assert {finding.reason for finding in plan.findings if finding.is_blocking} <= {"NO_NODE", "NO_ROOM"} | {
        f"INSUFFICIENT_{resource}" for resource in ("CPU", "MEMORY", "STORAGE")
    }
    assert await cluster.observe() == Observed()
    for each in plan.objects:
        assert yaml.safe_load(each.manifest)["metadata"]["name"] == each.name


async def test_a_plan_shows_just_the_fields_that_change(cluster: Cluster):
    await cluster.settled(cluster.wanted(), r1=2)
    plan = await cluster.backend.plan(cluster.wanted(revision(1, 3)))
    (changed,) = (each for each in plan.objects if each.action == pb.PLANNED_ACTION_UPDATE)
    assert [(each.path, each.before, each.after) for each in changed.changes] == [("spec.replicas", "2", "3")]
    plan = await cluster.backend.plan(cluster.wanted(revision(2, 2)))
    deleted = {(each.kind, each.name) for each in plan.objects if each.action == pb.PLANNED_ACTION_DELETE}
    assert ("Deployment", f"{NAME}-r1") in deleted
    assert (await cluster.observe()).desired == {1: 2}


async def test_a_canary_comes_beside_the_stable_revision_and_takes_over(cluster: Cluster):
    await cluster.settled(cluster.wanted(revision(1, 3)), r1=3)
    before = {each.replica_id for each in (await cluster.observe()).replicas}
    beside = cluster.wanted(revision(1, 3, 75), revision(2, 1, 25), generation=2)
    seen = await cluster.settled(beside, r1=3, r2=1)
    assert {each.replica_id for each in seen.replicas if each.revision == 1} == before
    assert (await cluster.get(kinds.SERVICE, NAME))["spec"]["selector"] == {identity.DEPLOYMENT: NAME}
    await cluster.settled(cluster.wanted(revision(2, 2, 100), generation=3), r2=2)
    front = await cluster.get(kinds.SERVICE, NAME)
    assert front["spec"]["selector"] == {identity.DEPLOYMENT: NAME, identity.REVISION: "2"}
    for kind in (kinds.DEPLOYMENT, kinds.SERVICE, kinds.DISRUPTION_BUDGET):
        await cluster.gone(kind, f"{NAME}-r1")


async def test_a_change_of_the_pods_is_done_once_none_of_before_is_left(cluster: Cluster):
    await cluster.settled(cluster.wanted(), r1=2)
    before = {each.replica_id for each in (await cluster.observe()).replicas}
    larger = cluster.spec(resources=pb.ReplicaResources(memory_request="24Mi", memory_limit="24Mi"))
    desired = cluster.wanted(spec=larger, generation=2)
    seen: list[tuple[int, bool]] = []

    async def is_done() -> bool:
        await cluster.backend.apply(desired)
        now = await cluster.observe()
        serving = {each.replica_id for each in now.replicas if each.phase != pb.REPLICA_PHASE_DRAINING}
        seen.append((now.applied_generation, bool(serving & before)))
        return now.applied_generation == 2

    await eventually(is_done)
    assert seen[0][0] == 1
    assert not seen[-1][1]
    await cluster.settled(desired, r1=2)


async def test_recreate_takes_the_old_ones_away_first(cluster: Cluster):
    await cluster.settled(cluster.wanted(), r1=2)
    desired = cluster.wanted(revision(2, 2), replacement=pb.REPLACEMENT_MODE_RECREATE, generation=2)
    together: list[set[int]] = []

    async def is_replaced() -> bool:
        await cluster.backend.apply(desired)
        there = {each.revision for each in (await cluster.observe()).replicas}
        together.append(there)
        return there == {2}

    await eventually(is_replaced)
    assert {1, 2} not in together
    await cluster.settled(desired, r2=2)


async def test_an_edit_is_set_back_and_told(cluster: Cluster):
    await cluster.settled(cluster.wanted(), r1=2)
    await cluster.patch(kinds.DEPLOYMENT, f"{NAME}-r1", {"spec": {"replicas": 5}}, "kubectl-edit")
    await cluster.patch(
        kinds.SERVICE, NAME, {"spec": {"selector": {identity.REVISION: "99"}}}, "kubectl-edit"
    )
    await cluster.backend.apply(cluster.wanted())
    seen = await cluster.observe()
    assert seen.drift_corrected
    assert {(change.object, change.path) for change in seen.drift} == {
        (f"Deployment/{NAME}-r1", "spec.replicas"),
        (f"Service/{NAME}", f"spec.selector.{identity.REVISION}"),
    }
    assert (await cluster.get(kinds.DEPLOYMENT, f"{NAME}-r1"))["spec"]["replicas"] == 2
    await cluster.settled(cluster.wanted(), r1=2)


async def test_what_another_manager_applies_is_left_to_it(cluster: Cluster):
    await cluster.settled(cluster.wanted(), r1=2)
    container = {"name": "server", "image": "mirror.example.org/server:1"}
    theirs = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": f"{NAME}-r1", "namespace": cluster.namespace},
        "spec": {"template": {"spec": {"containers": [container]}}},
    }
    await cluster.patch(kinds.DEPLOYMENT, f"{NAME}-r1", theirs, "gitops", is_applied=True)
    await cluster.backend.apply(cluster.wanted(revision(1, 3), generation=2))
    seen = await cluster.observe()
    assert not seen.drift_corrected
    assert [(change.path, change.after) for change in seen.drift] == [
        ("spec.template.spec.containers[server].image", '"mirror.example.org/server:1"')
    ]
    live = (await cluster.get(kinds.DEPLOYMENT, f"{NAME}-r1"))["spec"]
    assert live["replicas"] == 3
    assert live["template"]["spec"]["containers"][0]["image"] == "mirror.example.org/server:1"


async def test_what_somebody_deleted_comes_back(cluster: Cluster):
    await cluster.settled(cluster.wanted(), r1=2)
    for kind in (kinds.SERVICE, kinds.NETWORK_POLICY):
        await cluster.api.delete(kind, await cluster.get(kind, NAME))
        await cluster.gone(kind, NAME)
    await cluster.backend.apply(cluster.wanted())
    seen = await cluster.observe()
    assert seen.drift_corrected
    assert {change.object for change in seen.drift} == {f"Service/{NAME}", f"NetworkPolicy/{NAME}"}
    await cluster.get(kinds.NETWORK_POLICY, NAME)


async def test_an_autoscaler_takes_over_the_number_that_is_there(cluster: Cluster):
    await cluster.settled(cluster.wanted(revision(1, 3)), r1=3)
    scaling = pb.Autoscaling(min_replicas=2, max_replicas=5, target_cpu_percent=70)
    desired = cluster.wanted(revision(1, 3, autoscaling=scaling), generation=2)
    await cluster.settled(desired, r1=3)
    assert (await cluster.get(kinds.AUTOSCALER, f"{NAME}-r1"))["spec"]["maxReplicas"] == 5
    await cluster.patch(kinds.DEPLOYMENT, f"{NAME}-r1", {"spec": {"replicas": 4}}, "kube-controller-manager")
    seen = await cluster.settled(desired, r1=4)
    assert not seen.drift
    await cluster.settled(cluster.wanted(revision(1, 2), generation=3), r1=2)
    await cluster.gone(kinds.AUTOSCALER, f"{NAME}-r1")


async def test_a_drain_of_a_node_is_never_blocked(cluster: Cluster):
    await cluster.settled(cluster.wanted(revision(1, 3)), r1=3)

    async def allowed() -> int:
        budget = await cluster.get(kinds.DISRUPTION_BUDGET, f"{NAME}-r1")
        return int((budget.get("status") or {}).get("disruptionsAllowed", 0))

    assert await eventually(allowed) == 1
    await cluster.settled(cluster.wanted(revision(1, 1), generation=2), r1=1)
    await cluster.gone(kinds.DISRUPTION_BUDGET, f"{NAME}-r1")


async def test_a_deployer_killed_in_the_middle_leaves_what_the_next_one_finishes(cluster: Cluster):
    await cluster.settled(cluster.wanted(), r1=2)
    desired = cluster.wanted(revision(2, 1), generation=2)
    send, killed = cluster.api._once, 0
    for _ in range(3):  # each time the desired state changes, one more is made
        task = asyncio.create_task(KubernetesBackend(cluster.settings, cluster.api).apply(desired))

        async def killing(*arguments: Any, task: Any = task) -> Any:
            answer = await send(*arguments)
            method, _, query, *_ = arguments
            if method in {"PATCH", "DELETE"} and ("dryRun", "All") not in query:
                task.cancel()
            return answer

        cluster.api._once = killing  # type: ignore[method-assign]
        try:
            await task
        except asyncio.CancelledError:
            killed += 1
        finally:
            cluster.api._once = send  # type: ignore[method-assign]
    assert killed == 3
    assert (await cluster.observe()).applied_generation == 1
    cluster.backend = KubernetesBackend(cluster.settings, cluster.api)
    await cluster.settled(desired, r2=1)


async def test_removal_leaves_nothing(cluster: Cluster):
    await cluster.settled(cluster.wanted(revision(1, 2, 67), revision(2, 1, 33)), r1=2, r2=1)

    async def is_gone() -> bool:
        return await cluster.backend.remove(KEY, NAME, cluster.spec())

    await eventually(is_gone)
    assert await cluster.observe() == Observed()
    for kind in (kinds.POD, kinds.REPLICA_SET, *OWNED):
        if await cluster.api.has(kind):
            assert not (await cluster.api.list(kind, cluster.namespace, identity.MANAGED)).items


async def test_changes_are_heard_of(cluster: Cluster):
    heard = asyncio.Event()

    def changed(key: Any) -> None:
        if key == KEY:
            heard.set()

    async def is_quiet() -> bool:
        heard.clear()
        await asyncio.sleep(3)
        return not heard.is_set()

    async with beside(cluster.backend.run(changed)):
        for change in (
            lambda: cluster.settled(cluster.wanted(), r1=2),
            lambda: cluster.patch(kinds.SERVICE, NAME, {"metadata": {"annotations": {"a": "b"}}}, "somebody"),
        ):
            await eventually(is_quiet)  # what comes of the change before is not taken for this one's
            await change()
            async with asyncio.timeout(PATIENCE_S):
                await heard.wait()


async def test_a_missing_namespace_is_named(cluster: Cluster):
    elsewhere = cluster.spec()
    elsewhere.kubernetes.namespace = "nw-test-that-is-not-there"
    with pytest.raises(BackendError, match="nw-test-that-is-not-there") as caught:
        await cluster.backend.apply(cluster.wanted(spec=elsewhere))
    assert (caught.value.trouble, caught.value.field) == (Trouble.REFUSED, "spec.kubernetes.namespace")
    plan = await cluster.backend.plan(cluster.wanted(spec=elsewhere))
    assert "NAMESPACE_MISSING" in {finding.reason for finding in plan.findings if finding.is_blocking}


async def acting_as(cluster: Cluster, account: str, folder: Path) -> Path:
    """A kubeconfig with nothing but the rights of a ServiceAccount in the test's namespace."""
    core = client.CoreV1Api(cluster.official)
    request = client.AuthenticationV1TokenRequest(
        spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=600)
    )
    try:
        answer = await core.create_namespaced_service_account_token(account, cluster.namespace, request)
    except client.ApiException as error:
        pytest.skip(f"the API server makes no tokens: {error.reason}")
    told = yaml.safe_load(Path(KUBECONFIG).read_text())  # noqa: ASYNC240  # a small file, in a test
    context = next(each["context"] for each in told["contexts"] if each["name"] == told["current-context"])
    told["users"] = [{"name": account, "user": {"token": answer.status.token}}]
    context["user"] = account
    file = folder / f"{account}.kubeconfig"
    for each in told["clusters"]:  # a path is told from the kubeconfig's folder
        if authority := each["cluster"].get("certificate-authority"):
            each["cluster"]["certificate-authority"] = str(Path(KUBECONFIG).parent / authority)
    file.write_text(yaml.safe_dump(told))
    api = Api(Access(file))
    is_almighty = await api.may("get", "", "secrets", cluster.namespace)
    await api.close()
    if is_almighty:
        pytest.skip("the API server allows everything to everybody")
    return file


async def test_a_missing_right_is_named(cluster: Cluster, tmp_path: Path):
    core = client.CoreV1Api(cluster.official)
    account = client.V1ServiceAccount(metadata=client.V1ObjectMeta(name="nobody"))
    await core.create_namespaced_service_account(cluster.namespace, account)
    access = Access(await acting_as(cluster, "nobody", tmp_path))
    backend = KubernetesBackend(cluster.settings, Api(access))
    try:
        for attempt in (backend.plan(cluster.wanted()), backend.apply(cluster.wanted())):
            with pytest.raises(BackendError, match=r"denies \w+ of [a-z.0-9]+") as caught:
                await attempt
            assert caught.value.trouble == Trouble.FORBIDDEN
    finally:
        await backend.close()
    assert await cluster.observe() == Observed()


async def test_the_rights_that_are_handed_out_are_enough(cluster: Cluster, tmp_path: Path):
    """Those of deploy/kubernetes/cluster in the models' namespace, beside what it takes to count free room."""
    core = client.CoreV1Api(cluster.official)
    rbac = client.RbacAuthorizationV1Api(cluster.official)
    (given,) = (
        each
        for each in yaml.safe_load_all(RIGHTS.read_text())
        if (each["kind"], each["metadata"].get("namespace")) == ("Role", "neuroweaver-models")
    )
    account = client.V1ServiceAccount(metadata=client.V1ObjectMeta(name="deployer"))
    await core.create_namespaced_service_account(cluster.namespace, account)
    await rbac.create_namespaced_role(
        cluster.namespace, given | {"metadata": {"name": "deployer", "namespace": cluster.namespace}}
    )
    binding = {
        "metadata": {"name": "deployer", "namespace": cluster.namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "deployer"},
        "subjects": [{"kind": "ServiceAccount", "name": "deployer", "namespace": cluster.namespace}],
    }
    await rbac.create_namespaced_role_binding(cluster.namespace, binding)
    access = Access(await acting_as(cluster, "deployer", tmp_path))
    backend, cluster.backend = (cluster.backend, KubernetesBackend(cluster.settings, Api(access)))
    try:
        scaled = pb.Autoscaling(min_replicas=2, max_replicas=3, target_cpu_percent=70)
        routed = cluster.spec()
        routed.kubernetes.traffic_routing = pb.TRAFFIC_ROUTING_ROUTER
        desired = cluster.wanted(revision(1, 2, autoscaling=scaled), spec=routed)
        plan = await cluster.backend.plan(desired)
        assert {each.action for each in plan.objects} == {pb.PLANNED_ACTION_CREATE}
        await cluster.settled(desired, r1=2)

        async def is_gone() -> bool:
            return await cluster.backend.remove(KEY, NAME, routed)

        await eventually(is_gone)
    finally:
        await cluster.backend.close()
        cluster.backend = backend


async def test_traffic_goes_through_a_router_that_may_read_its_routes_alone(cluster: Cluster, tmp_path: Path):
    routed = cluster.spec()
    routed.kubernetes.traffic_routing = pb.TRAFFIC_ROUTING_ROUTER
    desired = cluster.wanted(revision(1, 1, 90), revision(2, 1, 10), spec=routed)
    await cluster.settled(desired, r1=1, r2=1)
    assert (await cluster.get(kinds.SERVICE, NAME))["spec"]["selector"] == {identity.ROUTER: NAME}
    budget = await cluster.get(kinds.DISRUPTION_BUDGET, f"{NAME}-router")
    assert budget["spec"]["maxUnavailable"] == 1
    before = await cluster.versions()

    # As its pods do: with the rights of their account.
    routes = Routes()
    api = Api(Access(await acting_as(cluster, f"{NAME}-router", tmp_path)))
    async with beside(follow(api, cluster.namespace, f"{NAME}-router", routes)):
        await eventually(lambda: knows(routes, {1: 90, 2: 10}))
        spare = Redirect("http://nw-spare.default.svc:8000/v1", "spare-bot")
        moved = cluster.wanted(revision(1, 1, 40), revision(2, 1, 60), spec=routed, redirect=spare)
        await cluster.backend.apply(moved)
        await eventually(lambda: knows(routes, {1: 40, 2: 60}))
        assert routes.redirect == spare
        after = await cluster.versions()
        assert {name for name in before | after if before.get(name) != after.get(name)} == {
            f"ConfigMap/{NAME}",
            f"ConfigMap/{NAME}-router",
            f"NetworkPolicy/{NAME}-router",
        }
        for kind, name in ((kinds.CONFIG_MAP, NAME), (kinds.SERVICE, NAME)):
            with pytest.raises(Refusal) as caught:
                await api.get(kind, cluster.namespace, name)
            assert caught.value.status == 403
        await api.close()
    await cluster.settled(cluster.wanted(revision(2, 1), generation=2), r2=1)
    assert (await cluster.get(kinds.SERVICE, NAME))["spec"]["selector"][identity.REVISION] == "2"
    for kind in (kinds.DEPLOYMENT, kinds.ROLE, kinds.CONFIG_MAP):
        await cluster.gone(kind, f"{NAME}-router")


async def knows(routes: Routes, weights: dict[int, int]) -> bool:
    table = routes.table
    return table is not None and {each.revision: each.weight_percent for each in table.routes} == weights


async def test_what_the_api_server_calls_invalid_is_refused_in_its_words(cluster: Cluster):
    desired = cluster.spec()
    desired.kubernetes.node_selector["zone"] = "a b"
    plan = await cluster.backend.plan(cluster.wanted(spec=desired))
    (finding,) = (each for each in plan.findings if "a valid label must be" in each.message)
    assert finding.is_blocking
    with pytest.raises(BackendError, match="a valid label must be") as caught:
        await cluster.backend.apply(cluster.wanted(spec=desired))
    assert caught.value.trouble == Trouble.REFUSED
