"""The RPCs by which experiments come into being, run and end."""

from __future__ import annotations

from typing import Any

from neuroweaver.experiment.conclusion import conclusion
from neuroweaver.experiment.conclusion.conclusion import Wish
from neuroweaver.experiment.domain import messages, specification
from neuroweaver.experiment.domain.allocation import Spans, reserve
from neuroweaver.experiment.domain.model import CONCLUDED, CREATED, Experiment, free_share
from neuroweaver.experiment.rpc.handler import Handler
from neuroweaver.experiment.storage.reader import LABEL
from neuroweaver.experiment.storage.store import Origin
from neuroweaver.experiment.storage.writer import Writer
from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.database.pagination import Page
from neuroweaver.mesh.handlers import filters
from neuroweaver.mesh.wire.errors import AlreadyExists, FailedPrecondition
from neuroweaver.mesh.wire.ids import new_id
from neuroweaver.mesh.wire.text import check_text
from neuroweaver.v1 import experiment_pb2 as pb


class LifecycleMethods(Handler):
    async def CreateExperiment(self, request: pb.CreateExperimentRequest, context: Any) -> pb.Experiment:
        caller = caller_of(context)
        known = await self._answered("CreateExperiment", request, context, pb.Experiment)
        if known is not None:
            return known
        spec = specification.completed(request.spec, self._store.clock())
        await self._pinned(spec)  # every version must be there, though aliases are pinned at the start

        async def create(experiments: Writer) -> pb.Experiment:
            layer_salt, layer_ranges = await _place(experiments, spec)
            made = Experiment(
                project=caller.project,
                test_id=request.test_id or new_id(),
                spec=spec,
                weights={variant.variant_id: variant.weight for variant in spec.variants},
                salt=new_id(),
                layer_salt=layer_salt,
                layer_ranges=layer_ranges,
                pinned={},
                baseline={},
                created_by=caller.actor,
                create_time=experiments.now,
                update_time=experiments.now,
            )
            if request.validate_only:
                raise _OnlyChecked(messages.from_experiment(made))
            return messages.from_experiment(await experiments.add(made))

        try:
            return await self._mutate("CreateExperiment", request, context, pb.Experiment, create)
        except _OnlyChecked as checked:
            async with self._store.read(caller.project) as experiments:
                if request.test_id and await experiments.has(request.test_id):
                    raise AlreadyExists("experiment", request.test_id) from None
            return checked.experiment

    async def StartExperiment(self, request: pb.StartExperimentRequest, context: Any) -> pb.Experiment:
        known = await self._answered("StartExperiment", request, context, pb.Experiment)
        if known is not None:
            return known
        async with self._store.read(caller_of(context).project) as experiments:
            found = await experiments.experiment(request.test_id)
        pinned: dict[str, str] = {}
        baseline: dict[str, str] = {}
        if found.state == CREATED:
            # The Registry is asked outside of the transaction; what it said is what is pinned.
            pinned = await self._pinned(found.spec)
            models = {each.target.model_id for each in found.spec.variants if each.HasField("target")}
            baseline = {
                model: await self._releases.behind(model, found.spec.alias) for model in sorted(models)
            }

        async def start(experiments: Writer) -> pb.Experiment:
            before = await experiments.experiment(request.test_id)
            before.check_etag(request.etag)
            return await _saved(experiments, before, before.started(experiments.now, pinned, baseline))

        return await self._mutate("StartExperiment", request, context, pb.Experiment, start)

    async def PauseExperiment(self, request: pb.PauseExperimentRequest, context: Any) -> pb.Experiment:
        check_text("reason", request.reason)

        async def pause(experiments: Writer) -> pb.Experiment:
            before = await experiments.experiment(request.test_id)
            before.check_etag(request.etag)
            return await _saved(experiments, before, before.paused(experiments.now, request.reason))

        return await self._mutate("PauseExperiment", request, context, pb.Experiment, pause)

    async def StopExperiment(self, request: pb.StopExperimentRequest, context: Any) -> pb.Experiment:
        check_text("reason", request.reason)

        async def stop(experiments: Writer) -> pb.Experiment:
            before = await experiments.experiment(request.test_id)
            before.check_etag(request.etag)
            after = before.stopped(experiments.now, pb.STOP_CAUSE_REQUESTED, request.reason)
            return await _saved(experiments, before, after)

        return await self._mutate("StopExperiment", request, context, pb.Experiment, stop)

    async def UpdateWeights(self, request: pb.UpdateWeightsRequest, context: Any) -> pb.Experiment:
        check_text("reason", request.reason)
        weights = {each.variant_id: each.weight for each in request.weights}

        async def reweigh(experiments: Writer) -> pb.Experiment:
            before = await experiments.experiment(request.test_id)
            before.check_etag(request.etag)
            if before.spec.HasField("thompson"):
                raise FailedPrecondition(
                    "ADAPTIVE", "the weights of this experiment follow its outcomes", before.test_id
                )
            after = before.reweighted(weights, experiments.now, request.reason)
            return await _saved(experiments, before, after)

        return await self._mutate("UpdateWeights", request, context, pb.Experiment, reweigh)

    async def ConcludeExperiment(self, request: pb.ConcludeExperimentRequest, context: Any) -> pb.Experiment:
        check_text("reason", request.reason)
        caller = caller_of(context)
        wish = Wish(
            request.winner_variant_id, request.force, request.reason, request.expected_version, caller.actor
        )
        known = await self._answered("ConcludeExperiment", request, context, pb.Experiment)
        if known is not None:
            return known
        async with self._store.read(caller.project) as experiments:
            found = await experiments.experiment(request.test_id)
        verdict = (await self._results.current(caller.project, request.test_id)).verdict
        if found.start_time and found.state != CONCLUDED:
            winner = conclusion.chosen(found, verdict, wish)
            planned = conclusion.conclusion_of(found, winner, verdict, wish, self._store.clock())
            await conclusion.check_alias(self._releases, planned, is_expected=bool(wish.expected))

        async def conclude(experiments: Writer) -> pb.Experiment:
            before = await experiments.experiment(request.test_id)
            before.check_etag(request.etag)
            winner = conclusion.chosen(before, verdict, wish)
            made = conclusion.conclusion_of(before, winner, verdict, wish, experiments.now)
            return await _saved(experiments, before, before.decided(made, experiments.now))

        answer = await self._mutate("ConcludeExperiment", request, context, pb.Experiment, conclude)
        if answer.state != pb.EXPERIMENT_STATE_CONCLUDING:
            return answer
        return messages.from_experiment(await self.settle(caller.project, request.test_id))

    async def settle(self, project: str, test_id: str) -> Experiment:
        """One attempt to make a pending conclusion true in the Registry."""
        async with self._store.read(project) as experiments:
            found = await experiments.experiment(test_id)
        pending = found.conclusion
        if pending is None or pending.state != pb.CONCLUSION_STATE_PENDING:
            return found
        attempt = await conclusion.attempted(self._releases, project, test_id, pending)

        async def note(experiments: Writer) -> Experiment:
            before = await experiments.experiment(test_id)
            if before.conclusion != pending:  # another attempt was faster, or another decision was taken
                return before
            after = before.decided(attempt, experiments.now)
            return await experiments.save(before, after, messages.events_of(before, after, experiments.actor))

        return await self._store.transact(Origin(project, "system"), note)

    async def GetExperiment(self, request: pb.GetExperimentRequest, context: Any) -> pb.Experiment:
        async with self._store.read(caller_of(context).project) as experiments:
            return messages.from_experiment(await experiments.experiment(request.test_id))

    async def ListExperiments(
        self, request: pb.ListExperimentsRequest, context: Any
    ) -> pb.ListExperimentsResponse:
        project = caller_of(context).project
        order_by = request.order_by or "create_time desc"
        page = Page.of(
            request.page_size, request.page_token, query=("experiments", project, request.filter, order_by)
        )
        terms = filters.parse(request.filter, ("state", "model_id", "layer_id", LABEL))
        async with self._store.read(project) as experiments:
            found, token = await experiments.experiments(page, terms, order_by=order_by)
        return pb.ListExperimentsResponse(
            experiments=map(messages.from_experiment, found), next_page_token=token
        )

    async def ListLayers(self, request: pb.ListLayersRequest, context: Any) -> pb.ListLayersResponse:
        project = caller_of(context).project
        page = Page.of(request.page_size, request.page_token, query=("layers", project))
        async with self._store.read(project) as experiments:
            ids, token = await experiments.layers(page)
            layers = [_from_layer(layer_id, await experiments.layer(layer_id)) for layer_id in ids]
        return pb.ListLayersResponse(layers=layers, next_page_token=token)

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
    taken = await experiments.taken(layer_id)
    ranges = reserve(share, taken)
    if ranges is None:
        raise FailedPrecondition(
            "LAYER_FULL",
            f"layer {layer_id} has {free_share(taken):.4g} of its share left, not {share:.4g}: "
            "stop an experiment there, or ask for less",
            layer_id,
        )
    return salt, ranges


async def _saved(experiments: Writer, before: Experiment, after: Experiment) -> pb.Experiment:
    """After a change, of which watches are told; what changes nothing is not written."""
    if after == before:
        return messages.from_experiment(before)
    events = messages.events_of(before, after, experiments.actor)
    return messages.from_experiment(await experiments.save(before, after, events))


def _from_layer(layer_id: str, experiments: list[Experiment]) -> pb.ExperimentLayer:
    slots = [
        pb.LayerSlot(
            test_id=each.test_id,
            ranges=[pb.BucketRange(start=start, end=end) for start, end in each.layer_ranges],
        )
        for each in experiments
    ]
    taken = [span for each in experiments for span in each.layer_ranges]
    return pb.ExperimentLayer(layer_id=layer_id, slots=slots, free_share=free_share(taken))
