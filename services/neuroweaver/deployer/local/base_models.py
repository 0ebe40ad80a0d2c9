"""Base models by name, as folders of this machine; another process makes them, since that may need torch."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final

from neuroweaver.deployer.backend import BackendError, Trouble
from neuroweaver.deployer.local.supplies import BaseFolder

_POLL_S: Final = 0.05


def base_folders(home: Path, environ: Mapping[str, str], *, is_offline: bool = False) -> BaseFolder:
    """Looks below `home`/models, at a path, and on the hub unless `is_offline`."""
    turns: dict[str, asyncio.Lock] = {}

    async def folder(name: str, digest: str) -> Path:
        async with turns.setdefault(name, asyncio.Lock()):
            found = await _made_ready(_command(name, home, is_offline=is_offline), environ, name)
        if digest and found["digest"] != digest:
            raise BackendError(
                Trouble.ARTIFACTS,
                f"the base model {name} has digest {found['digest']} here, and the version needs {digest}",
            )
        return Path(found["folder"])

    return folder


def _command(name: str, home: Path, *, is_offline: bool) -> list[str]:
    options = ["--home", str(home), *(["--offline"] if is_offline else [])]
    return [sys.executable, "-m", "neuroweaver.mesh.base_models", *options, "--", name]


async def _made_ready(command: list[str], environ: Mapping[str, str], name: str) -> dict[str, str]:
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = await asyncio.to_thread(_start, command, environ, output, errors)
        try:
            while process.poll() is None:  # noqa: ASYNC110  # a process tells nobody of its end
                await asyncio.sleep(_POLL_S)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            said = _text(errors).strip().splitlines()
            told = said[-1] if said else f"ended with {process.returncode}"
            raise BackendError(Trouble.ARTIFACTS, f"the base model {name} cannot be made ready: {told}")
        found: dict[str, str] = json.loads(_text(output))
        return found


def _start(
    command: list[str], environ: Mapping[str, str], output: IO[bytes], errors: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603  # the deployer's own program; the name comes after `--`
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=dict(environ)
    )


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
