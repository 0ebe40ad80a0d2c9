"""The files that a deployment's replicas load, fetched in the background until they are there."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.deployer.domain.backend import Bundle
from neuroweaver.deployer.local.files.cache import Cache

_LOG: Final = logging.getLogger(__name__)

_LONGEST_RETRY_S: Final = 60.0

BaseFolder = Callable[[str, str], Awaitable[Path]]
"""The folder of a base model by its name and digest, fetched first if need be. Raises BackendError."""


@dataclass(frozen=True)
class Places:
    """Where a bundle lies on this machine. base_folder: None for a whole model."""

    files_folder: Path
    base_folder: Path | None


class Supplies:
    """Of one deployment, a subfolder of `folder` for each. moved: called when one has come, or cannot."""

    def __init__(
        self, folder: Path, cache: Cache, base_folder: BaseFolder, moved: Callable[[], None]
    ) -> None:
        self._folder = folder
        self._cache = cache
        self._base_folder = base_folder
        self._moved = moved
        self._pulls: dict[str, asyncio.Task[Places]] = {}
        self._has_ended = False
        self.troubles: dict[str, BackendError] = {}
        """Why a bundle has not come yet, by its digest."""

    async def places(self, bundle: Bundle, *, is_doubtful: bool = False) -> Places:
        """Waits until they are there, however long the Registry is away.

        is_doubtful: every byte is read again, and what is corrupt is fetched again.
        """
        if is_doubtful and (known := self._pulls.pop(bundle.digest, None)):
            known.cancel()
            if corrupt := await self._cache.drop_corrupt(bundle):
                _LOG.warning("corrupt artifacts are fetched again", extra={"paths": corrupt})
        while not self._has_ended:
            pull = self.pull(bundle)
            await asyncio.wait({pull})
            if not pull.cancelled():
                return pull.result()
        # Whoever waits is about to be told to leave.
        never: asyncio.Future[Places] = asyncio.get_running_loop().create_future()
        return await never

    def has(self, bundle: Bundle) -> bool:
        pull = self._pulls.get(bundle.digest)
        return pull is not None and pull.done() and not pull.cancelled()

    def keep_only(self, digests: Collection[str]) -> None:
        """Lets go of the files of all other bundles; the cache may then evict them."""
        for digest in self._pulls.keys() - digests:
            self._pulls.pop(digest).cancel()
        for digest in self.troubles.keys() - digests:
            del self.troubles[digest]
        if self._folder.is_dir():
            for folder in self._folder.iterdir():
                if folder.name not in digests:
                    shutil.rmtree(folder, ignore_errors=True)

    def end(self) -> None:
        self._has_ended = True
        for pull in self._pulls.values():
            pull.cancel()
        self._pulls.clear()
        self.troubles.clear()

    def resume(self) -> None:
        self._has_ended = False

    def pull(self, bundle: Bundle) -> asyncio.Task[Places]:
        """Begun unless it is under way, or done."""
        if bundle.digest not in self._pulls:
            self._pulls[bundle.digest] = asyncio.create_task(self._until_placed(bundle))
        return self._pulls[bundle.digest]

    async def _until_placed(self, bundle: Bundle) -> Places:
        delay_s = 1.0
        while True:
            try:
                places = await self._place(bundle)
            except BackendError as error:
                self.troubles[bundle.digest] = error
            except Exception:  # noqa: BLE001  # whatever it is, it is tried again
                _LOG.exception("artifacts cannot be placed", extra={"version": bundle.version})
                self.troubles[bundle.digest] = BackendError(
                    Trouble.ARTIFACTS, f"the artifacts of version {bundle.version} cannot be placed on disk"
                )
            else:
                self.troubles.pop(bundle.digest, None)
                self._moved()
                return places
            self._moved()
            await asyncio.sleep(delay_s)
            delay_s = min(_LONGEST_RETRY_S, delay_s * 2)

    async def _place(self, bundle: Bundle) -> Places:
        folder = self._folder / bundle.digest
        await self._cache.place(bundle, folder)
        base = None
        if bundle.base_name:
            base = await self._base_folder(bundle.base_name, bundle.base_model_digest)
        return Places(folder, base)
