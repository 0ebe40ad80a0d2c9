"""PromQL and rule files, judged by Prometheus's own promtool."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml


def promtool(*arguments: str, folder: Path) -> None:
    """Fails with its words."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus): no PromQL is checked")
    done = subprocess.run([found, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def check_groups(groups: list[dict[str, Any]], folder: Path) -> None:
    file = folder / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": groups}))
    promtool("check", "rules", str(file), folder=folder)


def check_expressions(expressions: Iterable[str], folder: Path) -> None:
    rules = [{"record": f"tried:{number}", "expr": each} for number, each in enumerate(expressions)]
    assert rules
    check_groups([{"name": "tried", "rules": rules}], folder)
