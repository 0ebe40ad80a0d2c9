"""What the RPCs of the Experiment service have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message

from neuroweaver.experiment.evaluators import Evaluators
from neuroweaver.experiment.releases import Releases
from neuroweaver.experiment.store import Origin, Store
from neuroweaver.experiment.writer import Writer
from neuroweaver.mesh import idempotency
from neuroweaver.mesh.caller import caller_of
from neuroweaver.mesh.text import check_text
from neuroweaver.v1 import experiment_pb2 as pb

M = TypeVar("M", bound=Message)


class Results(Protocol):
    """Who computes where an experiment's data stand."""

    async def current(self, project: str, test_id: str) -> pb.ExperimentResults:
        """As of now, over all phases. Raises NotFound."""


class Handler:
    def __init__(self, store: Store, evaluators: Evaluators, releases: Releases, results: Results) -> None:
        self._store = store
        self._evaluators = evaluators
        self._releases = releases
        self._results = results

    async def _answered(self, method: str, request: Any, context: Any, response_type: type[M]) -> M | None:
        """The answer given to this request before; None if it is new.

        For what looks at the world before its transaction: a retry is answered whatever has changed since.
        """
        check_text("request_id", request.request_id)
        async with self._store.read(caller_of(context).project) as experiments:
            return await idempotency.answered(
                experiments.connection,
                project=experiments.project,
                method=method,
                request_id=request.request_id,
                request=request,
                response_type=response_type,
            )

    async def _mutate(
        self,
        method: str,
        request: Any,
        context: Any,
        response_type: type[M],
        operation: Callable[[Writer], Awaitable[M]],
    ) -> M:
        """The operation's answer, once; a retry reads the first one."""
        check_text("request_id", request.request_id)
        caller = caller_of(context)

        async def work(experiments: Writer) -> M:
            return await experiments.once(
                method, request.request_id, request, response_type, lambda: operation(experiments)
            )

        return await self._store.transact(Origin(caller.project, caller.actor), work)
