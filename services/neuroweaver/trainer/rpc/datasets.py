"""What a job would read, and the specialisations that it can name."""

from __future__ import annotations

import asyncio
from typing import Any

from neuroweaver.trainer.control import admission
from neuroweaver.trainer.control.admission import ServerCapabilities
from neuroweaver.trainer.data.specialization import load_specializations
from neuroweaver.trainer.rpc import messages
from neuroweaver.v1 import trainer_pb2 as pb


class Datasets:
    def __init__(self, capabilities: ServerCapabilities) -> None:
        self._capabilities = capabilities

    async def ValidateDataset(
        self, request: pb.ValidateDatasetRequest, context: Any
    ) -> pb.ValidateDatasetResponse:
        del context
        if request.specialization:
            admission.check_specialization(request.specialization)
        return await asyncio.to_thread(messages.validate_dataset, request, self._capabilities)

    async def ListTemplates(self, request: pb.ListTemplatesRequest, context: Any) -> pb.ListTemplatesResponse:
        del request, context
        specializations = sorted(load_specializations().items())
        return pb.ListTemplatesResponse(
            templates=[messages.template(specialization) for _, specialization in specializations]
        )
