"""What holds for the whole tree and the whole contract."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.api import annotations_pb2
from google.protobuf.descriptor import MethodDescriptor

from neuroweaver.v1 import (
    deployer_pb2,
    experiment_pb2,
    options_pb2,
    registry_pb2,
    trainer_pb2,
    worker_pb2,
)

ROOT = Path(__file__).parent.parent
PUBLIC = [
    method
    for module in (deployer_pb2, experiment_pb2, registry_pb2, trainer_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
INTERNAL = list(worker_pb2.DESCRIPTOR.services_by_name["WorkerService"].methods)


def path_of(method: MethodDescriptor) -> str:
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern")
    return f"{verb} {getattr(rule, verb)}" if verb else ""


def test_the_namespace_stays_open_for_other_distributions() -> None:
    roots = [ROOT / "services", ROOT / "gen" / "python", ROOT / "clients" / "python"]
    assert all((root / "neuroweaver").is_dir() for root in roots)
    assert [root for root in roots if (root / "neuroweaver" / "__init__.py").exists()] == []


@pytest.mark.parametrize("method", PUBLIC, ids=lambda method: method.full_name)
def test_every_public_rpc_has_a_path_of_its_own_and_a_permission(method: MethodDescriptor) -> None:
    assert re.fullmatch(r"(get|put|post|patch|delete) /api/v1/\S+", path_of(method))
    permission = method.GetOptions().Extensions[options_pb2.authz].permission
    assert re.fullmatch(r"[a-z]+\.[a-z]+", permission)


def test_no_two_rpcs_share_a_path() -> None:
    paths = [re.sub(r"\{[^}]*\}", "{}", path_of(method)) for method in PUBLIC]
    assert len(PUBLIC) > 60
    assert sorted(paths) == sorted(set(paths))


def test_the_workers_rpc_is_not_public_and_needs_a_permission() -> None:
    assert [path_of(method) for method in INTERNAL] == [""]
    assert INTERNAL[0].GetOptions().Extensions[options_pb2.authz].permission == "training.report"
