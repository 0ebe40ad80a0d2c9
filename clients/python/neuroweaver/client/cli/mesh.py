"""`neuroweaver up`, `down` and `status`: the services of this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import grpc
import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from neuroweaver.client.cli.failures import EPILOG, BadInput, Exit, Failure
from neuroweaver.client.cli.output import AsJson, console, print_json, print_table
from neuroweaver.client.connection import Client
from neuroweaver.client.processes import (
    SERVICES,
    Fleet,
    Place,
    ProcessError,
    end_recorded,
    recorded,
    unwinding_on_signals,
)
from neuroweaver.mesh.settings import SettingsError

_WATCH_S = 0.5
_STYLES = {"serving": "green", "starting": "dim", "unavailable": "red"}


def up(
    *,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Leave the services running; `down` ends them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start the four services on this machine and keep them until Ctrl-C.

    Their logs go to NEUROWEAVER_HOME/logs.

    Example: neuroweaver up --detach
    """
    try:
        with unwinding_on_signals(), Fleet(os.environ) as fleet:
            _refuse_second(fleet.places)
            fleet.start()
            _show_start(fleet, as_json=as_json)
            if detach:
                fleet.let_go()
                return
            while True:
                time.sleep(_WATCH_S)
                fleet.check_alive()
    except ProcessError as error:
        raise Failure(Exit.FAILED, str(error)) from error
    except SettingsError as error:
        raise BadInput(str(error)) from error


def down(*, as_json: AsJson = False) -> None:
    """End the services that `up --detach` started, and nothing else.

    Example: neuroweaver down
    """
    try:
        ended = end_recorded([Place.from_environment(service, os.environ) for service in SERVICES])
    except ProcessError as error:
        raise Failure(Exit.FAILED, str(error)) from error
    except SettingsError as error:
        raise BadInput(str(error)) from error
    if as_json:
        print_json({"ended": [{"service": service, "pid": pid} for service, pid in ended.items()]})
        return
    print_table(
        ("SERVICE", "PROCESS"),
        [(name, f"{pid} ended") for name, pid in ended.items()],
        empty="Nothing to end.",
    )


def status(*, as_json: AsJson = False) -> None:
    """Show which services serve, how many jobs run and how many models there are.

    Ends with 4 if a service does not serve.

    Example: neuroweaver status --json
    """
    try:
        with Client(timeout_s=5.0) as client:
            addresses = {service: client.address(service) for service in SERVICES}
            serving = {service: client.is_healthy(service) for service in SERVICES}
            running = _jobs(client, "RUNNING") if serving["trainer"] else None
            queued = _jobs(client, "QUEUED") if serving["trainer"] else None
            models = _models(client) if serving["registry"] else None
    except SettingsError as error:
        raise BadInput(str(error)) from error
    states = {service: "serving" if ok else "unavailable" for service, ok in serving.items()}
    if as_json:
        print_json(
            {
                "services": [
                    {"service": service, "address": addresses[service], "state": states[service]}
                    for service in SERVICES
                ],
                "jobs_running": running,
                "jobs_queued": queued,
                "models": models,
            }
        )
    else:
        rows = [(name, addresses[name], Text(states[name], _STYLES[states[name]])) for name in SERVICES]
        print_table(("SERVICE", "ADDRESS", "STATE"), rows, empty="")
        console().print(
            f"\njobs running {_count(running)}, queued {_count(queued)}; models {_count(models)}",
            highlight=False,
        )
    if not all(serving.values()):
        raise typer.Exit(Exit.UNAVAILABLE)


def register(app: typer.Typer) -> None:
    for command in (up, down, status):
        app.command(epilog=EPILOG)(command)


def _refuse_second(places: Sequence[Place]) -> None:
    running = recorded(places)
    if running:
        listed = ", ".join(f"{service} (process {pid})" for service, pid in running.items())
        raise Failure(Exit.CONFLICT, f"already running: {listed}; `neuroweaver down` ends them")


def _show_start(fleet: Fleet, *, as_json: bool) -> None:
    if as_json:
        fleet.wait_until_healthy()
        print_json({"services": [_entry(fleet, place) for place in fleet.places]})
        return
    screen = console()
    starting = {place.service: "starting" for place in fleet.places}
    with Live(_board(fleet, starting), console=screen) as live:
        fleet.wait_until_healthy(lambda states: live.update(_board(fleet, states)))
    screen.print(f"\nLogs: {fleet.places[0].log.parent}", soft_wrap=True, highlight=False)


def _board(fleet: Fleet, states: Mapping[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("SERVICE", "ADDRESS", "METRICS", "PROCESS", "STATE"):
        table.add_column(column)
    for place in fleet.places:
        state = states[place.service]
        table.add_row(
            place.service,
            place.address,
            _metrics_url(place),
            str(fleet.pid(place.service)),
            Text(state, _STYLES[state]),
        )
    return table


def _entry(fleet: Fleet, place: Place) -> dict[str, Any]:
    return {
        "service": place.service,
        "address": place.address,
        "metrics_url": _metrics_url(place),
        "state": "serving",
        "pid": fleet.pid(place.service),
        "log": str(place.log),
    }


def _metrics_url(place: Place) -> str:
    host = f"[{place.host}]" if ":" in place.host else place.host
    return f"http://{host}:{place.metrics_port}/metrics"


def _jobs(client: Client, state: str) -> int | None:
    try:
        return sum(1 for _ in client.jobs(f"state={state}"))
    except grpc.RpcError:
        return None


def _models(client: Client) -> int | None:
    try:
        return sum(1 for _ in client.models())
    except grpc.RpcError:
        return None


def _count(number: int | None) -> str:
    return "unknown" if number is None else str(number)
