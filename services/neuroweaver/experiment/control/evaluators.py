"""The evaluators of all experiments, at hand: an assignment reads nothing.

What this process commits is in force before the commit is answered; what another process commits, as soon as
this one hears of it: with PostgreSQL at once, with SQLite a second later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final, cast

from google.protobuf import struct_pb2
from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.experiment.storage.store import Store
from neuroweaver.mesh.handlers.loop import Outages, repeat
from neuroweaver.mesh.handlers.signals import Signal
from neuroweaver.mesh.wire.assignment import Evaluator
from neuroweaver.mesh.wire.errors import NotFound
from neuroweaver.v1 import experiment_pb2 as pb

# Between two looks at signals in memory.
_PERIOD_S: Final = 0.2


class Assigner:
    """One experiment: its evaluator, and the answer to every variant of it but for the unit."""

    def __init__(self, config: pb.AssignmentConfig, sequence: int) -> None:
        self._evaluator = Evaluator(config)
        # What the rules name: other attributes are not looked at.
        self._names = frozenset(
            condition.attribute for rule in config.targeting for condition in rule.conditions
        )
        self._answers = {
            variant.variant_id: pb.VariantAssignment(
                test_id=config.test_id,
                variant_id=variant.variant_id,
                phase=config.phase.number,
                target=variant.target if variant.HasField("target") else None,
                parameters=variant.parameters if variant.HasField("parameters") else None,
                config_sequence=sequence,
            )
            for variant in config.variants
        }

    def assign(self, unit_id: str, attributes: Mapping[str, struct_pb2.Value]) -> pb.VariantAssignment:
        plain = {name: _plain(attributes[name]) for name in self._names if name in attributes}
        assignment = self._evaluator.assign(unit_id, plain)
        answer = pb.VariantAssignment()
        answer.CopyFrom(self._answers[assignment.variant_id])
        answer.unit_id = unit_id
        answer.reason = cast("pb.AssignmentReason.ValueType", assignment.reason)
        if assignment.bucket is not None:
            answer.bucket = assignment.bucket
            answer.is_participant = True
        return answer


class Evaluators:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._projects: dict[str, dict[str, Assigner]] = {}
        self._sequences: dict[str, int] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        # By project, with the count up to which changes are in force.
        self._signals: dict[str, tuple[Signal, int]] = {}
        self._outages = Outages("evaluators")
        store.listen(self.refresh)

    async def of(self, project: str, test_id: str) -> Assigner:
        """Raises NotFound."""
        assigners = self._projects.get(project)
        if assigners is None:
            await self.refresh(project)
            assigners = self._projects[project]
        assigner = assigners.get(test_id)
        if assigner is None:
            raise NotFound("experiment", test_id)
        return assigner

    async def refresh(self, project: str) -> None:
        """Takes over what was committed so far."""
        async with self._locks.setdefault(project, asyncio.Lock()):
            seen = self._sequences.get(project, 0)
            signal = self._store.configs_signal(project)
            count = signal.count
            async with self._store.read(project) as experiments:
                changes = await experiments.configs(seen)
            self._signals[project] = signal, count
            assigners = self._projects.setdefault(project, {})
            for change in changes:
                assigners[change.config.test_id] = Assigner(change.config, change.sequence)
                self._sequences[project] = change.sequence

    async def keep_fresh(self) -> None:
        """Until cancelled: takes over what other processes changed."""
        await repeat("evaluators", self._refresh_changed, _PERIOD_S)

    async def _refresh_changed(self) -> None:
        for project, (signal, count) in list(self._signals.items()):
            if signal.count != count:
                with self._outages.survived(SQLAlchemyError, project=project):
                    await self.refresh(project)


def _plain(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "list_value":
        return [_plain(each) for each in value.list_value.values]
    # A structure fulfils no condition but that it exists.
    return None if kind in {None, "null_value"} else getattr(value, kind)
