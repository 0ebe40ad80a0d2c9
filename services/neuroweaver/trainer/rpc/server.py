"""TrainerService over gRPC, out of its parts: requests to operations, jobs to responses."""

from __future__ import annotations

from typing import Final

from neuroweaver.mesh.handlers.mutations import Mutations
from neuroweaver.mesh.handlers.servicer import composed
from neuroweaver.trainer.control.admission import ServerCapabilities
from neuroweaver.trainer.control.model_names import CheckName
from neuroweaver.trainer.rpc.datasets import Datasets
from neuroweaver.trainer.rpc.jobs import Jobs
from neuroweaver.trainer.rpc.not_offered import NotOffered
from neuroweaver.trainer.rpc.watches import Watches
from neuroweaver.trainer.storage.jobs import Writer
from neuroweaver.trainer.storage.store import Store
from neuroweaver.v1 import trainer_pb2
from neuroweaver.v1.trainer_pb2_grpc import TrainerServiceServicer

SERVICE: Final = trainer_pb2.DESCRIPTOR.services_by_name["TrainerService"]


def servicer(store: Store, capabilities: ServerCapabilities, check_name: CheckName) -> TrainerServiceServicer:
    mutations: Mutations[Writer] = Mutations(store, SERVICE)
    return composed(
        TrainerServiceServicer,
        Jobs(store, mutations, capabilities, check_name),
        Watches(store),
        Datasets(capabilities),
        NotOffered(),
    )
