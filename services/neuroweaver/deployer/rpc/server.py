"""DeployerService over gRPC, out of its parts: requests to operations, deployments to responses."""

from __future__ import annotations

from typing import Final

from neuroweaver.deployer.planning import Planner
from neuroweaver.deployer.rpc.deployments import Deployments
from neuroweaver.deployer.rpc.performance import Performance
from neuroweaver.deployer.rpc.watches import Watches
from neuroweaver.deployer.storage.store import Store
from neuroweaver.deployer.storage.writer import Writer
from neuroweaver.mesh.handlers.mutations import Mutations
from neuroweaver.mesh.handlers.servicer import composed
from neuroweaver.v1 import deployer_pb2
from neuroweaver.v1.deployer_pb2_grpc import DeployerServiceServicer

SERVICE: Final = deployer_pb2.DESCRIPTOR.services_by_name["DeployerService"]


def servicer(store: Store, planner: Planner) -> DeployerServiceServicer:
    mutations: Mutations[Writer] = Mutations(store, SERVICE)
    return composed(
        DeployerServiceServicer,
        Deployments(store, mutations, planner),
        Performance(store, mutations, planner),
        Watches(store),
    )
