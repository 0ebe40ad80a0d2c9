"""What happens to a deployment, while it happens: a live table, lines where there is no terminal, or JSON."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import grpc
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from neuroweaver.client.cli import deploy_view
from neuroweaver.client.cli.deploy_names import found, watch_command
from neuroweaver.client.cli.failures import Exit, Failure
from neuroweaver.client.cli.output import console, print_json_line, to_json, when
from neuroweaver.client.cli.spec_file import seconds_of
from neuroweaver.client.connection import Client
from neuroweaver.client.deployments import UNDER_WAY, add, is_settled, state_name, title, told
from neuroweaver.client.text import duration
from neuroweaver.v1 import deployer_pb2 as pb

_LOOK_EVERY_S: Final = 1.0
_PATIENCE_S: Final = 900.0
"""For a cold start; the bake times of a canary come on top."""
_NEWS_SHOWN: Final = 5
_DECISIVE: Final = frozenset({"state_changed", "rollout"})


class Display(Protocol):
    def show(self, event: pb.DeploymentEvent, deployment: pb.Deployment, /) -> None:
        """`deployment` holds the event already."""

    def interrupted(self, error: grpc.RpcError, /) -> None:
        """The stream broke and is being resumed."""


@contextmanager
def display(deployment: pb.Deployment, *, as_json: bool) -> Iterator[Display]:
    """Shows the deployment while the block runs."""
    screen = console()
    if as_json:
        yield _JsonLines()
    elif not screen.is_terminal:
        yield Lines(screen)
    else:
        board = Board(deployment)
        with Live(get_renderable=board.render, console=screen, refresh_per_second=4):
            yield board


def watch_until_gone(client: Client, deployment: pb.Deployment, since: int, *, as_json: bool) -> None:
    """Until the deployment is removed, or somebody presses Ctrl-C."""
    with display(deployment, as_json=as_json) as shown:
        events = client.watch_deployment(
            deployment.model_id, deployment.name, since, on_break=shown.interrupted
        )
        for event in events:
            add(deployment, event)
            shown.show(event, deployment)


def patience(timeout: str) -> Callable[[pb.Deployment], float]:
    """How long to follow a deployment in seconds, by what was given as --timeout. Raises BadInput."""
    given_s = seconds_of(timeout, "--timeout") if timeout not in {"", "0"} else 0.0

    def within_s(deployment: pb.Deployment) -> float:
        if timeout:
            return given_s or math.inf
        steps = deployment.spec.rollout.canary.steps
        return _PATIENCE_S + sum(each.bake_time.ToTimedelta().total_seconds() for each in steps)

    return within_s


def follow(client: Client, deployment: pb.Deployment, *, before: int, within_s: float, as_json: bool) -> None:
    """Until the deployment is as its spec wants it. before: its highest revision before the change.

    Raises Failure if it fails, is rolled back or removed, or is not there within that time.
    """
    give_up = time.monotonic() + within_s
    with display(deployment, as_json=as_json) as shown:
        settled: pb.Deployment | None = None
        for event in _events(client, deployment, shown):
            if event is not None:
                add(deployment, event)
                shown.show(event, deployment)
            if not settled and (event is None or event.WhichOneof("event") in _DECISIVE):
                # Events tell nothing of the generation that the loop has come to.
                now = found(client, deployment.model_id, deployment.name)
                settled = now if is_settled(now) else None
            if settled and settled.last_sequence <= deployment.last_sequence:
                break
            if time.monotonic() >= give_up:
                raise _too_late(deployment, within_s)
    _check(settled or deployment, before)
    if not as_json:
        console().print(deploy_view.picture(settled or deployment))


def follow_to_the_end(client: Client, deployment: pb.Deployment, *, as_json: bool) -> None:
    """Until nothing is left of a deployment that is being removed."""
    watch_until_gone(client, deployment, deployment.last_sequence, as_json=as_json)


class Board:
    def __init__(self, deployment: pb.Deployment) -> None:
        self._deployment = deployment
        self._news: deque[Text] = deque(maxlen=_NEWS_SHOWN)
        self._told_at: dict[str, float] = {
            each.replica_id: time.monotonic() for each in deployment.replica_statuses
        }
        self._is_broken = False

    def show(self, event: pb.DeploymentEvent, deployment: pb.Deployment) -> None:
        self._deployment, self._is_broken = deployment, False
        if event.WhichOneof("event") == "replica_changed":
            self._told_at[event.replica_changed.replica.replica_id] = time.monotonic()
        if not _is_on_board(event) and (words := told(event)):
            self._news.append(Text(f"{_clock(event)} {words}", "dim"))

    def interrupted(self, _error: grpc.RpcError) -> None:
        self._is_broken = True

    def render(self) -> RenderableType:
        now = time.monotonic()
        running_s = {replica: now - told_at for replica, told_at in self._told_at.items()}
        broken = [Text("connection lost, resuming…", "yellow")] if self._is_broken else []
        return Group(deploy_view.board(self._deployment, running_s), Text(), *self._news, *broken)


def _is_on_board(event: pb.DeploymentEvent) -> bool:
    """Whether the tables show it already; a rollout is there until it has ended."""
    return event.HasField("replica_changed") or event.rollout.state in UNDER_WAY


class Lines:
    """A line an event."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen

    def show(self, event: pb.DeploymentEvent, _deployment: pb.Deployment) -> None:
        if words := told(event):
            self._screen.print(Text(f"{_clock(event)} {words}"), soft_wrap=True)

    def interrupted(self, _error: grpc.RpcError) -> None:
        self._screen.print("connection lost, resuming")


class _JsonLines:
    def show(self, event: pb.DeploymentEvent, _deployment: pb.Deployment) -> None:
        print_json_line(to_json(event))

    def interrupted(self, _error: grpc.RpcError) -> None:
        """Nothing is lost by it, so programs need not know."""


def _clock(event: pb.DeploymentEvent) -> str:
    return when(event.time)[-8:]


def _events(client: Client, deployment: pb.Deployment, shown: Display) -> Iterator[pb.DeploymentEvent | None]:
    """What happens from now on, and None when it is time to look whether all is done."""
    arrived: queue.Queue[pb.DeploymentEvent | Exception | None] = queue.Queue()

    def receive() -> None:
        try:
            for event in client.watch_deployment(
                deployment.model_id, deployment.name, deployment.last_sequence, on_break=shown.interrupted
            ):
                arrived.put(event)
            arrived.put(None)
        except (grpc.RpcError, ValueError) as error:  # a ValueError says that the channel was closed
            arrived.put(error)

    # Ends with the client's channel, if not before.
    threading.Thread(target=receive, name="watch", daemon=True).start()
    yield None
    while True:
        try:
            event = arrived.get(timeout=_LOOK_EVERY_S)
        except queue.Empty:
            yield None
            continue
        if isinstance(event, Exception):
            raise event
        if event is None:
            return
        yield event


def _check(deployment: pb.Deployment, before: int) -> None:
    """Raises Failure if it did not come out as it was asked for."""
    name, state = title(deployment.model_id, deployment.name), state_name(deployment.state)
    rollout = deployment.rollout
    if rollout.state == pb.ROLLOUT_STATE_ROLLED_BACK and rollout.candidate_revision > before:
        told_why = rollout.message or "the candidate did not pass"
        raise Failure(Exit.FAILED, f"{name} was rolled back: {told_why}", code="ROLLED_BACK")
    if deployment.state not in {pb.DEPLOYMENT_STATE_READY, pb.DEPLOYMENT_STATE_IDLE}:
        told_why = deployment.message or "see `neuroweaver deploy status`"
        raise Failure(Exit.FAILED, f"{name} is {state}: {told_why}", code=state, reason=_unmet(deployment))


def _too_late(deployment: pb.Deployment, within_s: float) -> Failure:
    name, state = title(deployment.model_id, deployment.name), state_name(deployment.state)
    where = f"{state}: {deployment.message}" if deployment.message else state
    return Failure(
        Exit.TIMED_OUT,
        f"{name} is not as it was asked for after {duration(within_s)} ({where}). It goes on by itself; "
        f"to follow it: {watch_command(deployment)}",
        reason=_unmet(deployment),
    )


def _unmet(deployment: pb.Deployment) -> str:
    """The reason of the first condition that does not hold; empty if there is none."""
    unmet = (each.reason for each in deployment.conditions if each.HasField("is_true") and not each.is_true)
    return next(unmet, "")
