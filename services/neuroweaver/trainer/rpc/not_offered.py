"""RPCs of the contract that this server does not offer, with what to do instead."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from neuroweaver.mesh.wire.errors import Unimplemented
from neuroweaver.v1 import trainer_pb2 as pb


class NotOffered:
    async def EstimateTraining(
        self, request: pb.EstimateTrainingRequest, context: Any
    ) -> pb.EstimateTrainingResponse:
        del request, context
        raise Unimplemented("this server does not estimate jobs yet; start one with few rows to measure")

    def EvaluateModel(
        self, request: pb.EvaluateModelRequest, context: Any
    ) -> AsyncIterator[pb.EvaluationEvent]:
        del request, context
        raise Unimplemented("this server evaluates models only as the validation stage of a training job")
