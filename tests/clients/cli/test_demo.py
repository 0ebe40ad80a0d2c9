from __future__ import annotations

import io
import os
import signal
import socket
import sys

import protovalidate
import pytest
from rich.console import Console

import foreground
from clients import scripted
from neuroweaver.cli import demo
from neuroweaver.client import Client
from neuroweaver.client.training_history import History
from neuroweaver.local.processes import SERVICES, Fleet, Place
from neuroweaver.report import report
from ports import free_ports


@pytest.fixture
def console():
    return Console(record=True, width=120, file=io.StringIO())


def test_the_demos_config_keeps_the_rules_of_the_contract():
    protovalidate.validate(demo.demo_config({}))


@pytest.mark.parametrize(
    ("environ", "judge"),
    [
        ({}, "embedded"),
        ({"OPENAI_API_KEY": "key"}, demo.ENDPOINT_JUDGE),
        ({"OPENAI_API_KEY": "key", "NEUROWEAVER_FEEDBACK_MODEL": "judge-1"}, "judge-1"),
    ],
)
def test_the_judge_is_the_endpoints_where_there_is_a_key(environ, judge):
    assert demo.demo_config(environ).feedback_model == judge


def test_the_demo_has_a_home_and_a_database_of_its_own(console, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NEUROWEAVER_HOME", raising=False)
    monkeypatch.setenv("NEUROWEAVER_DATABASE_URL", "postgresql://production")
    monkeypatch.setenv("NEUROWEAVER_REGISTRY_ADDRESS", "elsewhere:1")

    environ = demo._environment(console)

    assert environ["NEUROWEAVER_HOME"] == str(tmp_path / "demo-report" / "home")
    assert "NEUROWEAVER_DATABASE_URL" not in environ
    assert "NEUROWEAVER_REGISTRY_ADDRESS" not in environ


def test_taken_ports_are_told_and_free_ones_used(console, monkeypatch):
    [port, *others] = free_ports(8)
    names = [
        f"NEUROWEAVER_{s}_{p}"
        for s in ("REGISTRY", "TRAINER", "DEPLOYER", "EXPERIMENT")
        for p in ("PORT", "METRICS_PORT")
    ]
    for name, free in zip(names, [port, *others], strict=True):
        monkeypatch.setenv(name, str(free))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        environ = demo._environment(console)

        assert Place.from_environment("registry", environ).port != port
        assert len({environ[name] for name in names}) == 8
        assert str(port) in console.export_text()


def test_the_summary_tells_times_results_and_three_answers(console):
    events = scripted.successful()

    demo._summarize(console, scripted.job(events), History.of(events), 412.0)

    told = console.export_text()
    for part in (
        "2 min 21 s",
        "2.91 → 2.07",
        "46 held-out pairs",
        "74% (95% interval 51% to 88%)",
        "-0.118 → 0.842",
    ):
        assert part in told
    assert "service-advisor@1.0.0" in told
    assert told.count("╭") == 6


def test_the_lines_to_look_further_reach_this_home_and_these_ports(console, monkeypatch, tmp_path):
    events = scripted.successful()
    made = report.Report(scripted.job(events), History.of(events), None, "127.0.0.1:7000", "127.0.0.1:50051")
    fleet = Fleet({"NEUROWEAVER_HOME": str(tmp_path), "NEUROWEAVER_TRAINER_PORT": "7000"})

    demo._point_further(console, fleet, made, keep=False)

    told = console.export_text()
    assert f"export NEUROWEAVER_HOME={tmp_path} NEUROWEAVER_TRAINER_PORT=7000" in told
    assert "REGISTRY_PORT" not in told
    assert f"train show {scripted.JOB_ID}" in told
    assert "buf curl" in told


def test_ctrl_c_ends_everything_that_the_demo_started(tmp_path):
    environ = {
        key: value for key, value in os.environ.items() if not key.startswith(("NEUROWEAVER_", "KEEP"))
    }
    environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    process = foreground.start([sys.executable, "-m", "neuroweaver.cli.demo"], cwd=tmp_path, env=environ)
    addresses = {}
    try:
        for line in process.stdout:
            match line.split():
                case [service, address] if service in SERVICES:
                    addresses[service] = address
            if len(addresses) == len(SERVICES):
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()

    assert process.returncode == 130, out + err
    assert "Traceback" not in err
    with Client(addresses) as client:
        assert not any(client.is_healthy(service, timeout_s=1) for service in addresses)
    assert not (tmp_path / "demo-report" / "report.html").exists()
