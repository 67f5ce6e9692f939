"""SGLang's own routes that generate: ``/generate``, and what steers it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from servematrix.engines.reference import exchange
from servematrix.engines.reference.answers import EventStream, answer, dumps
from servematrix.engines.reference.schemas import (
    AbortBody,
    BadRequestError,
    GenerateBody,
    check_sampling,
    read,
)
from servematrix.engines.reference.sequence import Sampling, Sequence
from servematrix.engines.reference.service import Service

FLUSHED = (
    "Cache flushed.\nPlease check backend logs for more details. "
    "(When there are running or waiting requests, the operation will not be performed.)\n"
)


async def generate(request: Request) -> Response:
    """POST /generate: one prompt or a list, whole or streamed."""
    parameters = read(GenerateBody, await exchange.body(request))
    service = exchange.service(request)
    try:
        sequences, single = _sequences(service, parameters)
        if not parameters.stream:
            await service.submit(sequences, parameters.routed_dp_rank)
    except BadRequestError as error:
        if not parameters.stream:
            raise
        return exchange.event_answer(_refusal(error))
    with_text = parameters.return_text_in_logprobs
    if parameters.stream:
        return exchange.event_answer(_stream(service, sequences, single, parameters))
    if not await exchange.finished(request, sequences):
        return Response(status_code=exchange.CLIENT_GONE)
    tokenizer = service.model.tokenizer
    answers = [answer(item, tokenizer, with_text=with_text) for item in sequences]
    return exchange.json_answer(answers[0] if single else answers)


async def flush_cache(request: Request) -> Response:
    """GET or POST /flush_cache: only an idle server flushes."""
    if exchange.service(request).flush():
        return Response(FLUSHED)
    return Response("Flush cache failed.\n", status_code=400)


async def abort_request(request: Request) -> Response:
    """POST /abort_request: by request id, or everything."""
    wanted = read(AbortBody, await exchange.body(request))
    exchange.service(request).abort_named(wanted.rid, everything=wanted.abort_all)
    return Response()


async def health(request: Request) -> Response:
    """GET /health: whether the schedulers run."""
    return Response(status_code=200 if exchange.service(request).alive else 503)


async def health_generate(request: Request) -> Response:
    """GET /health_generate: whether a token comes out."""
    return Response(status_code=200 if await exchange.service(request).probe() else 503)


async def _refusal(error: BadRequestError) -> AsyncIterator[bytes]:
    """The answer to a stream that cannot begin: SGLang says so within the stream."""
    content = {
        "message": str(error),
        "type": "invalid_request_error",
        "code": 400,
        "retryable": False,
    }
    yield b"data: " + dumps({"error": content}) + b"\n\n"
    yield exchange.DONE


async def _stream(
    service: Service, sequences: list[Sequence], single: bool, body: GenerateBody
) -> AsyncIterator[bytes]:
    changed = asyncio.Event()
    streams = []
    for index, sequence in enumerate(sequences):
        sequence.changed = changed
        streams.append(
            EventStream(
                sequence,
                service.model.tokenizer,
                with_text=body.return_text_in_logprobs,
                index=None if single else index,
            )
        )
    try:
        await service.submit(sequences, body.routed_dp_rank)
        while not all(stream.complete for stream in streams):
            await changed.wait()
            changed.clear()
            for stream in streams:
                if stream.pending:
                    yield stream.event()
    except BadRequestError as error:
        async for part in _refusal(error):
            yield part
        return
    finally:
        service.abort(sequences)
    yield exchange.DONE


def _sequences(service: Service, body: GenerateBody) -> tuple[list[Sequence], bool]:
    """The sequences of a request, and whether it is answered by one object, not a list."""
    body.refuse_unsupported()
    prompts, single = _prompts(service, body)
    size = len(prompts)
    samplings = _samplings(service, body, size)
    service.check_size(sum(sampling.n for sampling in samplings))
    starts = _each(body.logprob_start_len, -1, size, "logprob_start_len")
    wanted = _each(body.return_logprob, False, size, "return_logprob")
    tops = _each(body.top_logprobs_num, 0, size, "top_logprobs_num")
    sequences: list[Sequence] = []
    for index, prompt in enumerate(prompts):
        for copy in range(samplings[index].n):
            sequences.append(
                service.sequence(
                    prompt,
                    samplings[index],
                    rid=_rid(body.rid, index, copy, samplings[index].n, size),
                    logprobs=bool(wanted[index]),
                    logprob_start=int(starts[index]),
                    top_count=int(tops[index]),
                )
            )
    return sequences, single and len(sequences) == 1


def _prompts(service: Service, body: GenerateBody) -> tuple[list[list[int]], bool]:
    if (body.text is None) == (body.input_ids is None):
        raise BadRequestError("Either text, input_ids or input_embeds should be provided.")
    if body.text is not None:
        texts = [body.text] if isinstance(body.text, str) else body.text
        if not texts or not all(texts):
            raise BadRequestError("texts cannot be empty and tokenizer must be initialized")
        return [service.model.tokenizer.encode(text) for text in texts], isinstance(body.text, str)
    ids = body.input_ids or []
    several = [entry for entry in ids if isinstance(entry, list)]
    one = [entry for entry in ids if isinstance(entry, int)]
    if not several and not one:
        raise BadRequestError("input_ids cannot be empty.")
    return several or [one], not several


def _samplings(service: Service, body: GenerateBody, size: int) -> list[Sampling]:
    given = body.sampling_params or {}
    interval = service.options.stream_interval
    if isinstance(given, dict):
        return [check_sampling(given, interval)] * size
    if len(given) != size:
        raise BadRequestError(f"sampling_params has {len(given)} entries for {size} prompts.")
    return [check_sampling(entry, interval) for entry in given]


def _each(value: Any, default: Any, size: int, name: str) -> list[Any]:
    if not isinstance(value, list):
        return [default if value is None else value] * size
    if len(value) != size:
        raise BadRequestError(f"{name} has {len(value)} entries for {size} prompts.")
    return value


def _rid(given: str | list[str] | None, index: int, copy: int, n: int, size: int) -> str | None:
    if given is None:
        return None
    if isinstance(given, list):
        if len(given) != size:
            raise BadRequestError(f"rid has {len(given)} entries for {size} prompts.")
        name = given[index]
    else:
        name = given if size == 1 else f"{given}_{index}"
    return name if n == 1 else f"{name}_{copy}"
