"""A real PostgreSQL for tests: made in a temporary folder, on loopback, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ports import free_port


def binaries() -> Path | None:
    """The newest installed server's folder, by Debian's layout or from the PATH."""
    versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()]
    if versions:
        return max(versions, key=lambda path: int(path.parent.name))
    found = shutil.which("initdb")
    return Path(found).parent if found else None


@contextmanager
def server(folder: Path, *, is_durable: bool = False) -> Iterator[str]:
    """The URL of an empty server's maintenance database. Without fsync by default: no data outlives a test."""
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
        port = free_port()
        log = Path(base) / "log"
        with log.open("w") as output:
            options = [
                "-c",
                f"fsync={'on' if is_durable else 'off'}",
                "-c",
                f"unix_socket_directories={base}",
                "-c",
                "max_connections=200",
            ]
            process = subprocess.Popen(
                [folder / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), *options],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=base,
                **user,
            )
        try:
            _wait_ready(folder, port, process, log)
            yield f"postgresql://neuroweaver@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)  # ends without waiting for connections
            process.wait(timeout=30)


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
