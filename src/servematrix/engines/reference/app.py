"""The Starlette application: routes, error bodies, the API key, and counting of requests."""

from __future__ import annotations

import secrets
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from servematrix.engines.reference import information, native, openai
from servematrix.engines.reference.exchange import json_answer
from servematrix.engines.reference.faults.front import FaultyFront
from servematrix.engines.reference.schemas import (
    BadRequestError,
    InvalidBodyError,
    UnknownParameterError,
    UnreadableBodyError,
)
from servematrix.engines.reference.service import Service
from servematrix.engines.reference.telemetry import Telemetry

OPEN_PATHS = ("/health", "/metrics")  # SGLang asks for no key where a path begins like this
OPENAI_PREFIX = "/v1/"
METHODS = ("GET", "HEAD", "POST", "PUT", "OPTIONS", "DELETE", "PATCH")

ROUTES = [
    Route("/", information.root),
    Route("/health", native.health),
    Route("/health_generate", native.health_generate),
    Route("/model_info", information.model_info),
    Route("/get_model_info", information.model_info),
    Route("/server_info", information.server_info),
    Route("/get_server_info", information.server_info),
    Route("/get_load", information.get_load),
    Route("/metrics", information.metrics),
    Route("/openapi.json", information.openapi),
    Route("/generate", native.generate, methods=["POST", "PUT"]),
    Route("/flush_cache", native.flush_cache, methods=["GET", "POST"]),
    Route("/abort_request", native.abort_request, methods=["POST"]),
    Route("/tokenize", information.tokenize, methods=["POST"]),
    Route("/v1/tokenize", information.tokenize, methods=["POST"]),
    Route("/detokenize", information.detokenize, methods=["POST"]),
    Route("/v1/detokenize", information.detokenize, methods=["POST"]),
    Route("/v1/models", information.models),
    Route("/v1/loads", information.loads),
    Route("/v1/chat/completions", openai.chat, methods=["POST"]),
    Route("/v1/completions", openai.completions, methods=["POST"]),
]


def build(service: Service) -> Starlette:
    """The application in front of ``service``."""
    middleware = []
    if service.telemetry is not None:
        middleware.append(Middleware(_Counted, telemetry=service.telemetry))
    if service.options.api_key:
        middleware.append(Middleware(_Keyed, key=service.options.api_key))
    if service.faults:
        middleware.append(Middleware(FaultyFront, faults=service.faults))
    app = Starlette(
        routes=ROUTES,
        middleware=middleware,
        exception_handlers={
            HTTPException: _http_error,
            BadRequestError: _bad_request,
            InvalidBodyError: _invalid_body,
            UnknownParameterError: _unknown_parameter,
            UnreadableBodyError: _unreadable_body,
        },
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for it only"
    return json_answer({"detail": error.detail}, error.status_code)


async def _bad_request(request: Request, error: Exception) -> Response:
    if request.url.path.startswith(OPENAI_PREFIX):
        return json_answer(_openai_error(str(error), "BadRequestError"), 400)
    return json_answer({"error": {"message": str(error)}}, 400)


async def _invalid_body(request: Request, error: Exception) -> Response:
    """A wrong shape: every entry twice and the place in the source, as FastAPI prints it."""
    assert isinstance(error, InvalidBodyError), "registered for it only"
    endpoint = request.scope["endpoint"]
    count = len(error.errors)
    entries = "\n".join(f"  {entry}" for entry in error.errors)
    message = (
        f"{count} validation error{'s' if count > 1 else ''}:\n{entries}\n\n"
        f'  File "{endpoint.__module__}", in {endpoint.__name__}\n'
        f"    {request.method} {request.url.path} {error.errors}"
    )
    return json_answer(_openai_error(message, "Bad Request"), 400)


async def _unknown_parameter(request: Request, error: Exception) -> Response:
    return PlainTextResponse("Internal Server Error", 500)


async def _unreadable_body(request: Request, error: Exception) -> Response:
    return json_answer(_openai_error(str(error), "400"), 400)


def _openai_error(message: str, kind: str) -> dict[str, Any]:
    return {"object": "error", "message": message, "type": kind, "param": None, "code": 400}


class _Keyed:
    """Lets requests through that carry the key, and those to the open paths."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._allowed(scope):
            await json_answer({"error": "Unauthorized"}, 401)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        if scope["method"] == "OPTIONS" or scope["path"].startswith(OPEN_PATHS):
            return True
        scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and secrets.compare_digest(token.encode(), self._key)


class _Counted:
    """Counts requests, answers and what is in progress, by route."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry
        self._paths = {route.path for route in ROUTES}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # One label for whatever is unknown: a client must not be able to grow the registry.
        path = scope["path"] if scope["path"] in self._paths else "unknown"
        method = scope["method"] if scope["method"] in METHODS else "unknown"
        telemetry = self._telemetry
        telemetry.http_requests.labels(endpoint=path, method=method).inc()
        active = telemetry.http_active.labels(endpoint=path, method=method)
        active.inc()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                telemetry.http_responses.labels(
                    endpoint=path, status_code=str(message["status"]), method=method
                ).inc()
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            active.dec()
