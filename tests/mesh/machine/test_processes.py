from __future__ import annotations

import os
import subprocess
import sys

import pytest

from neuroweaver.mesh.machine import processes


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (3, "ended with status 3"),
        (-11, "was ended by SIGSEGV"),
        (-9, "was ended by SIGKILL"),
        (-63, "was ended by signal 63"),
    ],
)
def test_a_signal_is_told_as_such(status, told):
    assert processes.ending(status) == told


def test_a_process_that_reads_no_secret_starts_and_ends_all_the_same(tmp_path):
    process = processes.start(["true"], {"PATH": "/usr/bin:/bin"}, tmp_path / "log", secret="s" * 50)
    assert process.wait(60) == 0


def test_the_whole_session_ends_with_its_process(tmp_path):
    command = ["sh", "-c", "sleep 600 & echo $!; wait"]
    process = processes.start(command, {"PATH": "/usr/bin:/bin"}, tmp_path / "log")
    processes.kill_session(process.pid)
    assert process.wait(60) == -9
    processes.kill_session(process.pid)  # nothing is left, which is no error


SAYS_ITS_NAME = (
    "from neuroweaver.mesh.machine.processes import own_name; print(own_name(), flush=True); input()"
)


def test_a_process_is_gone_once_it_has_ended_and_not_before():
    named = [sys.executable, "-c", SAYS_ITS_NAME]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(named, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as process:
        name = process.stdout.readline().decode().strip()
        assert 0 < len(name) <= 40
        assert not processes.is_gone(name)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert processes.is_gone(name)  # though its parent has not waited for it yet
    assert processes.is_gone(name)


def test_only_what_ran_here_is_known_to_be_gone():
    own = processes.own_name()
    machine, pid, started = own.split(".")
    assert not processes.is_gone(own)
    assert processes.is_gone(f"{machine}.{pid}.{int(started) - 1}")  # its id is another's now
    assert not processes.is_gone(f"{'0' * 16}.{pid}.{int(started) - 1}")
    for name in ("", "01J0000000000000000000000", f"{machine}..", f"{machine}.x.1", f".{pid}.{started}"):
        assert not processes.is_gone(name)
