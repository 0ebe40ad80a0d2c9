"""How an experiment is decided: checked against the verdict, written down, and made true in the Registry.

The decision is on disk before the Registry is asked, and the request to the Registry carries the same id in
every attempt. So whatever dies when, the alias moves once, and both sides end up saying the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from neuroweaver.experiment.conclusion.registry import NOWHERE, Refused, Releases
from neuroweaver.experiment.domain.model import Experiment
from neuroweaver.mesh.wire.errors import Error, FailedPrecondition, InvalidArgument
from neuroweaver.v1 import experiment_pb2 as pb


@dataclass(frozen=True)
class Wish:
    """What the caller of ConcludeExperiment wants. winner: empty for the verdict's. expected: the alias'."""

    winner: str
    is_forced: bool
    reason: str
    expected: str
    actor: str


def chosen(experiment: Experiment, verdict: pb.ExperimentVerdict, wish: Wish) -> str:
    """The winner. Raises InvalidArgument for one that is no variant, FailedPrecondition for another."""
    winner = wish.winner or verdict.variant_id
    if wish.winner and wish.winner not in {variant.variant_id for variant in experiment.spec.variants}:
        raise InvalidArgument("winner_variant_id", "is none of the experiment's variants")
    is_carried = verdict.decision != pb.DECISION_INCONCLUSIVE and winner == verdict.variant_id
    if not (is_carried or wish.is_forced):
        said = verdict.reason or "there is no verdict yet"
        raise FailedPrecondition(
            "NOT_THE_VERDICT",
            f"{said} To decide all the same, give a winner, a reason and force.",
            experiment.test_id,
        )
    return winner


def conclusion_of(
    experiment: Experiment, winner: str, verdict: pb.ExperimentVerdict, wish: Wish, now: datetime
) -> pb.ExperimentConclusion:
    """The decision with what has to move; nothing if the control stays, or if the winner names no model."""
    made = pb.ExperimentConclusion(
        winner_variant_id=winner,
        state=pb.CONCLUSION_STATE_NOTHING_TO_MOVE,
        concluded_by=wish.actor,
        reason=wish.reason or verdict.reason,
        is_forced=wish.is_forced and winner != verdict.variant_id,
        verdict=verdict,
    )
    made.time.FromDatetime(now)
    target = next(each.target for each in experiment.spec.variants if each.variant_id == winner)
    if winner == experiment.control or not target.model_id:
        return made
    version = experiment.pinned[winner]
    before = wish.expected.replace(NOWHERE, "", 1) if wish.expected == NOWHERE else wish.expected
    made.model_id, made.alias, made.version = target.model_id, experiment.spec.alias, version
    made.previous_version = before if wish.expected else experiment.baseline.get(target.model_id, "")
    if made.previous_version != version:
        made.state = pb.CONCLUSION_STATE_PENDING
    return made


async def check_alias(releases: Releases, conclusion: pb.ExperimentConclusion, *, is_expected: bool) -> None:
    """Raises FailedPrecondition if the alias is not what it was at the start, or what the caller expects."""
    if not conclusion.model_id:
        return
    found = await releases.behind(conclusion.model_id, conclusion.alias)
    if found not in {conclusion.previous_version, conclusion.version}:
        belief = "the call expects" if is_expected else "it was at the start"
        raise FailedPrecondition(
            "ALIAS_MOVED",
            f"{conclusion.model_id}@{conclusion.alias} names {found or 'nothing'}, and not "
            f"{conclusion.previous_version or 'nothing'} as {belief}; see why, then give expected_version",
            conclusion.model_id,
        )


async def attempted(
    releases: Releases, project: str, test_id: str, conclusion: pb.ExperimentConclusion
) -> pb.ExperimentConclusion:
    """After one more attempt to make a pending conclusion true in the Registry."""
    made = pb.ExperimentConclusion()
    made.CopyFrom(conclusion)
    made.attempts += 1
    # One decision, one id: its time tells it from another decision of the same experiment.
    request_id = f"conclude-{project}-{test_id}-{conclusion.time.ToMicroseconds()}"[-64:]
    try:
        made.audit_event_id = await releases.move(conclusion, request_id)
    except Refused as error:
        made.state, made.last_error = pb.CONCLUSION_STATE_REFUSED, str(error)
    except Error as error:
        made.last_error = str(error)
    else:
        made.state, made.last_error = pb.CONCLUSION_STATE_APPLIED, ""
    return made
