from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import grpc
import psutil
import pytest

import foreground
from neuroweaver.client import Client
from neuroweaver.local.processes import (
    SERVICES,
    SUPERVISOR,
    Fleet,
    Place,
    ProcessError,
    end_recorded,
    is_free,
    is_service,
    recorded,
    supervisor,
    supervisor_log,
    unwinding_on_signals,
)
from ports import free_ports


@pytest.fixture
def environ(tmp_path, monkeypatch):
    """An environment with a home and ports of its own."""
    ports = iter(free_ports(2 * len(SERVICES) + 1))
    made = {key: value for key, value in os.environ.items() if not key.startswith("NEUROWEAVER_")}
    made["NEUROWEAVER_HOME"] = str(tmp_path / "home")
    made["PYTHONPATH"] = os.pathsep.join(sys.path)
    for service in SERVICES:
        made[f"NEUROWEAVER_{service.upper()}_PORT"] = str(next(ports))
        made[f"NEUROWEAVER_{service.upper()}_METRICS_PORT"] = str(next(ports))
    made["NEUROWEAVER_SERVING_PORT"] = str(next(ports))
    return made


@pytest.fixture
def places(environ):
    return [Place.from_environment(service, environ) for service in SERVICES]


def command_line(environ, *arguments):
    return foreground.start([sys.executable, "-m", "neuroweaver.cli", *arguments], env=environ)


def is_alive(pid):
    return any(is_service(pid, service) for service in SERVICES)


def restarted(places, service, before):
    """The process that the supervisor started in place of one that was killed."""
    give_up = time.monotonic() + 120
    while (pid := recorded(places).get(service, before)) == before:
        assert time.monotonic() < give_up
        time.sleep(0.1)
    return pid


def read_document(stream):
    """The JSON document that a running command has printed."""
    text = ""
    while True:
        line = stream.readline()
        assert line, f"the command has ended: {text}"
        text += line
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            continue


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_up_serves_until_a_signal_and_leaves_nothing_behind(environ, places, number, code):
    process = command_line(environ, "up", "--json")
    try:
        started = read_document(process.stdout)
        with Client({place.service: place.address for place in places}) as client:
            assert all(client.is_healthy(service) for service in SERVICES)
        process.send_signal(number)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()

    assert process.returncode == code
    assert "Traceback" not in err
    assert not any(is_alive(service["pid"]) for service in started["services"])
    assert all(is_free(place.host, place.port) for place in places)
    assert all("serving" in place.log.read_text() for place in places)


def test_a_program_started_by_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with unwinding_on_signals():
            os.kill(os.getpid(), signal.SIGHUP)

            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_service_that_is_killed_is_started_again_and_the_others_go_on(environ, places):
    process = command_line(environ, "up", "--json")
    try:
        pids = {each["service"]: each["pid"] for each in read_document(process.stdout)["services"]}
        os.kill(pids["experiment"], signal.SIGKILL)
        stopped, again = process.stderr.readline(), process.stderr.readline()
        assert stopped.startswith("the experiment has stopped (SIGKILL): ")
        assert stopped.endswith("; it is started again in 1 s\n")
        assert again.startswith("the experiment is serving again (process ")
        restarted = int(again.rstrip(")\n").rpartition(" ")[2])
        assert restarted != pids["experiment"]
        assert is_service(restarted, "experiment")
        assert all(is_alive(pid) for service, pid in pids.items() if service != "experiment")
        assert (places[0].home / "logs" / "experiment.log.1").exists()

        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()

    assert process.returncode == 143
    assert err == ""
    assert not any(map(is_alive, [*pids.values(), restarted]))


def test_detached_services_run_on_until_down_ends_exactly_them(environ, places):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    home, pids = places[0].home, {}
    (home / "jobs" / "old").mkdir(parents=True)
    (home / "registry.db").touch(mode=0o644)
    environ["OPENAI_API_KEY"] = "sk-1"
    try:
        up = command_line(environ, "up", "--detach", "--json")
        out, err = up.communicate(timeout=300)
        assert up.returncode == 0, err
        pids = {each["service"]: each["pid"] for each in json.loads(out)["services"]}
        assert recorded(places) == pids
        assert [path for path in (home, *home.rglob("*")) if path.lstat().st_mode & 0o077] == []
        environments = {service: psutil.Process(pid).environ() for service, pid in pids.items()}
        assert [service for service in pids if "OPENAI_API_KEY" in environments[service]] == ["trainer"]

        again = command_line(environ, "up", "--json")
        _, err = again.communicate(timeout=300)
        assert again.returncode == 5
        assert "already running" in err

        watching = supervisor(home)
        os.kill(pids["experiment"], signal.SIGKILL)
        pids["experiment"] = restarted(places, "experiment", pids["experiment"])
        told = supervisor_log(home).read_text()
        assert "the experiment has stopped (how is not known): " in told
        assert "; it is started again in 1 s\n" in told
        assert recorded(places) == pids

        # A file whose process is another by now: ids are used again.
        places[0].pid_file.write_text(str(bystander.pid))
        assert set(end_recorded(places)) == set(SERVICES) - {places[0].service}
        assert not is_service(watching, SUPERVISOR)
        assert bystander.poll() is None
        assert is_alive(pids[places[0].service])
        places[0].pid_file.write_text(str(pids[places[0].service]))
        down = command_line(environ, "down", "--json")
        out, _ = down.communicate(timeout=300)
        assert [each["pid"] for each in json.loads(out)["ended"]] == [pids[places[0].service]]
        assert not any(map(is_alive, pids.values()))
        assert not list((places[0].home / "run").iterdir())
    finally:
        bystander.kill()
        bystander.wait()
        if pid := supervisor(home):
            os.kill(pid, signal.SIGKILL)
        for pid in filter(is_alive, pids.values()):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("service", "variable"),
    [
        ("trainer", "NEUROWEAVER_TRAINER_PORT"),
        ("trainer", "NEUROWEAVER_TRAINER_METRICS_PORT"),
        ("deployer", "NEUROWEAVER_SERVING_PORT"),
    ],
)
def test_a_taken_port_is_named_with_its_variable_before_anything_starts(environ, places, service, variable):
    taken = int(environ[variable])
    with socket.socket() as listener, Fleet(environ) as fleet:
        listener.bind(("127.0.0.1", taken))
        listener.listen()
        with pytest.raises(ProcessError, match=rf"port {taken} of the {service} .* {variable}"):
            fleet.start()

    assert not places[0].home.exists()


def test_the_port_of_a_router_that_a_killed_deployer_left_is_no_obstacle(environ, places):
    deployer = places[SERVICES.index("deployer")]
    config = deployer.home / "deployments" / "_router" / "config.json"
    listens = "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); print(1, flush=True); input()"

    def taken_by(*arguments):
        command = [sys.executable, "-c", listens, str(deployer.serving_port), *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process.stdout.readline()
        return process

    for arguments, is_own in (
        (["--config", str(config)], True),
        (["--config", "/elsewhere/config.json"], False),
    ):
        with taken_by(*arguments) as router:
            assert not is_free(deployer.host, deployer.serving_port)
            assert deployer.is_own_router(deployer.serving_port) is is_own
            assert not deployer.is_own_router(deployer.port)
            router.kill()


def test_a_service_that_cannot_start_is_told_with_its_last_words(environ):
    environ["NEUROWEAVER_DATABASE_URL"] = "mysql://secret@host"
    with pytest.raises(Exception, match="NEUROWEAVER_DATABASE_URL"):
        Fleet(environ)

    del environ["NEUROWEAVER_DATABASE_URL"]
    with Fleet(environ, ["trainer"]) as fleet:
        fleet._environ["NEUROWEAVER_TRAINER_SLOTS"] = "none"
        fleet.start()
        with pytest.raises(
            ProcessError, match=r"the trainer has stopped \(exit code 1\): .*NEUROWEAVER_TRAINER_SLOTS=none"
        ):
            fleet.wait_until_healthy()


def test_a_service_that_ignores_sigterm_is_killed(environ, monkeypatch):
    monkeypatch.setattr("neuroweaver.local.processes._GRACE_S", 0.5)
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE)
    process.stdout.readline()
    with Fleet(environ, ["registry"]) as fleet:
        fleet._processes["registry"] = process

    assert process.returncode == -signal.SIGKILL
    process.stdout.close()


def test_without_pid_files_there_is_nothing_to_end(environ, places):
    process = command_line(environ, "down")
    out, _ = process.communicate(timeout=300)

    assert process.returncode == 0
    assert "Nothing to stop" in out


def test_what_is_later_work_answers_unimplemented(environ, places):
    from neuroweaver.v1 import trainer_pb2
    from neuroweaver.v1.trainer_pb2_grpc import TrainerServiceStub

    by_name = {place.service: place.address for place in places}
    with Fleet(environ, ["trainer"]) as fleet:
        fleet.start()
        fleet.wait_until_healthy()
        with grpc.insecure_channel(by_name["trainer"]) as trainer:
            config = trainer_pb2.TrainingConfig(
                model_name="advisor",
                base_model="smollm2-135m-instruct",
                dataset_path="builtin:automotive",
                specialization="service_advisor",
            )
            with pytest.raises(grpc.RpcError) as refusal:
                TrainerServiceStub(trainer).EstimateTraining(
                    trainer_pb2.EstimateTrainingRequest(config=config)
                )
            assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert "does not estimate jobs yet" in refusal.value.details()
