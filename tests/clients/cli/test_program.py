from __future__ import annotations

import json
import os
import signal
import sys
import time

import pytest

import foreground
from clients import scripted
from clients.fakes import CONTENT
from neuroweaver.cli import mesh as mesh_commands
from neuroweaver.cli import program
from neuroweaver.mesh.wire.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    Unavailable,
    Unimplemented,
)
from neuroweaver.v1 import trainer_pb2

JOB = scripted.JOB_ID
COMMANDS = {
    "": "up down status",
    "train": "start watch list show cancel resume logs validate templates report",
    "model": "list show versions compare history verify card register update create metrics bump state delete undelete "
    "rollback upload download export import",
    "model alias": "list set remove resolve",
    "experiment": "create start pause stop list show weights assign watch results plan conclude",
    "deploy": "plan apply list status watch scale rollback logs delete metrics health thresholds switch",
    "webhook": "add list deliveries redeliver remove",
}
START = (
    "train", "start", "--model-name", "advisor", "--base-model", "tiny", "--specialization", "s", "--dataset", "d",
)  # fmt: skip


READING = [
    ("status",),
    ("train", "list"),
    ("train", "show", JOB),
    ("train", "cancel", JOB),
    ("train", "resume", JOB),
    ("train", "validate", "rows.jsonl"),
    ("train", "templates"),
    START,
    ("model", "list"),
    ("model", "show", "service-advisor"),
    ("model", "show", "service-advisor@1.0.0"),
    ("model", "versions", "service-advisor"),
]


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_every_command_speaks_json_and_prose(mesh, neuroweaver, command):
    told, shown = neuroweaver(*command, "--json"), neuroweaver(*command)

    assert (told.code, shown.code) == (0, 0), told.err + shown.err
    assert json.loads(told.out)
    assert shown.out.strip()
    assert told.err + shown.err == ""


@pytest.mark.parametrize(
    "command", [f"{group} {name}".strip() for group in COMMANDS for name in COMMANDS[group].split()]
)
def test_every_command_tells_an_example_and_the_exit_codes(neuroweaver, command):
    outcome = neuroweaver(*command.split(), "--help")

    assert outcome.code == 0
    assert f"neuroweaver {command}" in " ".join(outcome.out.split())
    for told in ("Example", "Exit codes", "--json"):
        assert told in outcome.out


def test_the_first_help_tells_the_exit_codes(neuroweaver):
    outcome = neuroweaver("--help")

    assert outcome.code == 0
    assert "Exit codes" in outcome.out


@pytest.mark.parametrize(
    ("command", "service"),
    [
        ("deploy status advisor", "deployer"),
        ("experiment list", "experiment"),
        ("model compare advisor@1.0.0 advisor", "registry"),
        ("model rollback advisor 1.0.0 --dry-run", "registry"),
        ("model upload advisor .", "registry"),
        ("model verify", "registry"),
        ("model history advisor", "registry"),
        ("model alias list advisor", "registry"),
        ("webhook list", "registry"),
    ],
)
def test_a_service_that_is_not_there_is_named(nowhere, neuroweaver, command, service):
    outcome = neuroweaver(*command.split())

    assert outcome.code == 4
    assert f"the {service} cannot be reached at 127.0.0.1:1" in outcome.err


@pytest.mark.parametrize("command", [*READING, ("train", "watch", JOB), ("train", "logs", JOB)], ids=" ".join)
def test_a_service_that_is_not_there_ends_with_4(nowhere, neuroweaver, command):
    outcome = neuroweaver(*command)

    assert outcome.code == 4
    if command != ("status",):
        [line] = outcome.err.splitlines()
        assert "cannot be reached at 127.0.0.1:1" in line
        assert "neuroweaver up" in line


def test_json_keeps_the_names_of_the_contract(mesh, neuroweaver):
    job = json.loads(neuroweaver("train", "show", JOB, "--json").out)

    assert job["job_id"] == JOB
    assert job["state"] == "JOB_STATE_SUCCEEDED"
    assert job["result"]["win_rate"]["wins"] == 13
    assert job["result"]["rlaif_failure"] == ""


def test_options_become_the_config(mesh, fake_trainer, neuroweaver):
    neuroweaver(
        *START, "--lora-r", 8, "--learning-rate", "1e-3", "--quantization", "nf4", "--no-enable-rlaif",
        "--target-modules", "q_proj", "--target-modules", "v_proj", "--job-id", "mine",
    )  # fmt: skip

    [request] = fake_trainer.requests
    assert request.job_id == "mine"
    assert len(request.request_id) == 26
    assert request.config == trainer_pb2.TrainingConfig(
        model_name="advisor",
        base_model="tiny",
        specialization="s",
        dataset_path="d",
        lora_r=8,
        learning_rate=1e-3,
        quantization=trainer_pb2.QUANTIZATION_NF4,
        enable_rlaif=False,
        target_modules=["q_proj", "v_proj"],
    )


def test_options_win_over_the_file(mesh, fake_trainer, neuroweaver, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("model_name: advisor\nlora_r: 4\nepochs: 2\n")

    neuroweaver("train", "start", "--config", path, "--lora-r", 32)

    [request] = fake_trainer.requests
    assert (request.config.model_name, request.config.lora_r, request.config.epochs) == ("advisor", 32, 2.0)


def test_an_unknown_field_in_the_file_ends_with_2_before_anything_is_sent(
    mesh, fake_trainer, neuroweaver, tmp_path
):
    path = tmp_path / "job.yaml"
    path.write_text("model_name: advisor\nlora_rank: 4\n")

    prose = neuroweaver("train", "start", "--config", path)
    told = neuroweaver("train", "start", "--config", path, "--json")

    assert prose.code == told.code == 2
    assert prose.err == "neuroweaver: lora_rank: no such field; did you mean lora_r?\n"
    assert told.fields[0] == "lora_rank"
    assert fake_trainer.requests == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("train", "cancel"), "Missing argument 'JOB'; see `neuroweaver train cancel --help`"),
        (("train", "start", "--lora-r", "x"), "--lora-r"),
        (("train", "start", "--lora-rank", "4"), "--lora-rank"),
        (("train", "start", "--epochs", "nan"), "epochs: NaN is not a number"),
        (("train", "watch", "x", "--since", "-1"), "--since"),
        (("trian",), "No such command"),
        (("model", "show", "@1.0.0"), "is not MODEL or MODEL@VERSION"),
    ],
)
def test_wrong_usage_ends_with_2_in_one_line(mesh, neuroweaver, arguments, told):
    prose, as_json = neuroweaver(*arguments), neuroweaver(*arguments, "--json")

    assert prose.code == as_json.code == 2
    assert prose.out == as_json.out == ""
    [line] = prose.err.splitlines()
    assert told in line
    assert told in as_json.error["message"]


@pytest.mark.parametrize(
    ("refusal", "code", "status"),
    [
        (InvalidArgument("config.lora_r", "must be at least 1"), 2, "INVALID_ARGUMENT"),
        (AlreadyExists("job", "mine"), 5, "ALREADY_EXISTS"),
        (FailedPrecondition("JOB_NOT_ENDED", "the job is running"), 5, "FAILED_PRECONDITION"),
        (Unavailable("the server is stopping"), 4, "UNAVAILABLE"),
        (Unimplemented("grpo is not offered"), 1, "UNIMPLEMENTED"),
    ],
)
def test_a_servers_refusal_has_its_exit_code_and_its_words(
    mesh, fake_trainer, neuroweaver, refusal, code, status
):
    fake_trainer.refusal = refusal

    prose, told = neuroweaver(*START), neuroweaver(*START, "--json")

    assert prose.code == told.code == code
    [line] = prose.err.splitlines()
    assert refusal.description in line
    error = told.error
    assert (error["code"], error["exit_code"], error["reason"]) == (status, code, refusal.reason)
    assert [each["field"] for each in error["violations"]] == (["config.lora_r"] if code == 2 else [])


def test_what_does_not_exist_ends_with_3(mesh, neuroweaver):
    for command in (("train", "show", "nope"), ("train", "watch", "nope"), ("model", "show", "nope")):
        outcome = neuroweaver(*command)
        assert outcome.code == 3
        assert outcome.err.count("\n") == 1
        assert '"nope" does not exist' in outcome.err


def test_watching_prints_one_line_of_json_an_event(mesh, fake_trainer, neuroweaver):
    fake_trainer.breaks_after = [5]

    outcome = neuroweaver("train", "watch", JOB, "--json")

    events = [json.loads(line) for line in outcome.out.splitlines()]
    assert outcome.code == 0
    assert [int(event["sequence"]) for event in events] == list(range(1, len(fake_trainer.events) + 1))
    assert events[-1]["finished"]["state"] == "JOB_STATE_SUCCEEDED"


def test_watching_shows_stages_and_what_came_out(mesh, neuroweaver):
    outcome = neuroweaver("train", "watch", JOB)

    assert outcome.code == 0
    for told in (
        "Fine-tuning done in 1 min 36 s",
        "reward -0.105 → 0.792",
        "rows are longer",
        "service-advisor@1.0.0",
    ):
        assert told in outcome.out


def test_starting_with_watch_follows_the_job(mesh, neuroweaver):
    outcome = neuroweaver(*START, "--watch", "--json")

    assert outcome.code == 0
    assert '"finished"' in outcome.out.splitlines()[-1]


def test_a_watched_job_that_failed_ends_with_1_and_its_reason(mesh, fake_trainer, neuroweaver):
    fake_trainer.events = scripted.failed()

    prose, told = neuroweaver("train", "watch", JOB), neuroweaver("train", "watch", JOB, "--json")

    assert prose.code == told.code == 1
    assert "FAILED in Fine-tuning: The worker needed more memory than there is (OUT_OF_MEMORY)" in prose.err
    assert f"neuroweaver train resume {JOB}" in prose.err
    assert told.error["reason"] == "OUT_OF_MEMORY"


def test_watching_from_the_last_event_of_a_failed_job_still_ends_with_1(mesh, fake_trainer, neuroweaver):
    fake_trainer.events = scripted.failed()

    outcome = neuroweaver("train", "watch", JOB, "--since", len(fake_trainer.events))

    assert outcome.code == 1


def test_watching_from_beyond_the_last_event_ends_with_2(mesh, neuroweaver):
    assert neuroweaver("train", "watch", JOB, "--since", 100_000).code == 2


def test_log_lines_cannot_steer_the_terminal(mesh, neuroweaver):
    outcome = neuroweaver("train", "logs", JOB)

    assert "step 1" in outcome.out
    assert "\x1b" not in outcome.out
    assert len(neuroweaver("train", "logs", JOB, "--json", "--since", 1).out.splitlines()) == 2


def test_a_data_set_that_a_job_would_refuse_ends_with_2(mesh, fake_trainer, neuroweaver):
    fake_trainer.is_usable = False

    outcome = neuroweaver("train", "validate", "rows.jsonl", "--max-seq-length", 64)

    assert outcome.code == 2
    assert "is empty" in outcome.out
    [request] = fake_trainer.requests
    assert (request.max_seq_length, request.dataset_path) == (64, "rows.jsonl")


def test_the_list_of_jobs_can_be_narrowed(mesh, fake_trainer, neuroweaver):
    neuroweaver("train", "list", "--state", "running", "--model-name", "advisor", "--limit", 1)

    [request] = fake_trainer.requests
    assert (request.filter, request.page_size) == ("state=RUNNING AND model_name=advisor", 1)


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("1.0.0", "1.0.0"),
        ("latest", "latest"),
        ("^1.2", "^1.2"),
        ("production", "@production"),
        ("@production", "@production"),
    ],
)
def test_a_version_may_be_named_in_every_way(mesh, fake_registry, neuroweaver, written, asked):
    assert neuroweaver("model", "show", f"service-advisor@{written}").code == 0
    assert fake_registry.requests[0].version == asked


def test_a_download_is_whole_or_not_there(mesh, fake_registry, neuroweaver, tmp_path):
    assert neuroweaver("model", "download", "service-advisor", "-o", tmp_path / "good").code == 0
    for path, data in CONTENT.items():
        assert (tmp_path / "good" / path).read_bytes() == data

    fake_registry.content["adapter/adapter_model.safetensors"] = b"forged"
    outcome = neuroweaver("model", "download", "service-advisor", "-o", tmp_path / "bad")

    assert outcome.code == 1
    assert "arrived damaged" in outcome.err
    assert [path.name for path in (tmp_path / "bad" / "adapter").iterdir()] == ["adapter_config.json"]


def test_a_download_stays_in_its_folder(mesh, fake_registry, neuroweaver, tmp_path):
    fake_registry.path = "../../escaped"

    outcome = neuroweaver("model", "download", "service-advisor", "-o", tmp_path / "a" / "b")

    assert outcome.code == 1
    assert "outside the version's folder" in outcome.err
    assert not list(tmp_path.rglob("escaped*"))


def test_status_counts_and_ends_with_4_if_a_service_is_missing(mesh, neuroweaver, monkeypatch):
    assert json.loads(neuroweaver("status", "--json").out)["models"] == 1

    monkeypatch.setenv("NEUROWEAVER_DEPLOYER_ADDRESS", "127.0.0.1:1")
    outcome = neuroweaver("status", "--json")

    assert outcome.code == 4
    states = {each["service"]: each["state"] for each in json.loads(outcome.out)["services"]}
    assert states == {
        "registry": "serving",
        "trainer": "serving",
        "deployer": "unavailable",
        "experiment": "serving",
    }


def test_a_malformed_address_names_its_variable(monkeypatch, neuroweaver):
    monkeypatch.setenv("NEUROWEAVER_TRAINER_ADDRESS", "nonsense")

    outcome = neuroweaver("train", "list")

    assert outcome.code == 2
    assert outcome.err == "neuroweaver: NEUROWEAVER_TRAINER_ADDRESS=nonsense is not host:port\n"


def test_an_unforeseen_fault_is_told_in_one_line(mesh, neuroweaver, monkeypatch):
    def broken(_channel):
        raise RuntimeError("boom\nsecond line")

    monkeypatch.delenv("DEBUG", raising=False)
    monkeypatch.setattr("neuroweaver.v1.trainer_pb2_grpc.TrainerServiceStub", broken)

    outcome = neuroweaver("train", "list")

    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    assert "boom second line" in outcome.err


def command_line(*arguments, **environ):
    return foreground.start(
        [sys.executable, "-m", "neuroweaver.cli", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environ},
    )


def test_ctrl_c_ends_a_watch_with_130_and_no_traceback(mesh, fake_trainer):
    def unending(request, context):
        yield fake_trainer.events[0]
        while context.is_active():
            time.sleep(0.05)

    fake_trainer.WatchTraining = unending
    process = command_line("train", "watch", JOB, "--json")
    try:
        assert json.loads(process.stdout.readline())["sequence"] == "1"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()

    assert process.returncode == 130
    assert "Traceback" not in err


def test_a_reader_that_goes_away_causes_no_complaint(mesh):
    process = command_line("train", "watch", JOB, "--json")
    process.stdout.readline()
    process.stdout.close()

    assert process.wait(timeout=300) in {0, 1}
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.parametrize("command", ["up", "down", "status"])
def test_the_help_that_is_shown_before_a_command_is_imported_is_its_own(command):
    function = getattr(mesh_commands, command)

    assert function.__doc__.splitlines()[0] == program.COMMANDS["mesh"][command]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("mod",), ["model"]),
        (("model", "ver"), ["verify", "versions"]),
        (("model", "alias", "re"), ["remove", "resolve"]),
        (("train", "st"), ["start"]),
        (("up", "--det"), ["--detach"]),
    ],
    ids=str,
)
def test_a_shell_completes_commands_and_options(words, offered):
    process = command_line(
        _NEUROWEAVER_COMPLETE="complete_bash",
        COMP_WORDS=" ".join(("neuroweaver", *words)),
        COMP_CWORD=str(len(words)),
    )
    out, err = process.communicate(timeout=300)

    assert (process.returncode, err) == (0, "")
    assert sorted(out.split()) == sorted(offered)


@pytest.mark.parametrize("command", [("modle",), ("model", "lst"), ("train", "strat")], ids=" ".join)
def test_a_mistyped_command_is_corrected(neuroweaver, command):
    outcome = neuroweaver(*command)

    assert outcome.code == 2
    assert "Did you mean" in outcome.err


def test_an_argument_that_is_no_text_is_bad_input(mesh, neuroweaver):
    result = neuroweaver("model", "show", "advisor\udcff")

    assert result.code == 2
    assert "advisor\\udcff" in result.err
    assert "is not text" in result.err
