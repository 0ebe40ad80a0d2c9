from __future__ import annotations

import json
import shutil
import sqlite3

import pytest

from clients.registry_server import adapter, prepared, registry_at


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Six events: a model, two versions, a state, an alias that moves."""
    folder = adapter(tmp_path_factory.mktemp("files"))
    upload = ("model", "upload", "advisor", folder)
    return prepared(
        tmp_path_factory.mktemp("home"),
        [
            ("model", "register", "advisor", "--description", "Answers", "--tag", "team=service"),
            (*upload, "--base", "tiny", "--metric", "f1=0.5", "--metric", "em=0.25", "-m", "the first"),
            (*upload, "--parent", "1.0.0", *(f"--metric=m{number}={number}" for number in range(5))),
            ("model", "state", "advisor@1.0.0", "validated", "-m", "win rate 0.64"),
            ("model", "alias", "set", "advisor", "production", "1.0.0"),
            ("model", "alias", "set", "advisor", "production", "1.1.0", "--no-protect"),
        ],
    )


@pytest.fixture(autouse=True)
def database(home, tmp_path, monkeypatch):
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    with registry_at(tmp_path / "home"):
        yield tmp_path / "home/registry.db"


def told(text):
    """Each event's head line with the lines below it."""
    return [part.strip() for part in ("\n" + text).split("\n#")[1:]]


def edit(database, *statements):
    """As somebody does who may do everything with the database."""
    connection = sqlite3.connect(database)
    guards = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for statement in [*(f"DROP TRIGGER {name}" for (name,) in guards), *statements]:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_the_history_tells_newest_first_what_changed(neuroweaver):
    events = told(neuroweaver("model", "history", "advisor").out)

    assert [event.split()[0] for event in events] == ["6", "5", "4", "3", "2", "1"]
    assert "alias.set advisor@1.1.0 by local" in events[0]
    assert "production 1.0.0 → 1.1.0" in events[0]
    assert "production → 1.0.0, protected" in events[1]
    assert "“win rate 0.64”" in events[2]
    assert "state TRAINED → VALIDATED" in events[2]
    assert "TRAINED; made from 1.0.0; base tiny; 5 metrics; 2 files" in events[3]
    assert "“the first”; TRAINED; base tiny; em 0.25, f1 0.5; 2 files" in events[4]
    assert "“Answers”; team=service" in events[5]


def test_the_history_of_a_version_may_name_it_by_its_alias(neuroweaver):
    found = neuroweaver("model", "history", "advisor@production", "--json").out

    assert {json.loads(line)["version"] for line in found.splitlines()} == {"1.1.0"}


def test_the_history_stops_at_the_limit_and_says_so(neuroweaver):
    prose = neuroweaver("model", "history", "advisor", "--limit", 2).out
    lines = neuroweaver("model", "history", "advisor", "--limit", 2, "--json").out.splitlines()

    assert len(told(prose)) == len(lines) == 2
    assert prose.endswith("… older events: --limit 4\n")
    assert json.loads(lines[0])["action"] == "alias.set"
    assert "older" not in neuroweaver("model", "history", "advisor", "--limit", 6).out


def test_a_whole_chain_is_told_with_its_head(neuroweaver):
    prose = neuroweaver("model", "verify")
    found = json.loads(neuroweaver("model", "verify", "--json").out)

    assert prose.code == 0
    assert "The audit chain is intact: 6 events." in prose.out
    assert found["is_intact"] is True
    assert found["head"]["hash"] in prose.out
    assert found["head"]["key_id"] in prose.out
    assert "--key-id" in prose.out


def test_a_head_that_was_kept_is_still_part_of_a_chain_that_grew(neuroweaver):
    neuroweaver("model", "verify", "--export", "march.json")
    neuroweaver("model", "bump", "advisor", "minor")

    outcome = neuroweaver("model", "verify", "--head", "march.json", "--export", "april.json")

    assert outcome.code == 0
    assert "Event 6, recorded" in outcome.out
    assert "The audit chain is intact: 7 events." in outcome.out
    assert neuroweaver("model", "verify", "--head", "april.json").code == 0


@pytest.mark.parametrize(
    ("statement", "bad"),
    [
        ("UPDATE audit_events SET actor = 'somebody else' WHERE sequence = 3", 3),
        ("UPDATE audit_events SET reason = '' WHERE sequence = 4", 4),
        ("DELETE FROM audit_events WHERE sequence = 2", 2),
    ],
)
def test_a_chain_that_somebody_edited_ends_with_1_at_the_first_bad_event(
    neuroweaver, database, statement, bad
):
    edit(database, statement)

    prose = neuroweaver("model", "verify", "--export", "head.json")
    told_json = neuroweaver("model", "verify", "--json")

    assert prose.code == told_json.code == 1
    assert f"the audit chain is broken at event {bad}: " in prose.err
    assert json.loads(told_json.out)["first_bad_sequence"] == str(bad)
    assert told_json.error["reason"] == "CHAIN_BROKEN"
    assert neuroweaver("model", "verify", "--head", "head.json").code == 2


def test_a_chain_that_was_cut_behind_the_head_is_found_out(neuroweaver, database):
    neuroweaver("model", "verify", "--export", "head.json")
    edit(
        database,
        "DELETE FROM audit_events WHERE sequence = 6",
        "UPDATE audit_heads SET sequence = 5, hash = (SELECT hash FROM audit_events WHERE sequence = 5)",
    )

    assert neuroweaver("model", "verify").code == 0
    outcome = neuroweaver("model", "verify", "--head", "head.json")

    assert outcome.code == 1
    assert "broken at event 6" in outcome.err


def test_a_head_that_was_forged_is_not_believed(neuroweaver, tmp_path):
    neuroweaver("model", "verify", "--export", "head.json")
    head = json.loads((tmp_path / "head.json").read_text())
    (tmp_path / "head.json").write_text(json.dumps({**head, "sequence": "5"}))

    outcome = neuroweaver("model", "verify", "--head", "head.json", "--json")

    assert outcome.code == 1
    assert outcome.out == ""
    error = outcome.error
    assert error["reason"] == "BAD_SIGNATURE"
    assert "head.json cannot be trusted" in error["message"]


def test_another_servers_key_is_not_the_one_that_was_kept(neuroweaver, tmp_path):
    neuroweaver("model", "verify", "--export", "head.json")
    key_id = json.loads((tmp_path / "head.json").read_text())["key_id"]
    shutil.copytree(tmp_path / "home", tmp_path / "other")
    for key in (tmp_path / "other").rglob("*.pem"):
        key.unlink()

    assert neuroweaver("model", "verify", "--key-id", key_id).code == 0
    with registry_at(tmp_path / "other"):
        by_file = neuroweaver("model", "verify", "--head", "head.json")
        by_id = neuroweaver("model", "verify", "--key-id", key_id)

    assert by_file.code == by_id.code == 1
    assert f"not by {key_id}" in by_file.err
    assert f"not by {key_id}" in by_id.err


def test_both_keys_are_trusted_after_a_change_of_keys(neuroweaver, tmp_path):
    neuroweaver("model", "verify", "--export", "head.json")
    old = json.loads((tmp_path / "head.json").read_text())["key_id"]
    shutil.copytree(tmp_path / "home", tmp_path / "other")
    for key in (tmp_path / "other").rglob("*.pem"):
        key.unlink()

    with registry_at(tmp_path / "other"):
        new = json.loads(neuroweaver("model", "verify", "--json").out)["head"]["key_id"]
        outcome = neuroweaver("model", "verify", "--head", "head.json", "--key-id", old, "--key-id", new)

    assert old != new
    assert outcome.code == 0


@pytest.mark.parametrize(
    ("text", "said"), [("{}", "names no event"), ("no", "is not an audit head"), (None, "No such file")]
)
def test_a_head_that_cannot_be_read_is_refused(neuroweaver, tmp_path, text, said):
    if text is not None:
        (tmp_path / "head.json").write_text(text)

    outcome = neuroweaver("model", "verify", "--head", "head.json")

    assert outcome.code == 2
    assert outcome.err.startswith("neuroweaver: --head: ")
    assert said in outcome.err


def test_a_history_of_several_pages_is_read_to_its_end(neuroweaver, monkeypatch):
    monkeypatch.setattr("neuroweaver.client.connection.PAGE_SIZE", 2)

    lines = neuroweaver("model", "history", "advisor", "--json").out.splitlines()
    versions = json.loads(neuroweaver("model", "versions", "advisor", "--json").out)["versions"]

    assert [json.loads(line)["sequence"] for line in lines] == ["6", "5", "4", "3", "2", "1"]
    assert [each["version"] for each in versions] == ["1.1.0", "1.0.0"]
