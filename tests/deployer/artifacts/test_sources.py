from __future__ import annotations

import sys

import pytest

from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.deployer.artifacts.sources import BaseModels
from neuroweaver.mesh.machine import processes


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A function that has a shell script take the place of Python."""

    def write(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(path))

    yield write
    assert processes.sys is sys


@pytest.mark.parametrize(
    ("script", "trouble", "reason"),
    [
        ("kill -SEGV $$", Trouble.UNREACHABLE, "its process was ended by SIGSEGV"),
        ("echo 'no route' >&2; exit 75", Trouble.UNREACHABLE, "no route"),
        ("echo 'no such model' >&2; exit 1", Trouble.ARTIFACTS, "no such model"),
        ("exit 3", Trouble.ARTIFACTS, "its process ended with status 3"),
    ],
)
async def test_what_may_pass_is_told_apart_from_what_stays(tmp_path, program, script, trouble, reason):
    program(script)
    with pytest.raises(BackendError) as raised:
        await BaseModels(tmp_path).folder("acme/model", "")
    assert raised.value.trouble == trouble
    assert str(raised.value) == f"The base model acme/model cannot be made ready: {reason}"


async def test_the_process_gets_no_secret_but_the_hubs(tmp_path, program, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    monkeypatch.setenv("HF_TOKEN", "hf-1")
    program('echo "{\\"folder\\": \\"/m/$OPENAI_API_KEY$HF_TOKEN\\", \\"digest\\": \\"d\\"}"')
    assert str(await BaseModels(tmp_path).folder("acme/model", "d")) == "/m/hf-1"
