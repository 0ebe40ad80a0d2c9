"""Experiments: created, started, reweighed, stopped, concluded, listed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Protocol

from neuroweaver.experiment.conclusion import conclusion
from neuroweaver.experiment.conclusion.registry import Releases
from neuroweaver.experiment.domain import messages, specification
from neuroweaver.experiment.domain.allocation import Spans, reserve
from neuroweaver.experiment.domain.model import CONCLUDED, CONCLUDING, CREATED, Experiment, free_share
from neuroweaver.experiment.storage.reader import LABEL
from neuroweaver.experiment.storage.store import Store
from neuroweaver.experiment.storage.writer import Writer
from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.database.pagination import Page
from neuroweaver.mesh.handlers import filters
from neuroweaver.mesh.handlers.mutations import Mutations
from neuroweaver.mesh.wire.errors import FailedPrecondition
from neuroweaver.mesh.wire.ids import new_id
from neuroweaver.v1 import experiment_pb2 as pb

Transition = Callable[[Experiment, datetime], Experiment]


class Verdicts(Protocol):
    async def current(self, project: str, test_id: str) -> pb.ExperimentResults:
        """As of now, over all phases. Raises NotFound."""


async def create(
    experiments: Writer, request: pb.CreateExperimentRequest, spec: pb.ExperimentSpec
) -> pb.Experiment:
    """spec: complete. Raises _OnlyChecked, which undoes the transaction, if it is only to be validated."""
    layer_salt, layer_ranges = await _place(experiments, spec)
    experiment = Experiment(
        project=experiments.project,
        test_id=request.test_id or new_id(),
        spec=spec,
        weights={variant.variant_id: variant.weight for variant in spec.variants},
        salt=new_id(),
        layer_salt=layer_salt,
        layer_ranges=layer_ranges,
        pinned={},
        baseline={},
        created_by=experiments.origin.actor,
        create_time=experiments.now,
        update_time=experiments.now,
    )
    added = await experiments.add(experiment)
    if request.validate_only:
        raise _OnlyChecked(messages.from_experiment(experiment))
    return messages.from_experiment(added)


async def change(experiments: Writer, request: Any, transition: Transition) -> pb.Experiment:
    """The experiment that the request names, after a transition of it. Raises NotFound, Aborted."""
    before = await experiments.experiment(request.test_id)
    before.check_etag(request.etag)
    return messages.from_experiment(await experiments.save(before, transition(before, experiments.now)))


class Lifecycle:
    def __init__(
        self, store: Store, mutations: Mutations[Writer], releases: Releases, verdicts: Verdicts
    ) -> None:
        self._store = store
        self._mutations = mutations
        self._releases = releases
        self._verdicts = verdicts

    async def CreateExperiment(self, request: pb.CreateExperimentRequest, context: Any) -> pb.Experiment:
        answer: pb.Experiment | None = await self._mutations.answered(request, context)
        if answer is not None:
            return answer
        spec = specification.completed(request.spec, self._store.clock())
        await self._pinned(spec)  # every version must be there, though aliases are pinned at the start
        try:
            return await self._mutations.run(
                request, context, lambda experiments: create(experiments, request, spec)
            )
        except _OnlyChecked as checked:
            return checked.experiment

    async def StartExperiment(self, request: pb.StartExperimentRequest, context: Any) -> pb.Experiment:
        answer: pb.Experiment | None = await self._mutations.answered(request, context)
        if answer is not None:
            return answer
        experiment = await self._store.experiment(caller_of(context).project, request.test_id)
        pinned: dict[str, str] = {}
        baseline: dict[str, str] = {}
        if experiment.state == CREATED:
            # The Registry is asked outside of the transaction; what it said is what is pinned.
            pinned = await self._pinned(experiment.spec)
            models = {each.target.model_id for each in experiment.spec.variants if each.HasField("target")}
            baseline = {
                model: await self._releases.behind(model, experiment.spec.alias) for model in sorted(models)
            }
        return await self._change(request, context, lambda before, now: before.started(now, pinned, baseline))

    async def PauseExperiment(self, request: pb.PauseExperimentRequest, context: Any) -> pb.Experiment:
        return await self._change(request, context, lambda before, now: before.paused(now, request.reason))

    async def StopExperiment(self, request: pb.StopExperimentRequest, context: Any) -> pb.Experiment:
        cause = pb.STOP_CAUSE_REQUESTED
        return await self._change(
            request, context, lambda before, now: before.stopped(now, cause, request.reason)
        )

    async def UpdateWeights(self, request: pb.UpdateWeightsRequest, context: Any) -> pb.Experiment:
        weights = {variant.variant_id: variant.weight for variant in request.weights}
        return await self._change(
            request, context, lambda before, now: before.reweighted_by_hand(weights, now, request.reason)
        )

    async def ConcludeExperiment(self, request: pb.ConcludeExperimentRequest, context: Any) -> pb.Experiment:
        answer: pb.Experiment | None = await self._mutations.answered(request, context)
        if answer is not None:
            return answer
        caller = caller_of(context)
        experiment = await self._store.experiment(caller.project, request.test_id)
        verdict = (await self._verdicts.current(caller.project, request.test_id)).verdict
        if experiment.start_time and experiment.state != CONCLUDED:
            planned = conclusion.concluded(experiment, verdict, request, caller.actor, self._store.clock())
            await conclusion.check_alias(self._releases, planned, is_expected=bool(request.expected_version))

        def conclude(before: Experiment, now: datetime) -> Experiment:
            return before.decided(conclusion.concluded(before, verdict, request, caller.actor, now), now)

        answer = await self._change(request, context, conclude)
        if answer.state != CONCLUDING:
            return answer
        settled = await conclusion.settle(self._store, self._releases, caller.project, request.test_id)
        return messages.from_experiment(settled)

    async def GetExperiment(self, request: pb.GetExperimentRequest, context: Any) -> pb.Experiment:
        experiment = await self._store.experiment(caller_of(context).project, request.test_id)
        return messages.from_experiment(experiment)

    async def ListExperiments(
        self, request: pb.ListExperimentsRequest, context: Any
    ) -> pb.ListExperimentsResponse:
        project = caller_of(context).project
        page = Page.asked(request, project)
        terms = filters.parse(request.filter, ("state", "model_id", "layer_id", LABEL))
        async with self._store.read(project) as experiments:
            listed, token = await experiments.experiments(
                page, terms, order_by=request.order_by or "create_time desc"
            )
        return pb.ListExperimentsResponse(
            experiments=map(messages.from_experiment, listed), next_page_token=token
        )

    async def ListLayers(self, request: pb.ListLayersRequest, context: Any) -> pb.ListLayersResponse:
        project = caller_of(context).project
        page = Page.asked(request, project)
        async with self._store.read(project) as experiments:
            ids, token = await experiments.layers(page)
            layers = [_from_layer(layer_id, await experiments.layer(layer_id)) for layer_id in ids]
        return pb.ListLayersResponse(layers=layers, next_page_token=token)

    async def _change(self, request: Any, context: Any, transition: Transition) -> pb.Experiment:
        return await self._mutations.run(
            request, context, lambda experiments: change(experiments, request, transition)
        )

    async def _pinned(self, spec: pb.ExperimentSpec) -> dict[str, str]:
        """The exact version behind each variant that names a model. Raises NotFound, Unavailable."""
        return {
            variant.variant_id: await self._releases.version_of(
                f"spec.variants[{index}].target", variant.target
            )
            for index, variant in enumerate(spec.variants)
            if variant.HasField("target")
        }


class _OnlyChecked(Exception):  # it undoes the transaction; it is no error
    def __init__(self, experiment: pb.Experiment) -> None:
        super().__init__()
        self.experiment = experiment


async def _place(experiments: Writer, spec: pb.ExperimentSpec) -> tuple[str, Spans]:
    """The salt of the experiment's layer and its buckets there. Raises FailedPrecondition."""
    if not spec.HasField("layer"):
        return "", ()
    layer_id, share = spec.layer.layer_id, spec.layer.share
    salt = await experiments.salt_of_layer(layer_id)
    taken = [span for each in await experiments.layer(layer_id) for span in each.layer_ranges]
    ranges = reserve(share, taken)
    if ranges is None:
        raise FailedPrecondition(
            "LAYER_FULL",
            f"layer {layer_id} has a share of {free_share(taken):.4g} left, not {share:.4g}: "
            "stop one of its experiments, or ask for less",
            layer_id,
        )
    return salt, ranges


def _from_layer(layer_id: str, experiments: Sequence[Experiment]) -> pb.ExperimentLayer:
    taken = [span for experiment in experiments for span in experiment.layer_ranges]
    return pb.ExperimentLayer(
        layer_id=layer_id,
        slots=[
            pb.LayerSlot(test_id=experiment.test_id, ranges=messages.from_spans(experiment.layer_ranges))
            for experiment in experiments
        ],
        free_share=free_share(taken),
    )
