"""Calls to an API server with objects as they are: the official client's transport and credentials, no
models.

Every call is safe to repeat, so it is repeated after 409, 429, 5xx and a lost connection, for some seconds.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from kubernetes.aio import client

from neuroweaver.cluster.connection import Access, configuration
from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.cluster.failures import Refusal, refusal
from neuroweaver.cluster.kinds import ACCESS_REVIEW, DEPLOYMENT, POD, REPLICA_SET, SCALED_OBJECT, Kind, Object

FIELD_MANAGER: Final = "neuroweaver-deployer"

_JSON: Final = "application/json"
_APPLY: Final = "application/apply-patch+yaml"
_LOST: Final = (aiohttp.ClientError, TimeoutError, ConnectionError)
_PAGE: Final = 500
_CALLS: Final = "calls"
_WATCHES: Final = "watches"
_UNBOUNDED: Final = 0
"""As aiohttp's pool has it."""
_OWNERS: Final = frozenset({DEPLOYMENT, REPLICA_SET, SCALED_OBJECT})

Query = Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Patience:
    """attempt_s: for one answer. whole_s: for a call with all of its repeats. silence_s: after which a
    watch counts as lost; an API server sends a bookmark about every minute.
    """

    attempt_s: float = 5.0
    whole_s: float = 8.0
    first_wait_s: float = 0.1
    silence_s: float = 90.0


@dataclass(frozen=True)
class Listing:
    items: list[Object]
    resource_version: str


class Api:
    """One cluster. `close` it."""

    def __init__(self, access: Access, patience: Patience | None = None) -> None:
        self._access = access
        self._patience = patience or Patience()
        self._clients: dict[str, Any] = {}
        self._connecting = asyncio.Lock()

    async def close(self) -> None:
        while self._clients:
            await self._clients.popitem()[1].close()

    @property
    def is_inside(self) -> bool:
        return self._access.is_inside

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        try:
            return await self._call("GET", kind.path(namespace, name), f"get {kind.resource} {name}")
        except Refusal as error:
            if error.is_missing:
                return None
            raise

    async def list(
        self,
        kind: Kind,
        namespace: str = "",
        selector: str = "",
        fields: str = "",
        *,
        repeats: bool = True,
    ) -> Listing:
        """All of them, however many pages they take. Raises Refusal; 404 means that there is no such kind."""
        items: list[Object] = []
        token = ""
        while True:
            query = [("limit", str(_PAGE))]
            query += [("labelSelector", selector)] if selector else []
            query += [("fieldSelector", fields)] if fields else []
            query += [("continue", token)] if token else []
            try:
                page = await self._call(
                    "GET", kind.path(namespace), f"list {kind.resource}", query=query, repeats=repeats
                )
            except Refusal as error:
                if error.is_expired and token:  # the list grew too old between two pages
                    items, token = [], ""
                    continue
                raise
            for item in page.get("items") or ():
                items.append({"apiVersion": kind.api_version, "kind": kind.name} | item)
            token = page["metadata"].get("continue") or ""
            if not token:
                return Listing(items, page["metadata"].get("resourceVersion", ""))

    async def apply(
        self,
        kind: Kind,
        wanted: Object,
        *,
        is_forced: bool,
        is_dry_run: bool = False,
        manager: str = FIELD_MANAGER,
    ) -> Object:
        """Server-side apply. Raises Refusal, with the owners of fields if it would take them unforced."""
        metadata = wanted["metadata"]
        query = [("fieldManager", manager), ("fieldValidation", "Strict")]
        query += [("force", "true")] if is_forced else []
        query += [("dryRun", "All")] if is_dry_run else []
        what = f"{'try' if is_dry_run else 'apply'} {kind.resource} {metadata['name']}"
        path = kind.path(metadata.get("namespace", ""), metadata["name"])
        return await self._call("PATCH", path, what, query=query, body=wanted, content_type=_APPLY)

    async def create(self, kind: Kind, namespace: str, wanted: Object) -> Object:
        """A 409 says that it is there already, and is told, never tried again."""
        what = f"create {kind.resource} {wanted['metadata']['name']}"
        return await self._call("POST", kind.path(namespace), what, body=wanted, repeats=False)

    async def replace(self, kind: Kind, namespace: str, wanted: Object) -> Object:
        """Only if nobody changed it since: a 409 is told, never tried again."""
        name = wanted["metadata"]["name"]
        what = f"replace {kind.resource} {name}"
        return await self._call("PUT", kind.path(namespace, name), what, body=wanted, repeats=False)

    async def delete(self, kind: Kind, found: Object) -> None:
        """In the foreground: it is gone once all that belongs to it is gone. One that is gone already is no
        error.
        """
        metadata = found["metadata"]
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Foreground" if kind in _OWNERS else "Background",
            # Not one of the same name that somebody made meanwhile.
            "preconditions": {"uid": metadata["uid"]},
        }
        path = kind.path(metadata.get("namespace", ""), metadata["name"])
        try:
            await self._call("DELETE", path, f"delete {kind.resource} {metadata['name']}", body=body)
        except Refusal as error:
            if not error.is_missing and not (error.status == 409 and "uid" in error.message.lower()):
                raise

    async def may(self, verb: str, group: str, resource: str, namespace: str) -> bool:
        """Whether the credentials allow it. resource: with its subresource, as `pods/log`."""
        plural, _, part = resource.partition("/")
        attributes = {"verb": verb, "group": group, "resource": plural, "namespace": namespace}
        review = {
            "apiVersion": ACCESS_REVIEW.api_version,
            "kind": ACCESS_REVIEW.name,
            "spec": {"resourceAttributes": attributes | ({"subresource": part} if part else {})},
        }
        answer = await self._call(
            "POST", ACCESS_REVIEW.path(), f"ask whether {verb} of {resource} is allowed", body=review
        )
        return bool(answer.get("status", {}).get("allowed"))

    async def has(self, kind: Kind, *, repeats: bool = True) -> bool:
        """Whether the cluster knows the kind."""
        try:
            found = await self._call("GET", kind.root, f"look for {kind.api_version}", repeats=repeats)
        except Refusal as error:
            if error.is_missing:
                return False
            raise
        return any(each["name"] == kind.plural for each in found.get("resources") or ())

    async def has_group(self, group: str) -> bool:
        """Whether the cluster knows any version of a group."""
        try:
            await self._call("GET", f"/apis/{group}", f"look for {group}")
        except Refusal as error:
            if error.is_missing:
                return False
            raise
        return True

    async def version(self) -> str:
        """That of the API server, such as `v1.36.0`."""
        return str((await self._call("GET", "/version", "ask for the version")).get("gitVersion", ""))

    async def pod_text(self, namespace: str, pod: str, port: int, path: str, *, timeout_s: float) -> str:
        """What a pod answers, asked through the API server. Raises Refusal or OSError-like errors at once."""
        full = f"{POD.path(namespace, pod)}:{port}/proxy{path}"
        async with asyncio.timeout(timeout_s):
            status, headers, body = await self._once("GET", full, (), None, _JSON)
        if status >= 300:
            raise refusal(status, body, f"ask pod {pod}", headers.get("Retry-After"))
        return body.decode(errors="replace")

    async def log(self, namespace: str, pod: str, container: str, query: Query) -> str:
        """Not tried again: the kubelet of the pod's node is asked, which may be away for long."""
        path = f"{POD.path(namespace, pod)}/log"
        asked = [("container", container), ("timestamps", "true"), *query]
        text = await self._bytes("GET", path, f"read the log of pod {pod}", query=asked, repeats=False)
        return text.decode(errors="replace")

    @asynccontextmanager
    async def watch(
        self, kind: Kind, namespace: str, selector: str, resource_version: str, fields: str = ""
    ) -> AsyncIterator[AsyncIterator[Object]]:
        """Events as they come, bookmarks among them; ends when the API server ends it. Raises Refusal and
        lost connections as they are: who watches knows best how to go on.
        """
        query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", resource_version),
            ("timeoutSeconds", str(random.randint(240, 300))),
            ("labelSelector", selector),
        ]
        query += [("fieldSelector", fields)] if fields else []
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._patience.attempt_s, sock_read=self._patience.silence_s
        )
        client_ = await self._connected(_WATCHES)
        response = await self._send(client_, "GET", kind.path(namespace), query, None, _JSON, timeout)
        try:
            if response.status >= 300:
                body = await response.read()
                raise refusal(
                    response.status, body, f"watch {kind.resource}", response.headers.get("Retry-After")
                )
            yield _events(response, f"watch {kind.resource}")
        finally:
            response.close()

    async def _call(self, method: str, path: str, what: str, **call: Any) -> Object:
        body = await self._bytes(method, path, what, **call)
        try:
            answer = json.loads(body)
        except ValueError as error:
            raise _no_api_server(what) from error
        if not isinstance(answer, dict):
            raise _no_api_server(what)
        return answer

    async def _bytes(
        self,
        method: str,
        path: str,
        what: str,
        *,
        query: Query = (),
        body: Object | None = None,
        content_type: str = _JSON,
        repeats: bool = True,
    ) -> bytes:
        """Raises Refusal for an answer that is none to repeat, BackendError if none came in time."""
        deadline = time.monotonic() + self._patience.whole_s
        wait = self._patience.first_wait_s
        has_renewed = False
        while True:
            failure: Refusal | BackendError
            try:
                async with asyncio.timeout(self._patience.attempt_s):
                    status, headers, answer = await self._once(method, path, query, body, content_type)
            except _LOST as error:
                failure = _unreachable(what, error)
                failure.__cause__ = error
                if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLError):
                    raise failure from error
            else:
                if status < 300:
                    return answer
                failure = refusal(status, answer, what, headers.get("Retry-After"))
                if status == 401 and not has_renewed:
                    has_renewed = True  # a token may have expired
                    await self._renew()
                    continue
                if not failure.is_worth_another_try:
                    raise failure
            pause = wait * random.uniform(0.5, 1.5)
            if isinstance(failure, Refusal) and failure.retry_after_s is not None:
                pause = max(pause, failure.retry_after_s)
            if not repeats or time.monotonic() + pause >= deadline:
                raise failure
            await asyncio.sleep(pause)
            wait = min(wait * 2, 2.0)

    async def _once(
        self, method: str, path: str, query: Query, body: Object | None, content_type: str
    ) -> tuple[int, Mapping[str, str], bytes]:
        timeout = aiohttp.ClientTimeout(total=self._patience.attempt_s)
        client_ = await self._connected()
        response = await self._send(client_, method, path, query, body, content_type, timeout)
        try:
            return response.status, response.headers, await response.read()
        finally:
            response.release()

    async def _send(
        self,
        client_: Any,
        method: str,
        path: str,
        query: Query,
        body: Object | None,
        content_type: str,
        patience: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        request = await client_.param_serialize(
            method=method,
            resource_path=path,
            query_params=list(query),
            header_params={"Accept": _JSON, "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = await client_.call_api(*request, _request_timeout=patience)
        return answer.response  # type: ignore[no-any-return]

    async def _connected(self, pool: str = _CALLS) -> Any:
        """A watch keeps its connection for minutes: in a pool of their own, and an unbounded one, watches
        never keep a call waiting.
        """
        async with self._connecting:
            if pool not in self._clients:
                read = await configuration(self._access)
                if pool == _WATCHES:
                    read.connection_pool_maxsize = _UNBOUNDED
                made = client.ApiClient(read)
                made.user_agent = FIELD_MANAGER
                self._clients[pool] = made
            return self._clients[pool]

    async def _renew(self) -> None:
        """Reads the credentials anew, under calls that are under way."""
        fresh = await configuration(self._access)
        for client_ in self._clients.values():
            client_.configuration.api_key = fresh.api_key
            client_.configuration.api_key_prefix = fresh.api_key_prefix
            client_.configuration.refresh_api_key_hook = fresh.refresh_api_key_hook


async def _events(response: aiohttp.ClientResponse, what: str) -> AsyncIterator[Object]:
    async for line in response.content:
        if not line.strip():
            continue
        event = json.loads(line)
        if event["type"] == "ERROR":
            told = event["object"]
            raise refusal(int(told.get("code", 500)), json.dumps(told).encode(), what, None)
        yield event


def _unreachable(what: str, error: BaseException) -> BackendError:
    words = str(error) or type(error).__name__
    return BackendError(Trouble.UNREACHABLE, f"{what}: the cluster does not answer ({words})")


def _no_api_server(what: str) -> BackendError:
    return BackendError(Trouble.NOT_CONFIGURED, f"{what}: the answer is not that of a Kubernetes API server")
