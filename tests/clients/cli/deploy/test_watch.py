from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from clients import fake_deployer
from clients.fake_deployer import FakeDeployer, cold_start, deployment, replica
from neuroweaver.cli.deploy import events as deployments
from neuroweaver.cli.deploy import follow, view
from neuroweaver.cli.terminal.watching import Display
from neuroweaver.client import Client
from neuroweaver.v1 import deployer_pb2 as pb


def shown(renderable, width: int = 80) -> str:
    screen = Console(file=io.StringIO(), width=width, record=True)
    screen.print(renderable)
    return screen.export_text()


def deleted(deployer: FakeDeployer) -> None:
    """The script ends with the deployment gone, so that a watch of it ends."""
    course = cold_start(deployer.now, ends="READY")
    course.add(state_changed=pb.DeploymentStateChanged(to_state=pb.DEPLOYMENT_STATE_DELETED))
    deployer.events = course.events


def test_an_apply_shows_every_phase_of_the_cold_start_until_it_is_ready(neuroweaver, deployer):
    deployer.events = cold_start(deployer.now).events

    outcome = neuroweaver("deploy", "apply", "advisor@1.2.0", "--yes")

    assert outcome.code == 0, outcome.err
    places = [
        outcome.out.index(f"advisor-3 {phase}") for phase in ("SCHEDULING", "PULLING", "LOADING", "WARMING")
    ]
    assert places == sorted(places)
    assert "advisor-3 READY after 3.9 s" in outcome.out
    assert "rollout 4 → 5 PROMOTED" in outcome.out
    # At the end stands the picture of `status`.
    assert "REVISION" in outcome.out


def test_an_apply_with_json_is_a_line_an_event(neuroweaver, deployer):
    deployer.events = cold_start(deployer.now).events

    outcome = neuroweaver("deploy", "apply", "advisor", "--yes", "--json")

    assert outcome.code == 0, outcome.err
    events = [json.loads(line) for line in outcome.out.splitlines()]
    assert [int(each["sequence"]) for each in events] == [each.sequence for each in deployer.events]


def test_an_apply_that_changes_nothing_ends_at_once(neuroweaver):
    outcome = neuroweaver("deploy", "apply", "advisor", "--yes", "--json")

    assert (outcome.code, outcome.out) == (0, "")


def test_an_apply_waits_until_the_loop_has_come_to_it(neuroweaver, deployer):
    # READY is told of the generation before; what is asked for comes later.
    early = pb.DeploymentStateChanged(to_state=pb.DEPLOYMENT_STATE_READY, message="of the generation before")
    course = fake_deployer.Course(deployer.now)
    course.add(state_changed=early)
    course.add(state_changed=pb.DeploymentStateChanged(to_state=pb.DEPLOYMENT_STATE_PROGRESSING))
    course.add(
        state_changed=pb.DeploymentStateChanged(to_state=pb.DEPLOYMENT_STATE_READY, message="all of it")
    )
    deployer.events = course.events

    outcome = neuroweaver("deploy", "apply", "advisor", "--yes", "--json")

    assert outcome.code == 0, outcome.err
    assert len(outcome.out.splitlines()) == 3


@pytest.mark.parametrize(
    ("course", "code", "told"),
    [
        ({"ends": "FAILED"}, "FAILED", "advisor is FAILED: advisor-3: out of memory"),
        ({"rollout": "ROLLED_BACK"}, "ROLLED_BACK", "advisor was rolled back: latency p95 is 40 % worse"),
        ({"ends": "DELETED"}, "DELETED", "advisor is DELETED"),
    ],
)
def test_an_apply_that_does_not_come_out_ends_with_1(neuroweaver, deployer, course, code, told):
    deployer.events = cold_start(deployer.now, **course).events

    outcome = neuroweaver("deploy", "apply", "advisor@1.2.0", "--yes", "--json")

    assert outcome.code == 1
    error = outcome.error
    assert error["code"] == code
    assert told in error["message"]


def unfinished(deployer: FakeDeployer) -> None:
    """A cold start that stays at its first replica."""
    deployer.events = cold_start(deployer.now).events
    del deployer.events[3:]


def test_an_apply_that_takes_too_long_says_that_it_goes_on(neuroweaver, deployer):
    unfinished(deployer)

    outcome = neuroweaver("deploy", "apply", "advisor", "--yes", "--timeout", "1s")

    assert outcome.code == 124
    told = " ".join(outcome.err.split())
    assert "the change of advisor is not complete after 1.0 s (PROGRESSING: Revision 5 comes.)" in told
    assert told.endswith("It continues; to follow it: neuroweaver deploy watch advisor")


@pytest.mark.parametrize("command", [("scale", "3"), ("rollback", "--yes")], ids=["scale", "rollback"])
def test_other_changes_that_are_watched_have_a_timeout_too(neuroweaver, deployer, command):
    unfinished(deployer)
    verb, *options = command

    outcome = neuroweaver("deploy", verb, "advisor", *options, "--watch", "--timeout", "1s", "--json")

    assert outcome.code == 124
    assert outcome.error["code"] == "TIMED_OUT"


def test_what_is_ready_in_time_does_not_time_out(neuroweaver, deployer):
    deployer.events = cold_start(deployer.now).events

    assert neuroweaver("deploy", "apply", "advisor", "--yes", "--json", "--timeout", "0").code == 0


def test_a_timeout_that_is_none_is_refused_before_anything_changes(neuroweaver, deployer):
    outcome = neuroweaver("deploy", "apply", "advisor", "--yes", "--timeout", "soon")

    assert outcome.code == 2
    assert "--timeout: 'soon' is not a duration such as 30s, 5m or 1h30m" in " ".join(outcome.err.split())
    assert deployer.requests == []


@pytest.mark.parametrize(("timeout", "seconds"), [("", 900 + 2100), ("0", math.inf), ("2m", 120)])
def test_a_canary_gets_the_time_that_it_bakes(timeout, seconds):
    now = deployment()
    for minutes in (5, 30):
        now.spec.rollout.canary.steps.add(bake_time=fake_deployer.span(60 * minutes))

    assert follow.patience(timeout)(now) == seconds


def test_an_old_rollback_is_not_that_of_this_apply(neuroweaver, deployer):
    deployer.now.rollout.CopyFrom(
        pb.RolloutStatus(state=pb.ROLLOUT_STATE_ROLLED_BACK, stable_revision=3, candidate_revision=4)
    )

    assert neuroweaver("deploy", "scale", "advisor", "3", "--watch").code == 0


def test_a_broken_apply_is_resumed_without_a_gap(neuroweaver, deployer):
    deployer.events = cold_start(deployer.now).events
    deployer.breaks_after = [3, 2]

    outcome = neuroweaver("deploy", "apply", "advisor", "--yes", "--json")

    assert outcome.code == 0, outcome.err
    sequences = [int(json.loads(line)["sequence"]) for line in outcome.out.splitlines()]
    assert sequences == [each.sequence for each in deployer.events]


def test_a_watch_is_resumed_after_the_last_event_seen(neuroweaver, deployer):
    deleted(deployer)
    deployer.breaks_after = [3, 1, 0]

    outcome = neuroweaver("deploy", "watch", "advisor", "--json")

    assert outcome.code == 0, outcome.err
    sequences = [int(json.loads(line)["sequence"]) for line in outcome.out.splitlines()]
    assert sequences == [each.sequence for each in deployer.events]
    asked = [each.since_sequence for each in deployer.requests if isinstance(each, pb.WatchDeploymentRequest)]
    assert {40, 43, 44} <= set(asked)


def test_a_watch_begins_where_it_is_asked_to(neuroweaver, deployer):
    deleted(deployer)
    last = deployer.events[-1].sequence

    outcome = neuroweaver("deploy", "watch", "advisor", "--since", last - 1)

    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1].endswith("DELETED")
    assert len(outcome.out.splitlines()) == 1
    assert neuroweaver("deploy", "watch", "advisor", "--since", last + 1000).code == 2


def test_a_broken_watch_is_told_to_people(neuroweaver, deployer):
    deleted(deployer)
    deployer.breaks_after = [3]

    assert "connection lost, resuming" in neuroweaver("deploy", "watch", "advisor").out


def test_a_delete_can_be_watched_to_its_end(neuroweaver, deployer):
    course = fake_deployer.Course(deployer.now)
    course.add(replica_changed=pb.ReplicaChanged(replica=replica(1, 4, "DRAINING")))
    course.add(replica_changed=pb.ReplicaChanged(replica=replica(1, 4, "GONE")))
    course.add(state_changed=pb.DeploymentStateChanged(to_state=pb.DEPLOYMENT_STATE_DELETED))
    deployer.events = course.events

    outcome = neuroweaver("deploy", "delete", "advisor", "--yes", "--watch")

    assert outcome.code == 0, outcome.err
    assert outcome.out.rstrip().endswith("DELETED")


def test_logs_are_chosen_by_replica_and_revision(neuroweaver, deployer):
    outcome = neuroweaver("deploy", "logs", "advisor", "--replica", "advisor-1", "--revision", 4, "--follow")

    assert [line.split()[-1] for line in outcome.out.splitlines()] == ["loading", "ready", "�[2Jserving"]
    assert "\x1b" not in outcome.out
    [sent] = deployer.requests
    assert (sent.replica_id, sent.revision, sent.follow, sent.tail_lines) == ("advisor-1", 4, True, 0)


def test_broken_logs_are_resumed_with_all_lines_since(neuroweaver, deployer):
    deployer.breaks_after = [1]

    outcome = neuroweaver("deploy", "logs", "advisor", "--tail", 2, "--json")

    messages = [json.loads(line)["message"] for line in outcome.out.splitlines()]
    assert messages == ["ready", "\x1b[2Jserving"]
    assert [(each.since_sequence, each.tail_lines) for each in deployer.requests] == [(0, 2), (2, 0)]


def test_a_table_moves_with_the_events(deployer):
    now = deployment()
    board = Display(follow.Board(now), deployments.in_words, as_json=False)
    seen = []
    for event in cold_start(now).events:
        deployments.add(now, event)
        board.show(event)
        seen.append(shown(board.render()))

    phases = [
        next((line.split()[2] for line in each.splitlines() if "advisor-3" in line), "") for each in seen
    ]
    assert phases == ["", "SCHEDULING", "PULLING", "LOADING", "WARMING", "READY", "READY", "READY", "READY"]
    # While the canary bakes it is on the board; that it ended is news.
    assert "rollout 4 → 5  BAKING" in seen[6]
    assert seen[6].count("BAKING") == 1
    assert "rollout 4 → 5 PROMOTED" in seen[7]
    assert all(max(map(len, each.splitlines())) <= 80 for each in seen)
    board.interrupted(None)
    assert "connection lost, resuming…" in shown(board.render())


def test_the_present_phase_goes_on_between_two_events():
    statuses = [replica(3, 5, "LOADING", 0.1, 0.5, 1.5), replica(1, 4, "READY", 0.0, 0.4, 2.1, 1.0)]

    table = shown(view.replicas(statuses, {"advisor-3": 10.0, "advisor-1": 99.0}))

    rows = {line.split()[0]: line.split()[3:] for line in table.splitlines()[1:]}
    assert rows["advisor-3"] == ["0.1", "0.5", "11.5", "12.1", "1"]
    assert rows["advisor-1"] == ["0.0", "0.4", "2.1", "1.0", "3.5", "1"]


FAILED = replica(3, 5, "FAILED", message="out of memory")
LATENCY = pb.ThresholdStatus(kind=pb.THRESHOLD_KIND_LATENCY, limit=2000, value=2400)
SPARE = pb.BackupModel(model_id="spare")
FIELD = pb.FieldChange(object="Service/a", path="spec.type")
EVENTS = {
    "replicas 2 → 3 (CPU)": {"scaled": pb.DeploymentScaled(from_replicas=2, to_replicas=3, cause="CPU")},
    "production: nothing → 1.2.0": {
        "alias_followed": pb.AliasFollowed(alias="production", to_version="1.2.0")
    },
    "generation 4, revision 5: won": {
        "spec_changed": pb.DeploymentSpecChanged(generation=4, revision=5, reason="won")
    },
    "advisor-3 FAILED, retrying in 4.0 s: out of memory": {
        "replica_changed": pb.ReplicaChanged(replica=FAILED, restart_delay=fake_deployer.span(4))
    },
    "threshold latency broken: 2400 (limit 2000)": {
        "threshold_crossed": pb.ThresholdCrossed(threshold=LATENCY, is_breached=True)
    },
    "traffic goes to spare automatically: unhealthy": {
        "model_switched": pb.ModelSwitched(to_model=SPARE, is_automatic=True, reason="unhealthy")
    },
    "drift found: Service/a spec.type, Service/a spec.type, Service/a spec.type and 2 more": {
        "drift_found": pb.DriftFound(changes=[FIELD] * 5)
    },
    "SCHEDULED no NO_GPU: Full.": {
        "condition": pb.DeploymentCondition(type="SCHEDULED", is_true=False, reason="NO_GPU", message="Full.")
    },
    "DRIFT_FREE unknown: Not asked.": {
        "condition": pb.DeploymentCondition(type="DRIFT_FREE", message="Not asked.")
    },
}


@pytest.mark.parametrize("told", EVENTS)
def test_every_event_is_told_in_words(told):
    assert deployments.in_words(pb.DeploymentEvent(sequence=1, **EVENTS[told])) == told


def test_events_change_the_picture():
    now = deployment()
    changes = [
        {"scaled": pb.DeploymentScaled(to_replicas=3)},
        {"replica_changed": pb.ReplicaChanged(replica=replica(2, 4, "GONE"))},
        {"model_switched": pb.ModelSwitched(to_model=pb.BackupModel(model_id="spare"))},
        {"condition": pb.DeploymentCondition(type="AVAILABLE", is_true=False, reason="CRASH_LOOP")},
        {"spec_changed": pb.DeploymentSpecChanged(generation=4)},
    ]
    for number, change in enumerate(changes, 41):
        deployments.add(now, pb.DeploymentEvent(sequence=number, **change))

    assert (now.replicas.desired, now.replicas.ready, now.revisions[0].ready_replicas) == (3, 1, 1)
    assert now.switched_to.model_id == "spare"
    reasons = {condition.type: condition.reason for condition in now.conditions}
    assert reasons == {"AVAILABLE": "CRASH_LOOP", "DRIFT_FREE": ""}
    assert (now.generation, now.last_sequence) == (4, 45)

    back = pb.ModelSwitched(to_model=pb.BackupModel(model_id="advisor"))
    deployments.add(now, pb.DeploymentEvent(sequence=46, model_switched=back))
    assert not now.HasField("switched_to")


def test_heartbeats_of_a_watch_are_not_events(deployer, service):
    deleted(deployer)
    with Client({"deployer": service}) as client:
        kinds = {each.WhichOneof("event") for each in client.watch_deployment("advisor", "", 40)}

    assert kinds == {"state_changed", "replica_changed", "rollout"}
