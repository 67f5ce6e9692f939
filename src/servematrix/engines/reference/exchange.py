"""What all routes share: reading a body, answering in JSON, waiting while the client is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from servematrix.engines.reference.answers import dumps
from servematrix.engines.reference.schemas import BadRequestError
from servematrix.engines.reference.sequence import Sequence
from servematrix.engines.reference.service import Service

LARGEST_BODY = 64 * 2**20  # bytes; more than any batch that fits the context
CLIENT_GONE = 499  # nginx' status for it; nobody reads the answer
DONE = b"data: [DONE]\n\n"


def service(request: Request) -> Service:
    """The service of the application that got the request."""
    found: Service = request.app.state.service
    return found


async def body(request: Request) -> bytes:
    """The whole body; raises BadRequestError for one that is too large."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > LARGEST_BODY:
            raise BadRequestError(f"The body is larger than {LARGEST_BODY} bytes.")
        parts.append(part)
    return b"".join(parts)


def json_answer(content: Any, status: int = 200) -> Response:
    """A JSON response."""
    return Response(dumps(content), status, media_type="application/json")


def event_answer(events: AsyncIterator[bytes]) -> Response:
    """A stream of server-sent events."""
    return StreamingResponse(events, media_type="text/event-stream")


async def finished(request: Request, sequences: list[Sequence]) -> bool:
    """Waits for all sequences; aborts them and returns False when the client hangs up."""

    async def all_finished() -> None:
        for sequence in sequences:
            await sequence.wait_finished()

    done = asyncio.create_task(all_finished())
    gone = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait({done, gone}, return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            return True
        service(request).abort(sequences)
        return False
    finally:
        done.cancel()
        gone.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
