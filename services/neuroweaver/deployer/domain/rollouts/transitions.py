"""The course of a rollout as a state machine.

`step` is a function of the stored state, the spec, what is seen and the time: called again and again, after a
restart too, it goes on from what was stored. What the revisions should be then, `replacing.targets` says.

STARTING, until the candidate has the replicas of its first step. With a canary then BAKING: a step's weight,
for its bake time at least, looked at every interval; HELD when that is over and data are missing; a step that
is passed leads to the next. PROMOTING: the candidate grows to full size, takes all traffic and the stable
revision ends. ROLLING_BACK: all traffic is the stable revision's again at once, and the candidate ends.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from neuroweaver.deployer.domain.backend import Measured
from neuroweaver.deployer.domain.defaults import filled
from neuroweaver.deployer.domain.metrics import counts
from neuroweaver.deployer.domain.metrics.counts import Counts
from neuroweaver.deployer.domain.rollouts import replacing
from neuroweaver.deployer.domain.rollouts.analysis import analysed
from neuroweaver.deployer.domain.rollouts.evidence import Evidence
from neuroweaver.deployer.domain.rollouts.rollout import Counted, Rollout, Seen, bake_end, step_weight
from neuroweaver.v1 import deployer_pb2 as pb

# Without a ready replica for so long the stable revision is broken and no baseline. A single restart must not
# let a candidate through that nobody compared.
BROKEN_AFTER: Final = timedelta(minutes=2)
# Slices of time between two looks, so that the first look has some to go by.
_SLICES_PER_LOOK: Final = 4


def begin(
    stable: int,
    candidate: int,
    spec: pb.DeploymentSpec,
    replacement: pb.ReplacementMode.ValueType,
    now: datetime,
    *,
    serving: int = 1,
    is_proven: bool = False,
    cursor: int = 0,
) -> Rollout:
    """serving: replicas that the stable revision has now, where they are not fixed. is_proven: the candidate
    served before, and needs no canary. cursor: of the last report that came before.
    """
    has_canary = spec.rollout.HasField("canary") and bool(stable) and not is_proven
    size = replacing.whole_size(spec, serving)
    return Rollout(
        state=pb.ROLLOUT_STATE_STARTING,
        stable=stable,
        candidate=candidate,
        start_time=now,
        replacement=replacement or pb.REPLACEMENT_MODE_SURGE,
        is_canary=has_canary and replacement in {0, pb.REPLACEMENT_MODE_SURGE},
        size=size,
        stable_replicas=size if stable else 0,
        progress_time=now,
        cursor=cursor,
        message=f"Revision {candidate} starts.",
    )


def aimed(
    rollout: Rollout | None,
    stable: int,
    target: int,
    spec: pb.DeploymentSpec,
    replacement: pb.ReplacementMode.ValueType,
    now: datetime,
    *,
    serving: int = 1,
    is_proven: bool = False,
    cursor: int = 0,
) -> Rollout | None:
    """The rollout that leads to the target: the one under way, a new one in its place, or the way back.

    stable, target: as the deployment has them. A candidate that was rolled back is not tried again.
    """
    if rollout is not None and rollout.candidate == target:
        return rollout
    if rollout is not None and not rollout.is_over:
        if target == rollout.stable:
            return rolled_back(rollout, "Requested.")
        stable = rollout.candidate if rollout.has_taken_over else rollout.stable
    if target == stable:
        return rollout
    return begin(stable, target, spec, replacement, now, serving=serving, is_proven=is_proven, cursor=cursor)


def rolled_back(rollout: Rollout, why: str) -> Rollout:
    """On its way back, with all traffic at the stable revision from now on; itself if it is already, or over.

    Nothing can be gone back to from the first revision: such a rollout stays as it is, and says why.
    """
    if rollout.is_over or rollout.state == pb.ROLLOUT_STATE_ROLLING_BACK:
        return rollout
    if not rollout.stable:
        return replace(rollout, message=f"{why} There is no revision to go back to.")
    return replace(
        rollout,
        state=pb.ROLLOUT_STATE_ROLLING_BACK,
        candidate_weight=0,
        candidate_replicas=0,
        step_start=None,
        message=f"Back to revision {rollout.stable}: {why}",
    )


def step(rollout: Rollout, spec: pb.DeploymentSpec, seen: Seen, now: datetime) -> Rollout:
    """The next state: at most one transition further."""
    if rollout.is_over:
        return rollout
    rollout = _fitted(rollout, spec)
    rollout = _with_progress(_with_evidence(rollout, spec, seen, now), spec, seen, now)
    match rollout.state:
        case pb.ROLLOUT_STATE_STARTING:
            rollout = _started(rollout, spec, seen, now)
        case pb.ROLLOUT_STATE_BAKING | pb.ROLLOUT_STATE_HELD:
            rollout = _baked(rollout, spec, seen, now)
        case pb.ROLLOUT_STATE_PROMOTING:
            rollout = _promoted(rollout, spec, seen, now)
        case pb.ROLLOUT_STATE_ROLLING_BACK if not seen.candidate.current:
            rollout = _ended(rollout, pb.ROLLOUT_STATE_ROLLED_BACK, now, rollout.message)
    rollout = replacing.sized(rollout, spec, seen)
    return replace(rollout, candidate_weight=replacing.weight(rollout, spec, seen))


def _fitted(rollout: Rollout, spec: pb.DeploymentSpec) -> Rollout:
    """To a spec that may have got other replicas or steps on the way."""
    rollout = replace(rollout, size=replacing.whole_size(spec, rollout.size))
    if not rollout.is_canary:
        return rollout
    steps = len(spec.rollout.canary.steps)
    if steps:
        return replace(rollout, step=min(rollout.step, steps))
    is_begun = rollout.state in {pb.ROLLOUT_STATE_BAKING, pb.ROLLOUT_STATE_HELD}
    state = pb.ROLLOUT_STATE_PROMOTING if is_begun else rollout.state
    return replace(rollout, is_canary=False, step=0, step_start=None, state=state)


def _started(rollout: Rollout, spec: pb.DeploymentSpec, seen: Seen, now: datetime) -> Rollout:
    if not rollout.size:
        return _ended(
            rollout, pb.ROLLOUT_STATE_PROMOTED, now, "No replicas are wanted, so none has to start."
        )
    needed = replacing.needed_replicas(rollout, spec)
    if rollout.is_canary:
        if seen.candidate.ready >= needed:
            return _at_step(rollout, spec, seen, now, 1)
    elif seen.candidate.ready >= (needed if rollout.replacement == pb.REPLACEMENT_MODE_SWAP_ADAPTER else 1):
        return replace(rollout, state=pb.ROLLOUT_STATE_PROMOTING, message=_promoting(rollout, seen))
    if failure := _failure(rollout, spec, seen, now):
        return rolled_back(rollout, failure)
    return replace(rollout, message=_starting(rollout, seen, needed))


def _baked(rollout: Rollout, spec: pb.DeploymentSpec, seen: Seen, now: datetime) -> Rollout:
    rollout = _with_look(rollout, spec, seen, now)
    if failure := _failure(rollout, spec, seen, now) or _unfit(rollout, spec, seen, now):
        return rolled_back(rollout, failure)
    needed = replacing.needed_replicas(rollout, spec)
    if rollout.step_start is None or not seen.candidate.ready:
        # A step whose replicas were all lost begins anew once they are back; what it has shown stays.
        begins = now if seen.candidate.ready >= needed else None
        return replace(
            rollout,
            state=pb.ROLLOUT_STATE_BAKING,
            step_start=begins,
            message=_baking(rollout, spec) if begins else _starting(rollout, seen, needed),
        )
    if now < bake_end(rollout, spec, rollout.step_start):
        return replace(rollout, state=pb.ROLLOUT_STATE_BAKING, message=_baking(rollout, spec))
    if waits := _wait(rollout, spec, seen, now, needed):
        return replace(rollout, state=pb.ROLLOUT_STATE_HELD, message=waits)
    if rollout.step < len(spec.rollout.canary.steps):
        return _at_step(rollout, spec, seen, now, rollout.step + 1)
    promoting = replace(
        rollout, state=pb.ROLLOUT_STATE_PROMOTING, progress=seen.candidate.progress, progress_time=now
    )
    return replace(promoting, message=_promoting(promoting, seen))


def _promoted(rollout: Rollout, spec: pb.DeploymentSpec, seen: Seen, now: datetime) -> Rollout:
    if rollout.has_taken_over and seen.candidate.ready >= rollout.size and not seen.stable.current:
        return _ended(
            rollout, pb.ROLLOUT_STATE_PROMOTED, now, f"Revision {rollout.candidate} serves all traffic."
        )
    if failure := _failure(rollout, spec, seen, now):
        return rolled_back(rollout, failure)
    return replace(rollout, message=_promoting(rollout, seen))


def _ended(rollout: Rollout, state: pb.RolloutState.ValueType, now: datetime, message: str) -> Rollout:
    return replace(
        rollout,
        state=state,
        end_time=now,
        message=message,
        evidence=Evidence(),
        counted=None,
        step_start=None,
    )


def _at_step(rollout: Rollout, spec: pb.DeploymentSpec, seen: Seen, now: datetime, number: int) -> Rollout:
    """At the beginning of a step, with the evidence of none."""
    begun = replace(rollout, state=pb.ROLLOUT_STATE_BAKING, step=number)
    needed = replacing.needed_replicas(begun, spec)
    is_ready = seen.candidate.ready >= needed
    begun = replace(
        begun,
        step_start=now if is_ready else None,
        evidence=Evidence(),
        look_time=None,
        analysis=None,
        progress=seen.candidate.progress,
        progress_time=now,
    )
    return replace(begun, message=_baking(begun, spec) if is_ready else _starting(begun, seen, needed))


# What is wrong, or waited for: in words, and empty if nothing is.


def _failure(rollout: Rollout, spec: pb.DeploymentSpec, seen: Seen, now: datetime) -> str:
    if seen.candidate.ready >= replacing.needed_replicas(rollout, spec):
        return ""
    reason = f": {seen.candidate.reason}" if seen.candidate.reason else "."
    if seen.candidate.is_in_crash_loop:
        return f"Revision {rollout.candidate} fails again and again{reason}"
    deadline = spec.rollout.progress_deadline.ToTimedelta()
    if now - rollout.progress_time >= deadline:
        return f"Revision {rollout.candidate} made no progress for {_in_words(deadline)}{reason}"
    return ""


def _unfit(rollout: Rollout, spec: pb.DeploymentSpec, seen: Seen, now: datetime) -> str:
    """By the last look, or by a threshold where the analysis does not speak. Of a share of the traffic no
    throughput can be asked.
    """
    analysis = rollout.analysis
    if analysis is not None and analysis.verdict == pb.ROLLOUT_VERDICT_FAIL:
        return _messages(analysis, pb.ROLLOUT_VERDICT_FAIL)
    has_baseline = not _is_broken(rollout, seen, now)
    if spec.rollout.canary.HasField("analysis") and has_baseline:
        return ""
    shared = set(seen.stable.breaches) if has_baseline else set()
    own = [
        words
        for kind, words in seen.candidate.breaches.items()
        if kind != pb.THRESHOLD_KIND_THROUGHPUT and kind not in shared
    ]
    return f"Revision {rollout.candidate} breaks a threshold: {'; '.join(own)}." if own else ""


def _wait(rollout: Rollout, spec: pb.DeploymentSpec, seen: Seen, now: datetime, needed: int) -> str:
    """Why the step cannot end though its time is over."""
    if seen.candidate.ready < needed:
        return _starting(rollout, seen, needed)
    if not spec.rollout.canary.HasField("analysis"):
        return ""
    if not seen.stable.ready and not _is_broken(rollout, seen, now):
        return f"Revision {rollout.stable} has no ready replica at the moment, so there is no baseline."
    analysis = rollout.analysis
    if analysis is None:
        return "Nothing has been measured yet."
    if analysis.verdict != pb.ROLLOUT_VERDICT_PASS:
        return _messages(analysis, pb.ROLLOUT_VERDICT_HOLD)
    return ""


def _is_broken(rollout: Rollout, seen: Seen, now: datetime) -> bool:
    """Whether the stable revision is no baseline any more."""
    if seen.stable.ready:
        return False
    return seen.stable.is_in_crash_loop or (
        rollout.down_since is not None and now - rollout.down_since >= BROKEN_AFTER
    )


# What is measured.


def _with_evidence(rollout: Rollout, spec: pb.DeploymentSpec, seen: Seen, now: datetime) -> Rollout:
    counted = Counted(time=now, stable=seen.stable.measured, candidate=seen.candidate.measured)
    before = rollout.counted
    rollout = replace(rollout, counted=counted, cursor=max(rollout.cursor, seen.cursor))
    if rollout.step_start is None:
        return rollout
    stable, candidate = seen.stable.reported, seen.candidate.reported
    if before is not None:
        elapsed = now - before.time
        stable += _between(before.stable, counted.stable, elapsed, seen.stable.current, spec)
        candidate += _between(before.candidate, counted.candidate, elapsed, seen.candidate.current, spec)
    # Also without an analysis, which a change of the spec may add.
    length = filled(spec.rollout.canary.analysis).interval.ToTimedelta() / _SLICES_PER_LOOK
    return replace(rollout, evidence=rollout.evidence.with_counts(stable, candidate, now, length))


def _between(
    before: Measured | None,
    after: Measured | None,
    elapsed: timedelta,
    replicas: int,
    spec: pb.DeploymentSpec,
) -> Counts:
    if before is None or after is None:
        return Counts()
    price = spec.engine.replica_hour_usd if spec.engine.HasField("replica_hour_usd") else None
    return counts.between(before, after, elapsed, replicas=replicas, replica_hour_usd=price)


def _with_progress(rollout: Rollout, spec: pb.DeploymentSpec, seen: Seen, now: datetime) -> Rollout:
    """A candidate that has all it needs waits for something else. Old replicas that end make room for it."""
    down_since = None if seen.stable.ready else rollout.down_since or now
    progress = seen.candidate.progress - seen.others
    if rollout.replacement == pb.REPLACEMENT_MODE_RECREATE:
        progress -= seen.stable.current
    if seen.candidate.ready >= replacing.needed_replicas(rollout, spec) or progress > rollout.progress:
        progress = max(progress, rollout.progress)
        return replace(rollout, down_since=down_since, progress=progress, progress_time=now)
    return replace(rollout, down_since=down_since)


def _with_look(rollout: Rollout, spec: pb.DeploymentSpec, seen: Seen, now: datetime) -> Rollout:
    """With a look every interval, and one when the bake time is over."""
    policy = spec.rollout.canary.analysis
    if not spec.rollout.canary.HasField("analysis") or rollout.step_start is None:
        return rollout
    is_broken = _is_broken(rollout, seen, now)
    if not seen.stable.ready and not is_broken:
        return rollout
    last, end = rollout.look_time or rollout.step_start, bake_end(rollout, spec, rollout.step_start)
    is_last = now >= end and (rollout.look_time is None or rollout.look_time < end)
    if now - last < policy.interval.ToTimedelta() and not is_last:
        return rollout
    look = analysed(
        rollout.evidence,
        policy,
        step=rollout.step,
        steps=len(spec.rollout.canary.steps),
        has_baseline=not is_broken,
        now=now,
    )
    return replace(rollout, analysis=look, look_time=now)


# Words.


def _starting(rollout: Rollout, seen: Seen, needed: int) -> str:
    reason = f": {seen.candidate.reason}" if seen.candidate.reason else "."
    return f"Revision {rollout.candidate} has {seen.candidate.ready} of {needed} replicas ready{reason}"


def _baking(rollout: Rollout, spec: pb.DeploymentSpec) -> str:
    steps = spec.rollout.canary.steps
    weight = step_weight(spec, rollout.step)
    text = f"Step {rollout.step} of {len(steps)} bakes with {weight} % of the traffic."
    analysis = rollout.analysis
    if analysis is None or analysis.verdict == pb.ROLLOUT_VERDICT_PASS:
        return text
    return f"{text} {_messages(analysis, analysis.verdict)}"


def _promoting(rollout: Rollout, seen: Seen) -> str:
    if seen.candidate.ready < rollout.size:
        return (
            f"Revision {rollout.candidate} takes over: {seen.candidate.ready} of {rollout.size} replicas are"
            " ready."
        )
    return f"Revision {rollout.candidate} takes over; revision {rollout.stable} ends."


def _messages(analysis: pb.RolloutAnalysis, verdict: pb.RolloutVerdict.ValueType) -> str:
    return " ".join(check.message for check in analysis.checks if check.verdict == verdict)


def _in_words(duration: timedelta) -> str:
    seconds = round(duration.total_seconds())
    if seconds % 60 or not seconds:
        return f"{seconds} seconds"
    return "1 minute" if seconds == 60 else f"{seconds // 60} minutes"
