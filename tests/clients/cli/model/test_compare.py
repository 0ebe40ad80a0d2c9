from __future__ import annotations

import json
import shutil

import pytest

from clients.registry_server import adapter, prepared, registry_at
from neuroweaver.client import Client
from neuroweaver.v1 import registry_pb2 as pb

WORSE, FINE = [4.0, 4.2, 3.9, 4.1] * 5, [6.0, 6.3, 5.9, 6.2] * 5


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """advisor@1.0.0, validated and in production; advisor@1.1.0, trained, with twice the rank and a worse score."""
    files = tmp_path_factory.mktemp("files")
    commands = [("model", "register", "advisor")]
    for number, rank, score in (("1.0.0", 8, FINE), ("1.1.0", 16, WORSE)):
        metrics = {
            "judge_score": {"value": sum(score) / len(score), "direction": "higher", "samples": score},
            "loss": 2.0,
        }
        folder = adapter(files / number, rank=rank, fill=number[2].encode())
        (files / f"{number}.metrics.json").write_text(json.dumps(metrics))
        (files / f"{number}.config.json").write_text(json.dumps({"lora_r": rank}))
        commands.append(
            (
                "model", "upload", "advisor", folder, "--version", number, "--base", "tiny", "--base-digest", "a" * 64,
                "--metrics", files / f"{number}.metrics.json", "--config", files / f"{number}.config.json",
            )
        )  # fmt: skip
    commands += [
        ("model", "state", "advisor@1.0.0", "validated"),
        ("model", "alias", "set", "advisor", "production", "1.0.0"),
    ]
    return prepared(tmp_path_factory.mktemp("home"), commands)


@pytest.fixture(autouse=True)
def registry(home, tmp_path, monkeypatch):
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    with registry_at(tmp_path) as address:
        yield address


def resolved(neuroweaver, alias="production"):
    return neuroweaver("model", "alias", "resolve", "advisor", alias).out.strip()


def latest(neuroweaver):
    return json.loads(neuroweaver("model", "show", "advisor", "--json").out)["latest_version"]


def test_the_verdict_stands_first_and_its_grounds_below(neuroweaver):
    outcome = neuroweaver("model", "compare", "advisor@production", "advisor@1.1.0")

    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0].startswith("1.1.0 is worse than 1.0.0: judge_score fell from 6.1 to 4.05")
    assert "↓ worse" in next(line for line in lines if line.startswith("judge_score"))
    assert "= same" in next(line for line in lines if line.startswith("loss"))
    rank = next(line for line in lines if line.startswith("config.lora_r"))
    assert rank.split() == ["config.lora_r", "8", "16"]
    assert lines[-1].startswith("Recommended bump: Minor, since the adapter rank differs")


def test_a_comparison_as_json_is_the_contracts_message(neuroweaver):
    told = json.loads(
        neuroweaver("model", "compare", "advisor@1.0.0", "advisor", "--confidence", 0.9, "--json").out
    )

    assert (told["a"]["version"], told["b"]["version"]) == ("1.0.0", "1.1.0")
    [score] = [each for each in told["metrics"] if each["name"] == "judge_score"]
    assert score["is_better"] is False
    assert score["interval"]["confidence"] == 0.9
    assert told["recommended_bump"] == "BUMP_LEVEL_MINOR"


@pytest.mark.parametrize(
    ("a", "b", "code", "told"),
    [
        ("advisor@9.0.0", "advisor", 3, "advisor@9.0.0"),
        ("nobody", "advisor", 3, "nobody"),
        ("advisor@", "advisor", 2, "is not MODEL or MODEL@VERSION"),
    ],
)
def test_what_cannot_be_compared_is_told(neuroweaver, a, b, code, told):
    outcome = neuroweaver("model", "compare", a, b)

    assert outcome.code == code
    assert told in outcome.err


def test_a_confidence_outside_its_bounds_is_refused_by_name(neuroweaver):
    outcome = neuroweaver("model", "compare", "advisor", "advisor", "--confidence", 95, "--json")

    assert outcome.code == 2
    assert outcome.fields[0] == "confidence"


def test_a_dry_run_shows_the_difference_and_changes_nothing(neuroweaver):
    shown = neuroweaver("model", "rollback", "advisor", "1.0.0", "--dry-run")
    told = json.loads(neuroweaver("model", "rollback", "advisor", "1.0.0", "--dry-run", "--json").out)

    assert "1.2.0 is better than 1.1.0" in shown.out
    assert "version" not in told
    assert told["comparison"]["b"]["version"] == "1.2.0"
    assert latest(neuroweaver) == "1.1.0"


def test_a_rollback_shows_the_difference_then_makes_a_version_of_the_old_content(neuroweaver):
    outcome = neuroweaver("model", "rollback", "advisor", "production", "-m", "answers too long", "--yes")

    assert outcome.code == 0
    assert outcome.out.index("1.2.0 is better than 1.1.0") < outcome.out.index("advisor@1.2.0 VALIDATED")
    assert "has the content of 1.0.0" in outcome.out
    assert "answers too long" in neuroweaver("model", "history", "advisor").out
    assert resolved(neuroweaver) == "advisor@1.0.0"


def test_nobody_is_rolled_back_unasked(neuroweaver):
    for extra in ((), ("--json",)):
        outcome = neuroweaver("model", "rollback", "advisor", "1.0.0", *extra)
        assert outcome.code == 2
        assert "--yes" in outcome.err
        assert outcome.out == ""

    assert latest(neuroweaver) == "1.1.0"


def test_whoever_says_no_changes_nothing(neuroweaver, answering):
    answering("n\n")

    outcome = neuroweaver("model", "rollback", "advisor", "1.0.0")

    assert outcome.code == 1
    assert "1.2.0 is better than 1.1.0" in outcome.out
    assert outcome.err.endswith("[y/N] neuroweaver: nothing was changed\n")
    assert latest(neuroweaver) == "1.1.0"


def test_the_alias_moves_to_what_the_rollback_made(neuroweaver):
    outcome = neuroweaver("model", "rollback", "advisor", "1.0.0", "--alias", "production", "--yes", "--json")

    told = json.loads(outcome.out)
    assert told["version"]["version"] == "1.2.0"
    assert told["alias"]["version"] == "1.2.0"
    assert resolved(neuroweaver) == "advisor@1.2.0"


def test_an_alias_that_is_not_there_is_made(neuroweaver):
    outcome = neuroweaver("model", "rollback", "advisor", "1.0.0", "--alias", "candidate", "--yes")

    assert outcome.out.endswith("candidate → advisor@1.2.0\n")


def test_a_version_that_was_made_is_told_although_its_alias_was_not_moved(neuroweaver):
    neuroweaver("model", "rollback", "advisor", "1.0.0", "--yes")

    prose = neuroweaver("model", "rollback", "advisor", "1.1.0", "--alias", "production", "--yes")
    told = neuroweaver("model", "rollback", "advisor", "1.0.0", "--alias", "production", "--yes", "--json")

    assert prose.code == 5
    assert "advisor@1.3.0 TRAINED" in prose.out
    [line] = prose.err.splitlines()
    assert "advisor@1.3.0 was created, but production was not moved to it" in line
    assert "`neuroweaver model alias set advisor production 1.3.0`" in line
    assert json.loads(told.out)["alias"]["version"] == "1.4.0"
    assert resolved(neuroweaver) == "advisor@1.4.0"


def test_an_alias_that_somebody_moved_meanwhile_is_left_alone(registry, neuroweaver, monkeypatch):
    """Between the question and the answer, production goes elsewhere."""

    def point(alias):
        with Client({"registry": registry}) as client:
            client.registry.SetAlias(pb.SetAliasRequest(model_id="advisor", alias=alias, version="1.1.0"))

    class Terminal:
        def isatty(self):
            return True

        def readline(self):
            point("candidate")
            return "y\n"

    neuroweaver("model", "alias", "set", "advisor", "candidate", "1.0.0")
    monkeypatch.setattr("sys.stdin", Terminal())

    outcome = neuroweaver("model", "rollback", "advisor", "1.0.0", "--alias", "candidate")

    assert outcome.code == 5
    assert "candidate was not moved to it" in outcome.err
    assert "points at 1.1.0" in outcome.err
    assert resolved(neuroweaver, "candidate") == "advisor@1.1.0"
    assert latest(neuroweaver) == "1.2.0"


def test_the_latest_version_is_no_goal_of_a_rollback(neuroweaver):
    outcome = neuroweaver("model", "rollback", "advisor", "1.1.0", "--yes")

    assert outcome.code == 5
    assert "1.1.0 is the latest version" in outcome.err
