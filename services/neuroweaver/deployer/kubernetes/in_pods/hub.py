"""The base model of a version from a Hugging Face hub: of its commits the one that has the version's digest,
and of that what serving reads, into a folder.

HF_ENDPOINT and HF_TOKEN are read by huggingface_hub.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import Final

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub import errors as hub_errors
from huggingface_hub.hf_api import RepoFile

from neuroweaver.artifacts.content import digest_of
from neuroweaver.base_models.folders import HUB_FILES, HUB_IGNORED, OTHER_FORMATS, base_digest

TOKEN_SETTING: Final = "NEUROWEAVER_HUB_TOKEN_SECRET"
_TIMEOUT_S: Final = 30.0
_AT_ONCE: Final = 4
_COMMITS: Final = 50
"""So many of the newest are looked through for a digest."""
_FETCHED: Final = ".fetched"
"""Stands in a folder that is whole and verified, so that a container that runs again asks no hub."""


class NotFetched(Exception):
    """There is no such base model to be had; the text says why, and what helps."""


@dataclass(frozen=True)
class Source:
    """repository: as `organisation/name`. revision: a branch, tag or commit; empty is the newest. digest:
    that of `BasePin.model_digest`; empty: whatever the hub has.
    """

    repository: str
    revision: str = ""
    digest: str = ""


@dataclass(frozen=True)
class _Choice:
    commit: str
    files: Sequence[RepoFile]

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)


def fetch(source: Source, folder: Path, say: Callable[[str], None]) -> None:
    """Raises NotFetched. Files that an earlier try fetched whole are not fetched again."""
    if (folder / _FETCHED).is_file():
        say(f"{folder}: is there")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _drop_parts(folder)
        choice = _choice(HfApi(), source, folder)
        say(f"{source.repository}: commit {choice.commit}, {choice.size_bytes} bytes")
        _refuse_full_disk(folder, choice)
        _download(source, choice, folder)
        _verify(source, choice, folder)
        (folder / _FETCHED).write_text(choice.commit)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, httpx2.HTTPError) as error:
        raise NotFetched(f"the base model {source.repository}: {_told(source, error)}") from error
    say(f"{folder}: {'verified' if source.digest else 'not verified, as the version names no digest'}")


def _drop_parts(folder: Path) -> None:
    """huggingface_hub goes on with a broken download, but not with that of a process that was killed."""
    for part in (folder / ".cache").rglob("*.incomplete"):
        part.unlink(missing_ok=True)


def _choice(api: HfApi, source: Source, folder: Path) -> _Choice:
    """The newest commit that has the digest; the newest of all where none is asked for, or where the hub
    tells no digests, so that only the files themselves can show it.
    """
    revision = source.revision or None
    newest = api.model_info(source.repository, revision=revision, timeout=_TIMEOUT_S).sha
    if not newest:
        raise ValueError("no commit")
    files = _files(api, source, newest)
    plain = _Choice(newest, _served(files))
    _refuse_unusable(source, plain)
    if not source.digest or not all(file.lfs for file in plain.files if _is_weights(file)):
        return plain
    configs: dict[str, str] = {}
    for commit in _commits(api, source, newest):
        listed = files if commit == newest else _files(api, source, commit)
        config = next((file for file in listed if file.path == "config.json"), None)
        if config is None:
            continue
        if config.blob_id not in configs:
            configs[config.blob_id] = digest_of(_one(source, commit, config, folder))
        # One who trained on a whole copy of the repository had the other formats' weights in it, too.
        for served in (_served(listed), _served(listed, with_other_formats=True)):
            weights = {file.path: file.lfs.sha256 for file in served if _is_weights(file) and file.lfs}
            if base_digest(configs[config.blob_id], weights) == source.digest:
                return _Choice(commit, served)
    raise NotFetched(
        f"the base model {source.repository}: none of its {_COMMITS} newest commits on {constants.ENDPOINT} "
        f"has the digest {source.digest} of the one that was trained on. One that the trainer converted or "
        "took from a folder of its own is on no hub: put it into a volume (NEUROWEAVER_BASE_MODELS_CLAIM)"
    )


def _commits(api: HfApi, source: Source, newest: str) -> Iterator[str]:
    yield newest
    try:
        commits = api.list_repo_commits(source.repository, revision=source.revision or None)
    except hub_errors.HfHubHTTPError:  # a mirror need not know of earlier ones
        return
    yield from islice((each.commit_id for each in commits if each.commit_id != newest), _COMMITS - 1)


def _files(api: HfApi, source: Source, commit: str) -> list[RepoFile]:
    """Those that lie in no sub-folder."""
    listed = api.list_repo_tree(source.repository, revision=commit)
    return [each for each in listed if isinstance(each, RepoFile) and "/" not in each.path]


def _served(files: Iterable[RepoFile], *, with_other_formats: bool = False) -> list[RepoFile]:
    ignored = [each for each in HUB_IGNORED if not (with_other_formats and each == OTHER_FORMATS)]
    return [
        file
        for file in files
        if any(fnmatch(file.path, pattern) for pattern in HUB_FILES)
        and not any(fnmatch(file.path, pattern) for pattern in ignored)
    ]


def _is_weights(file: RepoFile) -> bool:
    return file.path.endswith(".safetensors")


def _refuse_unusable(source: Source, choice: _Choice) -> None:
    lacking = "" if any(file.path == "config.json" for file in choice.files) else "config.json"
    if not any(map(_is_weights, choice.files)):
        lacking = "weights as safetensors; others are never read, since they can run code"
    if lacking:
        raise NotFetched(f"the base model {source.repository}: holds no {lacking}")
    largest = max(choice.files, key=lambda file: file.size)
    if constants.HF_HUB_DISABLE_XET and largest.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        raise NotFetched(
            f"the base model {source.repository}: {largest.path} has {largest.size} bytes, and hubs give no "
            f"more than {constants.MAX_HTTP_DOWNLOAD_SIZE} over plain HTTP"
        )


def _refuse_full_disk(folder: Path, choice: _Choice) -> None:
    there = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    missing = sum(file.size for file in choice.files if there.get(file.path) != file.size)
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise OSError(errno.ENOSPC, f"{missing} bytes are wanted, {free} are free")


def _download(source: Source, choice: _Choice, folder: Path) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        asked = [pool.submit(_one, source, choice.commit, file, folder) for file in choice.files]
        try:
            for each in asked:
                each.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one(source: Source, commit: str, file: RepoFile, folder: Path) -> Path:
    return Path(hf_hub_download(source.repository, file.path, revision=commit, local_dir=folder))


def _verify(source: Source, choice: _Choice, folder: Path) -> None:
    """Each file by what the hub says of it, all by what the version says. A damaged one is removed, so that
    it is fetched again; so is what an earlier try at another commit left.
    """
    names = {file.path for file in choice.files}
    for left in [path for path in folder.iterdir() if path.is_file() and path.name not in names]:
        left.unlink()
    digests: dict[str, str] = {}
    for file in choice.files:
        path = folder / file.path
        digests[file.path] = digest_of(path)
        is_whole = path.stat().st_size == file.size
        if not is_whole or (file.lfs and file.lfs.sha256 != digests[file.path]):
            path.unlink()
            raise NotFetched(f"the base model {source.repository}: {file.path} arrived damaged")
    weights = {name: digest for name, digest in digests.items() if name.endswith(".safetensors")}
    found = base_digest(digests["config.json"], weights)
    if source.digest and found != source.digest:
        where = f"the base model {source.repository}: {constants.ENDPOINT}"
        raise NotFetched(f"{where} has digest {found}, not {source.digest}")


def _told(source: Source, error: BaseException) -> str:
    """No text of the errors themselves: they may hold what requests were made with."""
    if isinstance(error, hub_errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        return _told(source, error.__cause__)
    hub = constants.ENDPOINT
    match error:
        case hub_errors.HfHubHTTPError():
            return f"{hub} {_refusal(source, error)}"
        case httpx2.HTTPError():
            return f"{hub} cannot be reached, or broke off ({type(error).__name__})"
        case OSError() if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return f"the pod's disk is full ({error.strerror}): it takes a node with more ephemeral storage"
        case OSError() if error.errno is not None:
            return f"it cannot be written ({error.strerror})"
        case _:
            return f"{hub} does not answer as a hub does, or broke off ({type(error).__name__})"


def _refusal(source: Source, error: hub_errors.HfHubHTTPError) -> str:
    match error:
        case hub_errors.GatedRepoError():
            return f"wants its terms accepted, and the token of one who did: name a Secret by {TOKEN_SETTING}"
        case hub_errors.RepositoryNotFoundError():
            return f"has no such model, or shows it only to a token, which {TOKEN_SETTING} would name"
        case hub_errors.RevisionNotFoundError():
            return f"has no revision {source.revision or 'main'} of it"
    status = error.response.status_code
    if status in {401, 403}:
        return f"answers {status}: it refuses the token that {TOKEN_SETTING} names, or asks for one"
    return f"answers {status}"
