from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime

import pytest

from clients.registry_server import adapter, prepared, registry_at
from neuroweaver.cli.arguments.values import moment
from neuroweaver.cli.terminal.failures import BadInput

NOW = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """advisor@1.0.0, validated, and advisor@1.1.0, trained."""
    folder = adapter(tmp_path_factory.mktemp("files"))
    return prepared(
        tmp_path_factory.mktemp("home"),
        [
            ("model", "register", "advisor"),
            ("model", "upload", "advisor", folder, "--base", "tiny", "--state", "validated"),
            ("model", "upload", "advisor", folder, "--parent", "1.0.0"),
        ],
    )


@pytest.fixture
def registry(home, tmp_path, monkeypatch):
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    with registry_at(tmp_path):
        yield


def point(neuroweaver, alias, version, *more):
    return neuroweaver("model", "alias", "set", "advisor", alias, version, *more)


def aliases(neuroweaver):
    found = json.loads(neuroweaver("model", "alias", "list", "advisor", "--json").out)["aliases"]
    return {each["alias"]: (each["version"], each["is_protected"]) for each in found}


def test_an_alias_points_at_a_version_named_in_any_way(registry, neuroweaver):
    assert point(neuroweaver, "a", "1.0.0").out == "a → advisor@1.0.0\n"
    assert point(neuroweaver, "b", "latest").out == "b → advisor@1.1.0\n"
    assert point(neuroweaver, "c", "a").out == "c → advisor@1.0.0\n"
    assert point(neuroweaver, "d", "~1.1").out == "d → advisor@1.1.0\n"

    listed = neuroweaver("model", "alias", "list", "advisor").out
    assert "b      1.1.0" in listed
    assert "local" in listed


def test_production_is_protected_unless_somebody_says_otherwise(registry, neuroweaver):
    pointed = point(neuroweaver, "production", "1.0.0", "-m", "first")
    assert pointed.out == "production → advisor@1.0.0  protected\n"

    refused = point(neuroweaver, "production", "1.1.0")
    allowed = point(neuroweaver, "production", "1.1.0", "--no-protect")

    assert refused.code == 5
    assert "quality gate" in refused.err
    assert allowed.out == "production → advisor@1.1.0\n"
    point(neuroweaver, "candidate", "1.0.0", "--protect")
    assert aliases(neuroweaver) == {"production": ("1.1.0", False), "candidate": ("1.0.0", True)}


def test_an_alias_moves_only_from_where_it_was_expected(registry, neuroweaver):
    assert point(neuroweaver, "candidate", "1.0.0", "--expect", "1.1.0").code == 5
    assert point(neuroweaver, "candidate", "1.0.0", "--expect", "-").code == 0
    assert point(neuroweaver, "candidate", "1.1.0", "--expect", "-").code == 5

    late = point(neuroweaver, "candidate", "1.1.0", "--expect", "1.1.0")

    assert late.code == 5
    assert "points at 1.0.0" in late.err
    assert point(neuroweaver, "candidate", "1.1.0", "--expect", "1.0.0").code == 0


def test_a_removed_alias_can_still_be_asked_for_its_past(registry, neuroweaver):
    point(neuroweaver, "candidate", "1.0.0")
    then = datetime.now(UTC).isoformat()
    point(neuroweaver, "candidate", "1.1.0")

    assert neuroweaver("model", "alias", "resolve", "advisor", "candidate").out == "advisor@1.1.0\n"
    assert neuroweaver("model", "alias", "remove", "advisor", "candidate", "--expect", "1.0.0").code == 5
    assert neuroweaver("model", "alias", "remove", "advisor", "candidate", "-m", "done").code == 0

    assert neuroweaver("model", "alias", "resolve", "advisor", "candidate").code == 3
    past = neuroweaver("model", "alias", "resolve", "advisor", "candidate", "--at", then)
    assert past.out == "advisor@1.0.0\n"
    assert "No aliases." in neuroweaver("model", "alias", "list", "advisor").out


def test_a_version_that_is_not_there_takes_no_alias(registry, neuroweaver):
    assert point(neuroweaver, "candidate", "9.0.0").code == 3
    assert point(neuroweaver, "candidate", "nothing").code == 3
    wrong = neuroweaver("model", "alias", "set", "advisor", "Not-A-Name", "1.0.0", "--json")
    assert wrong.code == 2
    assert wrong.fields[0] == "alias"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("2026-11-01T12:00:00Z", "2026-11-01T12:00:00Z"),
        ("2026-11-01T14:00:00+02:00", "2026-11-01T12:00:00Z"),
        ("2 days ago", "2026-11-01T12:00:00Z"),
        ("1 hour ago", "2026-11-03T11:00:00Z"),
    ],
)
def test_a_moment_is_read_in_every_spelling(text, told):
    assert moment(text, "--at", NOW).ToJsonString() == told


def test_a_moment_without_a_zone_is_local_time():
    assert moment("2026-11-01", "--at", NOW).ToDatetime(tzinfo=UTC) == datetime(2026, 11, 1).astimezone()


@pytest.mark.parametrize("text", ["yesterday", "2 fortnights ago", "2026-13-01", "999999 weeks ago", ""])
def test_what_is_no_moment_is_refused(text):
    with pytest.raises(BadInput, match="--at"):
        moment(text, "--at", NOW)
