"""The Experiment service's servicer."""

from __future__ import annotations

from neuroweaver.v1 import experiment_pb2_grpc


class ExperimentServicer(experiment_pb2_grpc.ExperimentServiceServicer):
    """Every RPC that is not written here answers UNIMPLEMENTED: see `neuroweaver.mesh.rpc`."""
