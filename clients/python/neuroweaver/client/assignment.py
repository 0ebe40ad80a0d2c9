"""Assigns units locally: a copy of the experiments' configurations, kept up to date by a watch.

    with LocalAssignment(client) as local:
        assignment = local.assign("greeting", user_id, {"plan": "pro"})
        if assignment.is_participant:
            …                                   # serve it, then send an exposure event

The answers are those of AssignVariant, computed by the same code. While the service is away, the last known
configurations stay in use; `age_s` says how long ago it was last heard.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any, Final, Self

import grpc

from neuroweaver.client.connection import Client
from neuroweaver.mesh.wire.assignment import Assignment, Attributes, Evaluator
from neuroweaver.v1 import experiment_pb2 as pb

_MAX_BACKOFF_S: Final = 10.0


class UnknownExperiment(LookupError):
    """There is no such experiment, or its configuration has not arrived yet. The message names it."""


class LocalAssignment:
    """test_ids: only these experiments; empty: all of the project. Safe to use from any number of threads."""

    def __init__(self, client: Client, test_ids: Iterable[str] = ()) -> None:
        self._client = client
        self._test_ids = list(test_ids)
        # Replaced entry by entry, never changed: a reader sees one configuration or the next.
        self._evaluators: dict[str, Evaluator] = {}
        self._ready = threading.Event()
        self._closed = threading.Event()
        self._heard_at = time.monotonic()
        self._call: Any = None
        self._thread = threading.Thread(target=self._follow, name="neuroweaver-assignments", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, timeout_s: float = 30.0) -> None:
        """Returns once every configuration has arrived. Raises TimeoutError."""
        self._thread.start()
        if not self._ready.wait(timeout_s):
            self.close()
            raise TimeoutError("the Experiment service did not send its configurations; is it running?")

    def close(self) -> None:
        self._closed.set()
        if self._call is not None:
            self._call.cancel()
        self._thread.join(timeout=5)

    @property
    def age_s(self) -> float:
        """Seconds since the service was last heard; it sends a heartbeat every 15, a busy one less often."""
        return time.monotonic() - self._heard_at

    def assign(self, test_id: str, unit_id: str, attributes: Attributes | None = None) -> Assignment:
        """Raises UnknownExperiment, and ValueError for an invalid unit id."""
        return self._evaluator(test_id).assign(unit_id, attributes)

    def variant(self, test_id: str, variant_id: str) -> pb.ExperimentVariant:
        """What serves a variant: its target and parameters. Raises UnknownExperiment, KeyError."""
        variants = self._evaluator(test_id).config.variants
        return {variant.variant_id: variant for variant in variants}[variant_id]

    def _evaluator(self, test_id: str) -> Evaluator:
        try:
            return self._evaluators[test_id]
        except KeyError:
            raise UnknownExperiment(test_id) from None

    def _follow(self) -> None:
        last, backoff_s = 0, 0.1
        while not self._closed.is_set():
            try:
                request = pb.WatchAssignmentsRequest(since_sequence=last, test_ids=self._test_ids)
                self._call = self._client.experiment.WatchAssignments(request)
                for event in self._call:
                    last, backoff_s = max(last, event.sequence), 0.1
                    self._hear(event)
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.OUT_OF_RANGE:
                    last = 0  # another database than before: start from the beginning
            # Whether it ended or failed, the server is drained or away.
            self._closed.wait(backoff_s)
            backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)

    def _hear(self, event: pb.AssignmentEvent) -> None:
        self._heard_at = time.monotonic()
        match event.WhichOneof("event"):
            case "config":
                self._evaluators[event.config.test_id] = Evaluator(event.config)
            case "removed":
                self._evaluators.pop(event.removed.test_id, None)
            case "snapshot_complete":
                self._ready.set()
