"""Calls to an API server, with objects as they are.

Every call is safe to repeat, so it is repeated after 409, 429, 5xx and a lost connection, for some seconds.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from neuroweaver.cluster.connection import Access
from neuroweaver.cluster.errors import LOST, BackendError, NotTrusted, Trouble
from neuroweaver.cluster.exchange import JSON, Answer, Request
from neuroweaver.cluster.failures import Refusal, refusal
from neuroweaver.cluster.kinds import ACCESS_REVIEW, DEPLOYMENT, POD, REPLICA_SET, SCALED_OBJECT, Kind, Object

if TYPE_CHECKING:
    from neuroweaver.cluster.transport import Transport

FIELD_MANAGER: Final = "neuroweaver-deployer"

_APPLY: Final = "application/apply-patch+yaml"
_PAGE: Final = 500
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
        self._transport: Transport | None = None

    async def close(self) -> None:
        if self._transport is not None:
            await self._transport.close()

    @property
    def is_inside(self) -> bool:
        return self._access.is_inside

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        return await self._found(kind.path(namespace, name), f"get {kind.resource} {name}")

    async def list(
        self, kind: Kind, namespace: str = "", selector: str = "", fields: str = "", *, repeats: bool = True
    ) -> Listing:
        """All of them, however many pages they take. Raises Refusal; 404 means that there is no such kind."""
        items: list[Object] = []
        token = ""
        while True:
            given = {
                "limit": str(_PAGE),
                "labelSelector": selector,
                "fieldSelector": fields,
                "continue": token,
            }
            query = [(name, value) for name, value in given.items() if value]
            what = f"list {kind.resource}"
            try:
                page = await self._call("GET", kind.path(namespace), what, query=query, repeats=repeats)
            except Refusal as error:
                if error.is_expired and token:  # the list grew too old between two pages
                    items, token = [], ""
                    continue
                raise
            named = {"apiVersion": kind.api_version, "kind": kind.name}
            items += [named | item for item in page.get("items") or ()]
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
        found = await self._found(kind.root, f"look for {kind.api_version}", repeats=repeats) or {}
        return any(resource["name"] == kind.plural for resource in found.get("resources") or ())

    async def has_group(self, group: str) -> bool:
        """Whether the cluster knows any version of a group."""
        return await self._found(f"/apis/{group}", f"look for {group}") is not None

    async def version(self) -> str:
        """That of the API server, such as `v1.36.0`."""
        return str((await self._call("GET", "/version", "ask for the version")).get("gitVersion", ""))

    async def ask_pod(self, pod: Object, port: int, path: str, *, timeout_s: float) -> str:
        """What a pod answers: inside the cluster straight from itself, else through the API server.

        Not tried again. Raises Refusal and LOST.
        """
        metadata = pod["metadata"]
        if not self.is_inside:
            through = f"{POD.path(metadata['namespace'], metadata['name'])}:{port}/proxy{path}"
            async with asyncio.timeout(timeout_s):
                answer = await self._once("GET", through)
            if not answer.is_success:
                raise refusal(answer, f"ask pod {metadata['name']}")
            return answer.body.decode(errors="replace")
        address = pod["status"].get("podIP")
        if not address:
            raise ConnectionError("the pod has no address")
        host = f"[{address}]" if ":" in address else address
        return await self._connected().fetch(f"http://{host}:{port}{path}", timeout_s)

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
        what = f"watch {kind.resource}"
        request = Request("GET", kind.path(namespace), query)
        patience = self._patience
        async with self._connected().stream(
            request, connect_s=patience.attempt_s, silence_s=patience.silence_s
        ) as (answer, lines):
            if not answer.is_success:
                raise refusal(answer, what)
            yield _events(lines, what)

    async def _found(self, path: str, what: str, *, repeats: bool = True) -> Object | None:
        """None where there is no such thing."""
        try:
            return await self._call("GET", path, what, repeats=repeats)
        except Refusal as error:
            if error.is_missing:
                return None
            raise

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
        content_type: str = JSON,
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
                    answer = await self._once(method, path, query, body, content_type)
            except LOST as error:
                words = f"{what}: the cluster does not answer ({str(error) or type(error).__name__})"
                failure = BackendError(Trouble.UNREACHABLE, words)
                failure.__cause__ = error
                if isinstance(error, NotTrusted):
                    raise failure from error
            else:
                if answer.is_success:
                    return answer.body
                failure = refusal(answer, what)
                if answer.status == 401 and not has_renewed:
                    has_renewed = True  # a token may have expired
                    await self._connected().renew()
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
        self, method: str, path: str, query: Query = (), body: Object | None = None, content_type: str = JSON
    ) -> Answer:
        request = Request(method, path, query, body, content_type)
        return await self._connected().call(request, self._patience.attempt_s)

    def _connected(self) -> Transport:
        """Raises BackendError NOT_CONFIGURED before anything is imported in vain."""
        if self._transport is None:
            self._access.file()
            from neuroweaver.cluster.transport import Transport  # noqa: PLC0415  # heavy: see there

            self._transport = Transport(self._access, FIELD_MANAGER)
        return self._transport


async def _events(lines: AsyncIterator[bytes], what: str) -> AsyncIterator[Object]:
    async for line in lines:
        if not line.strip():
            continue
        event = json.loads(line)
        if event["type"] == "ERROR":
            told = event["object"]
            raise refusal(Answer(int(told.get("code", 500)), {}, json.dumps(told).encode()), what)
        yield event


def _no_api_server(what: str) -> BackendError:
    return BackendError(Trouble.NOT_CONFIGURED, f"{what}: the answer is not that of a Kubernetes API server")
