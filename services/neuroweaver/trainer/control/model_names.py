"""Whether a job may register its model under a name: asked before the work is paid for, not after it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import grpc

from neuroweaver.mesh.wire import status
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.v1 import registry_pb2, registry_pb2_grpc

_LOG: Final = logging.getLogger("neuroweaver.trainer")
_TIMEOUT_S: Final = 5.0

CheckName = Callable[[str], Awaitable[None]]
"""Raises InvalidArgument for the name of a model that no version can be added to."""


class ModelNames:
    def __init__(self, registry: registry_pb2_grpc.RegistryServiceAsyncStub) -> None:
        self._registry = registry

    async def check(self, name: str) -> None:
        """Raises InvalidArgument for one that was deleted. While the Registry is away, every name will do."""
        try:
            await self._registry.GetModel(registry_pb2.GetModelRequest(model_id=name), timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                _LOG.warning("a model's name was not checked", extra={"reason": status.describe(error)})
            elif deleted := status.deleted(error):
                raise InvalidArgument("config.model_name", f"{deleted}; or take another name") from error
