"""The project as a package: built, installed beside nothing of the checkout, and used."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.shell import environment
from serving.models import tiny_base

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Iterator[tuple[Path, dict[str, str]]]:
    """The folder of programs of an environment that has the wheel, and variables for a home of its own.

    The packages it depends on are those of this environment, since installing torch once more would take minutes.
    """
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    subprocess.run(build, check=True, timeout=300, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv")
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-compile", "--target", packages, wheel], check=True, timeout=300
    )
    # A folder that a .pth file names is searched, and the .pth files in it are not: the checkout stays out.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    programs = folder / "venv" / "bin"
    program = programs / "neuroweaver"
    program.write_text(
        f"#!{programs / 'python'}\nimport sys\nfrom neuroweaver.cli import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)

    tiny_base(folder / "home" / "models" / "tiny", context=2048)
    (folder / "home" / "data").mkdir()
    rows = [{"question": f"What does part {n} cost?", "answer": f"It costs {n} dollars."} for n in range(64)]
    (folder / "home/data/parts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environ = environment(folder / "home")
    environ.pop("PYTHONPATH", None)
    yield programs, environ
    subprocess.run([program, "down"], env=environ, check=False, timeout=120)


def test_an_installed_wheel_trains_a_model_and_serves_it(installed: tuple[Path, dict[str, str]]):
    programs, environ = installed

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            command, env=environ, cwd="/", capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = run(
        programs / "python",
        "-c",
        "import neuroweaver.registry as r, neuroweaver.cli as c; print(r.__file__, c.__file__)",
    )
    assert all(path.startswith(str(programs.parent)) for path in where.split())
    neuroweaver = programs / "neuroweaver"
    run(neuroweaver, "up", "--detach")
    run(
        neuroweaver, "train", "start", "--model-name", "advisor", "--base-model", "tiny",
        "--specialization", "service_advisor", "--dataset", "parts.jsonl", "--epochs", "1", "--no-enable-rlaif",
        "--max-seq-length", "1024", "--watch",
    )  # fmt: skip
    run(neuroweaver, "deploy", "apply", "advisor@latest", "--yes")
    (deployment,) = json.loads(run(neuroweaver, "deploy", "list", "--json"))["deployments"]
    assert deployment["state"] == "DEPLOYMENT_STATE_READY"
    run(neuroweaver, "down")


def test_the_wheel_holds_what_the_program_reads(installed: tuple[Path, dict[str, str]]):
    programs, _ = installed
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(programs.parent)})) / "neuroweaver"
    for data in (
        "trainer/data/automotive/train.jsonl",
        "trainer/data/automotive/specializations.toml",
        "registry/migrations/versions/0001_models_versions_and_history.py",
        "report/report.html.jinja",
        "v1/registry_pb2.pyi",
    ):
        assert (packages / data).is_file(), data
    assert not (packages / "__init__.py").exists()
