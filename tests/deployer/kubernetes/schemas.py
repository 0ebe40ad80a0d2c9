"""Every body that goes to an API server, held against the published schemas."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from kubernetes_validate import utils
from referencing import Registry, Resource

VERSION = utils.latest_version()
_REPOSITORY = Path(__file__).resolve().parents[3]
CRD_FOLDERS = (
    *((Path(os.environ["DEPLOYER_TEST_CRDS"]),) if "DEPLOYER_TEST_CRDS" in os.environ else ()),
    *(parent / "shared" / "data" / "crds" for parent in (_REPOSITORY, *_REPOSITORY.parents)),
)
"""Where definitions may lie; they are no part of the repository."""


@functools.cache
def custom_schemas() -> dict[tuple[str, str], dict[str, Any]]:
    """By apiVersion and kind; empty where the definitions are not at hand."""
    made = {}
    for folder in CRD_FOLDERS:
        for file in sorted(folder.glob("*.yaml")) if folder.is_dir() else ():
            spec = yaml.safe_load(file.read_text())["spec"]
            for version in spec["versions"]:
                made[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = _strict(
                    version["schema"]["openAPIV3Schema"]
                )
        if made:
            break
    return made


def check(body: dict[str, Any]) -> None:
    """Raises ValidationError. Custom kinds whose definition is not at hand are not checked."""
    if not is_custom(body):
        _validator(body["apiVersion"], body["kind"]).validate(body)
    elif schema := custom_schemas().get((body["apiVersion"], body["kind"])):
        jsonschema.Draft202012Validator(schema).validate(body)


def is_custom(body: dict[str, Any]) -> bool:
    group = body["apiVersion"].rpartition("/")[0]
    return ("." in group and not group.endswith(".k8s.io")) or group == "gateway.networking.k8s.io"


@functools.cache
def _validator(api_version: str, kind: str) -> Any:
    """kubernetes-validate parses megabytes of schemas at each call; here that is done once for each kind.

    That both say the same is tested in test_manifests.py.
    """
    name = f"{kind.lower()}-{_short(api_version, kind)}.json"
    folder = f"kubernetes-json-schema/v{VERSION}-local-strict"
    schema = utils.schema_contents(f"{folder}/{name}", VERSION)
    definitions = utils.schema_contents(f"{folder}/_definitions.json", VERSION)
    registry = Resource.from_contents(definitions) @ (Resource.from_contents(schema) @ Registry())
    return jsonschema.Draft202012Validator(schema, registry=registry)


def _short(api_version: str, kind: str) -> str:
    if kind == "DeleteOptions":
        return "meta-v1"
    group, slash, version = api_version.rpartition("/")
    return f"{group.split('.')[0]}-{version}" if slash else version


def _strict(schema: Any) -> Any:
    """With every field that the schema does not know refused, as the API server's strict validation does."""
    made = json.loads(json.dumps(schema))

    def close(node: Any) -> None:
        if isinstance(node, list):
            for each in node:
                close(each)
        if not isinstance(node, dict):
            return
        if (
            isinstance(node.get("properties"), dict)
            and "additionalProperties" not in node
            and not node.get("x-kubernetes-preserve-unknown-fields")
            and node is not made
        ):
            node["additionalProperties"] = False
        if node.get("x-kubernetes-int-or-string"):
            node.pop("type", None)
        for each in node.values():
            close(each)

    close(made)
    made["properties"]["metadata"] = {"type": "object"}
    return made
