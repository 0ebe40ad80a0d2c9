"""A revision's part of the replicas, by its share of the traffic."""

from __future__ import annotations

from copy import deepcopy

from neuroweaver.v1 import deployer_pb2 as pb


def share(autoscaling: pb.Autoscaling, weight_percent: int) -> pb.Autoscaling:
    """The bounds of a revision with this share of the traffic, rounded up; at the top at least one."""
    shared = deepcopy(autoscaling)
    shared.min_replicas = portion(autoscaling.min_replicas, weight_percent)
    shared.max_replicas = max(1, portion(autoscaling.max_replicas, weight_percent))
    return shared


def portion(replicas: int, weight_percent: int) -> int:
    """So many replicas as carry this share of the traffic, rounded up."""
    return -(-replicas * weight_percent // 100)
