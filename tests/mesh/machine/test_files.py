from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from neuroweaver.mesh.machine.files import keep_private, short_path


def test_what_lies_in_a_home_is_taken_from_all_but_its_owner(tmp_path):
    home = tmp_path / "home"
    (home / "jobs" / "j1").mkdir(parents=True)
    (home / "logs").mkdir()
    for file in (home / "trainer.db", home / "logs" / "trainer.log", tmp_path / "elsewhere"):
        file.write_text("x")
        file.chmod(0o644)
    (home / "link").symlink_to(tmp_path / "elsewhere")
    (home / "executable").touch()
    (home / "executable").chmod(0o755)

    assert keep_private(home) == []

    for path in (
        home,
        home / "trainer.db",
        home / "logs",
        home / "logs" / "trainer.log",
        home / "jobs" / "j1",
    ):
        assert path.stat().st_mode & 0o077 == 0, path
    assert stat.S_IMODE((home / "executable").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o644


def test_a_home_that_is_not_there_yet_is_no_trouble(tmp_path):
    assert keep_private(tmp_path / "none") == []


def test_a_home_that_is_a_link_is_followed(tmp_path):
    (tmp_path / "disk").mkdir(mode=0o755)
    (tmp_path / "disk" / "trainer.db").touch(mode=0o644)
    (tmp_path / "home").symlink_to(tmp_path / "disk")

    assert keep_private(tmp_path / "home") == []

    assert (tmp_path / "disk").stat().st_mode & 0o077 == 0
    assert (tmp_path / "disk" / "trainer.db").stat().st_mode & 0o077 == 0


def test_a_folder_of_everybodys_is_left_alone_and_named(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    (tmp_path / "shared" / "theirs").touch(mode=0o644)

    assert keep_private(tmp_path / "shared") == [tmp_path / "shared"]

    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o1777
    assert stat.S_IMODE((tmp_path / "shared" / "theirs").stat().st_mode) == 0o644


@pytest.mark.parametrize("length", [1, 200])
def test_a_socket_has_an_address_however_long_its_path_is(tmp_path: Path, length: int):
    path = tmp_path / ("x" * length) / "control.sock"
    path.parent.mkdir()
    with short_path(path) as own, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(own)
        listener.listen()
        with short_path(path) as others, socket.socket(socket.AF_UNIX) as caller:
            caller.connect(others)
    assert path.is_socket()
