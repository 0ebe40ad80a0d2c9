"""Whatever comes through the rules of the .proto files, no service answers with a fault of its own."""

from __future__ import annotations

import pytest

from deployer import worlds
from experiment import serving
from mesh.enemy import Enemy
from neuroweaver.v1 import deployer_pb2, experiment_pb2, registry_pb2

NAMES = {
    "model_id": ("advisor", "gone"),
    "test_id": ("t1",),
    "name": ("default", ""),
    "version": ("1.0.0", "2.0.0", ""),
    "alias": ("production",),
    "etag": ("",),
    "request_id": ("",),
    "page_token": ("",),
    "filter": ("",),
    "variant_id": ("control", "tuned"),
    "project": ("",),
}
# A watch that has nothing to tell says so only after its heartbeat's time.
QUIET = {"WatchAssignments", "WatchDeployment", "WatchDeploymentLogs", "WatchModels", "WatchResults"}
FAULTS = {"INTERNAL", "UNKNOWN", "DATA_LOSS"}
REQUESTS = 150


def methods(file, service: str) -> list:
    return [each for each in file.DESCRIPTOR.services_by_name[service].methods if each.name not in QUIET]


async def faults(seed: int, stub, file, service: str) -> set:
    codes = await Enemy(seed, NAMES).codes(stub, methods(file, service), REQUESTS)
    assert {code for _, code in codes} > {"INVALID_ARGUMENT", "OK"}
    return {(method, code) for method, code in codes if code in FAULTS}


@pytest.mark.parametrize("seed", [1, 2])
async def test_registry_and_deployer(seed, database_url, tmp_path):
    async with worlds.world(database_url, tmp_path) as world:
        await worlds.publish(world.registry, "1.0.0", "2.0.0")
        assert not await faults(seed, world.deployer, deployer_pb2, "DeployerService")
        assert not await faults(seed, world.registry, registry_pb2, "RegistryService")


@pytest.mark.parametrize("seed", [1, 2])
async def test_experiment(seed, database_url, tmp_path):
    async with serving.world(database_url, tmp_path) as world:
        await serving.publish(world.registry, "1.0.0")
        spec = serving.spec()
        request = experiment_pb2.CreateExperimentRequest(test_id="t1", spec=spec)
        await world.experiment.CreateExperiment(request)
        await world.experiment.StartExperiment(experiment_pb2.StartExperimentRequest(test_id="t1"))
        assert not await faults(seed, world.experiment, experiment_pb2, "ExperimentService")
