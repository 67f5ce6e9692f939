"""The OpenAI-shaped routes: ``/v1/chat/completions`` and ``/v1/completions``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from servematrix.engines.reference import exchange
from servematrix.engines.reference.answers import WEIGHT_VERSION, dumps
from servematrix.engines.reference.language import MESSAGE_END, MESSAGE_START, Tokenizer
from servematrix.engines.reference.schemas import (
    BadRequestError,
    ChatBody,
    CompletionBody,
    Message,
    check_sampling,
    read,
)
from servematrix.engines.reference.sequence import Logprob, Sequence, Top
from servematrix.engines.reference.service import Service

Chunks = Callable[[Sequence, int, str], list[dict[str, Any]]]
"""The choices to send for a sequence: (sequence, tokens sent before, new text)."""


async def chat(request: Request) -> Response:
    """POST /v1/chat/completions: one or more answers to a conversation, whole or streamed."""
    body = read(ChatBody, await exchange.body(request))
    service = exchange.service(request)
    if not body.messages:
        raise BadRequestError("Messages cannot be empty.")
    most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    tokenizer = service.model.tokenizer
    parameters = body.sampling(most)
    # A chat model ends its turn with this token; a plain continuation need not know it.
    ends = [*(body.stop_token_ids or []), *tokenizer.encode(MESSAGE_END)]
    sampling = check_sampling(
        parameters | {"stop_token_ids": ends}, service.options.stream_interval
    )
    service.check_size(sampling.n)
    prompt = tokenizer.encode(_template(body.messages))
    sequences = [
        service.sequence(prompt, sampling, logprobs=body.logprobs, top_count=body.top_logprobs or 0)
        for _ in range(sampling.n)
    ]
    await service.submit(sequences)
    identity = _identity(sequences[0].rid, "chat.completion", body.model)
    if body.stream:
        identity["object"] = "chat.completion.chunk"
        chunks = _chat_chunks(sequences, tokenizer, with_logprobs=body.logprobs)
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return exchange.event_answer(_stream(service, sequences, identity, chunks, usage, {}))
    if not await exchange.finished(request, sequences):
        return Response(status_code=exchange.CLIENT_GONE)
    choices = [
        {
            "index": index,
            "message": {
                "role": "assistant",
                "content": item.transcript.text,
                "reasoning_content": None,
                "tool_calls": None,
            },
            "logprobs": _chat_logprobs(item, tokenizer, 0) if body.logprobs else None,
            **_ending(item),
        }
        for index, item in enumerate(sequences)
    ]
    return exchange.json_answer(_whole(identity, choices, sequences, [prompt]))


async def completions(request: Request) -> Response:
    """POST /v1/completions: continuations of one prompt or of several, whole or streamed."""
    body = read(CompletionBody, await exchange.body(request))
    service = exchange.service(request)
    tokenizer = service.model.tokenizer
    prompts = _prompts(body, tokenizer)
    sampling = check_sampling(body.sampling(body.max_tokens), service.options.stream_interval)
    service.check_size(len(prompts) * sampling.n)
    sequences = [
        service.sequence(
            prompt,
            sampling,
            logprobs=body.logprobs is not None,
            logprob_start=0 if body.echo else -1,
            top_count=body.logprobs or 0,
        )
        for prompt in prompts
        for _ in range(sampling.n)
    ]
    await service.submit(sequences)
    identity = _identity(sequences[0].rid, "text_completion", body.model)
    wants_logprobs = body.logprobs is not None
    if body.stream:
        chunks = _completion_chunks(sequences, tokenizer, body.echo, wants_logprobs)
        usage = bool(body.stream_options and body.stream_options.include_usage)
        extra = {"usage": None}
        return exchange.event_answer(_stream(service, sequences, identity, chunks, usage, extra))
    if not await exchange.finished(request, sequences):
        return Response(status_code=exchange.CLIENT_GONE)
    choices = [
        {
            "index": index,
            "text": (tokenizer.decode(item.prompt) if body.echo else "") + item.transcript.text,
            "logprobs": (
                _completion_logprobs(item, tokenizer, 0, echo=body.echo) if wants_logprobs else None
            ),
            **_ending(item),
        }
        for index, item in enumerate(sequences)
    ]
    return exchange.json_answer(_whole(identity, choices, sequences, prompts))


async def _stream(
    service: Service,
    sequences: list[Sequence],
    identity: dict[str, Any],
    chunks: Chunks,
    usage: bool,
    extra: dict[str, Any],
) -> AsyncIterator[bytes]:
    """Events with what is new, one choice each; ``extra`` is put behind the choices."""
    changed = asyncio.Event()
    changed.set()
    for sequence in sequences:
        sequence.changed = changed
    sent = [0] * len(sequences)
    shown = [0] * len(sequences)
    ended = [False] * len(sequences)
    try:
        while not all(ended):
            await changed.wait()
            changed.clear()
            for index, sequence in enumerate(sequences):
                fresh = sequence.transcript.text[shown[index] :]
                if ended[index] or not (fresh or sequence.finish):
                    continue
                for choice in chunks(sequence, sent[index], fresh):
                    content = identity | {"choices": [choice]} | extra
                    yield b"data: " + dumps(content) + b"\n\n"
                sent[index] = len(sequence.output)
                shown[index] += len(fresh)
                ended[index] = sequence.finish is not None
        if usage:
            prompts = list({id(item.prompt): item.prompt for item in sequences}.values())
            content = identity | {"choices": [], "usage": _usage(sequences, prompts)}
            yield b"data: " + dumps(content) + b"\n\n"
    finally:
        service.abort(sequences)
    yield exchange.DONE


def _chat_chunks(sequences: list[Sequence], tokenizer: Tokenizer, *, with_logprobs: bool) -> Chunks:
    def choice(sequence: Sequence, delta: dict[str, Any], logprobs: Any = None) -> dict[str, Any]:
        return {
            "index": sequences.index(sequence),
            "delta": {"reasoning_content": None} | delta,
            "logprobs": logprobs,
            "finish_reason": None,
            "matched_stop": None,
        }

    def chunks(sequence: Sequence, sent: int, fresh: str) -> list[dict[str, Any]]:
        found = []
        if not sent:
            found.append(choice(sequence, {"role": "assistant", "content": ""}))
        if fresh:
            logprobs = _chat_logprobs(sequence, tokenizer, sent) if with_logprobs else None
            found.append(choice(sequence, {"content": fresh}, logprobs))
        if sequence.finish is not None:
            found.append(choice(sequence, {}) | _ending(sequence))
        return found

    return chunks


def _completion_chunks(
    sequences: list[Sequence], tokenizer: Tokenizer, echo: bool, with_logprobs: bool
) -> Chunks:
    def chunks(sequence: Sequence, sent: int, fresh: str) -> list[dict[str, Any]]:
        begins = echo and not sent
        choice = {
            "index": sequences.index(sequence),
            "text": (tokenizer.decode(sequence.prompt) if begins else "") + fresh,
            "logprobs": (
                _completion_logprobs(sequence, tokenizer, sent, echo=begins)
                if with_logprobs
                else None
            ),
            "finish_reason": None,
            "matched_stop": None,
        }
        return [choice | (_ending(sequence) if sequence.finish is not None else {})]

    return chunks


def _template(messages: list[Message]) -> str:
    """The conversation as the model's text knows it, open for the assistant's turn."""
    turns = [f"{MESSAGE_START}{item.role}\n{item.text}{MESSAGE_END}\n" for item in messages]
    return "".join(turns) + f"{MESSAGE_START}assistant\n"


def _prompts(body: CompletionBody, tokenizer: Tokenizer) -> list[list[int]]:
    prompt = body.prompt
    if isinstance(prompt, str):
        prompt = [prompt]
    texts = [item for item in prompt if isinstance(item, str)]
    if texts and all(texts):
        return [tokenizer.encode(text) for text in texts]
    single = [item for item in prompt if isinstance(item, int)]
    if single:
        return [single]
    several = [item for item in prompt if isinstance(item, list)]
    if not several:
        raise BadRequestError("Prompt cannot be empty")
    return several


def _identity(rid: str, kind: str, model: str) -> dict[str, Any]:
    return {"id": rid, "object": kind, "created": int(time.time()), "model": model}


def _whole(
    identity: dict[str, Any],
    choices: list[dict[str, Any]],
    sequences: list[Sequence],
    prompts: list[list[int]],
) -> dict[str, Any]:
    return identity | {
        "choices": choices,
        "usage": _usage(sequences, prompts),
        "metadata": {"weight_version": WEIGHT_VERSION},
    }


def _usage(sequences: list[Sequence], prompts: list[list[int]]) -> dict[str, Any]:
    """Tokens of a request; a prompt with several continuations counts once."""
    prompt = sum(map(len, prompts))
    completion = sum(len(sequence.output) for sequence in sequences)
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
        "prompt_tokens_details": None,
        "reasoning_tokens": 0,
    }


def _ending(sequence: Sequence) -> dict[str, Any]:
    reason = sequence.finish or {}
    return {"finish_reason": reason.get("type"), "matched_stop": reason.get("matched")}


def _chat_logprobs(sequence: Sequence, tokenizer: Tokenizer, start: int) -> dict[str, Any]:
    def entry(value: float | None, token: int) -> dict[str, Any]:
        text = tokenizer.token_text(token)
        return {"token": text, "bytes": list(text.encode()), "logprob": value}

    content = []
    for position in range(start, len(sequence.output_logprobs)):
        top = sequence.output_top[position] if sequence.top_count else None
        best = [entry(value, token) for value, token in top or ()]
        content.append(entry(*sequence.output_logprobs[position]) | {"top_logprobs": best})
    return {"content": content}


def _completion_logprobs(
    sequence: Sequence, tokenizer: Tokenizer, start: int, *, echo: bool
) -> dict[str, Any]:
    pairs: list[Logprob] = sequence.output_logprobs[start:]
    tops: list[Top] = sequence.output_top[start:]
    if echo:
        pairs, tops = sequence.input_logprobs + pairs, sequence.input_top + tops
    return {
        "text_offset": [-1] * len(pairs),  # SGLang 0.5.16 does not compute them either
        "token_logprobs": [value for value, _ in pairs],
        "tokens": [tokenizer.token_text(token) for _, token in pairs],
        "top_logprobs": [
            None if top is None else {tokenizer.token_text(token): value for value, token in top}
            for top in tops
        ],
    }
