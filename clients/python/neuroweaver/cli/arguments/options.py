"""Options that several commands share as a whole."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def with_options(
    options: Callable[..., Any], into: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The command takes the parameters of `options` as its own; what `options` returns arrives as `into`."""
    shared = inspect.signature(options, eval_str=True).parameters

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        parameters = [*(parameter for name, parameter in own.items() if name != into), *shared.values()]
        # Python has those by place first; --json stands at the end, as in every command.
        parameters.sort(key=lambda parameter: (parameter.kind, parameter.name == "as_json"))

        @functools.wraps(command)
        def wrapper(**arguments: Any) -> None:
            given = options(**{name: arguments.pop(name) for name in shared})
            command(**{into: given}, **arguments)

        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapper

    return decorated
