"""Hostile and mistaken values: one clear error that names the field, and nothing is left behind."""

from __future__ import annotations

import grpc
import pytest

from deployer.worlds import deploy, publish, refusal
from neuroweaver.mesh.wire import status
from neuroweaver.v1 import deployer_pb2 as pb

CODE = grpc.StatusCode


def autoscaled(**fields) -> pb.DeploymentSpec:
    return pb.DeploymentSpec(autoscaling=pb.Autoscaling(**{"max_replicas": 2} | fields))


def resources(**fields) -> pb.DeploymentSpec:
    return pb.DeploymentSpec(resources=pb.ReplicaResources(**fields))


def rollout(**fields) -> pb.DeploymentSpec:
    return pb.DeploymentSpec(rollout=pb.RolloutPolicy(**fields))


def steps(*weights: int) -> pb.DeploymentSpec:
    return rollout(canary=pb.CanaryPolicy(steps=[pb.CanaryStep(weight_percent=weight) for weight in weights]))


def kubernetes(**fields) -> pb.DeploymentSpec:
    return pb.DeploymentSpec(
        backend=pb.DEPLOYMENT_BACKEND_KUBERNETES, kubernetes=pb.KubernetesOptions(**fields)
    )


INJECTION = "x\n  privileged: true"

WRONG = {
    "replicas negative": (pb.DeploymentSpec(replicas=-1), "spec.replicas"),
    "replicas huge": (pb.DeploymentSpec(replicas=2**31 - 1), "spec.replicas"),
    "least above most": (autoscaled(min_replicas=3), "spec.autoscaling"),
    "most is none": (autoscaled(max_replicas=0), "spec.autoscaling.max_replicas"),
    "custom metrics here": (
        autoscaled(custom_metrics=[pb.CustomMetricTarget(name="queue", average_value="5")]),
        "spec.autoscaling.custom_metrics",
    ),
    "a byte too many": (resources(memory_request="10GB"), "spec.resources.memory_request"),
    "no number": (resources(cpu_request="many"), "spec.resources.cpu_request"),
    "negative": (resources(cpu_request="-1"), "spec.resources.cpu_request"),
    "cpu limit": (resources(cpu_request="2", cpu_limit="1500m"), "spec.resources.cpu_limit"),
    "memory limit": (resources(memory_request="2Gi", memory_limit="2G"), "spec.resources.memory_limit"),
    "gpus negative": (resources(gpus=-1), "spec.resources.gpus"),
    "more parts than gpus": (
        pb.DeploymentSpec(engine=pb.EngineOptions(tensor_parallel_size=2)),
        "spec.engine.tensor_parallel_size",
    ),
    "fp16 without a gpu": (
        pb.DeploymentSpec(engine=pb.EngineOptions(weight_type=pb.WEIGHT_TYPE_FP16)),
        "spec.engine.weight_type",
    ),
    "weights fall": (steps(50, 20), "spec.rollout.canary.steps[1].weight_percent"),
    "weights stay": (steps(20, 20), "spec.rollout.canary.steps[1].weight_percent"),
    "weight above all": (steps(101), "spec.rollout.canary.steps[0].weight_percent"),
    "cannot move": (rollout(max_surge=0), "spec.rollout"),
    "swap what is merged": (
        rollout(replacement=pb.REPLACEMENT_MODE_SWAP_ADAPTER),
        "spec.rollout.replacement",
    ),
    "its own backup": (
        pb.DeploymentSpec(recovery=pb.RecoveryPolicy(backup=pb.BackupModel(model_id="advisor"))),
        "spec.recovery.backup",
    ),
    "shorter and shorter waits": (
        pb.DeploymentSpec(
            recovery=pb.RecoveryPolicy(restart_backoff={"seconds": 60}, max_restart_backoff={"seconds": 5})
        ),
        "spec.recovery.max_restart_backoff",
    ),
    "kubernetes here": (pb.DeploymentSpec(kubernetes=pb.KubernetesOptions()), "spec.kubernetes"),
    "label key": (pb.DeploymentSpec(labels={INJECTION: "x"}), "spec.labels"),
    "label value": (pb.DeploymentSpec(labels={"team": INJECTION}), "spec.labels"),
    "reserved label": (pb.DeploymentSpec(labels={"neuroweaver.dev/name": "x"}), "spec.labels"),
    "image": (kubernetes(image="x; rm -rf /"), "spec.kubernetes.image"),
    "namespace": (kubernetes(namespace="Not_A_Label"), "spec.kubernetes.namespace"),
    "alias": (pb.DeploymentSpec(alias="Prod uction"), "spec.alias"),
    "version": (pb.DeploymentSpec(version="latest"), "spec.version"),
    "unknown backend": (pb.DeploymentSpec(backend=9), "spec.backend"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_a_wrong_spec_is_refused_with_its_field(lone, case):
    await publish(lone.registry, "1.0.0")
    spec, field = WRONG[case]
    plan = lone.deployer.PlanDeployment(pb.PlanDeploymentRequest(model_id="advisor", spec=spec))
    for call in (deploy(lone, spec), plan):
        refused = await refusal(call)
        assert refused.code() == CODE.INVALID_ARGUMENT, refused.details()
        assert status.violations(refused)[0][0].startswith(field), status.violations(refused)
    await nothing_is_left(lone)


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("model_id", {"model_id": "No Label"}),
        ("model_id", {"model_id": "../etc"}),
        ("model_id", {"model_id": "x" * 64}),
        ("model_id", {"model_id": "a\nb"}),
        ("name", {"name": "9lives"}),
        ("name", {"name": "UPPER"}),
        ("name", {"name": "x" * 33}),
        ("reason", {"reason": "nice\x00"}),
        ("request_id", {"request_id": "a\x1b[2J"}),
    ],
)
async def test_names_that_are_none_are_refused(lone, field, fields):
    await publish(lone.registry, "1.0.0")
    refused = await refusal(deploy(lone, **fields))
    assert refused.code() == CODE.INVALID_ARGUMENT
    assert status.violations(refused)[0][0] == field
    await nothing_is_left(lone)


async def test_a_deployment_cannot_change_its_place(lone):
    await publish(lone.registry, "1.0.0")
    await deploy(lone)
    refused = await refusal(deploy(lone, kubernetes(image="serving:2")))
    assert status.violations(refused)[0][0] == "spec.backend"
    await deploy(lone, kubernetes(namespace="one"), name="other")
    refused = await refusal(deploy(lone, kubernetes(namespace="two"), name="other"))
    assert status.violations(refused)[0][0] == "spec.kubernetes.namespace"


async def test_scaling_to_what_cannot_be_is_refused(lone):
    await publish(lone.registry, "1.0.0")
    await deploy(lone)
    for fields in (
        {"replicas": -1},
        {"replicas": 1001},
        {},
        {"autoscaling": pb.Autoscaling(min_replicas=5, max_replicas=2)},
        {
            "autoscaling": pb.Autoscaling(
                max_replicas=2, custom_metrics=[pb.CustomMetricTarget(name="q", average_value="1")]
            )
        },
    ):
        refused = await refusal(
            lone.deployer.ScaleDeployment(pb.ScaleDeploymentRequest(model_id="advisor", **fields))
        )
        assert refused.code() == CODE.INVALID_ARGUMENT


async def nothing_is_left(mesh) -> None:
    listed = await mesh.deployer.ListDeployments(pb.ListDeploymentsRequest())
    assert not listed.deployments
    assert not mesh.backend.places
    assert not await mesh.events()
