"""What a job would read, and the specialisations that it can name."""

from __future__ import annotations

from typing import Any

from neuroweaver.mesh.wire.threads import in_thread
from neuroweaver.trainer.control.admission import DEADLINE_S, ServerCapabilities, validate
from neuroweaver.trainer.data.specialization import load_specializations
from neuroweaver.trainer.rpc import messages
from neuroweaver.v1 import trainer_pb2 as pb


class Datasets:
    def __init__(self, capabilities: ServerCapabilities) -> None:
        self._capabilities = capabilities

    async def ValidateDataset(
        self, request: pb.ValidateDatasetRequest, context: Any
    ) -> pb.ValidateDatasetResponse:
        validation = await in_thread(
            validate,
            request.dataset_path,
            self._capabilities,
            specialization=request.specialization,
            base_model=request.base_model,
            max_seq_length=request.max_seq_length,
            deadline_s=context.time_remaining() or DEADLINE_S,
        )
        return messages.from_validation(validation)

    async def ListTemplates(self, request: pb.ListTemplatesRequest, context: Any) -> pb.ListTemplatesResponse:
        del request, context
        specializations = sorted(load_specializations().items())
        return pb.ListTemplatesResponse(
            templates=[messages.template(specialization) for _, specialization in specializations]
        )
