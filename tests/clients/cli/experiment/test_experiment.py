from __future__ import annotations

import json
import random
import struct
import threading
import zlib
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from clients.experiment_server import experiments_at
from clients.registry_server import adapter, registry_at
from neuroweaver.cli.experiment import effects
from neuroweaver.cli.program import run
from neuroweaver.cli.terminal import output
from neuroweaver.client.connection import Client
from neuroweaver.v1 import experiment_pb2 as pb

SPEC = """
title: Is the tuned one better?
control_variant_id: control
variants:
  - {variant_id: control, weight: 0.5}
  - {variant_id: tuned, weight: 0.5, parameters: {temperature: 0.2}}
metrics:
  - metric_id: score
    goal: increase
    mean: {source: {event_name: score, aggregation: mean}}
  - metric_id: solved
    goal: METRIC_GOAL_INCREASE
    proportion: {event_name: solved}
target_metric_id: score
min_units_per_variant: 100
targeting:
  - conditions:
      - {attribute: plan, operator: in, values: [{string_value: pro}]}
"""

MODELS_SPEC = (
    SPEC.partition("targeting:")[0]
    .replace("control, weight: 0.5", "control, weight: 0.5, target: {model_id: advisor, alias: production}")
    .replace("parameters: {temperature: 0.2}", "target: {model_id: advisor, version: 2.0.0}")
)


@pytest.fixture
def service(tmp_path, monkeypatch):
    with experiments_at(tmp_path) as address:
        monkeypatch.setenv("NEUROWEAVER_EXPERIMENT_ADDRESS", address)
        yield address


@pytest.fixture
def spec(tmp_path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def running(service, neuroweaver, spec):
    assert neuroweaver("experiment", "create", spec, "--id", "t").code == 0
    assert neuroweaver("experiment", "start", "t").code == 0


def record(address: str, units: int = 400, lift: float = 1.0, first: int = 0) -> None:
    """Scores around 10, of the tuned variant `lift` higher, from units that alternate between the two."""
    draw, now = random.Random(first), Timestamp()
    now.GetCurrentTime()
    events = []
    for number in range(first, first + units):
        variant = ("control", "tuned")[number % 2]
        value = draw.gauss(10, 2) + lift * (number % 2)
        bodies = [
            {"exposure": pb.Exposure(assigned_variant_id=variant)},
            {"metric": pb.MetricSample(name="score", value=value)},
        ]
        if draw.random() < 0.3:
            bodies.append({"metric": pb.MetricSample(name="solved", value=1)})
        for place, body in enumerate(bodies):
            events.append(
                pb.ExperimentEvent(
                    event_id=f"e{number}-{place}", test_id="t", unit_id=f"u{number}", event_time=now, **body
                )
            )
    batches = [events[start : start + 500] for start in range(0, len(events), 500)]
    with Client({"experiment": address}) as client:
        requests = (pb.RecordEventsRequest(rows=pb.EventRows(events=batch)) for batch in batches)
        answer = client.experiment.RecordEvents(requests)
    assert answer.accepted == len(events), answer


def shades(png: bytes) -> tuple[int, int, int]:
    """Width, height, and how many different bytes the picture's rows hold."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    at, data = 8, b""
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += 12 + length
    return width, height, len(set(zlib.decompress(data)))


@pytest.mark.parametrize(
    ("old", "new", "field", "told"),
    [
        ("weight: 0.5, par", "wieght: 0.5, par", "variants[1].wieght", "did you mean weight?"),
        ("goal: increase", "goal: sideways", "metrics[0].goal", "is not one of increase, decrease"),
        ("{variant_id: control, weight: 0.5}", "control", "variants[0]", "is not a group"),
        ("weight: 0.5}\n  -", "weight: half}\n  -", "variants[0].weight", "half"),
        ("weight: 0.5}\n  -", "weight: 0.7}\n  -", "spec.variants", "1.2"),
        ("min_units_per_variant: 100", "min_units_per_variant: 1", "spec.min_units_per_variant", "2"),
        ("title:", "- title:", "SPEC", "spec.yaml:"),
    ],
)
def test_a_refusal_names_the_field(service, neuroweaver, spec, old, new, field, told):
    assert old in SPEC
    spec.write_text(SPEC.replace(old, new))

    outcome = neuroweaver("experiment", "create", spec, "--json")

    assert outcome.code == 2
    assert outcome.fields == [field]
    assert told in outcome.error["message"]


def test_a_check_stores_nothing(service, neuroweaver, spec):
    assert neuroweaver("experiment", "create", spec, "--id", "t", "--check").code == 0
    assert "No experiments." in neuroweaver("experiment", "list").out
    assert neuroweaver("experiment", "show", "t").code == 3


def test_an_experiment_goes_through_its_states(running, neuroweaver):
    assert "PAUSED" in neuroweaver("experiment", "pause", "t", "-m", "an incident").out
    assert "an incident" in neuroweaver("experiment", "show", "t").out
    assert neuroweaver("experiment", "list", "--filter", "state=RUNNING").out == "No experiments.\n"
    assert "RUNNING" in neuroweaver("experiment", "start", "t").out
    assert "Is the tuned one better?" in neuroweaver("experiment", "list").out
    assert "STOPPED" in neuroweaver("experiment", "stop", "t").out
    assert neuroweaver("experiment", "start", "t").code == 5


def test_new_weights_open_a_phase(running, neuroweaver):
    moved = neuroweaver("experiment", "weights", "t", "control=0.3", "tuned=0.7", "-m", "it does well")

    assert "70.0%" in moved.out
    shown = json.loads(neuroweaver("experiment", "show", "t", "--json").out)
    assert [each["reason"] for each in shown["phases"]][1:] == ["it does well"]
    assert neuroweaver("experiment", "weights", "t", "control=0.3", "tuned=0.3").code == 2
    assert "'much' is not a number" in neuroweaver("experiment", "weights", "t", "control=much").err


def test_a_unit_gets_its_variant_by_its_attributes(running, neuroweaver):
    inside = neuroweaver("experiment", "assign", "t", "u", "--attribute", "plan=pro", "--json")
    outside = neuroweaver("experiment", "assign", "t", "u", "--attribute", "plan=free")

    assert json.loads(inside.out)["is_participant"] is True
    assert outside.out == "control  not targeted\n"
    assert neuroweaver("experiment", "assign", "t", "u", "--attribute", "plan").code == 2


@pytest.mark.parametrize("command", [("results", "t"), ("watch", "t", "--once"), ("show", "t")])
def test_tables_fit_into_80_columns(service, running, neuroweaver, monkeypatch, command):
    record(service)
    wide = neuroweaver("experiment", *command).out
    monkeypatch.setattr(output, "_PIPE_WIDTH", 80)

    narrow = neuroweaver("experiment", *command).out

    assert max(map(len, narrow.splitlines())) <= 80
    rows = [line.rstrip() for line in wide.splitlines() if line.startswith("  tuned")]
    assert all(row in narrow for row in rows)


def test_results_show_both_methods_and_the_plot_has_content(service, running, neuroweaver, tmp_path):
    record(service)
    picture, page = tmp_path / "out.png", tmp_path / "out.html"

    outcome = neuroweaver("experiment", "results", "t", "--plot", picture)

    assert outcome.code == 0, outcome.err
    for told in ("SHIP tuned", "always valid", "fixed horizon", "target, higher is better", "solved"):
        assert told in outcome.out
    width, height, different = shades(picture.read_bytes())
    assert width > 800
    assert height > 400
    assert different > 20
    assert neuroweaver("experiment", "results", "t", "--plot", page, "--json").code == 0
    assert "data:image/png;base64,iVBOR" in page.read_text()
    assert "SHIP tuned" in page.read_text()
    assert 'src="http' not in page.read_text()


def test_a_past_moment_has_its_own_results(service, running, neuroweaver):
    record(service)

    before = neuroweaver("experiment", "results", "t", "--as-of", "1 hour ago", "--json")

    assert sum(int(each["units"]) for each in json.loads(before.out)["variants"]) == 0
    assert neuroweaver("experiment", "results", "t", "--phase", "7").code == 2
    refused = neuroweaver("experiment", "results", "t", "--as-of", "soon", "--json")
    assert refused.fields[0] == "--as-of"


def test_without_data_there_is_nothing_to_draw(running, neuroweaver, tmp_path):
    outcome = neuroweaver("experiment", "results", "t", "--plot", tmp_path / "out.png")

    assert outcome.code == 5
    assert "no effect with an interval yet" in outcome.err
    assert not (tmp_path / "out.png").exists()
    assert neuroweaver("experiment", "results", "t", "--plot", "out.txt").code == 2


def test_a_look_draws_the_intervals(service, running, neuroweaver):
    record(service)

    outcome = neuroweaver("experiment", "watch", "t", "--once")

    assert "units: control 200  tuned 200" in outcome.out
    assert "●" in outcome.out
    assert "│" in outcome.out


def test_the_progress_of_an_effect_keeps_every_moment_in_order(service, running, tmp_path):
    history = []
    with Client({"experiment": service}) as client:
        for first in (0, 400, 800):
            record(service, first=first)
            history.append(client.experiment.AnalyzeExperiment(pb.AnalyzeExperimentRequest(test_id="t")))
        spec = client.experiment.GetExperiment(pb.GetExperimentRequest(test_id="t")).spec

    (progress,) = effects.progress_of(history, "score")

    assert progress.variant_id == "tuned"
    assert progress.is_relative
    assert list(progress.times) == sorted(progress.times)
    widths = [upper - lower for lower, upper in progress.always_valid]
    assert widths == sorted(widths, reverse=True)
    for always, fixed in zip(progress.always_valid, progress.fixed_horizon, strict=True):
        assert always[0] < fixed[0] < fixed[1] < always[1]
    effects.write(history, spec, tmp_path / "progress.png")
    assert shades((tmp_path / "progress.png").read_bytes())[2] > 20


def test_a_watch_ends_with_the_conclusion(service, running, neuroweaver, capfd):
    record(service)
    codes = []
    watching = threading.Thread(target=lambda: codes.append(run(["experiment", "watch", "t", "--json"])))
    watching.start()
    with Client({"experiment": service}) as client:
        client.experiment.ConcludeExperiment(pb.ConcludeExperimentRequest(test_id="t"))
    watching.join(120)

    assert codes == [0]
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert events[-1]["state_changed"]["to_state"] == "EXPERIMENT_STATE_CONCLUDED"
    assert neuroweaver("experiment", "watch", "t").code == 0


def test_a_watch_in_a_pipe_tells_what_happens_and_ends_with_the_results(service, running, monkeypatch, capfd):
    record(service)
    begun, watch_results = threading.Event(), Client.watch_results
    monkeypatch.setattr(Client, "watch_results", lambda *a, **k: (begun.set(), watch_results(*a, **k))[1])
    watching = threading.Thread(target=lambda: run(["experiment", "watch", "t"]))
    watching.start()
    assert begun.wait(120)
    with Client({"experiment": service}) as client:
        client.experiment.PauseExperiment(pb.PauseExperimentRequest(test_id="t", reason="an incident"))
        client.experiment.ConcludeExperiment(pb.ConcludeExperimentRequest(test_id="t"))
    watching.join(120)

    told = capfd.readouterr().out
    assert "now CONCLUDED" in told
    assert told.index("now CONCLUDED") < told.index("units: control 200  tuned 200")


def test_a_conclusion_follows_the_verdict_unless_forced(service, running, neuroweaver):
    record(service)

    assert neuroweaver("experiment", "conclude", "t").code == 2
    assert neuroweaver("experiment", "conclude", "t", "--winner", "control", "--yes").code == 5
    assert neuroweaver("experiment", "conclude", "t", "--winner", "control", "--force", "--yes").code == 2
    ended = neuroweaver("experiment", "conclude", "t", "--yes", "-m", "as planned")

    assert "CONCLUDED" in ended.out
    assert "tuned" in ended.out
    assert "as planned" in ended.out


def test_a_conclusion_moves_the_alias_of_the_winner_in_the_registry(tmp_path, monkeypatch, neuroweaver):
    with registry_at(tmp_path) as registry, experiments_at(tmp_path, registry) as experiments:
        monkeypatch.setenv("NEUROWEAVER_EXPERIMENT_ADDRESS", experiments)
        assert neuroweaver("model", "register", "advisor").code == 0
        for version, fill in (("1.0.0", b"a"), ("2.0.0", b"b")):
            folder = adapter(tmp_path / version, fill=fill)
            upload = ("model", "upload", "advisor", folder, "--base", "tiny", "--version", version)
            assert neuroweaver(*upload).code == 0
            assert neuroweaver("model", "state", f"advisor@{version}", "validated").code == 0
        assert neuroweaver("model", "alias", "set", "advisor", "production", "1.0.0").code == 0
        made = tmp_path / "models.yaml"
        made.write_text(MODELS_SPEC)
        assert neuroweaver("experiment", "create", made, "--id", "t").code == 0
        assert neuroweaver("experiment", "start", "t").code == 0
        record(experiments)

        assert neuroweaver("experiment", "conclude", "t", "--yes", "-m", "it is better").code == 0

        moved = json.loads(neuroweaver("model", "alias", "resolve", "advisor", "production", "--json").out)
        history = neuroweaver("model", "history", "advisor").out
    assert moved["version"] == "2.0.0"
    assert history.count("alias.set") == 2
    assert "it is better" in history


def test_a_plan_tells_units_and_days(service, neuroweaver):
    plan = ("experiment", "plan", "--proportion", 0.1, "--effect", "5%", "--per-day", 20000)

    told, fixed = json.loads(neuroweaver(*plan, "--json").out), neuroweaver(*plan, "--fixed", "--json")

    single = json.loads(fixed.out)
    # 2 (z(0.975) + z(0.8))^2 p (1 - p) / d^2 = 57 000 per arm, within the exactness of that rule of thumb
    assert int(single["units_per_arm"][0]) == pytest.approx(57_000, rel=0.05)
    assert int(told["total_units"]) > int(single["total_units"])
    assert "units per arm" in neuroweaver(*plan).out
    mean = ("experiment", "plan", "--mean", 10, "--std", 2, "--units", 1000, "--weights", "0.5,0.5")
    assert float(json.loads(neuroweaver(*mean, "--json").out)["absolute_effect"]) > 0
    ratio = ("experiment", "plan", "--ratio", "3,2,10,4,0.5", "--effect", "0.01", "--power", 0.9)
    assert neuroweaver(*ratio).code == 0


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ((), "--mean"),
        (("--mean", "1"), "--std"),
        (("--ratio", "1,2"), "--ratio"),
        (("--proportion", "0.1", "--effect", "much"), "--effect"),
        (("--proportion", "0.1", "--effect", "1%", "--weights", "a,b"), "--weights"),
        (("--proportion", "1.5", "--effect", "1%"), "proportion.rate"),
    ],
)
def test_a_plan_names_the_option_that_is_wrong(service, neuroweaver, options, field):
    outcome = neuroweaver("experiment", "plan", *options, "--json")

    assert outcome.code == 2
    assert outcome.fields[0] == field
