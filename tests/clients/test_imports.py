"""What the client imports, and when: each in an interpreter of its own, since imports cannot be undone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = (
    "cryptography", "google.protobuf", "grpc", "jinja2", "matplotlib", "numpy", "opentelemetry", "pydantic", "scipy",
    "sqlalchemy", "torch", "yaml",
)  # fmt: skip

# A client's wheel does without these; matplotlib is an extra.
SERVER = (
    "aiosqlite", "alembic", "kubernetes", "matplotlib", "numpy", "psycopg", "scipy", "sqlalchemy", "statsmodels",
    "torch", "transformers",
)  # fmt: skip

BLOCKED = f"""
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {SERVER!r}:
            raise ImportError(f"{{name}} is not installed")

sys.meta_path.insert(0, Blocked())
for root in ("cli", "client", "local", "oci", "report"):
    package = importlib.import_module(f"neuroweaver.{{root}}")
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            print(module.name)
"""


def run(code: str) -> str:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_imports_nothing_heavy():
    out = run(
        f"import sys; from neuroweaver.cli import main; main(['--help']); "
        f"print('imported:', sorted(set(sys.modules) & set({HEAVY}) ))"
    )

    assert out.splitlines()[-1] == "imported: []"


@pytest.mark.parametrize("command", ["up", "down"])
def test_processes_of_this_machine_need_neither_stubs_nor_a_tracer(command):
    out = run(
        f"import sys; from neuroweaver.cli import main; main(['{command}', '--help']); "
        "print('imported:', sorted(name for name in sys.modules if name.startswith(('neuroweaver.v1', 'opentelemetry.sdk'))))"
    )

    assert out.splitlines()[-1] == "imported: []"


def test_one_service_is_called_without_the_stubs_of_the_others():
    out = run(
        "import sys; from neuroweaver.client import Client; client = Client(); client.registry; "
        "print(sorted(name for name in sys.modules if name.endswith('_pb2_grpc')))"
    )

    assert out == "['neuroweaver.v1.registry_pb2_grpc']\n"


def test_every_module_of_the_client_is_imported_without_what_servers_need():
    modules = run(BLOCKED).split()

    assert len(modules) > 50
    assert "neuroweaver.cli.demo" in modules
