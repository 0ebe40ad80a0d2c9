"""Every command of the README and the documents, run as a newcomer would: page by page, in the order of reading.

A model of a few thousand weights stands for the real one, and services listen on free ports; nothing else is changed. What
cannot be run here stands in ELSEWHERE, with the reason and with what runs it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from docs.shell import environment
from serving.models import adapter, tiny_base

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "docs/registry.md",
    "docs/trainer.md",
    "docs/experiment.md",
    "docs/deployer.md",
    "docs/operations.md",
)
# These begin with services that run.
GUIDES = PAGES[1:5]
SERVICES = {"REGISTRY": 50051, "TRAINER": 50052, "DEPLOYER": 50053, "EXPERIMENT": 50054}
PROGRAM = Path(sys.executable).with_name("neuroweaver")
REAL_MODEL = "smollm2-135m-instruct"

# By the beginning of a command.
ELSEWHERE = {
    "make test": "runs this test",
    "make unit": "runs this test; what it makes of T= is checked below",
    "make fix": "changes the checkout; what it runs is checked below",
    "make demo": "takes ten minutes: tests/clients/cli/test_demo.py runs its program, tests/e2e the job on the real model",
    "python3.11 -m venv nw": "tests/docs/test_wheel.py builds the wheel and installs it",
    "nw/bin/": "tests/docs/test_wheel.py",
    "openssl ": "makes the keys of a cluster: tests/deployer/kubernetes/test_deploy_folder.py builds what reads them",
    "grpcurl": "is in no package that can be had here; buf curl asks the same reflection service above it",
    "docker": "needs a daemon; tests/deployer/kubernetes/test_deploy_folder.py checks what the images are given",
    "kubectl": "needs a cluster; tests/deployer/kubernetes/test_deploy_folder.py checks what is applied",
    "createdb": "tests/docs/test_backup.py",
    "pg_dump": "tests/docs/test_backup.py",
    "pg_restore": "tests/docs/test_backup.py",
}
# These go on until somebody ends them.
ENDLESS = ("neuroweaver deploy watch", "neuroweaver experiment watch")
# A stage in a newcomer's minutes, here in seconds.
SHORT = "--epochs 1 --max-seq-length 1024 --max-new-tokens 8 --rlaif-samples 4 --ppo-steps 1 --ppo-batch-size 2 --fall-back-to-sft"

_BLOCK = re.compile(r"^```(console|yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"\s+#\s.*$|^#.*$", re.MULTILINE)


def commands_of(page: str) -> list[str]:
    """The commands of a page in their order, without comments, continued lines joined."""
    blocks = [text for kind, text in _BLOCK.findall((ROOT / page).read_text()) if kind == "console"]
    joined = (_COMMENT.sub("", block.replace("\\\n", " ")) for block in blocks)
    return [line.strip() for block in joined for line in block.splitlines() if line.strip()]


def files_of(page: str) -> dict[str, str]:
    """YAML blocks that begin with the name of a file."""
    blocks = [text for kind, text in _BLOCK.findall((ROOT / page).read_text()) if kind == "yaml"]
    return {block.split("\n", 1)[0].removeprefix("# "): block for block in blocks if block.startswith("# ")}


def is_elsewhere(command: str) -> bool:
    return command.startswith(tuple(ELSEWHERE))


@dataclass
class Newcomer:
    """A folder with what the documents take for granted, and the environment of a shell in it."""

    folder: Path
    environ: dict[str, str]

    def neuroweaver(self, *arguments: str) -> None:
        subprocess.run([PROGRAM, *arguments], cwd=self.folder, env=self.environ, check=False, timeout=120)

    def run(self, page: str) -> str:
        """All that the page's commands print. Fails with the command that failed."""
        for name, text in files_of(page).items():
            (self.folder / name).write_text(self._here(text))
        script = ["set -uo pipefail", f"source {Path(sys.executable).parent}/activate 2>/dev/null || true"]
        for command in commands_of(page):
            if not is_elsewhere(command):
                script += [f"printf '%s\\n' {_quoted('@@ ' + command)}", *self._steps(command)]
        done = subprocess.run(
            ["bash", "-c", "\n".join(script)],
            cwd=self.folder, env=self.environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    def _steps(self, command: str) -> Sequence[str]:
        here = self._here(command)
        if command.startswith(ENDLESS):
            return [
                f"timeout --signal=INT 3 {here}; code=$?",
                "[ $code -eq 124 ] || [ $code -eq 130 ] || exit $code",
            ]
        if command == "neuroweaver train list":
            first = "import json, sys; print(json.load(sys.stdin)['jobs'][0]['job_id'])"
            return [f"{here} || exit $?", f'JOB=$({here} --json | python3 -c "{first}") || exit 1']
        if "train cancel" in command:
            return [(f"JOB=$(neuroweaver train start --config job.yaml --ppo-steps 10000 {SHORT.replace('--ppo-steps 1 ', '')} "
                    "--json | python3 -c 'import json, sys; print(json.load(sys.stdin)[\"job_id\"])') || exit 1"),
                    f"{here} || exit $?",
                    "for _ in $(seq 300); do neuroweaver train show $JOB --json | grep -q CANCELLED && break; sleep 0.2; done"]  # fmt: skip
        if "train resume" in command:
            return [f"{here} || exit $?", "neuroweaver train cancel $JOB >/dev/null"]
        return [f"{here} || exit $?"]

    def _here(self, text: str) -> str:
        """The text with this machine's ports, and the tiny model in place of the real one."""
        for service, port in SERVICES.items():
            text = text.replace(f":{port}", f":{self.environ[f'NEUROWEAVER_{service}_PORT']}")
            metrics = self.environ[f"NEUROWEAVER_{service}_METRICS_PORT"]
            text = text.replace(f":{port + 1000}", f":{metrics}")
        text = text.replace(REAL_MODEL, "tiny").replace("source .venv/bin/activate", "true")
        text = re.sub(r"\bJOB\b", "$JOB", text) if text.startswith("neuroweaver train") else text
        return f"{text} {SHORT}" if text.startswith("neuroweaver train start") else text


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Newcomer]:
    folder = tmp_path
    home = folder / "home"
    base = tiny_base(home / "models" / "tiny", context=2048)
    for number, name in enumerate(("adapter", "adapter-2")):
        adapter(base, folder / "made", seed=number)
        shutil.move(folder / "made" / "adapter", folder / name)
    (home / "data").mkdir(parents=True)
    rows = [
        {"question": f"What does part {n} cost?", "answer": f"Part {n} costs {n} dollars."} for n in range(64)
    ]
    (home / "data" / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copy(home / "data" / "questions.jsonl", folder)
    environ = environment(home)
    environ |= {"PATH": f"{Path(sys.executable).parent}:{environ['PATH']}", "COLUMNS": "120"}
    newcomer = Newcomer(folder, environ)
    yield newcomer
    newcomer.neuroweaver("down")


@pytest.mark.timeout(3600)
def test_every_command_of_every_page_works(newcomer: Newcomer):
    """In the order of reading: a guide goes on with what the one before it has made."""
    for page in PAGES:
        newcomer.neuroweaver("up", "--detach") if page in GUIDES else newcomer.neuroweaver("down")
        newcomer.run(page)


def test_every_page_with_commands_is_run_or_says_why_not():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "deploy/README.md"]
    left = {
        str(path.relative_to(ROOT)): left
        for path in pages
        if (name := str(path.relative_to(ROOT))) not in PAGES
        and (left := [command for command in commands_of(name) if not is_elsewhere(command)])
    }
    assert left == {}


@pytest.mark.parametrize(
    ("target", "runs"),
    [
        (
            ("unit", "T=registry"),
            "pytest -n 3 --dist loadfile --no-loadscope-reorder tests/registry -k alias",
        ),
        (("fix",), "ruff check --fix"),
        (("fix",), "ruff format"),
        (("fix",), "buf format --write"),
    ],
    ids=str,
)
def test_a_short_cut_of_make_runs_what_its_help_says(target: tuple[str, ...], runs: str):
    done = subprocess.run(
        ["make", "--dry-run", *target, "WORKERS=3", "PYTEST_ARGS=-k alias"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert runs in done.stdout
