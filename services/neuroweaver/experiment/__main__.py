"""`python -m neuroweaver.experiment`: the Experiment service as a process."""

from __future__ import annotations

from neuroweaver.experiment import server
from neuroweaver.experiment.director import Director
from neuroweaver.experiment.evaluators import Evaluators
from neuroweaver.experiment.housekeeping import keep_checkpoints, keep_house
from neuroweaver.experiment.intake import snapshots
from neuroweaver.experiment.intake.projection import MEBIBYTE, Projections
from neuroweaver.experiment.releases import Releases
from neuroweaver.experiment.results import Desk
from neuroweaver.experiment.store import Store
from neuroweaver.mesh.channel import channel
from neuroweaver.mesh.database import Database
from neuroweaver.mesh.migrations import migrate
from neuroweaver.mesh.serve import Service, run, serve
from neuroweaver.mesh.settings import Settings
from neuroweaver.v1 import experiment_pb2_grpc, registry_pb2_grpc


async def main(settings: Settings) -> None:
    database = Database(settings.database_url, schema="experiment")
    await migrate(database, "neuroweaver.experiment")
    async with channel(settings.addresses["registry"]) as registry:
        stub = registry_pb2_grpc.RegistryServiceStub(registry)
        projections = Projections(settings.experiment_memory_mib * MEBIBYTE)
        await serve(service(database, Releases(stub), projections), settings)


def service(database: Database, releases: Releases, projections: Projections | None = None) -> Service:
    """The Experiment service over a migrated database, which it closes at its end."""
    store = Store(database, projections=projections)
    evaluators, desk = Evaluators(store), Desk(store, snapshots.load)
    servicer = server.ExperimentServicer(store, evaluators, releases, desk)
    servicer.committer.listen(store.notify_results)
    director = Director(store, servicer, desk)

    return Service(
        names=[server.NAME],
        add=lambda grpc_server: experiment_pb2_grpc.add_ExperimentServiceServicer_to_server(
            servicer, grpc_server
        ),
        background=[
            evaluators.keep_fresh,
            director.run,
            lambda: keep_house(store),
            lambda: keep_checkpoints(store),
        ],
        close=database.close,
    )


if __name__ == "__main__":
    run("experiment", main)
