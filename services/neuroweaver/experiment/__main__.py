"""Starts the Experiment service: `python -m neuroweaver.experiment`."""

from __future__ import annotations

import grpc

from neuroweaver.experiment.server import ExperimentServicer
from neuroweaver.mesh.serve import Service, run, serve
from neuroweaver.mesh.settings import Settings
from neuroweaver.v1 import experiment_pb2_grpc


async def main(settings: Settings) -> None:
    # Its types call it abstract; at run time the generated base answers what is not written yet.
    servicer = ExperimentServicer()  # type: ignore[abstract]

    def add(server: grpc.aio.Server) -> None:
        experiment_pb2_grpc.add_ExperimentServiceServicer_to_server(servicer, server)

    await serve(Service(names=["neuroweaver.v1.ExperimentService"], add=add), settings)


if __name__ == "__main__":
    run("experiment", main)
