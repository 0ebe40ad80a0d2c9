"""ExperimentService over gRPC, out of its parts: requests to operations, records to responses."""

from __future__ import annotations

from typing import Final

from neuroweaver.experiment.conclusion.registry import Releases
from neuroweaver.experiment.control.evaluators import Evaluators
from neuroweaver.experiment.intake.committer import Committer
from neuroweaver.experiment.results.cache import ResultsCache
from neuroweaver.experiment.rpc.assignments import Assignments
from neuroweaver.experiment.rpc.events import Events
from neuroweaver.experiment.rpc.lifecycle import Lifecycle, Verdicts
from neuroweaver.experiment.rpc.results import Results
from neuroweaver.experiment.storage.store import Store
from neuroweaver.experiment.storage.writer import Writer
from neuroweaver.mesh.handlers.mutations import Mutations
from neuroweaver.mesh.handlers.servicer import composed
from neuroweaver.v1 import experiment_pb2
from neuroweaver.v1.experiment_pb2_grpc import ExperimentServiceServicer

SERVICE: Final = experiment_pb2.DESCRIPTOR.services_by_name["ExperimentService"]


def servicer(
    store: Store,
    evaluators: Evaluators,
    releases: Releases,
    committer: Committer,
    cache: ResultsCache,
    verdicts: Verdicts | None = None,
) -> ExperimentServiceServicer:
    """verdicts: what conclusions rest on; by default the cache."""
    mutations: Mutations[Writer] = Mutations(store, SERVICE)
    return composed(
        ExperimentServiceServicer,
        Assignments(store, evaluators),
        Events(mutations, committer),
        Lifecycle(store, mutations, releases, verdicts or cache),
        Results(store, cache),
    )
