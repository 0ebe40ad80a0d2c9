from __future__ import annotations

import copy
import json
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployer.kubernetes import promql, schemas
from deployer.kubernetes.desired import NAME, SETTINGS, bundle, revision, routed, seconds, spec, to, wanted
from neuroweaver.artifacts import serving_config
from neuroweaver.artifacts.file import File
from neuroweaver.cluster import kinds, quantities
from neuroweaver.cluster.kinds import Object
from neuroweaver.deployer.domain.backend import DesiredState
from neuroweaver.deployer.kubernetes.in_pods import liveness
from neuroweaver.deployer.kubernetes.manifests import record, router_pods, routes
from neuroweaver.deployer.kubernetes.manifests.manifests import Cluster, manifests
from neuroweaver.deployer.kubernetes.naming import identity
from neuroweaver.deployer.kubernetes.planning import capacity
from neuroweaver.deployer.kubernetes.settings import ClusterSettings
from neuroweaver.mesh.server.http_limits import HttpLimits
from neuroweaver.mesh.wire import environment
from neuroweaver.v1 import deployer_pb2 as pb

EVERYTHING = Cluster(frozenset(kind for kind in kinds.OWNED if kind.is_custom))
ABLE = replace(
    SETTINGS,
    own_namespace="neuroweaver",
    gateway="infra/edge",
    prometheus_url="http://prometheus.monitoring.svc:9090",
    activation_query='sum(rate(router_requests_total{deployment="{deployment}"}[1m]))',
)
MODELS = Path(__file__).parents[1] / "models"
ZERO = pb.Autoscaling(min_replicas=0, max_replicas=3, target_concurrency=4)
GPUS = pb.ReplicaResources(gpus=2, cpu_limit="4", cpu_request="2", memory_request="8Gi", memory_limit="16Gi")


def made(desired: DesiredState, cluster: Cluster = EVERYTHING) -> list[Object]:
    objects = manifests(desired, ABLE, cluster)
    return [*objects, record.written(desired, ABLE, objects)]


def of(objects: list[Object], kind: kinds.Kind) -> list[Object]:
    return [each for each in objects if each["kind"] == kind.name]


def server(deployment: Object) -> Object:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return container


autoscalings = st.one_of(
    st.none(),
    st.builds(
        lambda low, more, cpu, memory, concurrency, custom, delay: pb.Autoscaling(
            min_replicas=low,
            max_replicas=low + more + (low == 0),
            target_cpu_percent=cpu,
            target_memory_percent=memory,
            target_concurrency=concurrency,
            custom_metrics=[pb.CustomMetricTarget(name="queue_depth", average_value=custom)]
            if custom
            else [],
            scale_down_delay=seconds(delay),
            idle_timeout=seconds(600) if low == 0 else None,
        ),
        st.integers(0, 5),
        st.integers(0, 5),
        st.none() | st.integers(1, 100),
        st.none() | st.integers(1, 100),
        st.none() | st.floats(0.01, 100),
        st.none() | st.sampled_from(["10", "500m", "2k", "1Gi"]),
        st.integers(0, 3600),
    ),
)
texts = st.text(max_size=40)
tolerations = st.builds(
    lambda key, value, effect: pb.Toleration(
        key=key,
        operator=pb.TOLERATION_OPERATOR_EQUAL if value else pb.TOLERATION_OPERATOR_EXISTS,
        value=value,
        effect=effect,
    ),
    st.sampled_from(["a", "example.org/b"]),
    st.sampled_from(["", "c"]),
    st.sampled_from(list(pb.TaintEffect.values())),
)


@st.composite
def desired(draw: st.DrawFn) -> DesiredState:
    count = draw(st.integers(1, 2))
    weights = draw(st.sampled_from([(100,), (0,)] if count == 1 else [(100, 0), (90, 10), (0, 100), (0, 0)]))
    revisions = []
    for index, weight in enumerate(weights):
        base = draw(st.sampled_from(["", "HuggingFaceTB/SmolLM2-135M-Instruct", "plain"]))
        version = draw(st.sampled_from(["1.0.0", "1.0.0-rc.1+build.5"]) | texts)
        revisions.append(
            replace(
                revision(draw(st.integers(1, 10**9)) + index, draw(st.integers(0, 1000)), weight),
                autoscaling=draw(autoscalings),
                bundle=bundle(version, base),
            )
        )
    request, more = draw(st.integers(1, 64)), draw(st.integers(0, 64))
    resources = pb.ReplicaResources(
        cpu_request=draw(st.sampled_from(["0.5", "1", "250m", "2.125"])),
        memory_request=f"{request}Gi",
        memory_limit=f"{request + more}Gi",
        storage_request=draw(st.sampled_from(["", "20Gi", "1.5T"])),
        gpus=draw(st.integers(0, 8)),
        gpu_resource=draw(st.sampled_from(["nvidia.com/gpu", "amd.com/gpu"])),
    )
    options = pb.KubernetesOptions(
        namespace="models",
        image=draw(st.sampled_from(["", "registry.example.org:5000/a/b@sha256:" + "0" * 64])),
        image_pull_secrets=draw(st.sampled_from([[], ["pull"]])),
        node_selector=draw(st.sampled_from([{}, {"pool": "gpu"}])),
        tolerations=draw(st.lists(tolerations, max_size=3)),
        service_account=draw(st.sampled_from(["", "own"])),
        min_available=draw(st.none() | st.integers(0, 1000)),
        client_namespaces=draw(st.sampled_from([[], ["a", "b"]])),
        monitoring=draw(st.none() | st.booleans()),
        traffic_routing=draw(st.sampled_from([pb.TRAFFIC_ROUTING_SERVICE, pb.TRAFFIC_ROUTING_ROUTER])),
    )
    engine = pb.EngineOptions(
        weight_type=draw(st.sampled_from(list(pb.WeightType.values()))),
        adapter_mode=draw(st.sampled_from(list(pb.AdapterMode.values()))),
        max_context_tokens=draw(st.none() | st.integers(16, 4096)),
        max_batch_size=draw(st.none() | st.integers(1, 64)),
        gpu_memory_share=draw(st.none() | st.floats(0.1, 1)),
        tensor_parallel_size=draw(st.integers(1, 8)),
    )
    made = spec(resources=resources, kubernetes=options, engine=engine)
    if draw(st.booleans()):
        made.recovery.backup.CopyFrom(pb.BackupModel(model_id="another-bot", name="default"))
    made.labels.update(draw(st.sampled_from([{}, {"team": "speech", "example.org/cost": "a.b_c-1"}])))
    made.rollout.max_surge = draw(st.integers(0, 3))
    made.rollout.max_unavailable = draw(st.integers(0, 3))
    made.drain_timeout.CopyFrom(seconds(draw(st.integers(0, 3600))))
    key = replace(wanted().key, project=draw(texts), name=draw(texts))
    return wanted(
        *revisions,
        spec=made,
        key=key,
        replacement=draw(st.sampled_from([pb.REPLACEMENT_MODE_SURGE, pb.REPLACEMENT_MODE_RECREATE])),
    )


@given(desired())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_wished_the_objects_are_valid_and_fit_together(desired: DesiredState):
    objects = made(desired)
    for each in objects:
        schemas.check(each)
        assert yaml.safe_load(yaml.safe_dump(each)) == each
        assert set(each["metadata"]) == {"name", "namespace", "labels", "annotations"}
        assert len(each["metadata"]["name"]) <= 63
        assert each["metadata"]["labels"][identity.DEPLOYMENT] == NAME
        assert identity.key_of(each) == desired.key
    names = {(each["kind"], each["metadata"]["name"]) for each in objects}
    assert len(names) == len(objects)
    check_deployments(objects, desired)
    check_services(objects)
    check_autoscalers(objects, names)
    check_budgets(objects, desired)


def check_deployments(objects: list[Object], desired: DesiredState) -> None:
    deployments = of(objects, kinds.DEPLOYMENT)
    routers = [each for each in deployments if router_pods.is_router(each)]
    assert len(routers) == (desired.spec.kubernetes.traffic_routing == pb.TRAFFIC_ROUTING_ROUTER)
    assert len(deployments) == len(desired.revisions) + len(routers)
    selectors = [each["spec"]["selector"]["matchLabels"] for each in deployments]
    for each in deployments:
        labels = each["spec"]["template"]["metadata"]["labels"]
        # One Deployment's pods are never another one's, nor a router's the deployment's own.
        assert sum(selector.items() <= labels.items() for selector in selectors) == 1
        assert (identity.DEPLOYMENT in labels) == (each not in routers)
        assert identity.key_of({"metadata": each["spec"]["template"]["metadata"]}) == desired.key
        check_pods(each, desired)
    gpus = desired.spec.resources.gpus
    for deployment in (each for each in deployments if each not in routers):
        assert server(deployment)["resources"]["limits"].get(desired.spec.resources.gpu_resource) == (
            str(gpus) if gpus else None
        )
        pod = deployment["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        if gpus:
            tolerated = {toleration.get("key") for toleration in pod["tolerations"]}
            assert desired.spec.resources.gpu_resource in tolerated


def check_pods(each: Object, desired: DesiredState) -> None:
    spec = each["spec"]
    template = spec["template"]
    assert spec["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    if spec["strategy"]["type"] == "RollingUpdate":
        assert any(spec["strategy"]["rollingUpdate"].values())
    pod = template["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    volumes = {volume["name"] for volume in pod.get("volumes", ())}
    for container in [*pod["containers"], *pod.get("initContainers", ())]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert not context["allowPrivilegeEscalation"]
        assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
        resources = container["resources"]
        for resource, limit in resources["limits"].items():
            assert quantities.parse(resources["requests"].get(resource, "0")) <= quantities.parse(limit)
    ports = {port["name"] for port in server(each)["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert "exec" in server(each)[probe] or server(each)[probe]["httpGet"]["port"] in ports
    annotations = template["metadata"]["annotations"]
    for volume in pod.get("volumes", ()):
        for item in volume.get("downwardAPI", {}).get("items", ()):
            assert item["fieldRef"]["fieldPath"].split("'")[1] in annotations
    assert pod["terminationGracePeriodSeconds"] > desired.spec.drain_timeout.seconds


def check_services(objects: list[Object]) -> None:
    pods = [each["spec"]["template"]["metadata"]["labels"] for each in of(objects, kinds.DEPLOYMENT)]
    for each in of(objects, kinds.SERVICE):
        selected = [labels for labels in pods if each["spec"]["selector"].items() <= labels.items()]
        if each["metadata"]["labels"][identity.ROLE] == "revision":
            assert len(selected) == 1
        assert len({identity.ROUTER in labels for labels in selected}) <= 1
        assert {port["targetPort"] for port in each["spec"]["ports"]} == {"http"}


def check_autoscalers(objects: list[Object], names: set[tuple[str, str]]) -> None:
    for each in of(objects, kinds.AUTOSCALER):
        assert 1 <= each["spec"]["minReplicas"] <= each["spec"]["maxReplicas"]
        assert each["spec"]["metrics"]
        assert ("Deployment", each["spec"]["scaleTargetRef"]["name"]) in names
    scaled = {
        each["spec"]["scaleTargetRef"]["name"] for each in objects if "scaleTargetRef" in each.get("spec", {})
    }
    for each in of(objects, kinds.DEPLOYMENT):
        # A number beside an autoscaler would be fought over.
        assert ("replicas" in each["spec"]) != (each["metadata"]["name"] in scaled)


def check_budgets(objects: list[Object], desired: DesiredState) -> None:
    budgets = {each["metadata"]["name"]: each for each in of(objects, kinds.DISRUPTION_BUDGET)}
    for each in desired.revisions:
        least = each.autoscaling.min_replicas if each.autoscaling else each.replicas
        budget = budgets.get(identity.of_revision(NAME, each.number))
        assert (budget is not None) == (least >= 2)
        if budget is not None:
            allowed = budget["spec"].get("maxUnavailable", least - budget["spec"].get("minAvailable", 0))
            assert allowed >= 1


@pytest.mark.parametrize("version", ["1.36", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("resources", [pb.ReplicaResources(), GPUS], ids=["cpu", "gpu"])
def test_the_official_validator_says_the_same(version: str, resources: pb.ReplicaResources):
    scaling = pb.Autoscaling(min_replicas=2, max_replicas=5, target_concurrency=3)
    for each in made(wanted(revision(1, autoscaling=scaling), spec=spec(resources=resources))):
        if not schemas.is_custom(each):
            kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("version", ["1.36", kubernetes_validate.latest_version()])
def test_the_official_validator_says_the_same_of_a_router(version: str):
    for each in made(wanted(spec=routed())):
        if not schemas.is_custom(each):
            kubernetes_validate.validate(each, version, strict=True)


def test_the_validator_can_say_no():
    (deployment,) = of(made(wanted()), kinds.DEPLOYMENT)
    deployment["spec"]["template"]["spec"]["container"] = []
    with pytest.raises(Exception, match="container"):
        schemas.check(deployment)


@pytest.mark.parametrize("kind", [kinds.SERVICE_MONITOR, kinds.PROMETHEUS_RULE], ids=lambda kind: kind.name)
def test_custom_objects_fulfil_their_definition(kind: kinds.Kind):
    if (kind.api_version, kind.name) not in schemas.custom_schemas():
        pytest.skip(
            f"no definition of {kind.name} in {', '.join(map(str, schemas.CRD_FOLDERS))}: it is not checked"
        )
    for resources in (pb.ReplicaResources(), GPUS):
        (each,) = of(made(wanted(spec=spec(resources=resources))), kind)
        schemas.check(each)
        each["spec"]["unheard_of"] = 1
        with pytest.raises(Exception, match="unheard_of"):
            schemas.check(each)


def told_by_models(objects: list[Object]) -> list[list[str]]:
    """What the published models of KEDA and of the Gateway API find wrong with each."""
    if not (MODELS / "node_modules").is_dir():
        pytest.skip(f"{MODELS}: not installed (`npm ci`), so nothing of KEDA and the Gateway API is checked")
    done = subprocess.run(
        ["node", str(MODELS / "check.mjs")],
        input=json.dumps(objects),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    told: list[list[str]] = json.loads(done.stdout)
    return told


def test_objects_of_keda_and_the_gateway_api_fulfil_their_definitions():
    objects = []
    for desired in (
        wanted(revision(1, 2, 90), revision(2, 1, 10)),
        wanted(revision(autoscaling=ZERO), spec=routed()),
        wanted(revision(autoscaling=pb.Autoscaling(min_replicas=0, max_replicas=2, target_cpu_percent=70))),
        wanted(redirect=to("http://nw-spare.default.svc:8000/v1")),
    ):
        objects += [*of(made(desired), kinds.HTTP_ROUTE), *of(made(desired), kinds.SCALED_OBJECT)]
    assert Counter(each["kind"] for each in objects) == {"HTTPRoute": 4, "ScaledObject": 2}
    assert told_by_models(objects) == [[]] * len(objects)


def test_the_models_can_say_no():
    objects = made(wanted(revision(autoscaling=ZERO)))
    (route,), (scaled,) = of(objects, kinds.HTTP_ROUTE), of(objects, kinds.SCALED_OBJECT)
    unheard_of, wrong = copy.deepcopy(route), copy.deepcopy(route)
    unheard_of["spec"]["rules"][0]["unheard_of"] = 1
    wrong["spec"]["rules"][0]["backendRefs"][0]["port"] = "http"
    deeper, less = copy.deepcopy(scaled), copy.deepcopy(scaled)
    deeper["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behaviour"] = {}
    del less["spec"]["triggers"]
    for words, told in zip(
        ("unheard_of", "port", "behaviour", "triggers"),
        told_by_models([unheard_of, wrong, deeper, less]),
        strict=True,
    ):
        assert words in "".join(told)


@pytest.mark.parametrize("resources", [pb.ReplicaResources(), GPUS], ids=["own server", "vllm"])
def test_rules_and_queries_are_promql(resources: pb.ReplicaResources, tmp_path: Path):
    objects = made(wanted(revision(autoscaling=ZERO), spec=spec(resources=resources)))
    (rule,) = of(objects, kinds.PROMETHEUS_RULE)
    promql.check_groups(rule["spec"]["groups"], tmp_path)
    alerts = {each.get("alert") for group in rule["spec"]["groups"] for each in group["rules"]}
    assert alerts == {
        None,
        "ModelHighLatency",
        "ModelErrorRate",
        "ModelLowAccuracy",
        "ModelResourceExhaustion",
        "ModelExperimentSignificant",
    }
    (scaled,) = of(objects, kinds.SCALED_OBJECT)
    promql.check_expressions((each["metadata"]["query"] for each in scaled["spec"]["triggers"]), tmp_path)


def test_without_the_definitions_nothing_custom_is_made():
    assert not [each for each in made(wanted(), Cluster()) if schemas.is_custom(each)]


def test_prometheus_finds_each_pod_once():
    objects = made(
        wanted(revision(1, 2, 90), revision(2, 1, 10), spec=routed()), replace(EVERYTHING, has_router=True)
    )
    (monitor,) = of(objects, kinds.SERVICE_MONITOR)
    selector = monitor["spec"]["selector"]
    (roles,) = selector["matchExpressions"]
    selected = [
        each["spec"]["selector"]
        for each in of(objects, kinds.SERVICE)
        if selector["matchLabels"].items() <= each["metadata"]["labels"].items()
        and each["metadata"]["labels"].get(roles["key"]) in roles["values"]
    ]
    for deployment in of(objects, kinds.DEPLOYMENT):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert sum(each.items() <= labels.items() for each in selected) == 1


def test_monitoring_can_be_left_out():
    objects = made(wanted(spec=spec(kubernetes=pb.KubernetesOptions(monitoring=False))))
    assert not of(objects, kinds.SERVICE_MONITOR)
    assert not of(objects, kinds.PROMETHEUS_RULE)


def test_pods_that_never_get_ready_block_no_drain():
    for options in (pb.KubernetesOptions(), pb.KubernetesOptions(min_available=1)):
        (budget,) = of(made(wanted(spec=spec(kubernetes=options))), kinds.DISRUPTION_BUDGET)
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_pods_may_do_nothing_in_the_cluster():
    (role,) = of(made(wanted()), kinds.ROLE)
    assert role["rules"] == []


def test_a_router_may_read_its_own_routes_and_nothing_else():
    objects = made(wanted(spec=routed()))
    by_name = {each["metadata"]["name"]: each for each in of(objects, kinds.ROLE)}
    assert by_name[NAME]["rules"] == []
    (rule,) = by_name[f"{NAME}-router"]["rules"]
    assert (rule["apiGroups"], rule["resources"], rule["resourceNames"]) == (
        [""],
        ["configmaps"],
        [f"{NAME}-router"],
    )
    assert set(rule["verbs"]) == {"get", "list", "watch"}
    (router,) = (each for each in of(objects, kinds.DEPLOYMENT) if router_pods.is_router(each))
    assert router["spec"]["template"]["spec"]["serviceAccountName"] == f"{NAME}-router"
    (account,) = (
        each for each in of(objects, kinds.SERVICE_ACCOUNT) if each["metadata"]["name"] == f"{NAME}-router"
    )
    assert account["automountServiceAccountToken"] is False


def test_routes_say_where_the_traffic_goes():
    spare = to("http://nw-spare.default.svc:8000/v1", "spare-bot")
    desired = wanted(revision(1, 2, 90), revision(2, 1, 10), spec=routed(), redirect=spare)
    (told,) = (
        each["data"][routes.ENTRY]
        for each in of(made(desired), kinds.CONFIG_MAP)
        if each["metadata"]["name"] == f"{NAME}-router"
    )
    table = routes.read(told)
    assert table == routes.Table(
        desired.key,
        is_affine=True,
        routes=(
            routes.Route(1, f"http://{NAME}-r1.default.svc:8000", 90),
            routes.Route(2, f"http://{NAME}-r2.default.svc:8000", 10),
        ),
        redirect=spare,
    )
    services = {each["metadata"]["name"]: each for each in of(made(desired), kinds.SERVICE)}
    for each in table.routes:
        selector = services[each.url.removeprefix("http://").partition(".")[0]]["spec"]["selector"]
        assert selector == {identity.DEPLOYMENT: NAME, identity.REVISION: str(each.revision)}


def test_the_networks_of_router_and_replicas_fit_together():
    spare = to("https://models.example.org/default/spare-bot/default/v1", "spare-bot")
    objects = made(
        wanted(spec=routed(kubernetes=pb.KubernetesOptions(client_namespaces=["web"])), redirect=spare)
    )
    networks = {each["metadata"]["name"]: each["spec"] for each in of(objects, kinds.NETWORK_POLICY)}
    pods = {each["metadata"]["name"]: each["spec"]["template"] for each in of(objects, kinds.DEPLOYMENT)}
    router, replica = pods[f"{NAME}-router"], pods[f"{NAME}-r1"]
    for policy, pod in ((networks[f"{NAME}-router"], router), (networks[NAME], replica)):
        assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    # Only callers from `web` are allowed, and yet the router, which is in the deployment's namespace, comes in.
    (ingress,) = networks[NAME]["ingress"]
    (peer,) = (each["podSelector"] for each in ingress["from"] if "podSelector" in each)
    (needed,) = peer["matchExpressions"]
    assert needed == {"key": identity.ROUTER, "operator": "Exists"}
    assert identity.ROUTER in router["metadata"]["labels"]
    egress = networks[f"{NAME}-router"]["egress"]
    (to_replicas,) = (rule for rule in egress if any("podSelector" in peer for peer in rule.get("to", ())))
    assert to_replicas["to"][0]["podSelector"]["matchLabels"].items() <= replica["metadata"]["labels"].items()
    open_ports = {port["port"] for rule in egress if "to" not in rule for port in rule["ports"]}
    assert open_ports == {53, 443, 6443}
    elsewhere = made(wanted(spec=routed(), redirect=to("http://gateway.infra:8080/spare/v1", "spare-bot")))
    (policy,) = (
        each for each in of(elsewhere, kinds.NETWORK_POLICY) if each["metadata"]["name"] == f"{NAME}-router"
    )
    assert {"ports": [{"port": 8080, "protocol": "TCP"}]} in policy["spec"]["egress"]


def test_vllm_gets_each_value_as_one_argument_of_its_own():
    (deployment,) = of(made(wanted(spec=spec(resources=GPUS))), kinds.DEPLOYMENT)
    container = server(deployment)
    assert container["command"] == ["vllm", "serve"]
    assert "--model=/models/base/HuggingFaceTB/SmolLM2-135M-Instruct" in container["args"]
    assert [each for each in container["args"] if each.startswith("support-bot")] == [
        "support-bot=/models/files",
        "support-bot@1.0.0=/models/files",
    ]
    # A slot for each name: vLLM takes them for two adapters.
    assert {"--max-loras=2", "--max-cpu-loras=2"} <= set(container["args"])
    assert {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe")} == {
        "/health"
    }
    assert not [each for each in container["args"] if "trust" in each]


def test_the_liveness_of_vllm_proves_tokens_by_a_script_that_lies_in_the_pod():
    (deployment,) = of(made(wanted(spec=spec(resources=GPUS))), kinds.DEPLOYMENT)
    container, template = server(deployment), deployment["spec"]["template"]
    probe = container["livenessProbe"]
    python, options, script, *arguments = probe["exec"]["command"]
    assert (python, options) == ("python3", "-IS")
    assert arguments == ["--port=8000", "--state=/scratch/liveness.json", "--stall-s=120"]
    mounts = {each["name"]: each for each in container["volumeMounts"]}
    (told,) = (
        each["downwardAPI"]["items"] for each in template["spec"]["volumes"] if each["name"] == "config"
    )
    paths = {
        f"{mounts['config']['mountPath']}/{each['path']}": each["fieldRef"]["fieldPath"] for each in told
    }
    assert paths[script] == f"metadata.annotations['{identity.LIVENESS}']"
    text = template["metadata"]["annotations"][identity.LIVENESS]
    assert text == Path(liveness.__file__).read_text()
    assert "/scratch" in {each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")}
    # It asks four times at most, one after the other.
    assert probe["timeoutSeconds"] > 4 * liveness.HTTP_S
    assert "--enable-server-load-tracking" in container["args"]


@pytest.mark.parametrize(("tokens", "stall_s"), [(None, 120), (120_000, 120), (1_000_000, 1000)])
def test_a_server_may_be_silent_while_it_reads_the_longest_prompt(tokens: int | None, stall_s: int):
    engine = pb.EngineOptions(max_context_tokens=tokens)
    (deployment,) = of(made(wanted(spec=spec(resources=GPUS, engine=engine))), kinds.DEPLOYMENT)
    assert f"--stall-s={stall_s}" in server(deployment)["livenessProbe"]["exec"]["command"]


def test_the_annotations_of_a_pod_are_never_too_long():
    """An API server takes 256 KiB of them."""
    files = tuple(File(f"{number:060}.safetensors", "a" * 64, 10**12) for number in range(1020))
    desired = wanted(replace(revision(), bundle=replace(bundle(), files=files)), spec=spec(resources=GPUS))
    annotations = of(made(desired), kinds.DEPLOYMENT)[0]["spec"]["template"]["metadata"]["annotations"]
    assert len(annotations[identity.CONFIG]) > 190_000
    assert sum(len(f"{name}{text}".encode()) for name, text in annotations.items()) < 256 * 1024


@pytest.mark.parametrize(
    "name", ["--trust-remote-code", "../../etc", "a/b/c", "a b", "/abs", "a/b@--x", "a/b@c/d", "a/b@", ""]
)
def test_a_base_model_that_is_no_name_reaches_no_command_line(name: str):
    desired = wanted(replace(revision(), bundle=bundle(base=name)), spec=spec(resources=GPUS))
    if not name:
        assert "--model=/models/files" in server(of(made(desired), kinds.DEPLOYMENT)[0])["args"]
        return
    with pytest.raises(Exception, match="is not named `organisation/name`"):
        made(desired)


def test_our_server_gets_a_configuration_that_it_takes():
    annotations = of(made(wanted()), kinds.DEPLOYMENT)[0]["spec"]["template"]["metadata"]["annotations"]
    read = serving_config.parse(json.loads(annotations[identity.CONFIG]))
    assert (read.name, read.version, read.port) == ("support-bot", "1.0.0", 8000)


def test_the_base_model_of_vllm_is_verified_before_it_starts():
    (deployment,) = of(made(wanted(spec=spec(resources=GPUS))), kinds.DEPLOYMENT)
    template = deployment["spec"]["template"]
    source = json.loads(template["metadata"]["annotations"][identity.SOURCE])
    assert source["base_digest"] == "d" * 64
    assert f"--model={source['base_folder']}" in server(deployment)["args"]
    (first,) = template["spec"]["initContainers"]
    mounts = {each["name"]: each for each in first["volumeMounts"]}
    assert source["base_folder"].startswith(f"{mounts['base']['mountPath']}/")
    assert mounts["base"]["readOnly"]


HUB = replace(ABLE, base_claim="")


def of_hub(desired: DesiredState, able: ClusterSettings = HUB) -> tuple[Object, Object]:
    """The Deployment and the NetworkPolicy, valid by the schemas."""
    objects = manifests(desired, able, EVERYTHING)
    for each in objects:
        schemas.check(each)
        if not schemas.is_custom(each):
            kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
    return of(objects, kinds.DEPLOYMENT)[0], of(objects, kinds.NETWORK_POLICY)[0]


def ports_out(policy: Object) -> set[int]:
    return {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}


@pytest.mark.parametrize("resources", [pb.ReplicaResources(), GPUS], ids=["own server", "vllm"])
def test_without_a_volume_the_pod_fetches_the_base_model_and_serves_it_offline(
    resources: pb.ReplicaResources,
):
    deployment, policy = of_hub(wanted(spec=spec(resources=resources)))
    template, container = deployment["spec"]["template"], server(deployment)
    source = json.loads(template["metadata"]["annotations"][identity.SOURCE])
    assert source["hub"] == {"repository": "HuggingFaceTB/SmolLM2-135M-Instruct", "revision": ""}
    assert source["base_digest"] == "d" * 64
    config = json.loads(template["metadata"]["annotations"][identity.CONFIG])
    assert (config["base_folder"], config["base_digest"]) == (source["base_folder"], "d" * 64)
    assert resources.gpus == 0 or f"--model={source['base_folder']}" in container["args"]
    (first,) = template["spec"]["initContainers"]
    volumes = {each["name"]: each for each in template["spec"]["volumes"]}
    assert volumes["base"] == {"name": "base", "emptyDir": {}}
    (written,), (read,) = (
        [mount for mount in each["volumeMounts"] if mount["name"] == "base"] for each in (first, container)
    )
    assert not written.get("readOnly")
    assert read["readOnly"]
    assert source["base_folder"].startswith(f"{written['mountPath']}/")
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container["env"]
    assert not {"HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE"} & {each["name"] for each in first["env"]}
    assert 443 in ports_out(policy)


def test_a_mirror_and_a_token_are_for_what_fetches_alone_and_the_token_by_reference():
    able = replace(HUB, hub_url="http://mirror.internal:8081/hub", hub_token_secret="hub-token")
    deployment, policy = of_hub(wanted(spec=spec(resources=GPUS)), able)
    (first,) = deployment["spec"]["template"]["spec"]["initContainers"]
    env = {each["name"]: each for each in first["env"]}
    assert env["HF_ENDPOINT"]["value"] == "http://mirror.internal:8081/hub"
    assert env["HF_TOKEN"] == {
        "name": "HF_TOKEN",
        "valueFrom": {"secretKeyRef": {"name": "hub-token", "key": "token"}},
    }
    assert not {"HF_ENDPOINT", "HF_TOKEN"} & {each["name"] for each in server(deployment)["env"]}
    assert 8081 in ports_out(policy)
    assert 443 not in ports_out(policy)


@pytest.mark.parametrize(
    ("resources", "base", "able"),
    [
        (GPUS, "acme/base", ABLE),
        (GPUS, "", HUB),
        (pb.ReplicaResources(), "", HUB),
        (pb.ReplicaResources(), "acme/base", ABLE),
    ],
    ids=["claim", "no adapter", "no GPU, no adapter", "no GPU, claim"],
)
def test_pods_that_fetch_no_base_model_reach_no_hub(
    resources: pb.ReplicaResources, base: str, able: ClusterSettings
):
    able = replace(able, hub_token_secret="hub-token")
    desired = wanted(replace(revision(), bundle=bundle(base=base)), spec=spec(resources=resources))
    deployment, policy = of_hub(desired, able)
    assert ports_out(policy) == {53, able.registry_port}
    template = deployment["spec"]["template"]
    assert "hub" not in json.loads(template["metadata"]["annotations"][identity.SOURCE])
    assert [each["name"] for each in template["spec"]["initContainers"][0]["env"]] == ["HOME"]


def test_the_revision_that_was_trained_on_is_fetched_and_is_no_part_of_the_folder():
    desired = wanted(replace(revision(), bundle=bundle(base="acme/base@v1.0")), spec=spec(resources=GPUS))
    deployment, _ = of_hub(desired)
    source = json.loads(deployment["spec"]["template"]["metadata"]["annotations"][identity.SOURCE])
    assert source["hub"] == {"repository": "acme/base", "revision": "v1.0"}
    assert {"--model=/models/base/acme/base", "--served-model-name=acme/base"} <= set(
        server(deployment)["args"]
    )


def test_another_number_of_replicas_changes_no_pod():
    one, many = (of(made(wanted(revision(1, count))), kinds.DEPLOYMENT)[0] for count in (1, 5))
    assert one["spec"]["template"] == many["spec"]["template"]


def test_only_the_clients_and_the_mesh_reach_the_model_server():
    (policy,) = of(
        made(wanted(spec=spec(kubernetes=pb.KubernetesOptions(client_namespaces=["shop"])))),
        kinds.NETWORK_POLICY,
    )
    (rule,) = policy["spec"]["ingress"]
    names = {
        each["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        for each in rule["from"]
        if "namespaceSelector" in each
    }
    assert names == {"shop", "neuroweaver", "infra", "monitoring"}
    assert rule["ports"] == [{"port": 8000, "protocol": "TCP"}]


def test_the_requests_of_a_pod_are_those_that_nodes_are_asked_for():
    (deployment,) = of(made(wanted(spec=spec(resources=GPUS))), kinds.DEPLOYMENT)
    asked = capacity.pod_requests(deployment["spec"]["template"]["spec"])
    assert (asked["cpu"], asked["nvidia.com/gpu"]) == (2, 2)


LIMITS = replace(ABLE, http_limits=HttpLimits(body_bytes=1 << 20, bodies_bytes=512 << 20, head_s=2.5))
TOLD = {
    "NEUROWEAVER_HTTP_BODY_BYTES": "1048576",
    "NEUROWEAVER_HTTP_BODIES_BYTES": str(512 << 20),
    "NEUROWEAVER_HTTP_HEAD_S": "2.5",
}


def told_limits(deployment: Object) -> dict[str, str]:
    names = environment.variables(HttpLimits).values()
    env = {each["name"]: each["value"] for each in server(deployment).get("env", ())}
    return {each.name: env[each.name] for each in names if each.name in env}


def test_the_deployers_limits_of_http_reach_routers_and_its_own_model_servers():
    for resources, of_server in ((None, TOLD), (GPUS, {})):
        desired = wanted(spec=routed(resources=resources) if resources else routed())
        deployments = of(manifests(desired, LIMITS, EVERYTHING), kinds.DEPLOYMENT)
        (router,) = filter(router_pods.is_router, deployments)
        (behind,) = (each for each in deployments if each is not router)
        assert told_limits(router) == TOLD
        assert told_limits(behind) == of_server
        assert server(router)["resources"]["limits"] == {"memory": "768Mi"}
        assert environment.read(HttpLimits, told_limits(router)) == LIMITS.http_limits


def test_limits_of_http_that_nobody_set_change_no_pod():
    (router,) = filter(router_pods.is_router, of(made(wanted(spec=routed())), kinds.DEPLOYMENT))
    assert "env" not in server(router)
    assert server(router)["resources"]["limits"] == {"memory": "512Mi"}


@pytest.mark.parametrize(
    ("resources", "tokens", "most"), [(GPUS, 1000, 128_000), (GPUS, None, 0), (None, 1000, 0)]
)
def test_a_router_knows_how_long_a_prompt_vllm_has_room_for(resources, tokens: int | None, most: int):
    fields = {"engine": pb.EngineOptions(max_context_tokens=tokens)}
    desired = wanted(spec=routed(**fields, **({"resources": resources} if resources else {})))
    assert routes.table(desired, "models").max_prompt_chars == most


def test_vllms_init_container_verifies_a_base_model_of_which_any_digest_is_known():
    desired = wanted(revision(1), spec=spec(resources=GPUS))
    unpinned = replace(desired.revisions[0].bundle, base_model_digest="", base_tokenizer_digest="e" * 64)
    desired = replace(desired, revisions=(replace(desired.revisions[0], bundle=unpinned),))
    (deployment,) = of(made(desired), kinds.DEPLOYMENT)
    template = deployment["spec"]["template"]
    source = json.loads(template["metadata"]["annotations"][identity.SOURCE])
    config = json.loads(template["metadata"]["annotations"][identity.CONFIG])
    assert source["base_folder"] == "/models/base/HuggingFaceTB/SmolLM2-135M-Instruct"
    assert config["tokenizer_digest"] == "e" * 64
    (fetch,) = template["spec"]["initContainers"]
    assert "/models/base" in {each["mountPath"] for each in fetch["volumeMounts"]}
