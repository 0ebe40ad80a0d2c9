"""The documents' way to back up and restore PostgreSQL, with a Registry whose history must still be whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import postgres
from docs.test_commands import commands_of
from e2e.processes import Mesh, mesh

PAGE = "docs/operations.md"
PROGRAMS = ("pg_dump", "createdb", "pg_restore")


def neuroweaver(running: Mesh, *arguments: str, folder: Path) -> str:
    environ = running.environ | {"NEUROWEAVER_REGISTRY_ADDRESS": running.addresses["registry"]}
    command = [Path(sys.executable).with_name("neuroweaver"), *arguments]
    done = subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def restored_url(postgres_url: str):
    yield f"{postgres_url.rpartition('/')[0]}/neuroweaver_restored"
    import psycopg

    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS neuroweaver_restored WITH (FORCE)")


def test_a_dump_gives_back_models_and_a_whole_history(postgres_url: str, restored_url: str, tmp_path: Path):
    with mesh(tmp_path / "home", "registry", NEUROWEAVER_DATABASE_URL=postgres_url) as running:
        neuroweaver(running, "model", "register", "advisor", folder=tmp_path)
        neuroweaver(running, "model", "create", "advisor", folder=tmp_path)
        neuroweaver(running, "model", "verify", "--export", "head.json", folder=tmp_path)
        environ = os.environ | {
            "NEUROWEAVER_DATABASE_URL": postgres_url,
            "PATH": f"{postgres.binaries()}:{os.environ['PATH']}",
        }
        for command in commands_of(PAGE):
            if command.startswith(PROGRAMS):
                subprocess.run(["bash", "-c", command], env=environ, cwd=tmp_path, check=True, timeout=120)
    with mesh(tmp_path / "home", "registry", NEUROWEAVER_DATABASE_URL=restored_url) as running:
        assert "1.0.0" in neuroweaver(running, "model", "versions", "advisor", folder=tmp_path)
        neuroweaver(running, "model", "verify", "--head", "head.json", folder=tmp_path)
