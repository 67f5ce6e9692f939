"""Decoding with log-probabilities, and scoring the same tokens by prefill.

What the kits that look at numbers share: prompts as the server's own token ids, so that no
tokenizer is needed here; greedy decoding at a given concurrency; an empty prefix cache; prefill.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from servematrix.client import BadStatus, Client, ClientError, MalformedAnswer
from servematrix.gates.consistency import Compared
from servematrix.kits import answers
from servematrix.kits.base import ABSENT

RULE = "the server returns log-probabilities, and empties its cache on request"
_REQUEST_TOKENS = 2048
"""Tokens scored in one request: each takes a row of the vocabulary's size on the GPU."""
_LARGEST_ID = 2**31
_IDLE_SECONDS = 10.0
"""How long a server may take to fall idle, so that it flushes."""


class NoLogprobs(Exception):
    """This server gives no log-probabilities, or cannot empty its cache; the message says why."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt by a name for messages, as the server's token ids."""

    name: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a prompt was continued with: token ids, their log-probabilities, and `meta_info`."""

    prompt: Prompt
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    meta: Mapping[str, Any]

    @property
    def cached(self) -> int:
        """Prompt tokens that came from the prefix cache."""
        cached = self.meta.get("cached_tokens")
        return cached if isinstance(cached, int) and 0 < cached <= len(self.prompt.ids) else 0


@contextmanager
def told() -> Iterator[None]:
    """Turn the refusal of a request for log-probabilities into `NoLogprobs`."""
    try:
        yield
    except BadStatus as error:
        if error.status not in (400, 422, 501):
            raise
        raise NoLogprobs(f"it refuses to return log-probabilities: {error}") from error


def prompts(client: Client, texts: Sequence[str], timeout: float) -> list[Prompt]:
    """Ask the server for the token ids of texts. Raises `NoLogprobs` and `ClientError`."""
    with told():
        scored = client.score(texts, [0] * len(texts), timeout=timeout)
    found = []
    for text, answer in zip(texts, scored, strict=True):
        entries = _meta(answer).get("input_token_logprobs")
        if not entries:
            raise NoLogprobs("its answers to return_logprob have no input_token_logprobs")
        if not isinstance(entries, list):
            raise MalformedAnswer(f"input_token_logprobs is no list: {entries!r:.80}")
        # prompts that share their beginning differ at their end
        found.append(Prompt(repr(text[-48:]), tuple(_ids(entries))))
    return found


def decode(
    client: Client, prompts: Sequence[Prompt], *, tokens: int, concurrency: int, timeout: float
) -> list[Decoded]:
    """Continue each prompt greedily by `tokens` tokens, `concurrency` requests at a time.

    Raises `NoLogprobs` and `ClientError`; then requests that have not begun are given up.
    """
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="decode")
    try:
        futures = [pool.submit(_decoded, client, one, tokens, timeout) for one in prompts]
        return [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)


def flush(client: Client) -> None:
    """Empty the prefix cache, as soon as the server is idle.

    Raises `NoLogprobs` where a server has no such route, `ClientError` where it does not fall idle.
    """
    ends = time.monotonic() + _IDLE_SECONDS
    pause = threading.Event()
    while True:
        try:
            return client.flush_cache()
        except BadStatus as error:
            if error.status in ABSENT:
                raise NoLogprobs(f"its prefix cache cannot be emptied: {error}") from error
            if error.status != 400:
                raise
            if time.monotonic() > ends:
                raise ClientError(
                    f"the server was never idle for {_IDLE_SECONDS:g} s, so its cache cannot be"
                    f" emptied: keep other traffic away ({error})"
                ) from error
        pause.wait(0.05)


def compare(client: Client, decoded: Sequence[Decoded], timeout: float) -> list[Compared]:
    """Score decoded tokens by prefill, nothing taken from the cache, in the order given.

    Raises `ClientError`.
    """
    flush(client)
    found: list[Compared] = []
    for batch in _batches(decoded):
        whole = [one.prompt.ids + one.tokens for one in batch]
        # a start of 0 keeps the server from reusing any cached token, also of the same request
        scored = client.score(whole, [0] * len(whole), top=1, timeout=timeout)
        found += [_compared(one, answer) for one, answer in zip(batch, scored, strict=True)]
    return found


def _decoded(client: Client, prompt: Prompt, tokens: int, timeout: float) -> Decoded:
    answer = client.generate(
        prompt.ids, max_new_tokens=tokens, ignore_eos=True, logprobs=True, timeout=timeout
    )
    meta = _meta(answer)
    entries = meta.get("output_token_logprobs")
    if not entries:
        raise NoLogprobs("its answers to return_logprob have no output_token_logprobs")
    if not isinstance(entries, list) or len(entries) != tokens:
        found = len(entries) if isinstance(entries, list) else f"{entries!r:.80} instead of"
        raise MalformedAnswer(
            f"{found} log-probabilities for {tokens} tokens that were asked for, after"
            f" {prompt.name}"
        )
    return Decoded(prompt, tuple(_ids(entries)), tuple(_values(entries)), meta)


def _compared(one: Decoded, answer: Mapping[str, Any]) -> Compared:
    meta = _meta(answer)
    entries, tops = meta.get("input_token_logprobs"), meta.get("input_top_logprobs")
    length = len(one.prompt.ids) + len(one.tokens)
    if not isinstance(entries, list) or not isinstance(tops, list):
        raise MalformedAnswer("a scored sequence has no input_token_logprobs or no top ones")
    if len(entries) != length or len(tops) != length:
        raise MalformedAnswer(f"{len(entries)} log-probabilities for {length} scored tokens")
    entries, tops = entries[-len(one.tokens) :], tops[-len(one.tokens) :]
    if tuple(_ids(entries)) != one.tokens:
        raise MalformedAnswer(
            f"the server scored other tokens than it was given: {one.prompt.name}"
        )
    try:
        top = tuple(_values([first[0] for first in tops]))
    except (TypeError, IndexError, KeyError):
        raise MalformedAnswer("an entry of input_top_logprobs is no list of tokens") from None
    return Compared(one.prompt.name, one.logprobs, tuple(_values(entries)), top)


def _batches(decoded: Sequence[Decoded]) -> Iterator[list[Decoded]]:
    batch: list[Decoded] = []
    tokens = 0
    for one in decoded:
        length = len(one.prompt.ids) + len(one.tokens)
        if batch and tokens + length > _REQUEST_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(one)
        tokens += length
    if batch:
        yield batch


def _meta(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = answer.get("meta_info")
    if not isinstance(meta, dict):
        raise MalformedAnswer(f"an answer has no meta_info: {answer!r:.200}")
    return meta


def _ids(entries: Any) -> Iterator[int]:
    for entry in entries:
        token = entry[1] if isinstance(entry, list) and len(entry) > 1 else None
        if type(token) is not int or not 0 <= token <= _LARGEST_ID:
            raise MalformedAnswer(f"no entry [log-probability, token id, …]: {entry!r:.80}")
        yield token


def _values(entries: Any) -> Iterator[float]:
    for entry in entries:
        value = answers.logprob(entry[0] if isinstance(entry, list) and entry else None)
        if value is None:
            raise MalformedAnswer(f"a log-probability is missing or no number: {entry!r:.80}")
        yield value
