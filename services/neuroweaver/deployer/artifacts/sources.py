"""Where what a backend asks for lies: a version's files in the Registry, a base model on this machine."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from neuroweaver.artifacts.file import File
from neuroweaver.base_models import hub_models
from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.deployer.artifacts.versions import Versions
from neuroweaver.deployer.storage.store import Store
from neuroweaver.mesh.machine import processes
from neuroweaver.mesh.wire.environment import without_secrets
from neuroweaver.mesh.wire.errors import Error, FailedPrecondition

_MAX_REASON: Final = 500


class Files:
    """Of the versions that deployments have or had."""

    def __init__(self, store: Store, versions: Versions) -> None:
        self._store = store
        self._versions = versions

    async def fetch(self, file: File) -> AsyncIterator[bytes]:
        """The bytes of a file in order. Raises BackendError if no version has it, or it is corrupt there."""
        return self._bytes(file, *await self._place(file))

    async def _place(self, file: File) -> tuple[str, str, File]:
        """A model and version that has it. A file is known by its digest, whatever its path there."""
        for deployment in await self._store.everything():
            for revision in deployment.revisions:
                for candidate in revision.bundle.files:
                    if candidate.digest == file.digest:
                        return deployment.key.model_id, revision.bundle.version, candidate
        raise BackendError(Trouble.ARTIFACTS, f"No deployment has a version with {file.path}.")

    async def _bytes(self, asked: File, model_id: str, version: str, file: File) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._versions.fetch(model_id, version, file):
                yield chunk
        except FailedPrecondition as error:
            raise BackendError(Trouble.ARTIFACTS, error.description) from error
        except Error as error:
            raise BackendError(
                Trouble.UNREACHABLE, f"Cannot fetch {asked.path}: {error.description}"
            ) from error


class BaseModels:
    """Base models of this machine; one at a time is made ready, by a process of its own."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._turn = asyncio.Lock()
        self._ready: dict[str, tuple[Path, str]] = {}

    async def folder(self, name: str, digest: str) -> Path:
        """Raises BackendError if there is none of this name, or its weights have another digest."""
        async with self._turn:
            if name not in self._ready:
                self._ready[name] = await self._materialized(name)
        folder, actual = self._ready[name]
        if digest and actual != digest:
            del self._ready[name]
            raise BackendError(
                Trouble.ARTIFACTS,
                f"The base model {name} here has digest {actual}, but the version was trained on {digest}.",
            )
        return folder

    async def _materialized(self, name: str) -> tuple[Path, str]:
        command = processes.module("neuroweaver.base_models", name, "--home", str(self._home))
        done = await processes.run(command, without_secrets(os.environ, *hub_models.KEYS))
        if done.returncode:
            # One that a signal ended has said nothing of the model.
            may_pass = done.returncode < 0 or done.returncode == os.EX_TEMPFAIL
            raise BackendError(
                Trouble.UNREACHABLE if may_pass else Trouble.ARTIFACTS,
                f"The base model {name} cannot be made ready: {_why(done)}",
            )
        told = json.loads(done.stdout)
        return Path(told["folder"]), told["digest"]


def _why(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode < 0 or not lines:
        return f"its process {processes.ending(done.returncode)}"
    return lines[-1][:_MAX_REASON]
