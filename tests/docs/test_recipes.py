"""Each recipe of docs/recipes.md is applied to a copy of the project, where the test that it brings must pass."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/recipes.md"
COPIED = ("services", "gen", "protos", "clients", "tests", "pyproject.toml", "buf.yaml", "buf.gen.yaml")
MOST_LINES, MOST_FILES = 60, 3

_SECTION = re.compile(r"^## (.+?)$(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_DIFF = re.compile(r"^```diff\n(.*?)^```", re.MULTILINE | re.DOTALL)


def recipes() -> dict[str, str]:
    """The change of each recipe, by its title."""
    return {title: "".join(_DIFF.findall(text)) for title, text in _SECTION.findall(PAGE.read_text())}


def changed_files(diff: str) -> list[str]:
    return re.findall(r"^\+\+\+ b/(.+)$", diff, re.MULTILINE)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project with every recipe in it, and with what is compiled of the files that stay as they are."""
    copy = tmp_path_factory.mktemp("recipes")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("node_modules"))
        else:
            shutil.copy(source, copy)
    for installed in (".venv", "gen/ts/node_modules"):
        (copy / installed).symlink_to(ROOT / installed)
    subprocess.run(["git", "apply", "-"], input="".join(recipes().values()), cwd=copy, text=True, check=True)
    return copy


@pytest.mark.parametrize("title", recipes())
def test_a_recipe_is_short(title: str):
    diff = recipes()[title]
    added = [line for line in diff.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert 0 < len(added) <= MOST_LINES
    assert 0 < len(changed_files(diff)) <= MOST_FILES


@pytest.mark.timeout(3600)
def test_the_tests_of_the_recipes_pass(project: Path):
    programs = Path(sys.executable).parent
    buf = subprocess.run(
        [programs / "buf", "generate"], cwd=project, capture_output=True, text=True, check=False
    )
    assert buf.returncode == 0, buf.stderr
    tests = [name for diff in recipes().values() for name in changed_files(diff) if name.startswith("tests/")]
    assert len(tests) == len(recipes())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=project, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert "passed" in done.stdout
    rules = [programs / "ruff", "check", "--no-cache", *(name for diff in recipes().values() for name in changed_files(diff) if name.endswith(".py"))]  # fmt: skip
    assert subprocess.run(rules, cwd=project, check=False).returncode == 0


def test_the_copy_is_what_was_tested(project: Path):
    where = subprocess.run(
        [sys.executable, "-c", "import pytest, sys; sys.path[:0] = ['services']; import neuroweaver.registry as r; print(r.__file__)"],
        cwd=project, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert where == str(project / "services/neuroweaver/registry/__init__.py")
