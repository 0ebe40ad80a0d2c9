"""What the Deployer's RPCs have in common: a change is made once, by somebody, for a reason."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from google.protobuf.message import Message

from neuroweaver.deployer.control.recent import Memory
from neuroweaver.deployer.domain import specification
from neuroweaver.deployer.domain.backend import Key
from neuroweaver.deployer.domain.history import Occasion
from neuroweaver.deployer.domain.model import Deployment
from neuroweaver.deployer.domain.specification import key_of
from neuroweaver.deployer.planning import Planner
from neuroweaver.deployer.storage.store import Store
from neuroweaver.deployer.storage.writer import Writer
from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.handlers.legacy import Answering, mutated
from neuroweaver.mesh.wire.errors import InvalidArgument, NotFound
from neuroweaver.mesh.wire.text import check_text
from neuroweaver.v1 import deployer_pb2 as pb

M = TypeVar("M", bound=Message)


class Handler(Answering[Store]):
    def __init__(self, store: Store, planner: Planner) -> None:
        super().__init__(store)
        self._planner = planner
        self._memory = Memory()

    async def _mutate(
        self,
        method: str,
        request: Any,
        context: Any,
        response_type: type[M],
        operation: Callable[[Writer], Awaitable[M]],
    ) -> M:
        """The operation's answer, once; a retry reads the first one."""
        transact = partial(self._store.transact, caller_of(context).project)
        return await mutated(transact, method, request, response_type, operation)

    def _changed(
        self, current: Deployment, change: Callable[[pb.DeploymentSpec], None]
    ) -> tuple[pb.DeploymentSpec, pb.DeploymentSpec]:
        """The deployment's spec with a change: as it is asked for, and completed. Raises InvalidArgument."""
        asked = specification.changed(current.asked, change)
        bundle = current.revision(current.target).bundle
        return asked, specification.completed(asked, current.key, bundle, self._planner.defaults)


def asked_key(request: Any, context: Any) -> Key:
    """The deployment that a request is about. Raises InvalidArgument for what can be none."""
    return key_of(caller_of(context).project, request.model_id, request.name)


def known_key(request: Any, context: Any) -> Key:
    """As `asked_key`, for calls about what is there: what can be no deployment does not exist.

    Raises NotFound.
    """
    try:
        return asked_key(request, context)
    except InvalidArgument as error:
        raise NotFound("deployment", request.model_id) from error


def occasion(request: Any, context: Any, cause: str = "SPEC") -> Occasion:
    """Who makes a change and why. Raises InvalidArgument for a reason with control characters."""
    reason = getattr(request, "reason", "")
    check_text("reason", reason)
    return Occasion(actor=caller_of(context).actor, reason=reason, cause=cause)
