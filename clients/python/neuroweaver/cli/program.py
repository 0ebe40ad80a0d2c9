"""The command line: its commands, where each of them is, and how it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer
from typer import Option
from typer.exceptions import TyperException

from neuroweaver.cli.terminal.failures import EPILOG, BadInput, Exit, Failure
from neuroweaver.cli.terminal.lazy import MARKUP, LazyGroup

COMMANDS: Final = {
    "mesh": {
        "up": "Start the four services on this machine and keep them running until Ctrl-C.",
        "down": "Stop the services that `up --detach` started, and nothing else.",
        "status": "Show which services are serving, how many jobs run and how many models there are.",
    },
    "train.commands": {"train": "Training jobs: start, watch, cancel, resume, report."},
    "model": {"model": "Models, their versions and aliases in the Registry."},
    "experiment": {"experiment": "Experiments: compare model versions on live traffic."},
    "deploy": {"deploy": "Deployments: endpoints that serve a model, recover, scale and roll back."},
    "webhook": {"webhook": "Webhooks: send changes of models, versions and aliases to a URL."},
}
"""By module, with a line each, so that `neuroweaver --help` imports none of them."""


class Program(LazyGroup):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "panels": {"Commands": COMMANDS}})


app = typer.Typer(
    name="neuroweaver",
    cls=Program,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=MARKUP,
    epilog=EPILOG,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code. Whatever goes wrong is one line on stderr, never a traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--help" in words or not words or words[0] in {"up", "down"} or words[0].startswith("-"):
        return run(words)
    # Only what may call a service belongs to a trace.
    from neuroweaver.mesh.wire import telemetry  # noqa: PLC0415

    provider = telemetry.start("cli", os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip())
    try:
        with telemetry.tracer.start_as_current_span("neuroweaver " + " ".join(words[:2])):
            return run(words)
    finally:
        provider.shutdown()


@app.callback(invoke_without_command=True)
def neuroweaver(
    context: typer.Context,
    *,
    version: Annotated[bool, Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Specialise language models and prove that the specialised model is better.

    Start with `neuroweaver up`, then `neuroweaver train start --help`. The services are expected on this
    machine; NEUROWEAVER_TRAINER_ADDRESS, NEUROWEAVER_REGISTRY_ADDRESS and so on say otherwise, as host:port.

    Example: neuroweaver up --detach
    """
    if version:
        sys.stdout.write(f"neuroweaver {_version()}\n")
    elif context.invoked_subcommand is None:
        sys.stdout.write(f"{context.get_help()}\n")


def run(arguments: list[str]) -> int:
    """`main` without a trace."""
    try:
        return int(app(arguments, prog_name="neuroweaver", standalone_mode=False) or Exit.OK)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # `neuroweaver … | head`: nobody reads on, and Python would complain again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except Exception as error:
        if os.environ.get("DEBUG") and not isinstance(error, Failure | TyperException):
            raise
        return _report(_failure(error), as_json="--json" in arguments)


def _failure(error: Exception) -> Failure:
    match error:
        case Failure():
            return error
        case TyperException():
            return BadInput(_usage(error))
        case OSError():
            return Failure(Exit.FAILED, str(error))
        case UnicodeEncodeError():
            around = str(error.object)[max(0, error.start - 20) : error.end + 20]
            return BadInput(f"{around!r} is not text: not UTF-8, or half of a surrogate pair")
    message = f"internal error: {type(error).__name__}: {error} (DEBUG=true shows where)"
    return Failure(Exit.FAILED, message, code="INTERNAL")


def _usage(error: TyperException) -> str:
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{message}; see `{context.command_path} --help`" if context else message


def _report(failure: Failure, *, as_json: bool) -> int:
    from neuroweaver.cli.terminal.output import print_failure  # noqa: PLC0415

    print_failure(failure, as_json=as_json)
    return int(failure.exit_code)


def _version() -> str:
    from importlib import metadata  # noqa: PLC0415  its import takes longer than all above

    try:
        return metadata.version("neuroweaver")
    except metadata.PackageNotFoundError:
        return "(not installed)"
