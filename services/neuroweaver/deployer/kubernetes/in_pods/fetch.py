"""The init container: fetches the files of a version from the Registry and verifies them, and the base model
of a server that does not verify it by itself, before anything reads them.

    python -m neuroweaver.deployer.kubernetes.in_pods.fetch --config config.json --source source.json

config.json: of the model server, which lists the files, and the digests of tokenizer and chat template.
source.json: the Registry's address and the model there; `base_folder` and `base_digest` where the base model
is to be verified, and `hub` where it is fetched before, from the Hugging Face hub or the one that HF_ENDPOINT
names.

Exit codes are those of the model server: 2 for a bad configuration, 3 for files that are missing or
corrupt. The last line it writes is the reason, which Kubernetes shows as the termination message.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from neuroweaver.artifacts import serving_config
from neuroweaver.artifacts.content import TransferError, place
from neuroweaver.artifacts.serving_config import BadConfig, ServingConfig
from neuroweaver.artifacts.transfer import Patience, Transfer
from neuroweaver.base_models.folders import BaseModelUnavailable, Digests, differing
from neuroweaver.deployer.kubernetes.in_pods import hub
from neuroweaver.mesh.wire.channel import sync_channel
from neuroweaver.v1 import registry_pb2, registry_pb2_grpc

_BAD_CONFIG: Final = 2
_BAD_ARTIFACTS: Final = 3


class BadArtifact(Exception):
    """A file is missing, or is not what its digest says."""


@dataclass(frozen=True)
class Order:
    served: ServingConfig
    registry: str
    model_id: str
    base_folder: Path | None = None
    base_digest: str = ""
    hub: hub.Source | None = None

    @classmethod
    def read(cls, config: Path, source: Path) -> Order:
        """Raises BadConfig."""
        served = serving_config.read(config)
        try:
            origin = json.loads(source.read_text())
            digest, on_hub = str(origin.get("base_digest", "")), origin.get("hub")
            return cls(
                served,
                registry=str(origin["registry"]),
                model_id=str(origin["model_id"]),
                base_folder=Path(origin["base_folder"]) if origin.get("base_folder") else None,
                base_digest=digest,
                hub=hub.Source(str(on_hub["repository"]), str(on_hub["revision"]), digest)
                if on_hub
                else None,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadConfig(f"{source}: {type(error).__name__}: {error}") from error


def fetch(order: Order) -> None:
    """Raises BadArtifact. What is there already and right is not fetched again."""
    version = registry_pb2.ModelVersion(model_id=order.model_id, version=order.served.version)
    folder = Path(order.served.files_folder)
    with sync_channel(order.registry) as registry:
        stub = registry_pb2_grpc.RegistryServiceStub(registry)
        transfer = Transfer(stub, patience=Patience(has_answered=True))
        for file in order.served.files:
            try:
                transfer.fetch(version, file, place(folder, file.path))
            except TransferError as error:
                raise BadArtifact(str(error)) from error
            except grpc.RpcError as error:
                raise BadArtifact(f"{file.path}: {error.code().name}: {error.details()}") from error
            _say(f"{file.path}: {file.size_bytes} bytes, verified")


def supply_base(order: Order) -> None:
    """Raises BadArtifact if the base model is not to be had, or is another than was trained on."""
    if order.base_folder is None:
        return
    if order.hub is not None:
        try:
            hub.fetch(order.hub, order.base_folder, _say)
        except hub.NotFetched as error:
            raise BadArtifact(str(error)) from error
    # The hub's downloader has verified the weights, which take minutes to read.
    base_digest = order.base_digest if order.hub is None else ""
    served = order.served
    verify_base(order.base_folder, Digests(base_digest, served.tokenizer_digest, served.chat_template_digest))


def _say(words: str) -> None:
    print(words, flush=True)  # noqa: T201  # the container's log


def verify_base(folder: Path, expected: Digests) -> None:
    """Raises BadArtifact unless all in `folder` has these digests; empty fits all."""
    try:
        difference = differing(folder, expected)
    except (OSError, BaseModelUnavailable) as error:
        raise BadArtifact(f"the base model in {folder} cannot be read: {error}") from error
    if difference:
        raise BadArtifact(difference)
    _say(f"{folder}: verified")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--source", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        order = Order.read(given.config, given.source)
        supply_base(order)
        fetch(order)
    except BadConfig as error:
        print(error, file=sys.stderr)  # noqa: T201  # the termination message
        return _BAD_CONFIG
    except BadArtifact as error:
        print(error, file=sys.stderr)  # noqa: T201  # likewise
        return _BAD_ARTIFACTS
    return 0


if __name__ == "__main__":
    sys.exit(main())
