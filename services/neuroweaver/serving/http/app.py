"""The HTTP face of a model server."""

from __future__ import annotations

import time

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from neuroweaver.artifacts.serving_config import ServingConfig
from neuroweaver.serving import requests
from neuroweaver.serving.http import replies
from neuroweaver.serving.http.admin import Admin
from neuroweaver.serving.http.generate import Generate, error_response
from neuroweaver.serving.http.metrics import Metrics
from neuroweaver.serving.requests import ApiError
from neuroweaver.serving.work import Work


def application(work: Work, admin: Admin, metrics: Metrics, config: ServingConfig) -> Starlette:
    started = int(time.time())

    async def live(_: Request) -> Response:
        return JSONResponse(work.status.report(), 200 if work.status.is_live else 503)

    async def ready(_: Request) -> Response:
        return JSONResponse(work.status.report(), 200 if work.status.is_ready else 503)

    async def prometheus(_: Request) -> Response:
        return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)

    async def list_models(_: Request) -> Response:
        return JSONResponse(replies.models(work.versions.names, started))

    async def get_model(request: Request) -> Response:
        name = request.path_params["name"]
        work.versions.meant(name)
        return JSONResponse(replies.model(name, started))

    chat = Generate(work, metrics, requests.chat, is_chat=True, revision=str(config.revision))
    completion = Generate(work, metrics, requests.completion, is_chat=False, revision=str(config.revision))
    return Starlette(
        routes=[
            Route("/health/live", live),
            Route("/health/ready", ready),
            Route("/metrics", prometheus),
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", get_model),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completion, methods=["POST"]),
            *admin.routes(),
        ],
        exception_handlers={
            ApiError: _refused,
            HTTPException: _no_such_page,
            Exception: _unforeseen,
        },
    )


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _no_such_page(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    return error_response(ApiError(message, status=error.status_code))


async def _unforeseen(_: Request, error: Exception) -> Response:
    del error  # Starlette raises it again, for the log; the caller reads nothing of it
    response = error_response(ApiError("internal error", status=500, kind="server_error"))
    # uvicorn closes it after that, which whoever keeps it should not learn by another request.
    response.headers["Connection"] = "close"
    return response
