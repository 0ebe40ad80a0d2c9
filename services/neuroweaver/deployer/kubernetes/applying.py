"""Server-side apply of one object: done, or tried by a dry run.

https://kubernetes.io/docs/reference/using-api/server-side-apply/
"""

from __future__ import annotations

from neuroweaver.cluster.api import Api
from neuroweaver.cluster.kinds import DEPLOYMENT, Object, kind_of
from neuroweaver.deployer.domain.backend import FieldChange
from neuroweaver.deployer.kubernetes.observing import drift

Changes = tuple[FieldChange, ...]


async def apply(api: Api, desired: Object, live: Object | None) -> tuple[Changes, Changes]:
    """Returns what others had changed: what was set back, and what is left to them."""
    kind, stamped = kind_of(desired), drift.stamped(desired)
    if live is None:
        await api.apply(kind, stamped, is_forced=True)
        return (), ()
    own, theirs = drift.left_to_others(stamped, live)
    if not drift.was_applied(stamped, live):
        if _gives_up_replicas(own, live):
            await _hand_over_replicas(api, live)
        await api.apply(kind, own, is_forced=True)
        return (), theirs
    if drift.holds(own, live):
        return (), theirs
    # A default, or an amount written another way, is no drift; a dry run shows it.
    changes = drift.differences(live, await api.apply(kind, own, is_forced=True, is_dry_run=True))
    if changes:
        await api.apply(kind, own, is_forced=True)
    return changes, theirs


async def changes_of(api: Api, desired: Object, live: Object | None) -> Changes:
    """What `apply` would change in the live object, by a dry run."""
    own = desired
    if live is not None:
        own, _ = drift.left_to_others(drift.stamped(desired), live)
        if _gives_up_replicas(own, live):
            own["spec"]["replicas"] = live["spec"]["replicas"]  # handed over as it is
    return drift.differences(live, await api.apply(kind_of(desired), own, is_forced=True, is_dry_run=True))


def _gives_up_replicas(own: Object, live: Object) -> bool:
    """Whether their number goes over to an autoscaler."""
    return (
        kind_of(own) == DEPLOYMENT and "replicas" not in own["spec"] and drift.owns(live, "spec", "replicas")
    )


async def _hand_over_replicas(api: Api, live: Object) -> None:
    """To give up a field that nobody else owns removes it, and the number would fall to its default of 1.

    https://kubernetes.io/docs/reference/using-api/server-side-apply/#transferring-ownership
    """
    metadata = {name: live["metadata"][name] for name in ("name", "namespace")}
    body = DEPLOYMENT.object(metadata, spec={"replicas": live["spec"]["replicas"]})
    await api.apply(DEPLOYMENT, body, is_forced=True, manager=drift.HANDOVER)
