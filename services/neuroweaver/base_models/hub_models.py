"""Models of a Hugging Face hub: those in the caches of this machine, and what the hub tells of others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils._http import default_client_factory

from neuroweaver.base_models import model_folder
from neuroweaver.base_models.model_folder import MAX_JSON_BYTES, Shape, Unusable
from neuroweaver.mesh.wire import bounded_http

TIMEOUT_S = 5.0
KEYS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""The variables in which huggingface_hub looks for a credential."""
_BUSY = frozenset({408, 429})
_SERVER_FAULTS = 500
# Of an answer that is no download, such as the list of a model's files.
_LIMIT_S = 30.0


def _client() -> httpx2.Client:
    # Its hook heeds HF_HUB_OFFLINE, and huggingface_hub shows it nowhere else.
    with default_client_factory() as usual:
        return bounded_http.Client(
            limit_s=_LIMIT_S, max_bytes=MAX_JSON_BYTES, event_hooks=usual.event_hooks, timeout=TIMEOUT_S
        )


# For the whole process: whatever asks a hub here does so through huggingface_hub.
huggingface_hub.set_client_factory(_client)


class NoAnswer(Exception):
    """The hub has no such model, does not show it, or cannot be reached; the text says which."""

    may_pass = False
    """Whether the same question may be answered later."""


def default_cache() -> Path:
    """The cache of huggingface_hub itself, as HF_HOME and HF_HUB_CACHE set it."""
    return Path(constants.HF_HUB_CACHE)


def snapshots(repository: str, revision: str | None, caches: Sequence[Path]) -> Iterator[Path]:
    """The folders of `repository` at `revision` in the caches, whole or not. Raises Unusable: no name."""
    try:
        for cache in caches:
            config = huggingface_hub.try_to_load_from_cache(
                repository, "config.json", cache_dir=cache, revision=revision
            )
            if isinstance(config, str):
                yield Path(config).parent
    except hub_errors.HFValidationError as error:
        raise Unusable(f"is not a hub id: {error}") from error


def cached(caches: Sequence[Path]) -> dict[str, Path]:
    """The newest snapshot of every repository that has one."""
    found: dict[str, Path] = {}
    for cache in caches:
        for folder in sorted(cache.glob("models--*--*")):
            repository = folder.name.removeprefix("models--").replace("--", "/", 1)
            for snapshot in snapshots(repository, None, [cache]):
                found.setdefault(repository, snapshot)
    return found


def ask(repository: str, revision: str | None, endpoint: str | None) -> tuple[str, Shape]:
    """The commit and the shape of a model as its hub tells of it; no weights are fetched.

    Waits a few seconds at most for each of three requests. Raises NoAnswer; Unusable if the model is refused.
    """
    hub = huggingface_hub.HfApi(endpoint=endpoint)
    try:
        return _ask(hub, repository, revision)
    except hub_errors.GatedRepoError as error:
        raise NoAnswer("the hub wants its terms accepted and HF_TOKEN set") from error
    except hub_errors.RepositoryNotFoundError as error:
        raise NoAnswer("the hub has no such model, or it is private and HF_TOKEN is not set") from error
    except hub_errors.RevisionNotFoundError as error:
        raise NoAnswer(f"the hub has no revision {revision!r} of it") from error
    except hub_errors.OfflineModeIsEnabled as error:
        raise NoAnswer("the hub was not asked: HF_HUB_OFFLINE is set") from error
    except bounded_http.Refused as error:
        raise NoAnswer(f"the hub {error}") from error
    except (OSError, ValueError, TypeError, KeyError, httpx2.HTTPError) as error:
        # The text of these errors may hold request headers or proxies' words; the kind is enough.
        refusal = NoAnswer(f"the hub could not be asked ({type(error).__name__})")
        refusal.may_pass = may_pass(error)
        raise refusal from error


def may_pass(error: Exception) -> bool:
    """Whether a hub that failed so may answer later: it was not reached, is busy or at fault itself."""
    if isinstance(error, hub_errors.HfHubHTTPError):
        return error.response.status_code in _BUSY or error.response.status_code >= _SERVER_FAULTS
    return isinstance(error, OSError | httpx2.TransportError)


def _ask(hub: huggingface_hub.HfApi, repository: str, revision: str | None) -> tuple[str, Shape]:
    info = hub.model_info(repository, revision=revision, timeout=TIMEOUT_S)
    files = {sibling.rfilename for sibling in info.siblings or []}
    if not info.sha or "config.json" not in files:
        raise Unusable("holds no config.json")
    model_folder.refuse_missing_weights({name for name in files if "/" not in name})
    model_folder.refuse_missing_tokenizer(files)
    has_settings = "tokenizer_config.json" in files
    shape = model_folder.shape(
        _json(hub, repository, info.sha, "config.json"),
        _json(hub, repository, info.sha, "tokenizer_config.json") if has_settings else {},
        parameters=info.safetensors.total if info.safetensors else 0,
        has_template_file="chat_template.jinja" in files,
        licence=str(info.card_data.get("license") or "") if info.card_data else "",
    )
    return info.sha, shape


def _json(hub: huggingface_hub.HfApi, repository: str, commit: str, file: str) -> dict[str, Any]:
    url = huggingface_hub.hf_hub_url(repository, file, revision=commit, endpoint=hub.endpoint)
    token = huggingface_hub.get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    session = huggingface_hub.get_session()
    answer = session.get(url, headers=headers, timeout=TIMEOUT_S)
    answer.raise_for_status()
    content = answer.json()
    if not isinstance(content, dict):
        raise Unusable(f"{file} is not a JSON object")
    return content
