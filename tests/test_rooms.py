"""The walls between rooms: every contract of import-linter fails when it is broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "pyproject.toml"
CONTRACTS: list[dict[str, Any]] = tomllib.loads(CONFIG.read_text())["tool"]["importlinter"]["contracts"]


@pytest.fixture
def tree(tmp_path):
    for part in ("services", "clients/python"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def file_of(tree: Path, module: str) -> Path:
    for part in ("services", "clients/python"):
        path = tree / part / Path(*module.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    raise LookupError(module)


def forbidden_import(contract: dict[str, Any]) -> tuple[str, str]:
    """A module, and what it must not import by this contract."""
    if contract["type"] == "forbidden":
        return contract["source_modules"][0], contract["forbidden_modules"][0]
    highest, lowest = (contract["layers"][end].split(" | ")[0] for end in (0, -1))
    container = contract.get("containers", [""])[0]
    prefix = f"{container}." if container else ""
    return f"{prefix}{lowest}", f"{prefix}{highest}"


def outcomes(tree: Path) -> dict[str, str]:
    """KEPT or BROKEN, by the name of the contract."""
    config = tree / "pyproject.toml"
    config.write_text(CONFIG.read_text())
    paths = [str(tree / part) for part in ("services", "clients/python")]
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--config", config, "--no-cache"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"},
        cwd=tree, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = " ".join(done.stdout.split())
    verdicts = {}
    for contract in CONTRACTS:
        after = said.partition(f"{contract['name']} ")[2]
        verdicts[contract["name"]] = after.split()[0] if after else done.stderr
    return verdicts


def test_a_contract_that_is_broken_on_purpose_fails(tree):
    for contract in CONTRACTS:
        module, imported = forbidden_import(contract)
        with file_of(tree, module).open("a") as file:
            file.write(f"\nimport {imported}\n")
    assert outcomes(tree) == {contract["name"]: "BROKEN" for contract in CONTRACTS}


def test_a_new_room_needs_a_place_of_its_own(tree):
    (tree / "services/neuroweaver/registry/attic.py").touch()
    broken = {name for name, outcome in outcomes(tree).items() if outcome == "BROKEN"}
    assert broken == {"Rooms of the Registry"}
