"""A Registry and an Experiment service on free ports of this process, and requests that most tests make."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from databases import prepare
from neuroweaver.experiment.conclusion.registry import Releases
from neuroweaver.experiment.control.controller import ExperimentController
from neuroweaver.experiment.control.evaluators import Evaluators
from neuroweaver.experiment.intake.committer import Committer
from neuroweaver.experiment.intake.projection import Projections
from neuroweaver.experiment.results.cache import ResultsCache
from neuroweaver.experiment.rpc import server
from neuroweaver.experiment.storage.store import Store
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.server.serve import Service, running
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.mesh.wire.settings import Settings
from neuroweaver.registry.__main__ import service as registry_service
from neuroweaver.registry.settings import RegistrySettings
from neuroweaver.v1 import experiment_pb2 as pb
from neuroweaver.v1 import registry_pb2 as registry_pb
from neuroweaver.v1.experiment_pb2_grpc import ExperimentServiceStub, add_ExperimentServiceServicer_to_server
from neuroweaver.v1.registry_pb2_grpc import RegistryServiceStub
from registry.calls import safetensors, upload


@dataclass
class Said:
    """Stands for the analysis: says what a test wants it to."""

    verdict: pb.ExperimentVerdict = field(
        default_factory=lambda: pb.ExperimentVerdict(decision=pb.DECISION_INCONCLUSIVE, reason="Too early.")
    )

    async def current(self, _project: str, test_id: str) -> pb.ExperimentResults:
        return pb.ExperimentResults(test_id=test_id, verdict=self.verdict)


@dataclass
class World:
    registry: Any
    experiment: Any
    store: Store
    said: Said
    controller: ExperimentController
    address: str


@asynccontextmanager
async def world(database_url: str, folder: Path) -> AsyncIterator[World]:
    """Both services over one kind of database; the background is left to the test: `world.controller.look()`."""
    async with AsyncExitStack() as stack:
        registry_url = f"sqlite:///{folder / 'registry.db'}" if "sqlite" in database_url else database_url
        settings = RegistrySettings(
            home=folder, port=0, metrics_port=0, database_url=registry_url, drain_s=0.0
        )
        if registry_url == database_url:
            await prepare(database_url, "neuroweaver.registry", "neuroweaver.experiment")
        else:
            await prepare(registry_url, "neuroweaver.registry")
            await prepare(database_url, "neuroweaver.experiment")
        database = Database(registry_url, schema="registry")
        serving = running(registry_service(database, settings), settings, registry=CollectorRegistry())
        registry_channel = await stack.enter_async_context(
            channel((await stack.enter_async_context(serving)).address)
        )
        registry = RegistryServiceStub(registry_channel)

        own = Database(database_url, schema="experiment")
        store, said, releases, projections = Store(own), Said(), Releases(registry), Projections()
        cache = ResultsCache(store, projections)
        servicer = server.servicer(
            store,
            Evaluators(store),
            releases,
            Committer(own, projections, store.clock, store.topics),
            cache,
            said,
        )
        served = Service(
            names=[server.SERVICE.full_name],
            add=lambda grpc_server: add_ExperimentServiceServicer_to_server(servicer, grpc_server),
            close=own.close,
        )
        own_settings = Settings(
            service="experiment", home=folder, port=0, metrics_port=0, database_url=database_url, drain_s=0.0
        )
        running_server = await stack.enter_async_context(
            running(served, own_settings, registry=CollectorRegistry())
        )
        stack.push_async_callback(own.close)
        client = await stack.enter_async_context(channel(running_server.address))
        stub, controller = ExperimentServiceStub(client), ExperimentController(store, releases, cache)
        yield World(registry, stub, store, said, controller, running_server.address)


async def publish(registry: Any, *versions: str, model_id: str = "advisor") -> None:
    """A model with validated versions, `production` naming the first."""
    await registry.RegisterModel(
        registry_pb.RegisterModelRequest(model=registry_pb.Model(model_id=model_id), allow_existing=True)
    )
    for version in versions:
        weights = await upload(registry, safetensors(version.encode()), "m.safetensors")
        await registry.CreateModelVersion(
            registry_pb.CreateModelVersionRequest(
                model_id=model_id,
                version=version,
                artifacts=[weights],
                state=registry_pb.VERSION_STATE_VALIDATED,
            )
        )
    await registry.SetAlias(
        registry_pb.SetAliasRequest(model_id=model_id, alias="production", version=versions[0])
    )


def spec(**fields: Any) -> pb.ExperimentSpec:
    """Two variants by parameters alone, and one metric."""
    variants = fields.pop("variants", None) or [
        pb.ExperimentVariant(variant_id="control", weight=0.5),
        pb.ExperimentVariant(variant_id="tuned", weight=0.5),
    ]
    metrics = fields.pop("metrics", None) or [metric()]
    return pb.ExperimentSpec(
        **{
            "title": "Is the tuned one better?",
            "variants": variants,
            "control_variant_id": "control",
            "metrics": metrics,
            "target_metric_id": metrics[0].metric_id,
        }
        | fields
    )


def models_spec(**fields: Any) -> pb.ExperimentSpec:
    """Production against version 2.0.0 of the advisor."""
    return spec(
        variants=[
            pb.ExperimentVariant(
                variant_id="control",
                weight=0.5,
                target=pb.VariantTarget(model_id="advisor", alias="production"),
            ),
            pb.ExperimentVariant(
                variant_id="tuned", weight=0.5, target=pb.VariantTarget(model_id="advisor", version="2.0.0")
            ),
        ],
        **fields,
    )


def metric(metric_id: str = "score", **fields: Any) -> pb.ExperimentMetric:
    if not fields.keys() & {"mean", "proportion", "ratio", "quantile", "count", "pairwise"}:
        fields["mean"] = pb.MeanMetric(source=pb.EventSource(event_name=metric_id))
    return pb.ExperimentMetric(**{"metric_id": metric_id, "goal": pb.METRIC_GOAL_INCREASE} | fields)


async def create(mesh: World, test_id: str = "t", made: pb.ExperimentSpec | None = None) -> pb.Experiment:
    return await mesh.experiment.CreateExperiment(
        pb.CreateExperimentRequest(test_id=test_id, spec=made or spec())
    )


async def start(mesh: World, test_id: str = "t") -> pb.Experiment:
    return await mesh.experiment.StartExperiment(pb.StartExperimentRequest(test_id=test_id))


async def assign(mesh: World, unit_id: str, test_id: str = "t", **fields: Any) -> pb.VariantAssignment:
    return await mesh.experiment.AssignVariant(
        pb.AssignVariantRequest(test_id=test_id, unit_id=unit_id, **fields)
    )
