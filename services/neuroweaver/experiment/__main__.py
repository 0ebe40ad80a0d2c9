"""`python -m neuroweaver.experiment`: the Experiment service as a process."""

from __future__ import annotations

from neuroweaver.experiment.conclusion.registry import Releases
from neuroweaver.experiment.control.controller import ExperimentController
from neuroweaver.experiment.control.evaluators import Evaluators
from neuroweaver.experiment.housekeeping import keep_checkpoints, keep_house
from neuroweaver.experiment.intake.committer import Committer
from neuroweaver.experiment.intake.projection import MEBIBYTE, Projections
from neuroweaver.experiment.results.cache import ResultsCache
from neuroweaver.experiment.rpc import server
from neuroweaver.experiment.settings import ExperimentSettings
from neuroweaver.experiment.storage.store import Store
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.migrations import migrate
from neuroweaver.mesh.server.serve import Service, run, serve
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.v1 import experiment_pb2_grpc, registry_pb2_grpc


async def main(settings: ExperimentSettings) -> None:
    database = Database(settings.database_url, schema="experiment")
    await migrate(database, "neuroweaver.experiment")
    async with channel(settings.addresses["registry"]) as registry:
        stub = registry_pb2_grpc.RegistryServiceStub(registry)
        projections = Projections(settings.experiment_memory_mib * MEBIBYTE)
        await serve(service(database, Releases(stub), projections), settings)


def service(database: Database, releases: Releases, projections: Projections | None = None) -> Service:
    """The Experiment service over a migrated database, which it closes at its end."""
    store, projections = Store(database), projections or Projections()
    evaluators, cache = Evaluators(store), ResultsCache(store, projections)
    committer = Committer(database, projections, store.clock, store.topics)
    servicer = server.servicer(store, evaluators, releases, committer, cache)
    controller = ExperimentController(store, releases, cache)

    return Service(
        names=[server.SERVICE.full_name],
        add=lambda grpc_server: experiment_pb2_grpc.add_ExperimentServiceServicer_to_server(
            servicer, grpc_server
        ),
        background=[
            store.topics.run,
            evaluators.keep_fresh,
            controller.run,
            lambda: keep_house(store, projections),
            lambda: keep_checkpoints(store, projections),
        ],
        check=database.check,
        close=database.close,
    )


if __name__ == "__main__":
    run("experiment", ExperimentSettings, main)
