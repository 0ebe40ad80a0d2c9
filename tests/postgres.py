"""A real PostgreSQL for tests: made in a temporary folder, on loopback, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from ports import free_port


def binaries() -> Path | None:
    """The newest installed server's folder, by Debian's layout or from the PATH."""
    versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()]
    if versions:
        return max(versions, key=lambda path: int(path.parent.name))
    found = shutil.which("initdb")
    return Path(found).parent if found else None


class Server:
    """One server, which can be stopped and started at its port."""

    def __init__(self, folder: Path, base: Path, user: dict[str, Any], *, is_durable: bool) -> None:
        self._folder = folder
        self._base = base
        self._user = user
        self._port = free_port()
        self._options = [
            "-c",
            f"fsync={'on' if is_durable else 'off'}",
            "-c",
            f"unix_socket_directories={base}",
            "-c",
            "max_connections=200",
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"postgresql://neuroweaver@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        log = self._base / "log"
        with log.open("a") as output:
            self._process = subprocess.Popen(
                [
                    *_become(self._user),
                    *(self._folder / "postgres", "-D", self._base / "data"),
                    *("-h", "127.0.0.1", "-p", str(self._port)),
                    *self._options,
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._base,
            )
        _wait_ready(self._folder, self._port, self._process, log)

    def database(self) -> str:
        """The URL of a new one."""
        name = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} STRATEGY file_copy")
        return self.url.removesuffix("postgres") + name

    def stop(self) -> None:
        if self._process:
            self._process.send_signal(signal.SIGINT)  # ends without waiting for connections
            self._process.wait(timeout=30)
            self._process = None


@contextmanager
def server(folder: Path, *, is_durable: bool = False) -> Iterator[str]:
    """The URL of an empty server's maintenance database. Without fsync by default: no data outlives a test."""
    with controlled(folder, is_durable=is_durable) as started:
        yield started.url


@contextmanager
def controlled(folder: Path, *, is_durable: bool = False) -> Iterator[Server]:
    """As `server`, for who stops and starts it."""
    user = _unprivileged()
    with tempfile.TemporaryDirectory(prefix="nw-pg-") as base:
        data = Path(base) / "data"
        if user:
            os.chown(base, user["user"], user["group"])
        _check(
            [
                folder / "initdb",
                "-D",
                data,
                "-U",
                "neuroweaver",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "-N",
            ],
            user,
        )
        started = Server(folder, Path(base), user, is_durable=is_durable)
        try:
            started.start()
            yield started
        finally:
            started.stop()


def _unprivileged() -> dict[str, Any]:
    """initdb refuses root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
    raise RuntimeError("PostgreSQL does not run as root, and there is no user postgres or nobody")


def _become(user: dict[str, Any]) -> list[str]:
    """What precedes a command that is to run as another user.

    Popen's own `user` forks, and in a process that speaks gRPC its handlers can crash the child.
    """
    program = (
        "import os, sys; user, group = map(int, sys.argv[1:3]); os.setgroups([]); os.setgid(group); "
        "os.setuid(user); os.execv(sys.argv[3], sys.argv[3:])"
    )
    return [sys.executable, "-c", program, str(user["user"]), str(user["group"])] if user else []


def _check(command: list[Any], user: dict[str, Any]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False, **user)
    if done.returncode:
        raise RuntimeError(f"initdb failed: {done.stderr}")


def _wait_ready(folder: Path, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + 60
    while subprocess.run(
        [folder / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)], check=False
    ).returncode:
        if process.poll() is not None or time.monotonic() > give_up:
            raise RuntimeError(f"PostgreSQL did not start: {log.read_text()}")
        time.sleep(0.05)
