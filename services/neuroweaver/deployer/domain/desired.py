"""What a backend is asked for: the whole of a deployment, as it should be now."""

from __future__ import annotations

from dataclasses import replace

from neuroweaver.deployer.domain import scaling, specification
from neuroweaver.deployer.domain.backend import DesiredRevision, DesiredState, Redirect
from neuroweaver.deployer.domain.model import Deployment
from neuroweaver.deployer.domain.rollouts import replacing
from neuroweaver.deployer.domain.rollouts.rollout import WHOLE
from neuroweaver.v1 import deployer_pb2 as pb


def state(deployment: Deployment, redirect: Redirect | None = None) -> DesiredState:
    """redirect: who takes all traffic after a switch to another model."""
    return DesiredState(
        key=deployment.key,
        resource_name=deployment.resource_name,
        spec=deployment.spec,
        revisions=_revisions(deployment),
        replacement=deployment.replacement,
        redirect=redirect,
        generation=deployment.generation,
    )


def goal(deployment: Deployment) -> DesiredState:
    """What it comes to in the end, for a plan; of a canary, where it needs the most room."""
    whole = _whole(deployment, deployment.target)
    # With the replacement that the spec asks for, before one was chosen.
    end = replace(state(deployment), revisions=(whole,), replacement=deployment.spec.rollout.replacement)
    steps = deployment.spec.rollout.canary.steps
    target = deployment.find(deployment.target)
    if not (deployment.candidate and steps) or (target is not None and target.is_proven):
        # It begins no rollout, or one whose target served before: no canary comes, and none needs room.
        without = specification.changed(end.spec, lambda spec: spec.rollout.ClearField("canary"))
        return replace(end, spec=without) if deployment.stable else end
    weight = steps[-1].weight_percent
    stable = replace(_whole(deployment, deployment.stable), weight_percent=WHOLE - weight)
    replicas = max(1, scaling.portion(whole.replicas, weight)) if whole.replicas else 0
    autoscaling = scaling.share(whole.autoscaling, weight) if whole.autoscaling else None
    candidate = replace(whole, weight_percent=weight, replicas=replicas, autoscaling=autoscaling)
    return replace(end, revisions=(stable, candidate), replacement=pb.REPLACEMENT_MODE_SURGE)


def _revisions(deployment: Deployment) -> tuple[DesiredRevision, ...]:
    rollout = deployment.rollout
    if not deployment.stable:
        return (_whole(deployment, deployment.target),)
    if rollout is None or rollout.is_over:
        # A rollout that has not begun yet changes nothing yet.
        return (_whole(deployment, deployment.stable),)
    if rollout.replacement == pb.REPLACEMENT_MODE_SWAP_ADAPTER:
        # The same replicas: asked for both revisions, a backend would start those of the second one.
        is_way_back = rollout.state == pb.ROLLOUT_STATE_ROLLING_BACK
        return (_whole(deployment, rollout.stable if is_way_back else rollout.candidate),)
    return tuple(
        DesiredRevision(
            number=target.revision,
            bundle=deployment.revision(target.revision).bundle,
            replicas=target.replicas,
            weight_percent=target.weight_percent,
            autoscaling=target.autoscaling,
        )
        for target in replacing.targets(rollout, deployment.spec)
    )


def _whole(deployment: Deployment, number: int) -> DesiredRevision:
    """A revision with all the replicas that the spec asks for, and all the traffic."""
    spec = deployment.spec
    is_scaled = spec.WhichOneof("scaling") == "autoscaling"
    return DesiredRevision(
        number=number,
        bundle=deployment.revision(number).bundle,
        replicas=deployment.replicas if is_scaled else spec.replicas,
        weight_percent=WHOLE,
        autoscaling=spec.autoscaling if is_scaled else None,
    )
