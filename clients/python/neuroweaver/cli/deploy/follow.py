"""What happens to a deployment, while it happens, and how a change that is followed ends."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import grpc
from rich.console import Group, RenderableType
from rich.text import Text

from neuroweaver.cli.arguments.values import seconds_of
from neuroweaver.cli.deploy import view
from neuroweaver.cli.deploy.events import UNDER_WAY, add, in_words, is_settled, newest_revision, title, unmet
from neuroweaver.cli.deploy.names import present, watch_command
from neuroweaver.cli.terminal.failures import Exit, Failure
from neuroweaver.cli.terminal.names import word
from neuroweaver.cli.terminal.output import print_answer, print_view, when
from neuroweaver.cli.terminal.watching import Display, display
from neuroweaver.client.connection import Client
from neuroweaver.client.text import duration
from neuroweaver.v1 import deployer_pb2 as pb

_LOOK_EVERY_S: Final = 1.0
_PATIENCE_S: Final = 900.0
"""For a cold start; the bake times of a canary are added."""
_NEWS_SHOWN: Final = 5
_DECISIVE: Final = frozenset({"state_changed", "rollout"})


def watch_until_gone(client: Client, deployment: pb.Deployment, since: int, *, as_json: bool) -> None:
    """Until the deployment is removed, or somebody presses Ctrl-C."""
    with display(Board(deployment), _line, as_json=as_json) as shown:
        events = client.watch_deployment(
            deployment.model_id, deployment.name, since, on_break=shown.interrupted
        )
        for event in events:
            add(deployment, event)
            shown.show(event)


def patience(timeout: str) -> Callable[[pb.Deployment], float]:
    """How long to follow a deployment in seconds, by what was given as --timeout. Raises BadInput."""
    given_s = seconds_of(timeout, "--timeout") if timeout not in {"", "0"} else 0.0

    def within_s(deployment: pb.Deployment) -> float:
        if timeout:
            return given_s or math.inf
        steps = deployment.spec.rollout.canary.steps
        return _PATIENCE_S + sum(step.bake_time.ToTimedelta().total_seconds() for step in steps)

    return within_s


def finish(
    client: Client,
    changed: pb.Deployment,
    before: pb.Deployment | None,
    *,
    watch: bool,
    within_s: Callable[[pb.Deployment], float],
    as_json: bool,
) -> None:
    """Follows a change if it is to be watched; else prints what it answered. before: what was changed."""
    if watch:
        follow(client, changed, newest_revision(before), within_s(changed), as_json=as_json)
    else:
        print_changed(changed, as_json=as_json)


def print_changed(deployment: pb.Deployment, *, as_json: bool) -> None:
    """What a change answered: the deployment for programs, one line for people."""
    print_answer(deployment, view.head, as_json=as_json)
    is_done = deployment.state in {pb.DEPLOYMENT_STATE_READY, pb.DEPLOYMENT_STATE_DELETED}
    if not as_json and not is_done:
        print_view(Text(f"Watch it: {watch_command(deployment)}", "dim"))


def follow(client: Client, deployment: pb.Deployment, newest: int, within_s: float, *, as_json: bool) -> None:
    """Until the deployment is as its spec wants it. newest: its highest revision before the change.

    Raises Failure if it fails, is rolled back or removed, or is not there within that time.
    """
    give_up = time.monotonic() + within_s
    with display(Board(deployment), _line, as_json=as_json) as shown:
        settled: pb.Deployment | None = None
        for event in _events(client, deployment, shown):
            if event is not None:
                add(deployment, event)
                shown.show(event)
            if not settled and (event is None or event.WhichOneof("event") in _DECISIVE):
                # Events do not say which generation the controller has processed.
                now = present(client, deployment.model_id, deployment.name)
                settled = now if is_settled(now) else None
            if settled and settled.last_sequence <= deployment.last_sequence:
                break
            if time.monotonic() >= give_up:
                raise _too_late(deployment, within_s)
    _check(settled or deployment, newest)
    if not as_json:
        print_view(view.picture(settled or deployment))


class Board:
    """deployment: holds an event already when it is added here."""

    def __init__(self, deployment: pb.Deployment) -> None:
        self._deployment = deployment
        self._news: deque[Text] = deque(maxlen=_NEWS_SHOWN)
        self._heard_at = {replica.replica_id: time.monotonic() for replica in deployment.replica_statuses}

    def add(self, event: pb.DeploymentEvent) -> None:
        if event.HasField("replica_changed"):
            self._heard_at[event.replica_changed.replica.replica_id] = time.monotonic()
        elif event.rollout.state not in UNDER_WAY and (line := _line(event)):
            # Replicas and a rollout that has not ended stand in the tables.
            self._news.append(Text(line, "dim"))

    def render(self) -> RenderableType:
        now = time.monotonic()
        running_s = {replica: now - heard_at for replica, heard_at in self._heard_at.items()}
        return Group(view.board(self._deployment, running_s), Text(), *self._news)


def _line(event: pb.DeploymentEvent) -> str:
    words = in_words(event)
    return f"{when(event.time)[-8:]} {words}" if words else ""


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
        except (grpc.RpcError, ValueError) as error:  # a ValueError: the channel was closed
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


def _check(deployment: pb.Deployment, newest: int) -> None:
    """Raises Failure if the change did not succeed."""
    name, state = title(deployment.model_id, deployment.name), word(deployment, "state")
    rollout = deployment.rollout
    if rollout.state == pb.ROLLOUT_STATE_ROLLED_BACK and rollout.candidate_revision > newest:
        why = rollout.message or "the candidate did not pass"
        raise Failure(Exit.FAILED, f"{name} was rolled back: {why}", code="ROLLED_BACK")
    if deployment.state not in {pb.DEPLOYMENT_STATE_READY, pb.DEPLOYMENT_STATE_IDLE}:
        why = deployment.message or "see `neuroweaver deploy status`"
        raise Failure(Exit.FAILED, f"{name} is {state}: {why}", code=state, reason=_reason(deployment))


def _too_late(deployment: pb.Deployment, within_s: float) -> Failure:
    name, state = title(deployment.model_id, deployment.name), word(deployment, "state")
    where = f"{state}: {deployment.message}" if deployment.message else state
    message = (
        f"the change of {name} is not complete after {duration(within_s)} ({where}). It continues; "
        f"to follow it: {watch_command(deployment)}"
    )
    return Failure(Exit.TIMED_OUT, message, reason=_reason(deployment))


def _reason(deployment: pb.Deployment) -> str:
    condition = unmet(deployment)
    return condition.reason if condition else ""
