"""The Deployer's servicer."""

from __future__ import annotations

from neuroweaver.v1 import deployer_pb2_grpc


class DeployerServicer(deployer_pb2_grpc.DeployerServiceServicer):
    """Every RPC that is not written here answers UNIMPLEMENTED: see `neuroweaver.mesh.rpc`."""
