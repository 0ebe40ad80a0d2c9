"""HTTP to an API server: the official client's connections and credentials, none of its models.

`api` imports it with the first call: the client takes 22 MiB and 0.4 s, which a process that never reaches a
cluster need not spend.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import aiohttp
import yaml
from kubernetes.aio import client, config
from kubernetes.aio.config import ConfigException

from neuroweaver.cluster.connection import Access
from neuroweaver.cluster.errors import BackendError, ConnectionLost, NotTrusted, Trouble
from neuroweaver.cluster.exchange import JSON, Answer, Request

_UNBOUNDED: Final = 0
"""As aiohttp's pool has it."""


class Transport:
    """Raises ConnectionLost, TimeoutError, and BackendError NOT_CONFIGURED. `close` it."""

    def __init__(self, access: Access, user_agent: str) -> None:
        self._access = access
        self._user_agent = user_agent
        self._clients: dict[bool, Any] = {}
        self._connecting = asyncio.Lock()

    async def close(self) -> None:
        while self._clients:
            await self._clients.popitem()[1].close()

    async def call(self, request: Request, timeout_s: float) -> Answer:
        with _lost_connections():
            response = await self._send(request, aiohttp.ClientTimeout(total=timeout_s))
            try:
                return Answer(response.status, response.headers, await response.read())
            finally:
                response.release()

    @asynccontextmanager
    async def stream(
        self, request: Request, *, connect_s: float, silence_s: float
    ) -> AsyncIterator[tuple[Answer, AsyncIterator[bytes]]]:
        """The lines of an answer as they come; those of one that is no success are its body."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=silence_s)
        with _lost_connections():
            response = await self._send(request, timeout, is_stream=True)
            try:
                body = b"" if response.status < 300 else await response.read()
                yield Answer(response.status, response.headers, body), aiter(response.content)
            finally:
                response.close()

    async def fetch(self, url: str, timeout_s: float) -> str:
        """Without credentials: from a pod itself."""
        with _lost_connections():
            timeout = aiohttp.ClientTimeout(total=timeout_s)
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as answer:
                return await answer.text()

    async def renew(self) -> None:
        """Reads the credentials anew, under calls that are under way."""
        fresh = await _configuration(self._access)
        for client_ in self._clients.values():
            client_.configuration.api_key = fresh.api_key
            client_.configuration.api_key_prefix = fresh.api_key_prefix
            client_.configuration.refresh_api_key_hook = fresh.refresh_api_key_hook

    async def _send(
        self, request: Request, patience: aiohttp.ClientTimeout, *, is_stream: bool = False
    ) -> aiohttp.ClientResponse:
        connected = await self._connected(is_stream=is_stream)
        serialized = await connected.param_serialize(
            method=request.method,
            resource_path=request.path,
            query_params=list(request.query),
            header_params={"Accept": JSON, "Content-Type": request.content_type},
            body=request.body,
            auth_settings=["BearerToken"],
        )
        answer = await connected.call_api(*serialized, _request_timeout=patience)
        return answer.response  # type: ignore[no-any-return]

    async def _connected(self, *, is_stream: bool) -> Any:
        """A stream keeps its connection for minutes: in a pool of their own, and an unbounded one, streams
        never keep a call waiting.
        """
        async with self._connecting:
            if is_stream not in self._clients:
                read = await _configuration(self._access)
                if is_stream:
                    read.connection_pool_maxsize = _UNBOUNDED
                self._clients[is_stream] = client.ApiClient(read)
                self._clients[is_stream].user_agent = self._user_agent
            return self._clients[is_stream]


async def _configuration(access: Access) -> Any:
    """The official client's configuration. Raises BackendError NOT_CONFIGURED, saying what is wrong."""
    configuration = client.Configuration()
    # The calls have their own repeats, which know what is worth one.
    configuration.retries = None
    configuration.client_side_validation = False
    file = access.file()
    if file is None:
        try:
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except ConfigException as error:
            raise BackendError(Trouble.NOT_CONFIGURED, f"the pod's ServiceAccount: {error}") from error
        return configuration
    try:
        await config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=str(file), context=access.context or None, client_configuration=configuration
        )
    except (
        ConfigException,
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        yaml.YAMLError,
    ) as error:
        why = (isinstance(error, OSError) and error.strerror) or str(error).replace(str(file), "the file")
        raise BackendError(Trouble.NOT_CONFIGURED, f"the kubeconfig: {why}") from error
    return configuration


@contextmanager
def _lost_connections() -> Iterator[None]:
    """The errors of aiohttp as ours, so that nobody else needs it."""
    try:
        yield
    except (aiohttp.ClientConnectorCertificateError, ssl.SSLError) as error:
        raise NotTrusted(str(error)) from error
    except aiohttp.ClientError as error:
        raise ConnectionLost(str(error) or type(error).__name__) from error
