"""Loads and drops adapters while the server runs."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from neuroweaver.artifacts.file import File
from neuroweaver.artifacts.serving_config import ServingConfig, files_of
from neuroweaver.mesh.wire.json_values import Check, boolean
from neuroweaver.serving import artifacts
from neuroweaver.serving.artifacts import DamagedArtifacts
from neuroweaver.serving.engine.engine import Engine
from neuroweaver.serving.http.generate import read_json
from neuroweaver.serving.requests import ApiError, checked, filled, required
from neuroweaver.serving.work import Work

logger = logging.getLogger(__name__)

_LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


class Admin:
    """Endpoints for the deployer on this machine alone: they name folders of it."""

    def __init__(self, work: Work, settings: ServingConfig) -> None:
        self._work = work
        self._settings = settings
        self._files: dict[str, tuple[File, ...]] = {settings.version: settings.files}
        self._turn = asyncio.Lock()
        self.adapters: Any = None  # of the network; touched in the engine's thread
        self.vocab_size = 0  # of the model, once it is loaded

    def routes(self) -> list[Route]:
        return [
            Route("/admin/adapters", self._add, methods=["POST"]),
            Route("/admin/adapters/{version}", self._remove, methods=["DELETE"]),
        ]

    async def _add(self, request: Request) -> Response:
        """Loads a version's adapter; `make_current` gives it the plain name. A repeat changes nothing.

        Raises ApiError.
        """
        engine = self._engine(request)
        given = checked(await read_json(request, self._work.bodies), _ADDED)
        version, folder, files = (required(given, name) for name in ("version", "files_folder", "files"))
        async with self._turn:
            if self._files.get(version, files) != files:
                raise ApiError(f"Version {version} is loaded with other files.", status=409, code="conflict")
            if version not in self._work.versions.loaded:
                await self._load(engine, version, Path(folder), files)
            if given.get("make_current"):
                self._work.versions.current = version
        return self._report()

    async def _load(self, engine: Engine, version: str, files_folder: Path, files: tuple[File, ...]) -> None:
        try:
            view = artifacts.verified(files_folder, files)
            folder = await asyncio.to_thread(view.__enter__)
            try:
                place = folder / _adapter_folder(files)
                _refuse_other_kinds(place)
                ends = artifacts.ends(place, self.vocab_size)
                add = engine.between_steps(lambda: self.adapters.add(version, place))
                await asyncio.shield(asyncio.wrap_future(add))
            finally:
                await asyncio.to_thread(view.__exit__, None, None, None)
        except DamagedArtifacts as error:
            raise ApiError(str(error), status=422, parameter="files", code="damaged_artifacts") from error
        except Exception as error:
            # What PEFT raises for an adapter that does not fit is of no common kind.
            logger.exception("an adapter cannot be loaded", extra={"version": version})
            raise ApiError(
                f"The adapter of {version} cannot be loaded: {error}", status=422, code="cannot_load"
            ) from error
        self._files[version] = files
        self._work.versions.ends[version] = ends
        self._show([*self._work.versions.loaded, version])

    async def _remove(self, request: Request) -> Response:
        """Drops a version once its last request has ended. Raises ApiError."""
        version = request.path_params["version"]
        engine = self._engine(request)
        async with self._turn:
            loaded = self._work.versions.loaded
            if version not in loaded:
                raise ApiError(f"Version {version[:100]} is not loaded.", status=404, code="not_found")
            if version == self._work.versions.current:
                raise ApiError(f"Version {version} is the current one.", status=409, code="conflict")
            self._show([other for other in loaded if other != version])
            remove = engine.between_steps(lambda: self.adapters.remove(version), version_unused=version)
            await asyncio.shield(asyncio.wrap_future(remove))
            self._files.pop(version, None)
            self._work.versions.ends.pop(version, None)
        return self._report()

    def _engine(self, request: Request) -> Engine:
        """Raises ApiError."""
        if request.client is None or request.client.host not in _LOOPBACK:
            raise ApiError("Adapters can be changed from this machine only.", status=403, code="forbidden")
        # A page in a browser can send no DELETE and no JSON to another origin without asking first.
        kind = request.headers.get("content-type", "").partition(";")[0]
        if request.method == "POST" and kind != "application/json":
            raise ApiError("The body must be application/json.", status=415, code="unsupported_media_type")
        if self._settings.adapter_mode != "switched":
            raise ApiError(
                "adapter_mode is merged, so adapters cannot be switched.", status=409, code="merged"
            )
        self._work.refuse_unless_ready()
        assert self._work.engine is not None
        return self._work.engine

    def _show(self, versions: list[str]) -> None:
        self._work.versions.loaded = versions
        self._work.status.loaded_versions = tuple(versions)

    def _report(self) -> Response:
        versions = self._work.versions
        return JSONResponse({"current": versions.current, "loaded_versions": versions.loaded})


_ADDED: Final[dict[str, Check]] = {
    "version": filled,
    "files_folder": filled,
    "files": files_of,
    "make_current": boolean,
}


def _adapter_folder(files: tuple[File, ...]) -> Path:
    """Raises DamagedArtifacts."""
    folder = artifacts.adapter_folder(files)
    if folder is None:
        raise DamagedArtifacts("the files hold no adapter")
    return Path(folder)


def _refuse_other_kinds(folder: Path) -> None:
    """Raises DamagedArtifacts."""
    if (kind := artifacts.adapter_kind(folder)) != "LORA":
        raise DamagedArtifacts(f"the adapter is of kind {kind}; only LORA can be served")
