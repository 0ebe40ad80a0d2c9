from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from neuroweaver.artifacts.file import File
from neuroweaver.cluster import quantities
from neuroweaver.deployer.domain import specification
from neuroweaver.deployer.domain.backend import Bundle, Key
from neuroweaver.deployer.domain.naming import resource_name
from neuroweaver.deployer.domain.specification import Defaults
from neuroweaver.v1 import deployer_pb2 as pb

KEY = Key("default", "advisor", "default")
WHOLE = Bundle("1.0.0", (File("model.safetensors", "a" * 64, 300_000_000),), "b" * 64)


def completed(spec: pb.DeploymentSpec, bundle: Bundle = WHOLE, **defaults) -> pb.DeploymentSpec:
    return specification.completed(spec, KEY, bundle, Defaults(**defaults))


def test_every_default_that_the_contract_names_is_filled_in():
    spec = completed(pb.DeploymentSpec())
    assert (spec.alias, spec.backend, spec.replicas) == ("production", pb.DEPLOYMENT_BACKEND_LOCAL, 1)
    assert (spec.resources.cpu_request, spec.resources.cpu_limit) == ("1", "")
    assert spec.resources.memory_limit == spec.resources.memory_request
    assert spec.resources.gpu_resource == "nvidia.com/gpu"
    assert spec.engine.adapter_mode == pb.ADAPTER_MODE_MERGED
    assert (spec.engine.max_batch_size, spec.engine.max_queue_size) == (16, 256)
    assert spec.engine.tensor_parallel_size == 1
    assert not spec.engine.HasField("max_context_tokens")
    assert (spec.rollout.max_surge, spec.rollout.max_unavailable) == (1, 0)
    assert spec.rollout.session_affinity == pb.SESSION_AFFINITY_CONVERSATION
    assert spec.rollout.progress_deadline.seconds == 600
    thresholds = spec.thresholds
    assert (thresholds.min_accuracy, thresholds.max_latency_ms) == (0.85, 2000)
    assert (thresholds.min_throughput_rps, thresholds.max_cost_per_request) == (10, 0.01)
    assert (thresholds.max_error_rate, thresholds.window.seconds) == (0.05, 300)
    assert thresholds.min_requests == 30
    recovery = spec.recovery
    assert (recovery.restart_backoff.seconds, recovery.max_restart_backoff.seconds) == (1, 300)
    assert (recovery.crash_loop_restarts, recovery.auto_switch, recovery.switch_after.seconds) == (
        5,
        True,
        30,
    )
    assert (spec.startup_timeout.seconds, spec.drain_timeout.seconds) == (600, 30)
    assert not spec.HasField("kubernetes")


def test_a_router_comes_where_nothing_less_will_do():
    def routed(asked: pb.DeploymentSpec) -> bool:
        asked.backend = pb.DEPLOYMENT_BACKEND_KUBERNETES
        return specification.has_router(completed(asked), KEY)

    def backed(model_id: str) -> pb.DeploymentSpec:
        backup = pb.BackupModel(model_id=model_id, name="spare")
        return pb.DeploymentSpec(recovery=pb.RecoveryPolicy(backup=backup))

    canary = pb.RolloutPolicy(canary=pb.CanaryPolicy(steps=[pb.CanaryStep(weight_percent=5)]))
    assert not routed(pb.DeploymentSpec())
    assert routed(pb.DeploymentSpec(rollout=canary))
    canary.session_affinity = pb.SESSION_AFFINITY_NONE
    assert not routed(pb.DeploymentSpec(rollout=canary))
    sleeping = pb.Autoscaling(min_replicas=0, max_replicas=2)
    assert routed(pb.DeploymentSpec(autoscaling=sleeping))
    sleeping.min_replicas = 1
    assert not routed(pb.DeploymentSpec(autoscaling=sleeping))
    assert not routed(backed(KEY.model_id))
    assert routed(backed("another"))
    asked = backed("another")
    asked.kubernetes.traffic_routing = pb.TRAFFIC_ROUTING_SERVICE
    assert not routed(asked)
    # What was completed without a canary gets a router with one.
    later = completed(pb.DeploymentSpec(backend=pb.DEPLOYMENT_BACKEND_KUBERNETES))
    assert not routed(later)
    later.rollout.canary.steps.add(weight_percent=5)
    assert routed(later)


def test_a_completed_spec_stays_as_it_is():
    steps = [pb.CanaryStep(weight_percent=5), pb.CanaryStep(weight_percent=50)]
    asked = pb.DeploymentSpec(
        backend=pb.DEPLOYMENT_BACKEND_KUBERNETES,
        autoscaling=pb.Autoscaling(min_replicas=0, max_replicas=3),
        rollout=pb.RolloutPolicy(
            canary=pb.CanaryPolicy(
                steps=steps,
                analysis=pb.CanaryAnalysis(
                    checks=[pb.CanaryCheck(metric=pb.ROLLOUT_METRIC_ERROR_RATE, relative=0.1)]
                ),
            )
        ),
    )
    once = completed(asked, namespace="models", image="serving:1")
    assert completed(once) == once
    assert (once.kubernetes.namespace, once.kubernetes.image, once.kubernetes.monitoring) == (
        "models",
        "serving:1",
        True,
    )
    assert (once.autoscaling.target_cpu_percent, once.autoscaling.idle_timeout.seconds) == (80, 600)
    canary = once.rollout.canary
    assert (canary.steps[0].bake_time.seconds, canary.analysis.interval.seconds) == (300, 30)
    assert (canary.analysis.min_requests, canary.analysis.confidence) == (100, 0.95)
    assert not once.engine.HasField("max_batch_size")


def test_another_target_leaves_the_cpu_alone():
    spec = completed(pb.DeploymentSpec(autoscaling=pb.Autoscaling(max_replicas=2, target_concurrency=4)))
    assert not spec.autoscaling.HasField("target_cpu_percent")


def test_the_memory_is_estimated_from_the_artifacts():
    def memory(bundle):
        return quantities.parse(completed(pb.DeploymentSpec(), bundle).resources.memory_request)

    assert memory(WHOLE) > 300_000_000
    adapter = Bundle(
        "1.0.0", (File("adapter.safetensors", "a" * 64, 1000),), "b" * 64, base_name="org/base-7B"
    )
    assert memory(adapter) > 14 * 10**9
    small = Bundle("1.0.0", adapter.files, "b" * 64, base_name="smollm2-135m-instruct")
    assert 2 * 135 * 10**6 < memory(small) < 2 * 10**9


def test_weights_of_four_bytes_are_estimated_as_such():
    def memory(**engine):
        spec = completed(pb.DeploymentSpec(engine=pb.EngineOptions(**engine)))
        return quantities.parse(spec.resources.memory_request)

    in_two = memory(weight_type=pb.WEIGHT_TYPE_BF16)
    assert memory() == in_two
    assert memory(weight_type=pb.WEIGHT_TYPE_FP32) > in_two + WHOLE.size_bytes


def test_a_limit_alone_bounds_the_estimate():
    spec = completed(pb.DeploymentSpec(resources=pb.ReplicaResources(memory_limit="512Mi")))
    assert (spec.resources.memory_request, spec.resources.memory_limit) == ("512Mi", "512Mi")


WORDS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True)
LABEL = re.compile(r"[a-z]([a-z0-9-]{0,43}[a-z0-9])?")


@given(st.text(max_size=128), WORDS, NAMES)
def test_a_resource_name_is_a_dns_label_whatever_the_project_is_called(project, model_id, name):
    assert LABEL.fullmatch(resource_name(Key(project, model_id, name)))


def test_no_two_deployments_share_a_resource_name():
    keys = [
        Key(project, model_id, name)
        for project in ("a", "a-b")
        for model_id in ("b-c", "c", "b", "x" * 63, "x" * 62 + "y")
        for name in ("default", "c", "b-c", "c-default", "x" * 32)
    ]
    assert len({resource_name(key) for key in keys}) == len(keys)
