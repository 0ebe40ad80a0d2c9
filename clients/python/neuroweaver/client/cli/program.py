"""The command line: its commands, and how each of them ends."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import typer
from rich.text import Text
from typer.exceptions import TyperException

from neuroweaver.client.cli import deploy, experiment, mesh, model, train, webhook
from neuroweaver.client.cli.failures import EPILOG, BadInput, Exit, Failure
from neuroweaver.client.cli.output import error_console
from neuroweaver.mesh import telemetry

app = typer.Typer(
    name="neuroweaver",
    add_completion=True,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog=EPILOG,
)
mesh.register(app)
app.add_typer(train.app, name="train")
app.add_typer(model.app, name="model")
app.add_typer(experiment.app, name="experiment")
app.add_typer(deploy.app, name="deploy")
app.add_typer(webhook.app, name="webhook")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code. Whatever goes wrong is told in one line on stderr, never as a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    provider = telemetry.start("cli", os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip())
    try:
        with telemetry.tracer.start_as_current_span("neuroweaver " + " ".join(given[:2])):
            return run(given)
    finally:
        provider.shutdown()


@app.callback(invoke_without_command=True)
def neuroweaver(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    """Specialise language models and prove that the specialised model is better.

    Begin with `neuroweaver up`, then `neuroweaver train start --help`. Where the services are:
    NEUROWEAVER_TRAINER_ADDRESS, NEUROWEAVER_REGISTRY_ADDRESS and so on, as host:port; without them, this
    machine.
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
        return _tell(_failure(error), as_json="--json" in arguments)


def _failure(error: Exception) -> Failure:
    match error:
        case Failure():
            return error
        case TyperException():
            return BadInput(_usage(error))
        case OSError():
            return Failure(Exit.FAILED, str(error))
    told = f"a fault of this program: {type(error).__name__}: {error} (DEBUG=true shows where)"
    return Failure(Exit.FAILED, told, code="INTERNAL")


def _usage(error: TyperException) -> str:
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{message}; see `{context.command_path} --help`" if context else message


def _tell(failure: Failure, *, as_json: bool) -> int:
    if as_json:
        sys.stderr.write(json.dumps(failure.to_json(), ensure_ascii=False) + "\n")
    else:
        error_console().print(Text.assemble(("neuroweaver: ", "bold red"), failure.message))
    return int(failure.exit_code)


def _version() -> str:
    try:
        return metadata.version("neuroweaver")
    except metadata.PackageNotFoundError:
        return "(not installed)"
