"""A deployment in 80 columns: revisions and their traffic, replicas and their cold starts, conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from neuroweaver.cli.deploy.events import COLD_START, UNDER_WAY, seconds_in, serving_version, title, unmet
from neuroweaver.cli.terminal.names import spoken, styled, word
from neuroweaver.cli.terminal.output import facts, stacked, table, when
from neuroweaver.client.text import number, plain
from neuroweaver.v1 import deployer_pb2 as pb

BAR_WIDTH: Final = 20
TRUTHS: Final = {True: ("yes", "green"), False: ("no", "bold red"), None: ("unknown", "dim")}

_AS_MEANT: Final = frozenset(
    {"REACHED", "VERIFIED", "RESOLVED", "PLACED", "SERVING", "AS_APPLIED", "STABLE", "KEPT"}
)
"""Reasons of conditions that say no more than that they hold."""


def picture(deployment: pb.Deployment) -> RenderableType:
    """All of it."""
    drift = deployment.drift
    return stacked(
        Group(head(deployment), facts(_facts(deployment))),
        Group(*_rollout(deployment.rollout)) if deployment.HasField("rollout") else None,
        _revisions(deployment) if deployment.revisions else None,
        replicas(deployment.replica_statuses, {}) if deployment.replica_statuses else None,
        _conditions(deployment) if deployment.conditions else None,
        Group(Text("drift that is not corrected", "yellow"), _changes(drift)) if drift else None,
    )


def board(deployment: pb.Deployment, running_s: Mapping[str, float]) -> RenderableType:
    """What `watch` shows of it: its state, the rollout, and every replica's cold start.

    running_s: by replica, the time since its last event, added to its present phase.
    """
    rollout = _rollout(deployment.rollout) if deployment.rollout.state in UNDER_WAY else ()
    statuses = deployment.replica_statuses
    return stacked(Group(head(deployment), *rollout), replicas(statuses, running_s) if statuses else None)


def head(deployment: pb.Deployment) -> Text:
    counts = deployment.replicas
    line = Text.assemble(
        (title(deployment.model_id, deployment.name), "bold"),
        "  ",
        styled(deployment, "state"),
        (f"  {counts.ready} of {counts.desired} ready", "dim"),
    )
    if deployment.message:
        line.append(f"\n{plain(deployment.message)}")
    if lost := unmet(deployment, "BACKEND_REACHABLE"):
        line.append(f"\nnot seen since {when(lost.time)}: {plain(lost.message)}", "yellow")
    return line


def replicas(statuses: Sequence[pb.ReplicaStatus], running_s: Mapping[str, float]) -> Table:
    """Their phases, and what each phase of the cold start took in seconds."""
    columns = ("REPLICA", "REV", "PHASE", "SCHED", "PULL", "LOAD", "WARM", "TOTAL", "TRIES")
    rows = (row for replica in statuses for row in _replica(replica, running_s.get(replica.replica_id, 0.0)))
    return table(columns, rows, right=range(3, 9))


def _replica(replica: pb.ReplicaStatus, running_s: float) -> Iterator[Sequence[str | Text]]:
    seconds = seconds_in(replica)
    if replica.phase in COLD_START:
        seconds[replica.phase] = seconds.get(replica.phase, 0.0) + running_s
    total = sum(seconds.get(phase, 0.0) for phase in COLD_START)
    yield (
        Text(plain(replica.replica_id), "cyan"),
        str(replica.revision),
        styled(replica, "phase"),
        *(f"{seconds[phase]:.1f}" if phase in seconds else "" for phase in COLD_START),
        f"{total:.1f}" if seconds else "",
        str(replica.restarts + 1),
    )
    is_bad = replica.phase in {pb.REPLICA_PHASE_FAILED, pb.REPLICA_PHASE_CRASH_LOOP}
    code = f"exit code {replica.last_exit_code}. " if is_bad and replica.HasField("last_exit_code") else ""
    if code or replica.message:
        yield "", "", Text(plain(f"{code}{replica.message}"), "red" if is_bad else "dim")


def _facts(deployment: pb.Deployment) -> Iterator[tuple[str, str]]:
    spec = deployment.spec
    yield "version", _version(deployment)
    yield "endpoint", deployment.endpoint
    switched = deployment.switched_to
    yield "traffic", f"goes to {title(switched.model_id, switched.name)}" if switched.model_id else ""
    backend = spoken(spec, "backend") if spec.backend else ""
    where = f", {deployment.namespace}/{deployment.resource_name}" if deployment.namespace else ""
    yield "backend", f"{backend}{where}"
    yield "replicas", _scaling(spec)
    backup = spec.recovery.backup
    yield "backup", title(backup.model_id, backup.name) if backup.model_id else ""
    behind = "" if deployment.observed_generation == deployment.generation else ", not processed yet"
    yield "generation", f"{deployment.generation}{behind}"
    by = f" by {deployment.updated_by}" if deployment.updated_by else ""
    yield "changed", f"{when(deployment.update_time)}{by}"
    yield "last ready", when(deployment.ready_time)


def _version(deployment: pb.Deployment) -> str:
    version, alias = serving_version(deployment) or deployment.spec.version, deployment.spec.alias
    return f"{version or 'none yet'}, follows {alias}" if alias else version


def _scaling(spec: pb.DeploymentSpec) -> str:
    if not spec.HasField("autoscaling"):
        return f"{spec.replicas} fixed" if spec.WhichOneof("scaling") else ""
    scaling: Any = spec.autoscaling
    fewest = scaling.min_replicas if scaling.HasField("min_replicas") else 1
    targets = [
        f"{words} {number(getattr(scaling, name))}{unit}"
        for name, words, unit in (
            ("target_cpu_percent", "CPU", " %"),
            ("target_memory_percent", "memory", " %"),
            ("target_concurrency", "requests", ""),
        )
        if scaling.HasField(name)
    ]
    targets += [f"{metric.name} {metric.average_value}" for metric in scaling.custom_metrics]
    return f"{fewest} to {scaling.max_replicas}{' by ' + ', '.join(targets) if targets else ''}"


def _rollout(rollout: pb.RolloutStatus) -> list[RenderableType]:
    line = Text(f"rollout {rollout.stable_revision} → {rollout.candidate_revision}  ")
    line.append_text(styled(rollout, "state"))
    if rollout.total_steps:
        line.append(f"  step {rollout.step} of {rollout.total_steps}")
        line.append(f", {rollout.candidate_weight_percent} % of the traffic")
    if rollout.HasField("bake_end_time") and rollout.state == pb.ROLLOUT_STATE_BAKING:
        line.append(f" until {when(rollout.bake_end_time)}")
    if rollout.message:
        line.append(f"\n  {plain(rollout.message)}", "dim")
    return [line, _checks(rollout.analysis)] if rollout.analysis.checks else [line]


def _checks(analysis: pb.RolloutAnalysis) -> Table:
    rows = (
        (
            f"  {word(result.check, 'metric').lower()}",
            styled(result, "verdict"),
            _limit(result.check),
            f"{result.candidate:.4g}" if result.HasField("candidate") else "-",
            f"{result.baseline:.4g}" if result.HasField("baseline") else "-",
            f"{result.candidate_requests:,}/{result.baseline_requests:,}",
        )
        for result in analysis.checks
    )
    columns = ("  CHECK", "VERDICT", "LIMIT", "CANDIDATE", "BASELINE", "REQUESTS")
    return table(columns, rows, right=range(2, 6))


def _limit(check: pb.CanaryCheck) -> str:
    match check.WhichOneof("limit"):
        case "relative":
            return f"+{check.relative * 100:g}%"
        case "difference":
            return f"+{check.difference:g}"
    return f"{check.absolute:g}"


def _revisions(deployment: pb.Deployment) -> Table:
    rows = (
        _revision(revision, is_stable=revision.number == deployment.stable_revision)
        for revision in deployment.revisions
    )
    return table(("REVISION", "VERSION", "TRAFFIC", "", "READY", "PROVEN", "WHY"), rows, right=(3, 4))


def _revision(revision: pb.DeploymentRevision, *, is_stable: bool) -> Sequence[str | Text]:
    filled = round(revision.weight_percent * BAR_WIDTH / 100)
    return (
        Text(f"{revision.number}{' stable' if is_stable else ''}", "cyan"),
        revision.version,
        Text("━" * filled + " " * (BAR_WIDTH - filled), "green" if is_stable else "yellow"),
        f"{revision.weight_percent} %",
        str(revision.ready_replicas),
        "yes" if revision.is_proven else "",
        revision.cause.lower().replace("_", " "),
    )


def _conditions(deployment: pb.Deployment) -> Table:
    rows = (row for condition in deployment.conditions for row in _condition(condition))
    return table(("CONDITION", "", "SINCE", "REASON"), rows)


def _condition(condition: pb.DeploymentCondition) -> Iterator[Sequence[str | Text]]:
    truth = condition.is_true if condition.HasField("is_true") else None
    yield condition.type, Text(*TRUTHS[truth]), when(condition.time), condition.reason
    if condition.message and not (truth and condition.reason in _AS_MEANT):
        yield "", "", "", Text(plain(condition.message), "dim")


def _changes(drift: Sequence[pb.FieldChange]) -> Text:
    """As a diff: the object and field, then the live value and the wanted one."""
    text = Text()
    for change in drift:
        text.append(f"{plain(change.object)} {plain(change.path)}\n".lstrip(), "dim")
        text.append_text(difference(change))
    text.rstrip()
    return text


def difference(change: pb.FieldChange, indent: str = "  ") -> Text:
    """`- before` and `+ after`, each with its line break; only one of them for what is added or removed."""
    text = Text()
    if change.before:
        text.append(f"{indent}- {plain(change.before)}\n", "red")
    if change.after:
        text.append(f"{indent}+ {plain(change.after)}\n", "green")
    return text
