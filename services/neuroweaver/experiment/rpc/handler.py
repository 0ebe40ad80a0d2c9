"""What the RPCs of the Experiment service have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message

from neuroweaver.experiment.conclusion.registry import Releases
from neuroweaver.experiment.control.evaluators import Evaluators
from neuroweaver.experiment.storage.store import Origin, Store
from neuroweaver.experiment.storage.writer import Writer
from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.handlers.legacy import Answering, mutated
from neuroweaver.v1 import experiment_pb2 as pb

M = TypeVar("M", bound=Message)


class Results(Protocol):
    """Who computes where an experiment's data stand."""

    async def current(self, project: str, test_id: str) -> pb.ExperimentResults:
        """As of now, over all phases. Raises NotFound."""


class Handler(Answering[Store]):
    def __init__(self, store: Store, evaluators: Evaluators, releases: Releases, results: Results) -> None:
        super().__init__(store)
        self._evaluators = evaluators
        self._releases = releases
        self._results = results

    async def _mutate(
        self,
        method: str,
        request: Any,
        context: Any,
        response_type: type[M],
        operation: Callable[[Writer], Awaitable[M]],
    ) -> M:
        """The operation's answer, once; a retry reads the first one."""
        caller = caller_of(context)
        transact = partial(self._store.transact, Origin(caller.project, caller.actor))
        return await mutated(transact, method, request, response_type, operation)
