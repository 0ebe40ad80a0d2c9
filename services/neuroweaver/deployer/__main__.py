"""Starts the Deployer: `python -m neuroweaver.deployer`."""

from __future__ import annotations

import grpc

from neuroweaver.deployer.server import DeployerServicer
from neuroweaver.mesh.serve import Service, run, serve
from neuroweaver.mesh.settings import Settings
from neuroweaver.v1 import deployer_pb2_grpc


async def main(settings: Settings) -> None:
    # Its types call it abstract; at run time the generated base answers what is not written yet.
    servicer = DeployerServicer()  # type: ignore[abstract]

    def add(server: grpc.aio.Server) -> None:
        deployer_pb2_grpc.add_DeployerServiceServicer_to_server(servicer, server)

    await serve(Service(names=["neuroweaver.v1.DeployerService"], add=add), settings)


if __name__ == "__main__":
    run("deployer", main)
