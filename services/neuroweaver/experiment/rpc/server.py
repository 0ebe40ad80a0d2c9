"""ExperimentService over gRPC."""

from __future__ import annotations

from typing import Final

from neuroweaver.experiment.rpc.assignments import AssignmentMethods
from neuroweaver.experiment.rpc.events import EventMethods
from neuroweaver.experiment.rpc.lifecycle import LifecycleMethods
from neuroweaver.experiment.rpc.results import ResultsMethods
from neuroweaver.v1 import experiment_pb2_grpc

NAME: Final = "neuroweaver.v1.ExperimentService"


class ExperimentServicer(
    AssignmentMethods,
    EventMethods,
    LifecycleMethods,
    ResultsMethods,
    experiment_pb2_grpc.ExperimentServiceServicer,
):
    """What none of these defines answers UNIMPLEMENTED, as the generated base has it."""
