"""Conclusions: checked against the verdict, stored, and carried out in the Registry.

The decision is on disk before the Registry is asked, and the request to the Registry carries the same id in
every attempt. So whatever dies when, the alias moves once, and both sides end up saying the same.
"""

from __future__ import annotations

from datetime import datetime

from neuroweaver.experiment.conclusion.registry import NOWHERE, Refused, Releases
from neuroweaver.experiment.domain.model import SYSTEM, Experiment
from neuroweaver.experiment.storage.store import Store
from neuroweaver.experiment.storage.writer import Writer
from neuroweaver.mesh.wire.clock import timestamp
from neuroweaver.mesh.wire.errors import Error, FailedPrecondition, InvalidArgument
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.v1 import experiment_pb2 as pb


def concluded(
    experiment: Experiment,
    verdict: pb.ExperimentVerdict,
    request: pb.ConcludeExperimentRequest,
    actor: str,
    now: datetime,
) -> pb.ExperimentConclusion:
    """The decision with what has to move; nothing if the control stays, or if the winner names no model.

    Raises InvalidArgument for a winner that is no variant, FailedPrecondition for another than the verdict's.
    """
    winner = _winner(experiment, verdict, request)
    decision = pb.ExperimentConclusion(
        winner_variant_id=winner,
        state=pb.CONCLUSION_STATE_NOTHING_TO_MOVE,
        concluded_by=actor,
        reason=request.reason or verdict.reason,
        is_forced=request.force and winner != verdict.variant_id,
        verdict=verdict,
        time=timestamp(now),
    )
    target = next(each.target for each in experiment.spec.variants if each.variant_id == winner)
    if winner == experiment.control or not target.model_id:
        return decision
    expected = request.expected_version or experiment.baseline.get(target.model_id, "")
    decision.model_id, decision.alias = target.model_id, experiment.spec.alias
    decision.version = experiment.pinned[winner]
    decision.previous_version = "" if expected == NOWHERE else expected
    if decision.previous_version != decision.version:
        decision.state = pb.CONCLUSION_STATE_PENDING
    return decision


def _winner(
    experiment: Experiment, verdict: pb.ExperimentVerdict, request: pb.ConcludeExperimentRequest
) -> str:
    winner = request.winner_variant_id or verdict.variant_id
    if request.winner_variant_id and winner not in {each.variant_id for each in experiment.spec.variants}:
        raise InvalidArgument("winner_variant_id", "is not a variant of the experiment")
    is_verdict = verdict.decision != pb.DECISION_INCONCLUSIVE and winner == verdict.variant_id
    if not (is_verdict or request.force):
        raise FailedPrecondition(
            "NOT_THE_VERDICT",
            f"{verdict.reason or 'there is no verdict yet'} To decide all the same, give a winner, a reason "
            "and force.",
            experiment.test_id,
        )
    return winner


async def check_alias(releases: Releases, conclusion: pb.ExperimentConclusion, *, is_expected: bool) -> None:
    """Raises FailedPrecondition if the alias is not what it was at the start, or what the caller expects."""
    if not conclusion.model_id:
        return
    current = await releases.behind(conclusion.model_id, conclusion.alias)
    if current not in {conclusion.previous_version, conclusion.version}:
        belief = "the call expects" if is_expected else "at the start"
        raise FailedPrecondition(
            "ALIAS_MOVED",
            f"{conclusion.model_id}@{conclusion.alias} names {current or 'nothing'}, and not "
            f"{conclusion.previous_version or 'nothing'} as {belief}; find out why, then give "
            "expected_version",
            conclusion.model_id,
        )


async def settle(store: Store, releases: Releases, project: str, test_id: str) -> Experiment:
    """The experiment after one attempt to make a pending conclusion true in the Registry."""
    experiment = await store.experiment(project, test_id)
    pending = experiment.conclusion
    if pending is None or pending.state != pb.CONCLUSION_STATE_PENDING:
        return experiment
    attempt = await _attempted(releases, project, test_id, pending)

    async def note(experiments: Writer) -> Experiment:
        before = await experiments.experiment(test_id)
        if before.conclusion != pending:  # another attempt was faster, or another decision was taken
            return before
        return await experiments.save(before, before.decided(attempt, experiments.now))

    return await store.transact(ChangeOrigin(project, SYSTEM), note)


async def _attempted(
    releases: Releases, project: str, test_id: str, conclusion: pb.ExperimentConclusion
) -> pb.ExperimentConclusion:
    """The conclusion after one more attempt."""
    attempt = pb.ExperimentConclusion()
    attempt.CopyFrom(conclusion)
    attempt.attempts += 1
    # One decision, one id: its time tells it from another decision of the same experiment.
    request_id = f"conclude-{project}-{test_id}-{conclusion.time.ToMicroseconds()}"[-64:]
    try:
        attempt.audit_event_id = await releases.move(conclusion, request_id)
    except Refused as error:
        attempt.state, attempt.last_error = pb.CONCLUSION_STATE_REFUSED, str(error)
    except Error as error:
        attempt.last_error = str(error)
    else:
        attempt.state, attempt.last_error = pb.CONCLUSION_STATE_APPLIED, ""
    return attempt
