"""The Python in the documents does what they say."""

from __future__ import annotations

import re
from pathlib import Path

from clients.experiment_server import experiments_at
from clients.registry_server import adapter, registry_at
from experiment.serving import spec
from neuroweaver.cli.program import run
from neuroweaver.client import Client
from neuroweaver.v1 import experiment_pb2 as pb

ROOT = Path(__file__).parents[3]


def python_of(document: str) -> str:
    (block,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / document).read_text(), re.DOTALL | re.MULTILINE)
    return block


def execute(document: str) -> None:
    exec(compile(python_of(document), document, "exec"), {})


def test_the_readme_lists_versions_and_moves_an_alias(tmp_path, monkeypatch, capsys):
    with registry_at(tmp_path) as address:
        monkeypatch.setenv("NEUROWEAVER_REGISTRY_ADDRESS", address)
        folder = adapter(tmp_path / "files")
        for command in (
            ("register", "service-advisor"),
            ("upload", "service-advisor", folder, "--base", "tiny", "--metric", "win_rate=0.75:higher"),
            ("state", "service-advisor@1.0.0", "validated"),
        ):
            assert run(["model", *map(str, command)]) == 0
        capsys.readouterr()

        execute("README.md")

    assert capsys.readouterr().out == "1.0.0 0.75\n1.0.0\n"


def test_the_guide_of_experiments_assigns_a_unit(tmp_path, monkeypatch, capsys):
    with experiments_at(tmp_path) as address:
        monkeypatch.setenv("NEUROWEAVER_EXPERIMENT_ADDRESS", address)
        with Client() as client:
            client.experiment.CreateExperiment(
                pb.CreateExperimentRequest(test_id="tuned-advisor", spec=spec())
            )
            client.experiment.StartExperiment(pb.StartExperimentRequest(test_id="tuned-advisor"))

        execute("docs/experiment.md")

    variant, is_participant = capsys.readouterr().out.split()
    assert variant in {"control", "tuned"}
    assert is_participant == "True"
