from __future__ import annotations

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
