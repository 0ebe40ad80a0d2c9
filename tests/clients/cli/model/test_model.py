from __future__ import annotations

import json

import pytest

from clients.registry_server import adapter, registry_at


@pytest.fixture
def registry(tmp_path):
    with registry_at(tmp_path) as address:
        yield address


@pytest.fixture
def advisor(registry, neuroweaver):
    """advisor@1.0.0, a draft."""
    assert neuroweaver("model", "register", "advisor", "--tag", "team=service").code == 0
    made = neuroweaver(
        "model", "create", "advisor", "--base", "tiny", "--metric", "accuracy=0.75:higher",
        "--metric", "loss=2:lower", "--tag", "run=7", "-m", "the first",
    )  # fmt: skip
    assert made.code == 0, made.err


def version(neuroweaver, reference):
    return json.loads(neuroweaver("model", "show", reference, "--json").out)


def test_a_registered_model_is_listed_with_its_tags(registry, neuroweaver):
    outcome = neuroweaver("model", "register", "advisor", "--description", "Answers", "--tag", "team=service")

    assert outcome.code == 0
    assert outcome.out.startswith("advisor\n")
    listed = neuroweaver("model", "list", "--filter", "tags.team=service").out
    assert "team=service" in listed
    assert "Answers" in listed
    assert "No models." in neuroweaver("model", "list", "--filter", "tags.team=sales").out


def test_a_model_is_registered_once_unless_that_is_allowed(neuroweaver, advisor):
    assert neuroweaver("model", "register", "advisor").code == 5

    again = neuroweaver("model", "register", "advisor", "--allow-existing", "--json")

    assert json.loads(again.out)["tags"] == {"team": "service"}


def test_options_become_the_version(neuroweaver, advisor, tmp_path):
    (tmp_path / "config.yaml").write_text("lora_r: 16\ntarget_modules: [q_proj]\n")
    (tmp_path / "metrics.json").write_text(
        '{"latency": {"value": 2, "direction": "lower", "unit": "ms", "samples": [1, 3]}, "plain": 4}'
    )

    outcome = neuroweaver(
        "model", "create", "advisor", "--version", "2.0.0-rc.1", "--parent", "1.0.0", "--state", "draft",
        "--config", tmp_path / "config.yaml", "--metrics", tmp_path / "metrics.json", "--metric", "f1=0.5",
        "--base", "tiny", "--base-digest", "a" * 64, "--tokenizer-digest", "b" * 64,
        "--chat-template-digest", "c" * 64, "--context-length", 2048, "--description", "twice", "--json",
    )  # fmt: skip

    made = json.loads(outcome.out)
    assert made["version"] == "2.0.0-rc.1"
    assert made["parent_version"] == "1.0.0"
    assert made["description"] == "twice"
    assert made["config"] == {"lora_r": 16.0, "target_modules": ["q_proj"]}
    assert made["tags"] == {"run": "7"}
    assert made["metrics"]["latency"]["samples"] == [1.0, 3.0]
    assert made["metrics"]["latency"]["direction"] == "METRIC_DIRECTION_LOWER_IS_BETTER"
    values = {name: each["value"] for name, each in made["metrics"].items()}
    assert values == {"latency": 2, "plain": 4, "f1": 0.5}
    assert made["base"] == {
        "name": "tiny",
        "model_digest": "a" * 64,
        "tokenizer_digest": "b" * 64,
        "chat_template_digest": "c" * 64,
        "context_length": "2048",
    }


@pytest.mark.parametrize(
    ("options", "field", "told"),
    [
        (("--metric", "accuracy"), "--metric", "is not NAME=VALUE"),
        (("--metric", "accuracy=high"), "--metric", "'high' is not a number"),
        (("--metric", "accuracy=nan"), "--metric", "not a finite number"),
        (("--metric", "accuracy=1:up"), "--metric", "neither higher nor lower"),
        (("--tag", "=x"), "--tag", "is not NAME=VALUE"),
        (("--version", "1.2.0", "--bump", "minor"), "--version", "cannot be combined with --bump"),
        (("--config", "nowhere.json"), "--config", "No such file"),
        (("--metrics", "nowhere.json"), "--metrics", "No such file"),
        (("--version", "1.2"), "version", "not a semantic version"),
        (("--parent", "x"), "parent_version", "not a semantic version"),
        (("--base-digest", "abc"), "base.model_digest", "match"),
        (("--state", "validated"), "state", "without artifacts"),
    ],
)
def test_a_refusal_names_the_field(neuroweaver, advisor, options, field, told):
    outcome = neuroweaver("model", "create", "advisor", *options, "--json")

    error = outcome.error
    assert outcome.code == error["exit_code"] == 2
    assert [each["field"] for each in error["violations"]] == [field]
    assert told in error["message"]


@pytest.mark.parametrize(
    ("option", "text", "told"),
    [
        ("--config", "begun: 2026-01-01\n", "--config: "),
        ("--metrics", '{"accuracy": {"worth": 1}}', "--metrics: accuracy: "),
        ("--metrics", '{"accuracy": "high"}', "--metrics: accuracy: "),
        ("--metrics", '{"accuracy": {"value": 1, "direction": "up"}}', "--metrics: accuracy: "),
        ("--metrics", '{"accuracy": {"value": 1, "direction": []}}', "--metrics: accuracy: "),
        ("--metrics", "[1]", "--metrics: "),
    ],
)
def test_a_file_of_something_else_is_refused_with_its_option(
    neuroweaver, advisor, tmp_path, option, text, told
):
    file = tmp_path / "given.yaml"
    file.write_text(text)

    outcome = neuroweaver("model", "create", "advisor", option, file)

    assert outcome.code == 2
    assert outcome.err.startswith(f"neuroweaver: {told}")


def test_a_version_is_shown_with_all_that_is_known_of_it(neuroweaver, advisor):
    shown = neuroweaver("model", "show", "advisor@latest").out

    lines = [" ".join(line.split()) for line in shown.splitlines()]
    for line in (
        "version advisor@1.0.0",
        "state DRAFT",
        "description the first",
        "base model tiny",
        "tags run=7",
    ):
        assert line in lines
    assert "accuracy 0.75 higher" in lines
    assert "loss 2 lower" in lines


def test_raising_a_version_says_after_which(neuroweaver, advisor):
    assert neuroweaver("model", "bump", "advisor", "minor").out == "advisor@1.1.0 DRAFT  after 1.0.0\n"

    options = ("--from", "1.0.0", "--label", "beta", "--build", "g1f", "-m", "why")
    candidate = neuroweaver("model", "bump", "advisor", "prerelease", *options)

    assert candidate.out == "advisor@1.0.1-beta.1+g1f DRAFT  after 1.0.0\n"
    assert version(neuroweaver, "advisor@1.0.1-beta.1")["description"] == "why"


def test_an_unknown_level_is_wrong_usage(neuroweaver, advisor):
    outcome = neuroweaver("model", "bump", "advisor", "huge")

    assert outcome.code == 2
    assert "'major', 'minor', 'patch', 'prerelease'" in outcome.err


def test_a_state_is_moved_with_a_reason(neuroweaver, advisor):
    outcome = neuroweaver("model", "state", "advisor@latest", "archived", "-m", "not used")

    assert outcome.out == "advisor@1.0.0 ARCHIVED  was DRAFT\n"
    assert "“not used”" in neuroweaver("model", "history", "advisor").out
    assert neuroweaver("model", "state", "advisor@1.0.0", "deployed").code == 5
    assert "names no version" in neuroweaver("model", "state", "advisor", "archived").err


def test_versions_can_be_narrowed(neuroweaver, advisor):
    neuroweaver("model", "bump", "advisor", "major")

    found = neuroweaver("model", "versions", "advisor", "--filter", "range=^1", "--json")

    assert [each["version"] for each in json.loads(found.out)["versions"]] == ["1.0.0"]


def test_deleting_hides_and_does_not_forget(neuroweaver, advisor):
    assert neuroweaver("model", "delete", "advisor@1.0.0", "--yes").out == "advisor@1.0.0 deleted\n"

    assert neuroweaver("model", "show", "advisor@1.0.0").code == 3
    assert "1.0.0    (deleted)" in neuroweaver("model", "versions", "advisor", "--show-deleted").out
    assert "version.deleted" in neuroweaver("model", "history", "advisor@1.0.0").out
    assert neuroweaver("model", "delete", "advisor", "--yes").out == "advisor deleted with 0 versions\n"
    assert "No models." in neuroweaver("model", "list").out
    assert "(deleted)" in neuroweaver("model", "list", "--show-deleted").out


def test_nothing_is_deleted_where_nobody_can_be_asked(neuroweaver, advisor):
    for extra in ((), ("--json",)):
        outcome = neuroweaver("model", "delete", "advisor@1.0.0", *extra)
        assert outcome.code == 2
        assert "--yes" in outcome.err

    assert neuroweaver("model", "show", "advisor@1.0.0").code == 0


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("yes\n", 0), ("n\n", 1), ("", 1)])
def test_a_person_on_a_terminal_is_asked(neuroweaver, advisor, answering, answer, code):
    answering(answer)

    outcome = neuroweaver("model", "delete", "advisor")

    assert outcome.code == code
    assert "Delete advisor with its 1 version? [y/N]" in outcome.err
    assert neuroweaver("model", "show", "advisor").code == (3 if code == 0 else 0)


def test_what_an_alias_points_at_is_not_deleted(neuroweaver, advisor):
    neuroweaver("model", "alias", "set", "advisor", "candidate", "1.0.0")

    for reference in ("advisor", "advisor@candidate"):
        outcome = neuroweaver("model", "delete", reference, "--yes")
        assert outcome.code == 5
        assert "candidate" in outcome.err


def test_an_adapter_is_shown_with_its_files(neuroweaver, advisor, tmp_path):
    neuroweaver("model", "upload", "advisor", adapter(tmp_path / "a"), "--parent", "1.0.0")

    shown = neuroweaver("model", "show", "advisor@latest").out

    assert "adapter/adapter_model.safetensors" in shown
    assert "TRAINED" in shown


def test_an_update_changes_what_is_named_and_leaves_the_rest(neuroweaver, advisor):
    outcome = neuroweaver("model", "update", "advisor", "--tag", "owner=ada", "--tag", "stage=trial")

    assert outcome.code == 0, outcome.err
    assert "owner=ada, stage=trial, team=service" in outcome.out
    assert neuroweaver("model", "update", "advisor", "-m", "Answers questions").code == 0
    assert neuroweaver("model", "update", "advisor", "--tag", "team=sales", "--untag", "stage").code == 0

    shown = json.loads(neuroweaver("model", "show", "advisor", "--json").out)
    assert shown["tags"] == {"team": "sales", "owner": "ada"}
    assert shown["description"] == "Answers questions"


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (("update", "advisor"), "advisor"),
        (("update", "advisor", "--untag", "trial"), "--untag"),
        (("update", "advisor", "--tag", "team"), "--tag"),
        (("metrics", "advisor", "--metric", "accuracy=1"), "advisor"),
        (("metrics", "advisor@1.0.0"), "advisor@1.0.0"),
        (("metrics", "advisor@1.0.0", "--metric", "accuracy=much"), "--metric"),
    ],
)
def test_a_change_that_says_nothing_or_what_cannot_be_is_refused(neuroweaver, advisor, command, field):
    outcome = neuroweaver("model", *command, "--json")

    assert outcome.code == 2
    assert outcome.fields == [field]


def test_metrics_are_added_in_place_of_those_of_the_same_name(neuroweaver, advisor, tmp_path):
    file = tmp_path / "metrics.yaml"
    file.write_text("loss: {value: 1.5, direction: lower}\nf1: 0.7\n")

    outcome = neuroweaver(
        "model", "metrics", "advisor@latest", "--metrics", file, "--metric", "accuracy=0.81:higher"
    )

    assert outcome.code == 0, outcome.err
    assert "advisor@1.0.0" in outcome.out
    measured = version(neuroweaver, "advisor@1.0.0")["metrics"]
    assert {name: each["value"] for name, each in measured.items()} == {
        "accuracy": 0.81,
        "loss": 1.5,
        "f1": 0.7,
    }
    assert measured["accuracy"]["direction"] == "METRIC_DIRECTION_HIGHER_IS_BETTER"
