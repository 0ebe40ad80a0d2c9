"""`neuroweaver up`, `down` and `status`: the services of this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text
from typer import Option

from neuroweaver.cli.terminal.failures import BadInput, Exit, Failure
from neuroweaver.cli.terminal.names import style_of
from neuroweaver.cli.terminal.output import AsJson, console, print_json, print_table, table
from neuroweaver.local.processes import (
    SERVICES,
    Fleet,
    Place,
    ProcessError,
    end_recorded,
    recorded,
    supervisor,
    supervisor_log,
    unwinding_on_signals,
)
from neuroweaver.local.restarts import WATCH_S, Restarts
from neuroweaver.mesh.wire.environment import SettingsError


def up(
    *,
    detach: Annotated[
        bool, Option("--detach", "-d", help="Leave the services running; `down` stops them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start the four services on this machine and keep them running until Ctrl-C.

    One that stops by itself is started again, also after --detach. Their logs go to NEUROWEAVER_HOME/logs.

    Example: neuroweaver up --detach
    """
    with _failing(), unwinding_on_signals(), Fleet(os.environ) as fleet:
        home = fleet.places[0].home
        running = recorded(fleet.places) | ({"supervisor": pid} if (pid := supervisor(home)) else {})
        if running:
            listed = ", ".join(f"{service} (process {pid})" for service, pid in running.items())
            raise Failure(Exit.CONFLICT, f"already running: {listed}; `neuroweaver down` stops them")
        fleet.start()
        _show_start(fleet, as_json=as_json)
        if detach:
            pid = fleet.let_go()
            typer.echo(f"supervised by process {pid} (log: {supervisor_log(home)})", err=True)
            return
        restarts = Restarts(fleet, lambda line: typer.echo(line, err=True))
        while True:
            time.sleep(WATCH_S)
            restarts.look()


def down(*, as_json: AsJson = False) -> None:
    """Stop the services that `up --detach` started, and nothing else.

    Example: neuroweaver down
    """
    with _failing():
        ended = end_recorded([Place.from_environment(service, os.environ) for service in SERVICES])
    if as_json:
        print_json({"ended": [{"service": service, "pid": pid} for service, pid in ended.items()]})
        return
    rows = [(name, f"{pid} stopped") for name, pid in ended.items()]
    print_table(("SERVICE", "PROCESS"), rows, empty="Nothing to stop.")


def status(*, as_json: AsJson = False) -> None:
    """Show which services are serving, how many jobs run and how many models there are.

    Exits with 4 if a service is unavailable.

    Example: neuroweaver status --json
    """
    # Not for `up`, which stays in memory.
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    import grpc  # noqa: PLC0415

    from neuroweaver.client.connection import Client  # noqa: PLC0415

    def count(service: str, items: Iterator[Any]) -> int | None:
        try:
            return sum(1 for _ in items) if serving[service] else None
        except grpc.RpcError:
            return None

    with _failing(), Client(timeout_s=5.0) as client, ThreadPoolExecutor() as pool:
        addresses = {service: client.address(service) for service in SERVICES}
        serving = dict(zip(SERVICES, pool.map(client.is_healthy, SERVICES), strict=True))
        running, queued = (count("trainer", client.jobs(f"state={state}")) for state in ("RUNNING", "QUEUED"))
        models = count("registry", client.models())
    states = {service: "serving" if is_up else "unavailable" for service, is_up in serving.items()}
    if as_json:
        services = [
            {"service": service, "address": addresses[service], "state": states[service]}
            for service in SERVICES
        ]
        print_json({"services": services, "jobs_running": running, "jobs_queued": queued, "models": models})
    else:
        rows = [(name, addresses[name], Text(states[name], style_of(states[name]))) for name in SERVICES]
        print_table(("SERVICE", "ADDRESS", "STATE"), rows, empty="")
        jobs = f"jobs running {_known(running)}, queued {_known(queued)}"
        console().print(f"\n{jobs}; models {_known(models)}")
    if not all(serving.values()):
        raise typer.Exit(Exit.UNAVAILABLE)


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except ProcessError as error:
        raise Failure(Exit.FAILED, str(error)) from error
    except SettingsError as error:
        raise BadInput(str(error)) from error


def _show_start(fleet: Fleet, *, as_json: bool) -> None:
    if as_json:
        fleet.wait_until_healthy()
        print_json({"services": [_entry(fleet, place, "serving") for place in fleet.places]})
        return
    from rich.live import Live  # noqa: PLC0415

    screen = console()
    starting = {place.service: "starting" for place in fleet.places}
    with Live(_board(fleet, starting), console=screen) as live:
        fleet.wait_until_healthy(lambda states: live.update(_board(fleet, states)))
    screen.print(f"\nLogs: {fleet.places[0].log.parent}", soft_wrap=True)


def _board(fleet: Fleet, states: Mapping[str, str]) -> Table:
    columns = {"SERVICE": "service", "ADDRESS": "address", "METRICS": "metrics_url", "PROCESS": "pid"}
    rows: list[list[str | Text]] = []
    for place in fleet.places:
        entry = _entry(fleet, place, states[place.service])
        cells = [str(entry[key]) for key in columns.values()]
        rows.append([*cells, Text(entry["state"], style_of(entry["state"]))])
    return table([*columns, "STATE"], rows, style="bold")


def _entry(fleet: Fleet, place: Place, state: str) -> dict[str, Any]:
    return {
        "service": place.service,
        "address": place.address,
        "metrics_url": place.metrics_url,
        "state": state,
        "pid": fleet.pid(place.service),
        "log": str(place.log),
    }


def _known(count: int | None) -> str:
    return "unknown" if count is None else str(count)
