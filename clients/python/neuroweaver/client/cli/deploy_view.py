"""A deployment in 80 columns: revisions and their traffic, replicas and their cold starts, conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from neuroweaver.client.cli.output import when
from neuroweaver.client.deployments import (
    COLD_START,
    UNDER_WAY,
    phase_name,
    rollout_name,
    seconds_in,
    serving_version,
    state_name,
    title,
)
from neuroweaver.client.names import short_name
from neuroweaver.client.text import number, plain
from neuroweaver.v1 import deployer_pb2 as pb

BAR_WIDTH: Final = 20

_STATES: Final[Mapping[int, str]] = {
    pb.DEPLOYMENT_STATE_PROGRESSING: "cyan",
    pb.DEPLOYMENT_STATE_READY: "green",
    pb.DEPLOYMENT_STATE_DEGRADED: "yellow",
    pb.DEPLOYMENT_STATE_FAILED: "bold red",
    pb.DEPLOYMENT_STATE_DELETING: "yellow",
}
_PHASES: Final[Mapping[int, str]] = {
    **dict.fromkeys(COLD_START, "cyan"),
    pb.REPLICA_PHASE_READY: "green",
    pb.REPLICA_PHASE_DRAINING: "yellow",
    pb.REPLICA_PHASE_FAILED: "red",
    pb.REPLICA_PHASE_CRASH_LOOP: "bold red",
}
_ROLLOUTS: Final = {
    **dict.fromkeys(UNDER_WAY, "cyan"),
    pb.ROLLOUT_STATE_HELD: "yellow",
    pb.ROLLOUT_STATE_ROLLING_BACK: "red",
    pb.ROLLOUT_STATE_ROLLED_BACK: "red",
    pb.ROLLOUT_STATE_PROMOTED: "green",
}
_VERDICTS: Final = {
    pb.ROLLOUT_VERDICT_PASS: "green",
    pb.ROLLOUT_VERDICT_FAIL: "bold red",
    pb.ROLLOUT_VERDICT_HOLD: "yellow",
}
_AS_MEANT: Final = frozenset(
    {"REACHED", "VERIFIED", "RESOLVED", "PLACED", "SERVING", "AS_APPLIED", "STABLE", "KEPT"}
)
"""Reasons of conditions that say no more than that they hold."""
_TRUTHS: Final = {True: ("yes", "green"), False: ("no", "red"), None: ("not known", "dim")}


def state_of(state: int) -> Text:
    return Text(state_name(state), _STATES.get(state, "dim"))


def picture(deployment: pb.Deployment, running_s: Mapping[str, float] | None = None) -> RenderableType:
    """All of it. running_s: by replica, the time since its phases were told, added to the present one."""
    parts: list[RenderableType] = [head(deployment), _facts(deployment)]
    if deployment.HasField("rollout"):
        parts += [Text(), _rollout(deployment.rollout)]
        if deployment.rollout.analysis.checks:
            parts.append(_checks(deployment.rollout.analysis))
    if deployment.revisions:
        parts += [Text(), _revisions(deployment)]
    if deployment.replica_statuses:
        parts += [Text(), replicas(deployment.replica_statuses, running_s or {})]
    if deployment.conditions:
        parts += [Text(), _conditions(deployment)]
    if deployment.drift:
        parts += [Text(), Text("drift that is not corrected", "yellow"), changes(deployment.drift)]
    return Group(*parts)


def board(deployment: pb.Deployment, running_s: Mapping[str, float]) -> RenderableType:
    """What `watch` shows of it: where it stands, the rollout, and every replica's cold start."""
    parts: list[RenderableType] = [head(deployment)]
    if deployment.rollout.state in UNDER_WAY:
        parts.append(_rollout(deployment.rollout))
        if deployment.rollout.analysis.checks:
            parts.append(_checks(deployment.rollout.analysis))
    if deployment.replica_statuses:
        parts += [Text(), replicas(deployment.replica_statuses, running_s)]
    return Group(*parts)


def head(deployment: pb.Deployment) -> Text:
    counts = deployment.replicas
    line = Text.assemble(
        (title(deployment.model_id, deployment.name), "bold"),
        "  ",
        state_of(deployment.state),
        (f"  {counts.ready} of {counts.desired} ready", "dim"),
    )
    if deployment.message:
        line.append(f"\n{plain(deployment.message)}")
    if lost := _lost(deployment):
        line.append(f"\nnot seen since {when(lost.time)}: {plain(lost.message)}", "yellow")
    return line


def _lost(deployment: pb.Deployment) -> pb.DeploymentCondition | None:
    """Says that nothing is known of it by now; None while it is seen."""
    reachable = (each for each in deployment.conditions if each.type == "BACKEND_REACHABLE")
    return next((each for each in reachable if each.HasField("is_true") and not each.is_true), None)


def replicas(statuses: Sequence[pb.ReplicaStatus], running_s: Mapping[str, float]) -> Table:
    """Their phases, and what each phase of the cold start took in seconds."""
    table = _table(
        "REPLICA", "REV", "PHASE", "SCHED", "PULL", "LOAD", "WARM", "TOTAL", "TRIES", right=range(3, 9)
    )
    for each in statuses:
        seconds = dict(seconds_in(each))
        if each.phase in COLD_START:
            seconds[each.phase] = seconds.get(each.phase, 0.0) + running_s.get(each.replica_id, 0.0)
        cells = [f"{seconds[phase]:.1f}" if phase in seconds else "" for phase in COLD_START]
        spent = sum(seconds.get(phase, 0.0) for phase in COLD_START)
        table.add_row(
            Text(plain(each.replica_id), "cyan"),
            str(each.revision),
            Text(phase_name(each.phase), _PHASES.get(each.phase, "dim")),
            *cells,
            f"{spent:.1f}" if seconds else "",
            str(each.restarts + 1),
        )
        if told := _trouble(each):
            table.add_row("", "", Text(told, "red" if each.phase in _BAD else "dim"))
    return table


_BAD: Final = frozenset({pb.REPLICA_PHASE_FAILED, pb.REPLICA_PHASE_CRASH_LOOP})


def _trouble(replica: pb.ReplicaStatus) -> str:
    code = f"exit code {replica.last_exit_code}. " if replica.HasField("last_exit_code") else ""
    return f"{code if replica.phase in _BAD else ''}{plain(replica.message)}"


def _facts(deployment: pb.Deployment) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _named(deployment):
        if value:
            grid.add_row(name, plain(value))
    return grid


def _named(deployment: pb.Deployment) -> Iterator[tuple[str, str]]:
    spec = deployment.spec
    yield "version", _version(deployment)
    yield "endpoint", deployment.endpoint
    switched = deployment.switched_to
    yield "traffic", f"goes to {title(switched.model_id, switched.name)}" if switched.model_id else ""
    backend = short_name(pb.DeploymentBackend.DESCRIPTOR, spec.backend).lower() if spec.backend else ""
    where = f", {deployment.namespace}/{deployment.resource_name}" if deployment.namespace else ""
    yield "backend", f"{backend}{where}"
    yield "replicas", _scaling(spec)
    backup = spec.recovery.backup
    yield "backup", title(backup.model_id, backup.name) if backup.model_id else ""
    behind = "" if deployment.observed_generation == deployment.generation else ", not yet taken up"
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
    targets += [f"{each.name} {each.average_value}" for each in scaling.custom_metrics]
    return f"{fewest} to {scaling.max_replicas}{' by ' + ', '.join(targets) if targets else ''}"


def _rollout(rollout: pb.RolloutStatus) -> Text:
    line = Text.assemble(
        f"rollout {rollout.stable_revision} → {rollout.candidate_revision}  ",
        (rollout_name(rollout.state), _ROLLOUTS.get(rollout.state, "dim")),
    )
    if rollout.total_steps:
        line.append(f"  step {rollout.step} of {rollout.total_steps}")
        line.append(f", {rollout.candidate_weight_percent} % of the traffic")
    if rollout.HasField("bake_end_time") and rollout.state == pb.ROLLOUT_STATE_BAKING:
        line.append(f" until {when(rollout.bake_end_time)}")
    if rollout.message:
        line.append(f"\n  {plain(rollout.message)}", "dim")
    return line


def _checks(analysis: pb.RolloutAnalysis) -> Table:
    table = _table("  CHECK", "VERDICT", "LIMIT", "CANDIDATE", "BASELINE", "REQUESTS", right=range(2, 6))
    for each in analysis.checks:
        table.add_row(
            Text(f"  {short_name(pb.RolloutMetric.DESCRIPTOR, each.check.metric).lower()}"),
            Text(short_name(pb.RolloutVerdict.DESCRIPTOR, each.verdict), _VERDICTS.get(each.verdict, "dim")),
            _limit(each.check),
            f"{each.candidate:.4g}" if each.HasField("candidate") else "-",
            f"{each.baseline:.4g}" if each.HasField("baseline") else "-",
            f"{each.candidate_requests:,}/{each.baseline_requests:,}",
        )
    return table


def _limit(check: pb.CanaryCheck) -> str:
    match check.WhichOneof("limit"):
        case "relative":
            return f"+{check.relative * 100:g}%"
        case "difference":
            return f"+{check.difference:g}"
    return f"{check.absolute:g}"


def _revisions(deployment: pb.Deployment) -> Table:
    table = _table("REVISION", "VERSION", "TRAFFIC", "", "READY", "PROVEN", "WHY", right=(3, 4))
    for each in deployment.revisions:
        filled = round(each.weight_percent * BAR_WIDTH / 100)
        is_stable = each.number == deployment.stable_revision
        table.add_row(
            Text(f"{each.number}{' stable' if is_stable else ''}", "cyan"),
            plain(each.version),
            Text("━" * filled + " " * (BAR_WIDTH - filled), "green" if is_stable else "yellow"),
            f"{each.weight_percent} %",
            str(each.ready_replicas),
            "yes" if each.is_proven else "",
            each.cause.lower().replace("_", " "),
        )
    return table


def _conditions(deployment: pb.Deployment) -> Table:
    table = _table("CONDITION", "", "SINCE", "REASON")
    for each in deployment.conditions:
        words, style = _TRUTHS[each.is_true if each.HasField("is_true") else None]
        table.add_row(Text(plain(each.type)), Text(words, style), when(each.time), plain(each.reason))
        is_well = each.HasField("is_true") and each.is_true and each.reason in _AS_MEANT
        if each.message and not is_well:
            table.add_row("", "", "", Text(plain(each.message), "dim"))
    return table


def changes(found: Sequence[pb.FieldChange]) -> Text:
    """As a diff: the object and field, then the live value and the wanted one."""
    text = Text()
    for each in found:
        text.append(f"{plain(each.object)} {plain(each.path)}\n".lstrip(), "dim")
        text.append_text(difference(each))
    text.rstrip()
    return text


def difference(change: pb.FieldChange, indent: str = "  ") -> Text:
    """`- before` and `+ after`, each with its line break; one of them alone for what comes or goes."""
    text = Text()
    if change.before:
        text.append(f"{indent}- {plain(change.before)}\n", "red")
    if change.after:
        text.append(f"{indent}+ {plain(change.after)}\n", "green")
    return text


def _table(*columns: str, right: Sequence[int] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place in right else "left", overflow="fold")
    return table
