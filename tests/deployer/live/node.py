"""A stand-in for a kubelet: one node on which pods turn Ready and run nothing.

    python tests/deployer/live/node.py KUBECONFIG

It says of a pod after READY_S that its containers run, and ends one that is to be deleted at once. Pods have no
address, since nothing listens there: Services have no endpoints, and what asks a pod through the API server is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp
from kubernetes.aio import client, config

NAME: Final = "stand-in"
READY_S: Final = 1.0
PAUSE_S: Final = 0.25
LEASE_S: Final = 40
RENEW_S: Final = 10.0

Object = dict[str, Any]

_LOG: Final = logging.getLogger("node")
_MERGE: Final = "application/merge-patch+json"
_LOST: Final = (aiohttp.ClientError, TimeoutError, ConnectionError)
_NODE: Final = {
    "metadata": {
        "name": NAME,
        "labels": {
            "kubernetes.io/hostname": NAME,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
        },
    }
}
_AMOUNTS: Final = {"cpu": "64", "memory": "256Gi", "ephemeral-storage": "2Ti", "pods": "500"}


class Refused(Exception):
    def __init__(self, status: int, answer: str) -> None:
        super().__init__(f"{status}: {answer}")
        self.status = status


class Node:
    def __init__(self, api: Any) -> None:
        self._api = api
        self._first_seen: dict[str, float] = {}

    async def run(self) -> None:
        """Until cancelled, whatever becomes of the API server meanwhile."""
        renewed = -RENEW_S
        while True:
            try:
                if time.monotonic() - renewed >= RENEW_S:
                    await self._register()
                    renewed = time.monotonic()
                await self._look()
            except (*_LOST, Refused) as error:
                _LOG.info("%s", error)
                await asyncio.sleep(1)
            await asyncio.sleep(PAUSE_S)

    async def _register(self) -> None:
        """The node and its heartbeat, without which the controllers taint it."""
        await self._create("/api/v1/nodes", _NODE)
        ready = _condition("Ready") | {"reason": "KubeletReady", "lastHeartbeatTime": _now()}
        status = {"capacity": _AMOUNTS, "allocatable": _AMOUNTS, "conditions": [ready]}
        await self._call("PATCH", f"/api/v1/nodes/{NAME}/status", {"status": status})
        spec = {"holderIdentity": NAME, "leaseDurationSeconds": LEASE_S, "renewTime": _now(fraction=True)}
        leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        await self._create(leases, {"metadata": {"name": NAME}, "spec": spec})
        await self._call("PATCH", f"{leases}/{NAME}", {"spec": spec})

    async def _look(self) -> None:
        pods = (await self._call("GET", "/api/v1/pods"))["items"]
        seen = {pod["metadata"]["uid"] for pod in pods}
        self._first_seen = {uid: moment for uid, moment in self._first_seen.items() if uid in seen}
        await asyncio.gather(*(step for pod in pods if (step := self._step(pod)) is not None))

    def _step(self, pod: Object) -> Coroutine[Any, Any, None] | None:
        """What brings a pod further, if anything."""
        metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        if "deletionTimestamp" in metadata:
            options = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}
            return self._try("DELETE", path, options)
        # The controllers take the readiness of the pods of a node that was silent for too long.
        if spec.get("nodeName") != NAME or _is_ready(status):
            return None
        since = self._first_seen.setdefault(metadata["uid"], time.monotonic())
        if time.monotonic() - since < READY_S:
            return None
        return self._try("PATCH", f"{path}/status", {"status": _running(spec)})

    async def _create(self, path: str, body: Object) -> None:
        try:
            await self._call("POST", path, body)
        except Refused as error:
            if error.status != 409:  # it is there already
                raise

    async def _try(self, method: str, path: str, body: Object) -> None:
        """One pod's refusal keeps no other one waiting."""
        try:
            await self._call(method, path, body)
        except Refused as error:
            # 404 and 409: it is gone, or another one by now. 403: its namespace is being removed.
            if error.status not in {403, 404, 409}:
                _LOG.info("%s", error)

    async def _call(self, method: str, path: str, body: Object | None = None) -> Any:
        headers = {
            "Accept": "application/json",
            "Content-Type": _MERGE if method == "PATCH" else "application/json",
        }
        request = await self._api.param_serialize(
            method=method, resource_path=path, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        answer = (await self._api.call_api(*request, _request_timeout=10.0)).response
        text = (await answer.read()).decode()
        if answer.status >= 300:
            raise Refused(answer.status, text)
        return json.loads(text)


def _running(spec: Object) -> Object:
    now = _now()
    first = [
        _container(each)
        | {"ready": True, "state": {"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": now}}}
        for each in spec.get("initContainers") or ()
    ]
    served = [
        _container(each) | {"ready": True, "started": True, "state": {"running": {"startedAt": now}}}
        for each in spec["containers"]
    ]
    return {
        "phase": "Running",
        "startTime": now,
        "conditions": [
            _condition(each) for each in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        ],
        "initContainerStatuses": first,
        "containerStatuses": served,
    }


def _is_ready(status: Object) -> bool:
    return any(
        each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or ()
    )


def _container(told: Object) -> Object:
    return {"name": told["name"], "image": told["image"], "imageID": "", "restartCount": 0}


def _condition(name: str) -> Object:
    return {"type": name, "status": "True", "lastTransitionTime": _now()}


def _now(*, fraction: bool = False) -> str:
    now = datetime.now(UTC).isoformat(timespec="microseconds" if fraction else "seconds")
    return now.replace("+00:00", "Z")


async def main(kubeconfig: str) -> None:
    configuration = client.Configuration()
    await config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
    async with client.ApiClient(configuration) as api:
        await Node(api).run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1]))
