"""What goes wrong between the service and the client: refused requests, broken streams."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from servematrix.engines.reference.exchange import DONE
from servematrix.engines.reference.faults.catalogue import Faults

_GENERATING = ("/generate", "/v1/chat/completions", "/v1/completions")
_CUT_AT = 3
_LOST_CHARACTER = 2
_PREFIX = b"data: "


class CutError(Exception):
    """A stream that ends in the middle, as its fault demands."""


class FaultyFront:
    """ASGI middleware with the faults of answers."""

    def __init__(self, app: ASGIApp, faults: Faults) -> None:
        self._app = app
        self._faults = faults
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers in the application's place, or changes its answer on the way."""
        path = scope.get("path")
        if path == "/health" and "never-ready" in self._faults:
            await PlainTextResponse("", 503)(scope, receive, send)
            return
        if path in _GENERATING and self._refuses():
            await PlainTextResponse("Internal Server Error", 500)(scope, receive, send)
            return
        bare = "field-missing" in self._faults and path in _GENERATING[1:]
        await self._app(scope, receive, _Answer(self._faults, send, bare=bare))

    def _refuses(self) -> bool:
        """Whether this request is one of those that are answered with an error."""
        share = self._faults.get("errors", 0.0)
        self._requests += 1
        return share > 0 and self._requests % round(1 / share) == 0


class _Answer:
    """One answer on its way out; ``bare`` takes ``usage`` out of it."""

    def __init__(self, faults: Faults, send: Send, *, bare: bool) -> None:
        self._faults = faults
        self._send = send
        self._bare = bare
        self._start: Message = {}
        self._streams = False
        self._events = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            self._streams = kind.startswith(b"text/event-stream")
            self._bare = self._bare and not self._streams
            self._start = message
            if not self._bare:
                await self._send(message)
        elif self._streams and message.get("body"):
            await self._event(message)
        elif self._bare:
            await self._without_usage(message)
        else:
            await self._send(message)

    async def _without_usage(self, message: Message) -> None:
        content: Any = json.loads(message["body"])
        content.pop("usage", None)
        body = json.dumps(content).encode()
        headers = [pair for pair in self._start["headers"] if pair[0] != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self._send({**self._start, "headers": headers})
        await self._send({**message, "body": body})

    async def _event(self, message: Message) -> None:
        """Sends an event as its faults leave it."""
        self._events += 1
        body: bytes = message["body"]
        if "stream-truncated" in self._faults and self._events == _CUT_AT:
            await self._send({**message, "body": body[: len(body) // 2]})
            raise CutError("fault stream-truncated")
        if "stream-unfinished" in self._faults and body == DONE:
            body = b""
        if "stream-misframed" in self._faults:
            body = body.replace(b"\n\n", b"\n")
        if "stream-garbled" in self._faults and body.startswith(_PREFIX + b"{"):
            body = _garbled(body)
        await self._send({**message, "body": body})


def _garbled(event: bytes) -> bytes:
    """An event of /generate whose text lacks a character."""
    content: Any = json.loads(event.removeprefix(_PREFIX))
    text = content.get("text")
    if isinstance(text, str):
        content["text"] = text[:_LOST_CHARACTER] + text[_LOST_CHARACTER + 1 :]
    return _PREFIX + json.dumps(content, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"
