"""What a backend is asked for: the whole of a deployment, as it should be now."""

from __future__ import annotations

from dataclasses import replace

from neuroweaver.deployer.domain import scaling
from neuroweaver.deployer.domain.backend import Redirect, Wanted, WantedRevision
from neuroweaver.deployer.domain.model import Deployment
from neuroweaver.deployer.domain.rollouts import replacing
from neuroweaver.deployer.domain.rollouts.rollout import WHOLE, Rollout
from neuroweaver.v1 import deployer_pb2 as pb


def wanted(deployment: Deployment, redirect: Redirect | None = None) -> Wanted:
    """redirect: who takes all traffic after a switch to another model."""
    rollout = deployment.rollout
    if not deployment.stable:
        return _wanted(deployment, (_whole(deployment, deployment.target),), redirect)
    if rollout is None or rollout.is_over:
        # A rollout that has not begun yet changes nothing yet.
        return _wanted(deployment, (_whole(deployment, deployment.stable),), redirect)
    return _wanted(deployment, _in_rollout(deployment, rollout), redirect)


def goal(deployment: Deployment) -> Wanted:
    """What it comes to in the end, for a plan; of a canary, where it needs the most room."""
    whole = _whole(deployment, deployment.target)
    steps = deployment.spec.rollout.canary.steps
    target = deployment.find(deployment.target)
    if not (deployment.candidate and steps) or (target is not None and target.is_proven):
        whole_target = _asked(deployment, (whole,))
        return _without_canary(whole_target) if deployment.stable else whole_target
    weight = steps[-1].weight_percent
    stable = replace(_whole(deployment, deployment.stable), weight_percent=WHOLE - weight)
    replicas = max(1, scaling.portion(whole.replicas, weight)) if whole.replicas else 0
    autoscaling = scaling.share(whole.autoscaling, weight) if whole.autoscaling else None
    candidate = replace(whole, weight_percent=weight, replicas=replicas, autoscaling=autoscaling)
    return replace(_asked(deployment, (stable, candidate)), replacement=pb.REPLACEMENT_MODE_SURGE)


def _without_canary(wanted: Wanted) -> Wanted:
    """For what begins no rollout, or one whose target served before: no canary comes, and none needs room."""
    spec = pb.DeploymentSpec()
    spec.CopyFrom(wanted.spec)
    spec.rollout.ClearField("canary")
    return replace(wanted, spec=spec)


def _asked(deployment: Deployment, revisions: tuple[WantedRevision, ...]) -> Wanted:
    """With the replacement that the spec asks for, before one was chosen."""
    return replace(_wanted(deployment, revisions, None), replacement=deployment.spec.rollout.replacement)


def _in_rollout(deployment: Deployment, rollout: Rollout) -> tuple[WantedRevision, ...]:
    revisions = tuple(
        WantedRevision(
            number=each.revision,
            bundle=deployment.revision(each.revision).bundle,
            replicas=each.replicas,
            weight_percent=each.weight_percent,
            autoscaling=each.autoscaling,
        )
        for each in replacing.targets(rollout, deployment.spec)
    )
    if rollout.replacement == pb.REPLACEMENT_MODE_SWAP_ADAPTER:
        # The same replicas: asked for both revisions, a backend would start those of the second one.
        is_way_back = rollout.state == pb.ROLLOUT_STATE_ROLLING_BACK
        return (_whole(deployment, rollout.stable if is_way_back else rollout.candidate),)
    return revisions


def _whole(deployment: Deployment, number: int) -> WantedRevision:
    """A revision with all the replicas that the spec asks for, and all the traffic."""
    spec = deployment.spec
    is_scaled = spec.WhichOneof("scaling") == "autoscaling"
    return WantedRevision(
        number=number,
        bundle=deployment.revision(number).bundle,
        replicas=deployment.replicas if is_scaled else spec.replicas,
        weight_percent=WHOLE,
        autoscaling=spec.autoscaling if is_scaled else None,
    )


def _wanted(
    deployment: Deployment, revisions: tuple[WantedRevision, ...], redirect: Redirect | None
) -> Wanted:
    return Wanted(
        key=deployment.key,
        resource_name=deployment.resource_name,
        spec=deployment.spec,
        revisions=revisions,
        replacement=deployment.replacement,
        redirect=redirect,
        generation=deployment.generation,
    )
