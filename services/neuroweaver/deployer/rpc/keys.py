"""Which deployment a request is about."""

from __future__ import annotations

from typing import Any

from neuroweaver.deployer.domain.backend import Key
from neuroweaver.deployer.domain.specification import key_of
from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.wire.errors import InvalidArgument, NotFound


def new_key(request: Any, context: Any) -> Key:
    """Of one that may come into being. Raises InvalidArgument for what can be none."""
    return key_of(caller_of(context).project, request.model_id, request.name)


def existing_key(request: Any, context: Any) -> Key:
    """Raises NotFound for what can be no deployment, since none has that name."""
    try:
        return new_key(request, context)
    except InvalidArgument as error:
        raise NotFound("deployment", request.model_id) from error
