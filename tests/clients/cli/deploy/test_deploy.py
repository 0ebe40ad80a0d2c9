from __future__ import annotations

import json
import re
from pathlib import Path

import protovalidate
import pytest
import yaml
from google.protobuf import json_format

from clients import fake_deployer
from clients.fake_deployer import FakeDeployer
from neuroweaver.cli.arguments.spec_file import to_spec
from neuroweaver.cli.terminal import output
from neuroweaver.cli.terminal.failures import BadInput
from neuroweaver.mesh.wire.errors import Aborted, FailedPrecondition
from neuroweaver.v1 import deployer_pb2 as pb

SPEC = """
version: 1.2.0
autoscaling: {min_replicas: 1, max_replicas: 4, scale_down_delay: 10m}
resources: {cpu_request: 2, memory_request: 2Gi}
engine: {weight_type: bf16, adapter_mode: ADAPTER_MODE_SWITCHED}
rollout:
  canary:
    steps:
      - {weight_percent: 10, bake_time: 5m}
      - {weight_percent: 50, bake_time: 1h30m}
    analysis:
      checks:
        - {metric: latency_p95, relative: 0.1}
recovery: {backup: {model_id: spare}}
labels: {team: service}
"""

EVERYDAY = [
    ("plan", "advisor"),
    ("apply", "advisor", "--yes", "--no-watch"),
    ("list",),
    ("status", "advisor"),
    ("scale", "advisor", "3"),
    ("rollback", "advisor", "--yes"),
    ("logs", "advisor"),
    ("delete", "advisor", "--yes"),
    ("metrics", "advisor"),
    ("health", "advisor"),
    ("thresholds", "advisor"),
    ("switch", "advisor", "-m", "an incident", "--yes"),
]


def spec_sent(deployer: FakeDeployer) -> dict:
    sent = deployer.sent(pb.PlanDeploymentRequest).spec
    return json_format.MessageToDict(sent, preserving_proto_field_name=True)


@pytest.mark.parametrize("command", EVERYDAY, ids=" ".join)
def test_every_command_speaks_json_and_prose(neuroweaver, command):
    told, shown = neuroweaver("deploy", *command, "--json"), neuroweaver("deploy", *command)

    assert (told.code, shown.code) == (0, 0), told.err + shown.err
    assert all(json.loads(line) for line in ([told.out] if command[0] != "logs" else told.out.splitlines()))
    assert shown.out.strip()
    assert told.err + shown.err == ""


@pytest.mark.parametrize(
    "command", [each for each in EVERYDAY if each[0] not in {"list", "plan", "apply"}], ids=" ".join
)
def test_a_deployment_that_is_not_there_ends_with_3(neuroweaver, deployer, command):
    deployer.now = None

    outcome = neuroweaver("deploy", *command)

    assert outcome.code == 3
    assert "advisor/default" in outcome.err


def test_a_plan_shows_objects_differences_capacity_and_findings(neuroweaver):
    outcome = neuroweaver("deploy", "plan", "advisor@1.2.0")

    lines = [line.rstrip() for line in outcome.out.splitlines()]
    for told in (
        "advisor  1.2.0  can be done",
        "1 new, 1 changed, 1 removed",
        "surge: there is room for one more replica",
        "+ Service models/nw-advisor  v1",
        "~ Deployment models/nw-advisor  apps/v1",
        "    spec.template.spec.containers[0].image",
        '    - "serving:1.0"',
        '    + "serving:1.1"',
        "- PodDisruptionBudget models/nw-advisor  policy/v1",
        "! There is no ServiceMonitor. (CRD_MISSING)",
    ):
        assert told in lines
    # A field that comes has no line of what was there before.
    added = lines.index("    metadata.labels.team")
    assert lines[added + 1] == '    + "service"'
    memory = next(line for line in lines if line.startswith("memory"))
    assert memory.split() == ["memory", "2Gi", "3Gi", "8Gi", "yes"]
    assert next(line for line in lines if line.startswith("nvidia")).endswith("unknown")


def test_a_plan_that_cannot_be_carried_out_ends_with_5_and_tells_what_is_against_it_first(
    neuroweaver, deployer
):
    deployer.planned = fake_deployer.infeasible()

    shown, told = neuroweaver("deploy", "plan", "advisor"), neuroweaver("deploy", "plan", "advisor", "--json")

    assert (shown.code, told.code) == (5, 5)
    assert "cannot be done" in shown.out
    against = shown.out.index("✗ resources.gpus: 2 are needed at the peak and 1 is free. (INSUFFICIENT_GPU)")
    assert against < shown.out.index("! There is no ServiceMonitor.")
    assert json.loads(told.out)["is_feasible"] is False


def test_manifests_are_a_yaml_stream_of_what_shall_be_there(neuroweaver):
    outcome = neuroweaver("deploy", "plan", "advisor", "--manifests")

    assert outcome.out == "---\nkind: Service\n---\nkind: Deployment\n"


def test_a_spec_file_gives_the_whole_spec(neuroweaver, deployer, tmp_path):
    path = tmp_path / "advisor.yaml"
    path.write_text(SPEC)

    assert neuroweaver("deploy", "plan", "advisor", "-f", path).code == 0

    sent = spec_sent(deployer)
    assert "labels" in sent
    assert "alias" not in sent
    assert sent["version"] == "1.2.0"
    assert sent["autoscaling"]["scale_down_delay"] == "600s"
    assert sent["resources"] == {"cpu_request": "2", "memory_request": "2Gi"}
    assert sent["engine"] == {"weight_type": "WEIGHT_TYPE_BF16", "adapter_mode": "ADAPTER_MODE_SWITCHED"}
    assert [each["bake_time"] for each in sent["rollout"]["canary"]["steps"]] == ["300s", "5400s"]
    assert sent["rollout"]["canary"]["analysis"]["checks"] == [
        {"metric": "ROLLOUT_METRIC_LATENCY_P95", "relative": 0.1}
    ]


def test_options_win_over_the_file(neuroweaver, deployer, tmp_path):
    path = tmp_path / "advisor.yaml"
    path.write_text(SPEC)

    options = ("--replicas", 2, "--gpus", 1, "--set", "engine.max_batch_size=32", "--set", "recovery=null")
    assert neuroweaver("deploy", "plan", "advisor@staging", "-f", path, *options).code == 0

    sent = spec_sent(deployer)
    assert (sent["alias"], sent["replicas"]) == ("staging", 2)
    assert not {"version", "autoscaling", "recovery"} & set(sent)
    assert sent["resources"] == {"cpu_request": "2", "memory_request": "2Gi", "gpus": 1}
    assert sent["engine"]["max_batch_size"] == 32
    assert sent["engine"]["weight_type"] == "WEIGHT_TYPE_BF16"


def test_more_memory_lifts_the_limit_that_is_there_too(neuroweaver, deployer):
    deployer.now.spec.resources.memory_request = deployer.now.spec.resources.memory_limit = "2Gi"

    assert neuroweaver("deploy", "plan", "advisor", "--memory", "4Gi").code == 0
    assert spec_sent(deployer)["resources"] == {"memory_request": "4Gi"}


def test_a_limit_of_its_own_goes_beside_the_memory(neuroweaver, deployer):
    options = ("--memory", "4Gi", "--set", "resources.memory_limit=6Gi")
    assert neuroweaver("deploy", "plan", "advisor", *options).code == 0
    assert spec_sent(deployer)["resources"] == {"memory_request": "4Gi", "memory_limit": "6Gi"}


def test_without_a_file_what_is_there_stays_but_for_the_options(neuroweaver, deployer):
    deployer.now.spec.rollout.canary.steps.add(weight_percent=30)

    canary = ("--canary", "10:30s,50", "--check", "error_rate=0.05", "--check", "latency_p95=+10%")
    assert neuroweaver("deploy", "plan", "advisor@1.2.0", *canary, "--backup", "spare/blue").code == 0

    sent = spec_sent(deployer)
    assert (sent["version"], sent["replicas"], sent["labels"]) == ("1.2.0", 2, {"team": "service"})
    assert "alias" not in sent
    steps = [{"weight_percent": 10, "bake_time": "30s"}, {"weight_percent": 50}]
    assert sent["rollout"]["canary"]["steps"] == steps
    assert sent["rollout"]["canary"]["analysis"]["checks"] == [
        {"metric": "ROLLOUT_METRIC_ERROR_RATE", "absolute": 0.05},
        {"metric": "ROLLOUT_METRIC_LATENCY_P95", "relative": 0.1},
    ]
    assert sent["recovery"]["backup"] == {"model_id": "spare", "name": "blue"}


def test_a_canary_can_be_taken_out_again(neuroweaver, deployer):
    deployer.now.spec.rollout.canary.steps.add(weight_percent=30)

    assert neuroweaver("deploy", "plan", "advisor", "--canary", "none").code == 0

    assert "canary" not in spec_sent(deployer).get("rollout", {})


def test_a_registry_that_is_needed_and_not_there_is_named(neuroweaver, monkeypatch):
    monkeypatch.setenv("NEUROWEAVER_REGISTRY_ADDRESS", "127.0.0.1:1")

    outcome = neuroweaver("deploy", "plan", "advisor@^1.2")

    assert outcome.code == 4
    assert "the registry cannot be reached at 127.0.0.1:1" in outcome.err
    assert neuroweaver("deploy", "plan", "advisor@1.2.0").code == 0


def test_latest_is_made_exact_by_the_registry(neuroweaver, deployer):
    assert neuroweaver("deploy", "plan", "service-advisor@latest").code == 0

    assert spec_sent(deployer) == {"version": "1.0.0"}


@pytest.mark.parametrize(
    ("old", "new", "field", "told"),
    [
        ("weight_percent: 50", "wieght: 50", "rollout.canary.steps[1].wieght", "no such field"),
        ("min_replicas", "min_replica", "autoscaling.min_replica", "did you mean min_replicas?"),
        ("bf16", "bf17", "engine.weight_type", "is not one of bf16, fp16, fp32"),
        ("bake_time: 5m", "bake_time: soon", "rollout.canary.steps[0].bake_time", "30s, 5m or 1h30m"),
        ("cpu_request: 2", "cpu_request: 0.5", "resources.cpu_request", "write it in quotes"),
        ("max_replicas: 4", "max_replicas: many", "autoscaling.max_replicas", "'many' is not a whole number"),
        ("max_replicas: 4", "max_replicas: 2.5", "autoscaling.max_replicas", "2.5 is not a whole number"),
        ("max_replicas: 4", "max_replicas: 4000000000", "autoscaling.max_replicas", "too large"),
        ("max_replicas: 4", "max_replicas: yes", "autoscaling.max_replicas", "true is neither a number"),
        ("relative: 0.1", "relative: .inf%", "rollout.canary.analysis.checks[0].relative", "is not a number"),
        ("recovery: {", "recovery: {auto_switch: 1, ", "recovery.auto_switch", "neither true nor false"),
        ("team: service", "team: [a]", "labels.team", "is not text"),
        ("{backup: {model_id: spare}}", "spare", "recovery", "is not a group"),
        ("version: 1.2.0", "- version", "SPEC", "advisor.yaml:"),
    ],
)
def test_a_file_that_is_wrong_is_told_by_its_field(neuroweaver, tmp_path, old, new, field, told):
    assert old in SPEC
    path = tmp_path / "advisor.yaml"
    path.write_text(SPEC.replace(old, new))

    outcome = neuroweaver("deploy", "plan", "advisor", "-f", path, "--json")

    assert outcome.code == 2
    assert outcome.fields == [field]
    assert told in outcome.error["message"]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("plan", "advisor", "--replicas", 2, "--max", 3), "--replicas"),
        (("plan", "advisor", "--canary", "ten"), "--canary"),
        (("plan", "advisor", "--canary", "10:soon"), "--canary"),
        (("plan", "advisor", "--check", "error_rate=much"), "--check"),
        (("plan", "advisor", "--check", "latency"), "--check"),
        (("plan", "advisor", "--check", "speed=1"), "rollout.canary.analysis.checks[0].metric"),
        (("plan", "advisor", "--set", "engine"), "--set"),
        (("plan", "advisor", "--set", "engine..x=1"), "--set"),
        (("plan", "advisor", "--set", "engine.max_batch=1"), "engine.max_batch"),
        (("plan", "advisor", "--set", "labels=[a"), "--set"),
        (("plan", "advisor", "--label", "team"), "--label"),
        (("plan", "advisor", "--backup", "spare/"), "--backup"),
        (("scale", "advisor"), "REPLICAS"),
        (("scale", "advisor", 2, "--max", 3), "REPLICAS"),
        (("scale", "advisor", "--min", 1), "--max"),
        (("metrics", "advisor", "--window", "soon"), "--window"),
        (("switch", "advisor", "--yes"), "--reason"),
        (("switch", "advisor", "--yes", "-m", "x", "--to", "a", "--back"), "--back"),
        (("switch", "advisor", "--yes", "-m", "x", "--to", "/a"), "--to"),
        (("apply", "advisor"), "--yes"),
        (("rollback", "advisor"), "--yes"),
        (("delete", "advisor"), "--yes"),
    ],
)
def test_an_option_that_is_wrong_is_named_and_nothing_is_changed(neuroweaver, deployer, arguments, field):
    outcome = neuroweaver("deploy", *arguments, "--json")

    assert outcome.code == 2
    assert outcome.fields == [field]
    assert deployer.requests == []


def test_an_apply_is_bound_to_the_plan_and_the_deployment_that_were_shown(neuroweaver, deployer):
    outcome = neuroweaver("deploy", "apply", "advisor@1.2.0", "-m", "won", "--yes", "--no-watch")

    assert outcome.code == 0, outcome.err
    assert "can be done" in outcome.out
    planned, sent = deployer.sent(pb.PlanDeploymentRequest), deployer.sent(pb.DeployModelRequest)
    assert sent.spec == planned.spec
    assert (sent.plan_digest, sent.etag, sent.reason) == ("d1", "e3", "won")
    assert sent.request_id


def test_a_first_apply_asks_for_every_default(neuroweaver, deployer):
    deployer.now = None

    assert neuroweaver("deploy", "apply", "advisor", "--yes", "--no-watch").code == 0

    sent = deployer.sent(pb.DeployModelRequest)
    assert sent.spec == pb.DeploymentSpec()
    assert sent.HasField("spec")
    assert sent.etag == ""


def test_what_is_not_feasible_is_not_applied(neuroweaver, deployer):
    deployer.planned = fake_deployer.infeasible()

    outcome = neuroweaver("deploy", "apply", "advisor", "--yes", "--json")

    assert outcome.code == 5
    error = outcome.error
    assert error["reason"] == "INSUFFICIENT_GPU"
    assert outcome.fields == ["resources.gpus"]
    assert "cannot be deployed like this: resources.gpus: 2 are needed" in error["message"]
    assert not [each for each in deployer.requests if isinstance(each, pb.DeployModelRequest)]


@pytest.mark.parametrize(
    "command",
    [
        ("apply", "advisor", "--yes"),
        ("scale", "advisor", "3"),
        ("rollback", "advisor", "--yes"),
        ("delete", "advisor", "--yes"),
        ("thresholds", "advisor", "--defaults"),
        ("switch", "advisor", "-m", "x", "--yes"),
    ],
    ids=" ".join,
)
def test_another_writer_that_was_faster_ends_with_5(neuroweaver, deployer, command):
    deployer.refusal = Aborted("ETAG_MISMATCH", "the deployment was changed since")

    outcome = neuroweaver("deploy", *command)

    assert outcome.code == 5
    assert "changed since" in outcome.err


def test_status_tells_what_is_not_as_meant_though_it_serves(neuroweaver, deployer):
    deployer.now = fake_deployer.deployment(
        conditions=[
            pb.DeploymentCondition(type="SCHEDULED", is_true=True, reason="PLACED", message="In its place."),
            pb.DeploymentCondition(
                type="AVAILABLE", is_true=True, reason="AUTOSCALING_BLIND", message="No figures."
            ),
        ]
    )
    outcome = neuroweaver("deploy", "status", "advisor")
    assert "No figures." in outcome.out
    assert "In its place." not in outcome.out


def test_status_says_first_that_it_is_old(neuroweaver, deployer):
    unreachable = pb.DeploymentCondition(
        type="BACKEND_REACHABLE", is_true=False, reason="UNREACHABLE", message="the cluster does not answer"
    )
    unreachable.time.FromJsonString("2026-01-02T03:04:05Z")
    deployer.now = fake_deployer.deployment(conditions=[unreachable])
    head = neuroweaver("deploy", "status", "advisor").out.partition("CONDITION")[0]
    assert "not seen since 2026-01-0" in head
    assert "the cluster does not answer" in head
    unreachable.is_true = True
    deployer.now = fake_deployer.deployment(conditions=[unreachable])
    assert "not seen since" not in neuroweaver("deploy", "status", "advisor").out


def test_status_shows_traffic_cold_starts_and_what_is_wrong(neuroweaver, deployer):
    deployer.now = fake_deployer.rolling()

    outcome = neuroweaver("deploy", "status", "advisor")

    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    for told in (
        "advisor PROGRESSING 2 of 2 ready",
        "version 1.1.0, follows production",
        "rollout 4 → 5 BAKING step 1 of 2, 10 % of the traffic until " + output.when(fake_deployer.at(300)),
        "latency_p95 HOLD +10% 812 - 40/360",
        "5 1.2.0 ━━ 10 % 1 deploy",
        "4 stable 1.1.0 ━━━━━━━━━━━━━━━━━━ 90 % 2 yes deploy",
        "advisor-1 4 READY 0.0 0.4 2.1 1.0 3.5 1",
        "advisor-3 5 LOADING 0.1 0.5 1.5 2.1 1",
        "advisor-4 5 CRASH_LOOP 0.1 0.1 6",
    ):
        assert told in lines
    assert "exit code 3. adapter/adapter_model.safetensors" in outcome.out
    assert "The cluster was not asked yet." in outcome.out


@pytest.mark.parametrize("command", [("status", "advisor"), ("plan", "advisor"), ("health", "advisor")])
def test_tables_fit_into_80_columns(neuroweaver, deployer, monkeypatch, command):
    deployer.now = fake_deployer.rolling()
    monkeypatch.setattr(output, "_PIPE_WIDTH", 80)

    lines = neuroweaver("deploy", *command).out.splitlines()

    assert max(map(len, lines)) <= 80
    if command[0] == "status":
        assert any("advisor-3" in line and "LOADING" in line for line in lines)


def test_a_list_has_every_page(neuroweaver, deployer):
    outcome = neuroweaver("deploy", "list", "--filter", "state=READY")

    names = [line.split()[0] for line in outcome.out.splitlines()]
    assert names == ["DEPLOYMENT", "advisor", "advisor/staging"]
    assert {each.filter for each in deployer.requests} == {"state=READY"}


def test_bounds_that_are_not_given_stay(neuroweaver, deployer):
    deployer.now.spec.autoscaling.CopyFrom(
        pb.Autoscaling(min_replicas=1, max_replicas=4, target_concurrency=8, idle_timeout=None)
    )

    assert neuroweaver("deploy", "scale", "advisor", "--max", 9).code == 0

    sent = deployer.sent(pb.ScaleDeploymentRequest)
    assert sent.autoscaling == pb.Autoscaling(min_replicas=1, max_replicas=9, target_concurrency=8)
    assert sent.etag == "e3"


def test_an_idle_time_goes_with_the_scale_to_zero(neuroweaver, deployer):
    deployer.now.spec.autoscaling.CopyFrom(
        pb.Autoscaling(min_replicas=0, max_replicas=4, idle_timeout=fake_deployer.span(600))
    )

    assert neuroweaver("deploy", "scale", "advisor", "--min", 1).code == 0

    assert deployer.sent(pb.ScaleDeploymentRequest).autoscaling == pb.Autoscaling(
        min_replicas=1, max_replicas=4
    )


def test_a_rollback_shows_the_last_proven_revision_before_the_stable_one(neuroweaver, deployer):
    outcome = neuroweaver("deploy", "rollback", "advisor", "--yes", "-m", "answers got longer")

    assert "from  revision 4  1.1.0" in outcome.out
    # Revision 3 was never proven.
    assert "to    revision 2  1.0.0  proven" in outcome.out
    assert "stops following production" in outcome.out
    sent = deployer.sent(pb.RollbackDeploymentRequest)
    assert (sent.revision, sent.etag, sent.reason) == (0, "e3", "answers got longer")


def test_a_rollback_during_a_rollout_ends_it(neuroweaver, deployer):
    deployer.now = fake_deployer.rolling()

    outcome = neuroweaver("deploy", "rollback", "advisor", "--yes")

    assert "from  revision 5  1.2.0" in outcome.out
    assert "to    revision 4  1.1.0  proven" in outcome.out
    assert "10 % of the traffic goes back" in outcome.out


def test_a_rollback_to_a_chosen_revision_sends_it(neuroweaver, deployer):
    outcome = neuroweaver("deploy", "rollback", "advisor", "--to", 3, "--yes")

    assert "to    revision 3  1.0.1  not proven" in outcome.out
    assert deployer.sent(pb.RollbackDeploymentRequest).revision == 3


def test_a_rollback_with_nowhere_to_go_is_the_servers_to_refuse(neuroweaver, deployer):
    deployer.now = fake_deployer.deployment(revisions=[fake_deployer.revision(4, "1.1.0")])
    deployer.refusal = FailedPrecondition("NO_REVISION", "there is nothing to go back to")

    outcome = neuroweaver("deploy", "rollback", "advisor", "--yes")

    assert outcome.code == 5
    assert "not known here" in outcome.out
    assert "nothing to go back to" in outcome.err


def test_a_delete_is_bound_to_what_was_seen(neuroweaver, deployer):
    outcome = neuroweaver("deploy", "delete", "advisor", "--force", "--yes", "-m", "replaced")

    assert "DELETING" in outcome.out
    sent = deployer.sent(pb.UndeployModelRequest)
    assert (sent.force, sent.etag, sent.reason) == (True, "e3", "replaced")


def test_metrics_tell_what_was_measured_and_what_is_missing(neuroweaver, deployer):
    outcome = neuroweaver("deploy", "metrics", "advisor", "--window", "1h")

    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    for told in ("all 4 (1.1.0)", "requests 1,200 1,200", "error rate 0.25% -", "memory 1,024 MiB -"):
        assert told in lines
    assert not [line for line in lines if line.startswith("accuracy")]
    assert "advisor-2 could not be reached" in outcome.out
    assert deployer.requests[0].window.seconds == 3600


@pytest.mark.parametrize(
    ("state", "code"), [("HEALTHY", 0), ("DEGRADED", 0), ("UNKNOWN", 0), ("UNHEALTHY", 1)]
)
def test_health_ends_with_1_where_nothing_is_served(neuroweaver, deployer, state, code):
    deployer.health = fake_deployer.health_of(pb.HealthState.Value(f"HEALTH_STATE_{state}"))

    outcome = neuroweaver("deploy", "health", "advisor")

    assert outcome.code == code
    rows = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert f"health {state}" in rows
    assert "latency 2000 2412 broken 310" in rows
    assert "accuracy 0.85 - no data 0" in rows


def test_thresholds_that_are_not_given_stay(neuroweaver, deployer):
    options = ("--max-latency-ms", 1500, "--window", "10m")
    assert neuroweaver("deploy", "thresholds", "advisor", *options).code == 0

    sent = deployer.sent(pb.SetThresholdsRequest)
    assert sent.thresholds == pb.ModelThresholds(
        min_accuracy=0.85, max_latency_ms=1500, window=fake_deployer.span(600), min_requests=30
    )
    assert sent.etag == "e3"


def test_thresholds_can_be_set_back_to_the_defaults(neuroweaver, deployer):
    assert neuroweaver("deploy", "thresholds", "advisor", "--defaults", "--max-error-rate", 0.1).code == 0

    assert deployer.sent(pb.SetThresholdsRequest).thresholds == pb.ModelThresholds(max_error_rate=0.1)


def test_looking_at_thresholds_changes_nothing(neuroweaver, deployer):
    assert neuroweaver("deploy", "thresholds", "advisor").code == 0

    assert deployer.requests == []


@pytest.mark.parametrize(
    ("options", "target", "told"),
    [
        ((), None, "goes to spare"),
        (("--to", "spare/blue"), pb.BackupModel(model_id="spare", name="blue"), "goes to spare/blue"),
        (("--back",), pb.BackupModel(model_id="advisor", name="default"), "served by the model itself"),
    ],
)
def test_a_switch_tells_where_the_traffic_goes(neuroweaver, deployer, options, target, told):
    outcome = neuroweaver("deploy", "switch", "advisor", *options, "-m", "an incident", "--yes")

    assert told in outcome.out
    sent = deployer.sent(pb.SwitchModelRequest)
    assert (sent.target if sent.HasField("target") else None) == target
    assert sent.reason == "an incident"


def test_what_a_server_says_does_not_steer_the_terminal(neuroweaver, deployer):
    deployer.now.message = "\x1b[2Jgone"
    deployer.planned.findings[0].message = "\x1b]0;title\x07"

    for command in ("status", "plan"):
        assert "\x1b" not in neuroweaver("deploy", command, "advisor").out


def test_the_guides_spec_is_taken():
    text = (Path(__file__).parents[4] / "docs/deployer.md").read_text()
    [block] = [each for each in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "alias:" in each]

    protovalidate.validate(to_spec(yaml.safe_load(block), pb.DeploymentSpec))


@pytest.mark.parametrize(
    ("command", "question", "request_kind"),
    [
        (("apply", "advisor", "--no-watch"), "Apply this to advisor?", pb.DeployModelRequest),
        (("rollback", "advisor"), "Roll advisor back?", pb.RollbackDeploymentRequest),
        (("delete", "advisor"), "Remove the deployment advisor?", pb.UndeployModelRequest),
        (
            ("switch", "advisor", "-m", "x"),
            "Send the traffic of advisor to its backup?",
            pb.SwitchModelRequest,
        ),
    ],
)
@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("", 1)])
def test_a_person_is_asked_and_may_decline(
    neuroweaver, deployer, answering, command, question, request_kind, answer, code
):
    answering(answer)

    outcome = neuroweaver("deploy", *command)

    assert outcome.code == code
    assert f"{question} [y/N]" in outcome.err
    assert len([each for each in deployer.requests if isinstance(each, request_kind)]) == (code == 0)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"labels": {"a": "\ud800"}}, "labels.a"),
        ({"labels": {"\udcff": "a"}}, "labels"),
        ({"kubernetes": {"client_namespaces": ["a", "b\0"]}}, "kubernetes.client_namespaces[1]"),
    ],
)
def test_a_spec_that_holds_what_is_no_text_is_refused_with_its_path(fields, path):
    with pytest.raises(BadInput) as refused:
        to_spec(fields, pb.DeploymentSpec)
    assert refused.value.violations == [(path, "holds a NUL or half of a surrogate pair, which are no text")]
