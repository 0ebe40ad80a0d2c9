"""A rollout as plain JSON, and back: what it takes to go on after a restart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from typing import Any, Final

from google.protobuf import json_format

from neuroweaver.deployer.domain.backend import Measured
from neuroweaver.deployer.domain.rollouts.evidence import Evidence
from neuroweaver.deployer.domain.rollouts.rollout import Counted, Rollout
from neuroweaver.mesh.wire.clock import from_microseconds, microseconds
from neuroweaver.v1 import deployer_pb2 as pb

_TIMES: Final = ("start_time", "step_start", "progress_time", "down_since", "look_time", "end_time")


def to_json(rollout: Rollout) -> dict[str, Any]:
    plain = {each.name: getattr(rollout, each.name) for each in fields(Rollout)}
    plain["state"] = pb.RolloutState.Name(rollout.state)
    plain["replacement"] = pb.ReplacementMode.Name(rollout.replacement)
    plain["evidence"] = rollout.evidence.to_json()
    plain["counted"] = None if rollout.counted is None else _counted(rollout.counted)
    plain["analysis"] = None if rollout.analysis is None else json_format.MessageToDict(rollout.analysis)
    for name in _TIMES:
        plain[name] = _time(plain[name])
    return plain


def from_json(plain: Mapping[str, Any]) -> Rollout:
    found = dict(plain)
    found["state"] = pb.RolloutState.Value(plain["state"])
    found["replacement"] = pb.ReplacementMode.Value(plain["replacement"])
    found["evidence"] = Evidence.from_json(plain["evidence"])
    found["counted"] = None if plain["counted"] is None else _to_counted(plain["counted"])
    if plain["analysis"] is not None:
        found["analysis"] = json_format.ParseDict(plain["analysis"], pb.RolloutAnalysis())
    for name in _TIMES:
        found[name] = None if plain[name] is None else from_microseconds(plain[name])
    return Rollout(**found)


def _time(moment: datetime | None) -> int | None:
    return None if moment is None else microseconds(moment)


def _counted(counted: Counted) -> dict[str, Any]:
    return {
        "time": microseconds(counted.time),
        "stable": _measured(counted.stable),
        "candidate": _measured(counted.candidate),
    }


def _to_counted(plain: Mapping[str, Any]) -> Counted:
    return Counted(
        time=from_microseconds(plain["time"]),
        stable=_to_measured(plain["stable"]),
        candidate=_to_measured(plain["candidate"]),
    )


def _measured(measured: Measured | None) -> dict[str, Any] | None:
    """What differences of counters need of it."""
    if measured is None:
        return None
    return {
        "revision": measured.revision,
        "requests": measured.requests,
        "errors": measured.errors,
        "tokens": measured.tokens,
        "waiting": measured.waiting,
        "latency_ms": [
            [None if math.isinf(bound) else bound, count] for bound, count in measured.latency_ms.items()
        ],
        "missing_replicas": list(measured.missing_replicas),
    }


def _to_measured(plain: Mapping[str, Any] | None) -> Measured | None:
    if plain is None:
        return None
    latency = {math.inf if bound is None else bound: count for bound, count in plain["latency_ms"]}
    missing = tuple(plain["missing_replicas"])
    return Measured(**{**plain, "latency_ms": latency, "missing_replicas": missing})
