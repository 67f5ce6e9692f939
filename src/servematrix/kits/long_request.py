"""One long request in the background, and how fast a stream of the same server is.

The long request is not streamed, as in the published check, so that limits mean the same. (On an
H100 with a 135M model streaming made no difference beyond the noise between runs.) It also leaves
the client's CPU to the scrapes: a stream repeats the whole text in every event, some hundred
megabytes for 6,000 tokens. Times between tokens come from a short stream afterwards.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import threading
import time
import uuid
from dataclasses import dataclass
from typing import Any

from servematrix.client import Client, ClientError, MalformedAnswer
from servematrix.gates.text import quote
from servematrix.kits import answers

_DONE = b"data: [DONE]\n\n"
_COUNT = re.compile(rb'"completion_tokens":\s*(\d+)')
_TAIL = 2048
"""Bytes at the end of an event in which its `meta_info` lies."""


@dataclass(frozen=True)
class Ended:
    """How the long request ended.

    `meta` is its `meta_info`, `problem` what went wrong, None where nothing did; `elapsed_s` are
    seconds from sending to the end by our clock. `stopped` says that we had the server abort it.
    """

    meta: dict[str, Any]
    problem: str | None
    elapsed_s: float
    stopped: bool = False

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Tokens a second over the whole request, the short prefill included."""
        tokens = self.meta.get("completion_tokens")
        return tokens / self.elapsed_s if isinstance(tokens, int) and self.elapsed_s > 0 else None


@dataclass(frozen=True)
class Latency:
    """Times of a streamed request by our clock; None where too few events came to tell.

    Seconds to the first event, milliseconds between tokens, tokens a second from the first event to
    the last; tokens that arrive in one event share the time since the one before. `gaps_ms` are the
    times between tokens, in order.
    """

    ttft_s: float | None = None
    decode_tokens_per_s: float | None = None
    itl_p50_ms: float | None = None
    itl_p99_ms: float | None = None
    gaps_ms: tuple[float, ...] = ()


class LongRequest(threading.Thread):
    """Sends one greedy request that never ends by itself before its last token.

    `ended` is set when it is over.

    `sent` is when it was started, on `time.monotonic`.
    """

    def __init__(
        self,
        client: Client,
        prompt: str,
        max_new_tokens: int,
        timeout: float,
        dp_rank: int | None = None,
    ) -> None:
        super().__init__(name="long-request", daemon=True)
        self.ended = threading.Event()
        self.sent = 0.0
        self._client = client
        self._prompt, self._max_new_tokens, self._timeout = prompt, max_new_tokens, timeout
        self._dp_rank = dp_rank
        self._rid = f"servematrix-{uuid.uuid4().hex}"
        self._stopped = False
        self._answer: dict[str, Any] = {}
        self._error: ClientError | None = None
        self._over = 0.0

    def start(self) -> None:
        """Send the request."""
        self.sent = time.monotonic()
        super().start()

    def run(self) -> None:
        """Wait for the answer, or for the deadline."""
        try:
            self._answer = self._client.generate(
                self._prompt,
                max_new_tokens=self._max_new_tokens,
                ignore_eos=True,
                rid=self._rid,
                dp_rank=self._dp_rank,
                timeout=self._timeout,
            )
        except ClientError as error:
            self._error = error
        finally:
            self._over = time.monotonic()
            self.ended.set()

    def stop(self, timeout: float) -> None:
        """Ask the server, for `timeout` seconds at most, to end the request with what it has.

        A server that does not do so, for want of the endpoint or of our rights, decodes on to the
        request's own end. Either way `ended` tells when the server is idle again.
        """
        try:
            self._client.abort(self._rid, timeout=timeout)
        except ClientError:
            return
        self._stopped = True

    def result(self) -> Ended:
        """Return how the request ended; to be called once `ended` is set."""
        elapsed = self._over - self.sent
        if self._error is not None:
            return Ended({}, str(self._error), elapsed)
        meta = self._answer.get("meta_info")
        if not isinstance(meta, dict):
            return Ended({}, f"its answer has no meta_info: {quote(str(self._answer))}", elapsed)
        parsed = answers.parse(answers.Account, meta)
        if isinstance(parsed, str):
            return Ended({}, f"its meta_info is broken: {parsed}", elapsed)
        return Ended(meta, None, elapsed, self._stopped)


def latency(client: Client, prompt: str, max_new_tokens: int, timeout: float) -> Latency:
    """Stream one greedy request and time its events.

    Raises `ClientError` where the stream fails or is cut.
    """
    sent = time.monotonic()
    arrivals: list[tuple[float, int]] = []
    last = b""
    for event in client.generate_stream(
        prompt, max_new_tokens=max_new_tokens, ignore_eos=True, timeout=timeout
    ):
        last = event.raw
        counts = _COUNT.findall(last, max(0, len(last) - _TAIL))
        if counts:
            arrivals.append((event.t, _tokens(counts[-1], 2 * max_new_tokens)))
        elif last != _DONE:
            raise MalformedAnswer(f"a streamed event has no completion_tokens: {_shown(last)}")
    if last != _DONE:
        raise MalformedAnswer(f"the stream ended without [DONE], with {_shown(last)}")
    in_order = _gaps(arrivals)
    gaps = sorted(in_order)
    if not gaps:
        return Latency(ttft_s=arrivals[0][0] - sent if arrivals else None)
    return Latency(
        ttft_s=arrivals[0][0] - sent,
        decode_tokens_per_s=len(gaps) / seconds if (seconds := math.fsum(gaps)) > 0 else None,
        itl_p50_ms=1000.0 * gaps[len(gaps) // 2],
        itl_p99_ms=1000.0 * gaps[len(gaps) * 99 // 100],
        gaps_ms=tuple(1000.0 * gap for gap in in_order),
    )


def _tokens(digits: bytes, most: int) -> int:
    # the last pass of a request that speculates may go beyond what was asked for
    if len(digits) > len(str(most)) or int(digits) > most:
        raise MalformedAnswer(f"a streamed event counts {digits[:20]!r} tokens, {most} at most")
    return int(digits)


def _gaps(arrivals: list[tuple[float, int]]) -> list[float]:
    """Return the seconds between tokens; tokens of one event share the time since the last."""
    gaps: list[float] = []
    for (before, had), (now, has) in itertools.pairwise(arrivals):
        if has > had:
            gaps += [(now - before) / (has - had)] * (has - had)
    return gaps


def _shown(event: bytes) -> str:
    try:
        return quote(json.dumps(json.loads(event.removeprefix(b"data: "))), 120)
    except (ValueError, RecursionError):
        return quote(event.decode(errors="replace"), 120)
