"""A fake: a small Kubernetes API server in memory, with controllers that act at once and pods that run nothing.

True to the real one in what the backend leans on: server-side apply with owners and conflicts, dry runs, defaults,
resource versions, foreground deletion, watches with bookmarks and 410, access reviews. Every body that comes in is held
against the published schemas. Faults happen at chosen calls.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web
from jsonschema import ValidationError

from deployer.kubernetes import fields, schemas
from neuroweaver.cluster import kinds
from neuroweaver.cluster.kinds import Kind

Object = dict[str, Any]

PLAIN = (
    *(kind for kind in kinds.OWNED if not kind.is_custom),
    kinds.POD,
    kinds.NODE,
    kinds.NAMESPACE,
    kinds.REPLICA_SET,
)
MONITORING = (kinds.SERVICE_MONITOR, kinds.PROMETHEUS_RULE)
_PATH = re.compile(
    r"/(?:api|apis)/(?P<api>v1|[^/]+/[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?P<rest>/.*)?"
)


@dataclass
class Fault:
    """What happens to the call with this number (from 1) among those that `matches` likes.

    status: the answer; 0: the connection is dropped; -1: it is dropped after the work was done; -2: no answer comes.
    """

    at: int
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    matches: Callable[[str, str], bool] = lambda method, path: True
    times: int = 1
    seen: int = 0


class Refused(Exception):
    def __init__(self, status: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.body = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "code": status,
            "reason": reason,
            "message": message,
            "details": details,
        }
        self.status = status


class Fake:
    def __init__(self, known: Iterable[Kind] = (*PLAIN, *MONITORING)) -> None:
        self.known = {(kind.api_version, kind.plural): kind for kind in known}
        self.objects: dict[tuple[str, str, str, str], Object] = {}
        self.owners: dict[str, dict[tuple[str, str], set[fields.Path]]] = {}
        self.version = 100
        self.oldest = 0
        self.log: list[tuple[int, str, Kind, Object]] = []
        self.calls: list[tuple[str, str]] = []
        self.bodies: list[Object] = []
        self.faults: list[Fault] = []
        self.denied: set[tuple[str, str]] = set()
        self.pages: dict[str, str] = {}
        self.pod_logs: dict[str, str] = {}
        self.pods_become_ready = True
        self.is_draining_slowly = False
        self.url = ""
        self._moved = asyncio.Event()
        self.watches: dict[web.StreamResponse, str] = {}
        for name in ("default", "other"):
            self.put(kinds.NAMESPACE, {"metadata": {"name": name}})

    # The world as tests see and change it.

    def get(self, kind: Kind, name: str, namespace: str = "default") -> Object | None:
        return self.objects.get(self._key(kind, namespace, name))

    def all(self, kind: Kind) -> list[Object]:
        return [found for key, found in self.objects.items() if key[:2] == (kind.api_version, kind.plural)]

    def put(self, kind: Kind, made: Object, namespace: str = "default") -> Object:
        """As somebody else would write it, unseen by the schemas."""
        made = copy.deepcopy(made) | {"apiVersion": kind.api_version, "kind": kind.name}
        if kind.is_namespaced:
            made["metadata"].setdefault("namespace", namespace)
        return self._store(kind, made)

    def edit(
        self,
        kind: Kind,
        name: str,
        path: fields.Path,
        value: Any,
        manager: str = "kubectl-edit",
        operation: str = "Update",
        namespace: str = "default",
    ) -> None:
        """As another client: it owns what it changes."""
        found = copy.deepcopy(self.objects[self._key(kind, namespace, name)])
        flat = fields.leaves(found)
        for old in [p for p in flat if p[: len(path)] == path]:
            del flat[old]
        if value is not None:
            fields.put(flat, path, value)
        owners = self.owners[found["metadata"]["uid"]]
        for owner, paths in owners.items():
            if owner != (manager, operation):
                owners[owner] = {p for p in paths if p[: len(path)] != path}
        if value is not None:
            owners.setdefault((manager, operation), set()).add(path)
        self._store(kind, fields.built(flat))

    def node(self, name: str, **allocatable: str) -> None:
        amounts = {key.replace("__", "/").replace("_", "."): value for key, value in allocatable.items()}
        amounts = {"cpu": "8", "memory": "32Gi", "ephemeral-storage": "500Gi", "pods": "110"} | amounts
        self.put(
            kinds.NODE,
            {
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
                "spec": {},
                "status": {"allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]},
            },
        )

    def snapshot(self) -> dict[str, Any]:
        """The world without what no two runs share."""
        noise = {
            "uid",
            "resourceVersion",
            "creationTimestamp",
            "managedFields",
            "generation",
            "deletionTimestamp",
        }
        made = {}
        for key, found in self.objects.items():
            if key[1] in {"pods", "replicasets", "namespaces", "nodes"}:
                continue
            shown = copy.deepcopy(found)
            shown.pop("status", None)
            shown["metadata"] = {k: v for k, v in shown["metadata"].items() if k not in noise}
            made["/".join(key)] = shown
        made["pods"] = sorted(
            pod["metadata"]["labels"].get("neuroweaver.dev/revision", "") for pod in self.all(kinds.POD)
        )
        return made

    def forget_history(self) -> None:
        """Watches from before now are answered by an event of 410."""
        self.oldest = self.version
        self.log.clear()
        self.drop_watches()

    def drop_watches(self) -> None:
        for watch in list(self.watches):
            if watch._req is not None and watch._req.transport is not None:
                watch._req.transport.abort()

    # HTTP.

    async def handle(self, request: web.Request) -> web.StreamResponse:  # one fault after another
        path = request.path
        self.calls.append((request.method, path))
        after: Fault | None = None
        for fault in self.faults:
            if not fault.matches(request.method, path):
                continue
            fault.seen += 1
            if fault.at <= fault.seen < fault.at + fault.times:
                if fault.status == -1:
                    after = fault
                elif fault.status == -2:
                    await asyncio.sleep(3600)
                elif fault.status == 0:
                    request.transport.abort()
                    return web.Response()
                else:
                    reason = {409: "Conflict", 410: "Expired", 429: "TooManyRequests"}.get(
                        fault.status, "InternalError"
                    )
                    refused = Refused(fault.status, reason, f"a fault of status {fault.status}")
                    return web.json_response(refused.body, status=fault.status, headers=fault.headers)
        try:
            answer = await self._answer(request)
        except Refused as error:
            return web.json_response(error.body, status=error.status)
        except ValidationError as error:
            invalid = Refused(422, "Invalid", f"{error.json_path}: {error.message}")
            return web.json_response(invalid.body, status=422)
        if after is not None:
            request.transport.abort()
        return answer

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read() or b"null")
        if body is not None:
            self.bodies.append(body)
        if request.path == kinds.ACCESS_REVIEW.path():
            schemas.check(body)
            asked = body["spec"]["resourceAttributes"]
            part = asked.get("subresource")
            resource = f"{asked['resource']}/{part}" if part else asked["resource"]
            is_denied = (asked["verb"], resource) in self.denied
            return web.json_response(body | {"status": {"allowed": not is_denied}}, status=201)
        if (found := self._discovered(request.path)) is not None:
            return web.json_response(found)
        parts = _PATH.fullmatch(request.path)
        if parts is None or (parts["api"], parts["plural"]) not in self.known:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        kind = self.known[parts["api"], parts["plural"]]
        namespace, name = parts["namespace"] or "", parts["name"] or ""
        if parts["rest"]:
            return self._of_pod(namespace, name, parts["rest"])
        verb = _VERBS.get(request.method) or (
            "watch" if request.query.get("watch") else "get" if name else "list"
        )
        self._authorize(verb, kind, namespace)
        if verb == "watch":
            return await self._watch(request, kind, namespace)
        status = 201 if verb == "create" else 200
        return web.json_response(
            getattr(self, f"_{verb}")(kind, namespace, name, body, request), status=status
        )

    def _discovered(self, path: str) -> Object | None:
        if path == "/version":
            return {"gitVersion": "v1.36.0-fake"}
        if re.fullmatch(r"/(api/v1|apis/[^/]+/[^/]+)", path):
            version = path.removeprefix("/apis/").removeprefix("/api/")
            found = [kind.plural for (api, _), kind in self.known.items() if api == version]
            if not found:
                raise Refused(404, "NotFound", "the server could not find the requested resource")
            return {"kind": "APIResourceList", "resources": [{"name": plural} for plural in found]}
        if re.fullmatch(r"/apis/[^/]+", path):
            group = path.removeprefix("/apis/")
            if not any(kind.group == group for kind in self.known.values()):
                raise Refused(404, "NotFound", "the server could not find the requested resource")
            return {"kind": "APIGroup", "name": group}
        return None

    def _authorize(self, verb: str, kind: Kind, namespace: str) -> None:
        if (verb, kind.plural) in self.denied:
            where = f' in the namespace "{namespace}"' if namespace else " at the cluster scope"
            what = f'cannot {verb} resource "{kind.plural}" in API group "{kind.group}"'
            raise Refused(403, "Forbidden", f'{kind.plural} is forbidden: User "tester" {what}{where}')

    def _get(self, kind: Kind, namespace: str, name: str, body: None, request: web.Request) -> Object:
        return self._existing(kind, namespace, name)

    def _create(self, kind: Kind, namespace: str, name: str, body: Object, request: web.Request) -> Object:
        body = {"apiVersion": kind.api_version, "kind": kind.name} | body  # the path says it too
        schemas.check(body)
        if self._key(kind, namespace, body["metadata"]["name"]) in self.objects:
            raise Refused(409, "AlreadyExists", "it exists already")
        if kind.is_namespaced:
            body["metadata"].setdefault("namespace", namespace)
        return self._store(kind, body)

    def _update(self, kind: Kind, namespace: str, name: str, body: Object, request: web.Request) -> Object:
        schemas.check(body)
        known = self._existing(kind, namespace, name)
        if body["metadata"].get("resourceVersion") not in {None, known["metadata"]["resourceVersion"]}:
            raise Refused(409, "Conflict", "the object has been modified")
        body["metadata"]["uid"] = known["metadata"]["uid"]
        return self._store(kind, body)

    def _patch(self, kind: Kind, namespace: str, name: str, body: Object, request: web.Request) -> Object:
        if "merge-patch" not in request.headers["Content-Type"]:
            return self._apply(kind, namespace, name, body, request.query)
        manager = request.query.get("fieldManager", "tests")
        for path, value in fields.leaves(body).items():
            self.edit(kind, name, path, value, manager, namespace=namespace)
        return self._existing(kind, namespace, name)

    def _of_pod(self, namespace: str, name: str, rest: str) -> web.Response:
        name = name.partition(":")[0]  # the proxy's port
        self._existing(kinds.POD, namespace, name)
        if rest == "/log":
            if name not in self.pod_logs:
                raise Refused(400, "BadRequest", f'container "server" in pod "{name}" is waiting to start')
            return web.Response(text=self.pod_logs[name])
        page = self.pages.get(f"{name}{rest.partition('/proxy')[2]}")
        if page is None:
            raise Refused(503, "ServiceUnavailable", "error trying to reach the pod")
        return web.Response(text=page)

    def _list(self, kind: Kind, namespace: str, name: str, body: None, request: web.Request) -> Object:
        query = request.query
        items = [
            found
            for found in self.all(kind)
            if (not namespace or found["metadata"].get("namespace") == namespace)
            and _selected(found, query.get("labelSelector", ""))
            and _is_meant(found, query.get("fieldSelector", ""))
        ]
        start = int(query.get("continue") or 0)
        limit = int(query.get("limit") or 500)
        page = items[start : start + limit]
        more = str(start + limit) if start + limit < len(items) else ""
        return {
            "kind": f"{kind.name}List",
            "apiVersion": kind.api_version,
            "metadata": {"resourceVersion": str(self.version), "continue": more},
            "items": [{k: v for k, v in found.items() if k not in {"kind", "apiVersion"}} for found in page],
        }

    async def _watch(self, request: web.Request, kind: Kind, namespace: str) -> web.StreamResponse:
        since = int(request.query["resourceVersion"])
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if since < self.oldest:  # told in a stream that began well
            expired = Refused(410, "Expired", f"too old resource version: {since} ({self.oldest})")
            await response.write(json.dumps({"type": "ERROR", "object": expired.body}).encode() + b"\n")
            return response
        self.watches[response] = namespace
        try:
            while True:
                moved = self._moved
                for version, event, of, found in list(self.log):
                    if (
                        version <= since
                        or of != kind
                        or (namespace and found["metadata"].get("namespace") != namespace)
                    ):
                        continue
                    since = version
                    if _selected(found, request.query.get("labelSelector", "")) and _is_meant(
                        found, request.query.get("fieldSelector", "")
                    ):
                        await response.write(json.dumps({"type": event, "object": found}).encode() + b"\n")
                if since < self.version:
                    since = self.version
                    mark = {
                        "kind": kind.name,
                        "apiVersion": kind.api_version,
                        "metadata": {"resourceVersion": str(since)},
                    }
                    await response.write(json.dumps({"type": "BOOKMARK", "object": mark}).encode() + b"\n")
                await moved.wait()
        except (ConnectionError, asyncio.CancelledError):
            return response
        finally:
            self.watches.pop(response, None)

    # Objects.

    def _key(self, kind: Kind, namespace: str, name: str) -> tuple[str, str, str, str]:
        return (kind.api_version, kind.plural, namespace if kind.is_namespaced else "", name)

    def _existing(self, kind: Kind, namespace: str, name: str) -> Object:
        found = self.objects.get(self._key(kind, namespace, name))
        if found is None:
            raise Refused(404, "NotFound", f'{kind.plural} "{name}" not found', name=name, kind=kind.plural)
        return found

    def _apply(  # noqa: C901  # the merge, step by step
        self, kind: Kind, namespace: str, name: str, body: Object, query: Any
    ) -> Object:
        if kind.is_namespaced and self.get(kinds.NAMESPACE, namespace, "") is None:
            raise Refused(
                404, "NotFound", f'namespaces "{namespace}" not found', name=namespace, kind="namespaces"
            )
        assert body["metadata"]["name"] == name
        assert body["metadata"].get("namespace", "") == namespace
        live = self.objects.get(self._key(kind, namespace, name))
        owner = (query["fieldManager"], "Apply")
        # A handover of one field is no whole object.
        if owner[0] == "neuroweaver-deployer":
            schemas.check(body)
        body = _canonical(_defaulted(kind, body, is_whole=False))
        asked = fields.leaves(body)
        asked = {path: value for path, value in asked.items() if path not in _IDENTITY}
        owners = copy.deepcopy(self.owners.get(live["metadata"]["uid"], {})) if live else {}
        flat = fields.leaves(copy.deepcopy(live)) if live else {}
        conflicts = [
            {
                "reason": "FieldManagerConflict",
                "field": "." + ".".join(map(str, path)),
                "message": f'conflict with "{other[0]}"',
            }
            for path, value in asked.items()
            for other, paths in owners.items()
            if other != owner and path in paths and flat.get(path) != value
        ]
        if conflicts and query.get("force") != "true":
            raise Refused(409, "Conflict", "Apply failed with conflicts", causes=conflicts)
        for path in owners.get(owner, set()) - asked.keys():
            if not any(path in paths for other, paths in owners.items() if other != owner):
                flat.pop(path, None)
        for path, value in asked.items():
            if flat.get(path) != value:
                for other in owners:
                    owners[other].discard(path)
            fields.put(flat, path, value)
        owners[owner] = set(asked)
        made = fields.built(
            {path: value for path, value in flat.items() if path[:2] != ("metadata", "managedFields")}
        )
        made |= {"apiVersion": kind.api_version, "kind": kind.name}
        made["metadata"] |= {"name": name, "namespace": namespace}
        made = _defaulted(kind, made)
        self._check_rules(kind, live, made)
        if query.get("dryRun") == "All":
            made["metadata"].setdefault("uid", "dry-run")
            return self._shown(made, owners)
        if live is not None and self._shown(made, owners) == live:
            return live
        uid = live["metadata"]["uid"] if live else str(uuid.uuid4())
        made["metadata"]["uid"] = uid
        self.owners[uid] = owners
        return self._store(kind, made)

    def _check_rules(self, kind: Kind, live: Object | None, made: Object) -> None:
        """What the real server refuses beyond the schemas."""
        if kind == kinds.DEPLOYMENT:
            spec = made["spec"]
            if live is not None and live["spec"]["selector"] != spec["selector"]:
                raise Refused(422, "Invalid", "spec.selector: Invalid value: field is immutable")
            labels = spec["template"]["metadata"]["labels"]
            if any(labels.get(key) != value for key, value in spec["selector"]["matchLabels"].items()):
                raise Refused(
                    422,
                    "Invalid",
                    "spec.template.metadata.labels: `selector` does not match template `labels`",
                )
            if spec["strategy"]["type"] == "Recreate" and "rollingUpdate" in spec["strategy"]:
                raise Refused(422, "Invalid", "spec.strategy.rollingUpdate: Forbidden")
        if kind == kinds.ROLE_BINDING:
            # The check against escalation, of clients that have no right to bind.
            self._existing(kinds.ROLE, made["metadata"]["namespace"], made["roleRef"]["name"])
        if kind == kinds.ROLE_BINDING and live is not None and live["roleRef"] != made["roleRef"]:
            raise Refused(422, "Invalid", "roleRef: cannot change roleRef")
        if kind == kinds.DISRUPTION_BUDGET and {"minAvailable", "maxUnavailable"} <= made["spec"].keys():
            raise Refused(422, "Invalid", "minAvailable and maxUnavailable cannot be both set")

    def _shown(self, made: Object, owners: dict[tuple[str, str], set[fields.Path]]) -> Object:
        shown = copy.deepcopy(made)
        shown["metadata"]["managedFields"] = [
            {
                "manager": manager,
                "operation": operation,
                "apiVersion": made["apiVersion"],
                "fieldsType": "FieldsV1",
                "fieldsV1": fields.tree(paths),
            }
            for (manager, operation), paths in sorted(owners.items())
            if paths
        ]
        return shown

    def _store(self, kind: Kind, made: Object) -> Object:
        made = copy.deepcopy(made)
        metadata = made["metadata"]
        key = self._key(kind, metadata.get("namespace", ""), metadata["name"])
        is_new = key not in self.objects
        self.version += 1
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata.setdefault("creationTimestamp", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        metadata["resourceVersion"] = str(self.version)
        made = self._shown(made, self.owners.setdefault(metadata["uid"], {}))
        self.objects[key] = made
        self._tell("ADDED" if is_new else "MODIFIED", kind, made)
        if kind == kinds.DEPLOYMENT:
            self._run_deployment(made)
            made = self.objects[key]
        return made

    def _delete(
        self, kind: Kind, namespace: str, name: str, body: Object | None, request: web.Request
    ) -> Object:
        if body:
            schemas.check(body)
        body = body or {}
        found = self._existing(kind, namespace, name)
        uid = body.get("preconditions", {}).get("uid")
        if uid not in {None, found["metadata"]["uid"]}:
            raise Refused(
                409, "Conflict", f"the UID in the precondition ({uid}) does not match the UID in record"
            )
        if kind == kinds.DEPLOYMENT:
            assert body["propagationPolicy"] == "Foreground"
            pods = self._pods_of(found)
            if pods and self.is_draining_slowly:
                end = datetime.now(UTC) + timedelta(seconds=40)
                for pod in [*pods, found]:
                    pod["metadata"]["deletionTimestamp"] = end.strftime("%Y-%m-%dT%H:%M:%SZ")
                    self._tell("MODIFIED", kinds.POD if pod in pods else kind, pod)
                return found
            for pod in pods:
                self._drop(kinds.POD, pod)
        self._drop(kind, found)
        return {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    def end_drains(self) -> None:
        for kind in (kinds.POD, kinds.DEPLOYMENT):
            for found in self.all(kind):
                if found["metadata"].get("deletionTimestamp"):
                    self._drop(kind, found)

    def _drop(self, kind: Kind, found: Object) -> None:
        metadata = found["metadata"]
        self.version += 1
        del self.objects[self._key(kind, metadata.get("namespace", ""), metadata["name"])]
        gone = copy.deepcopy(found)
        gone["metadata"]["resourceVersion"] = str(self.version)
        self._tell("DELETED", kind, gone)

    def _tell(self, event: str, kind: Kind, found: Object) -> None:
        self.version += 1
        found["metadata"]["resourceVersion"] = str(self.version)
        self.log.append((self.version, event, kind, copy.deepcopy(found)))
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    # The controller and the kubelet.

    def _pods_of(self, deployment: Object) -> list[Object]:
        wanted = deployment["spec"]["selector"]["matchLabels"]
        return [
            pod
            for pod in self.all(kinds.POD)
            if pod["metadata"]["namespace"] == deployment["metadata"]["namespace"]
            and all(pod["metadata"]["labels"].get(key) == value for key, value in wanted.items())
        ]

    def _run_deployment(self, deployment: Object) -> None:
        """As many pods as wanted, of the template as it is now."""
        if deployment["metadata"].get("deletionTimestamp"):
            return
        template, count = deployment["spec"]["template"], deployment["spec"]["replicas"]
        pods = self._pods_of(deployment)
        for pod in [pod for pod in pods if pod["spec"] != template["spec"]] + pods[count:]:
            if pod in pods:
                pods.remove(pod)
                self._drop(kinds.POD, pod)
        for _ in range(count - len(pods)):
            name = f"{deployment['metadata']['name']}-{uuid.uuid4().hex[:10]}"
            self.put(
                kinds.POD,
                {
                    "metadata": {"name": name, **copy.deepcopy(template["metadata"])},
                    "spec": copy.deepcopy(template["spec"]),
                },
                deployment["metadata"]["namespace"],
            )
            if self.pods_become_ready:
                self.ready(name, deployment["metadata"]["namespace"])
        live = self.objects[
            self._key(kinds.DEPLOYMENT, deployment["metadata"]["namespace"], deployment["metadata"]["name"])
        ]
        ready = count if self.pods_become_ready else 0
        live["status"] = {
            "replicas": count,
            "updatedReplicas": count,
            "readyReplicas": ready,
            "availableReplicas": ready,
        }

    def ready(self, name: str, namespace: str = "default") -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        conditions = [
            {"type": each, "status": "True", "lastTransitionTime": now}
            for each in ("PodScheduled", "Initialized", "Ready")
        ]
        running = {
            "name": "server",
            "ready": True,
            "started": True,
            "restartCount": 0,
            "state": {"running": {"startedAt": now}},
        }
        self.status(
            name, {"phase": "Running", "conditions": conditions, "containerStatuses": [running]}, namespace
        )

    def status(self, name: str, status: Object, namespace: str = "default") -> None:
        self._store(kinds.POD, self.objects[self._key(kinds.POD, namespace, name)] | {"status": status})


_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_IDENTITY = {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")}


def _is_meant(found: Object, selector: str) -> bool:
    """By the one field that all kinds can be selected by."""
    field, _, value = selector.partition("=")
    assert field in {"", "metadata.name"}
    return not field or found["metadata"]["name"] == value


def _selected(found: Object, selector: str) -> bool:
    labels = found["metadata"].get("labels") or {}
    return all(
        labels.get(key) == value
        for key, _, value in (part.partition("=") for part in selector.split(",") if part)
    )


def _defaulted(kind: Kind, made: Object, *, is_whole: bool = True) -> Object:  # noqa: C901  # a default each
    """What the real server fills in, as far as it could look like drift."""
    made = copy.deepcopy(made)
    spec = made.get("spec") or {}
    for container in (spec.get("template") or {}).get("spec", {}).get("containers") or ():
        for port in container.get("ports") or ():
            port.setdefault("protocol", "TCP")
    if not is_whole:
        return made
    if kind == kinds.DEPLOYMENT:
        spec.setdefault("replicas", 1)
        spec.setdefault("minReadySeconds", 0)
        pod = spec["template"]["spec"]
        pod.setdefault("restartPolicy", "Always")
        pod.setdefault("dnsPolicy", "ClusterFirst")
        pod.setdefault("schedulerName", "default-scheduler")
        for container in [*pod["containers"], *pod.get("initContainers", ())]:
            container.setdefault("imagePullPolicy", "IfNotPresent")
            container.setdefault("terminationMessagePath", "/dev/termination-log")
        for volume in pod.get("volumes") or ():
            if "downwardAPI" in volume:
                volume["downwardAPI"].setdefault("defaultMode", 420)
                for item in volume["downwardAPI"]["items"]:
                    item["fieldRef"].setdefault("apiVersion", "v1")
    if kind == kinds.SERVICE and spec.get("type") == "ExternalName":
        for name in ("clusterIP", "clusterIPs"):
            spec.pop(name, None)
    elif kind == kinds.SERVICE:
        spec.setdefault("clusterIP", "10.0.0.1")
        spec.setdefault("clusterIPs", ["10.0.0.1"])
        spec.setdefault("sessionAffinity", "None")
        spec.setdefault("internalTrafficPolicy", "Cluster")
    if kind == kinds.ROLE and not made.get("rules"):
        made["rules"] = None
    return made


_AMOUNTS = {"cpu": {"0.5": "500m", "1000m": "1"}}


def _canonical(made: Object) -> Object:
    """Amounts are given back the way the server writes them."""

    def walk(node: Any) -> Any:
        if isinstance(node, list):
            return [walk(each) for each in node]
        if not isinstance(node, dict):
            return node
        return {
            key: _AMOUNTS.get(key, {}).get(value, value) if isinstance(value, str) else walk(value)
            for key, value in node.items()
        }

    return walk(made)


@asynccontextmanager
async def serving(fake: Fake) -> AsyncIterator[Fake]:
    """On a free port of the loopback; `fake.url` says which."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        fake.drop_watches()
        await runner.cleanup()


def kubeconfig(url: str, folder: Path) -> Path:
    file = folder / "kubeconfig"
    file.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "fake",
                "clusters": [{"name": "fake", "cluster": {"server": url}}],
                "users": [{"name": "tester", "user": {"token": "not-a-secret"}}],
                "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "tester"}}],
            }
        )
    )
    return file
