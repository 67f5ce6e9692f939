"""One long streamed request in the background, timed by our own clock.

The server repeats the whole text in every event, some hundred megabytes for 6,000 tokens. Only the
last event is parsed; of the others the arrival is noted, and the token count near the end of their
bytes, so that the thread leaves the CPU to the server.
"""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass
from typing import Any

from servematrix.client import Client, ClientError
from servematrix.gates.text import quote

_DONE = b"data: [DONE]\n\n"
_COUNT = re.compile(rb'"completion_tokens":\s*(\d+)')
_TAIL = 2048
"""Bytes at the end of an event in which its `meta_info` lies."""


@dataclass(frozen=True)
class Ended:
    """How the request ended.

    `meta` is the last event's `meta_info`, `problem` what went wrong, None where nothing did.
    Times by our clock: seconds from sending to the end and to the first event, milliseconds between
    tokens (tokens that arrive in one event share its gap), tokens a second after the first event.
    They are None where too few events came or their token counts cannot be trusted.
    """

    meta: dict[str, Any]
    problem: str | None
    elapsed_s: float
    ttft_s: float | None = None
    itl_p50_ms: float | None = None
    itl_p99_ms: float | None = None
    decode_tokens_per_s: float | None = None


class LongRequest(threading.Thread):
    """Streams one greedy request that never stops early; `ended` is set when it is over.

    `sent` is when it was started, on `time.monotonic`.
    """

    def __init__(self, client: Client, prompt: str, max_new_tokens: int, timeout: float) -> None:
        super().__init__(name="long-request", daemon=True)
        self.ended = threading.Event()
        self.sent = 0.0
        self._client = client
        self._prompt, self._max_new_tokens, self._timeout = prompt, max_new_tokens, timeout
        self._arrivals: list[tuple[float, int]] = []
        self._last = b""
        self._done = False
        self._error: ClientError | None = None
        self._over = 0.0

    def start(self) -> None:
        """Send the request."""
        self.sent = time.monotonic()
        super().start()

    def run(self) -> None:
        """Read the stream until it ends or its deadline passes."""
        try:
            for event in self._client.generate_stream(
                self._prompt,
                max_new_tokens=self._max_new_tokens,
                ignore_eos=True,
                timeout=self._timeout,
            ):
                if event.raw == _DONE:
                    self._done = True
                    continue
                counts = _COUNT.findall(event.raw, max(0, len(event.raw) - _TAIL))
                self._arrivals.append((event.t, int(counts[-1]) if counts else 0))
                self._last = event.raw
        except ClientError as error:
            self._error = error
        finally:
            self._over = time.monotonic()
            self.ended.set()

    def tokens_per_second(self) -> float:
        """Return the decoding rate seen so far; 0 until there is one."""
        arrivals = self._arrivals
        if len(arrivals) < 2:
            return 0.0
        (start, first), (end, last) = arrivals[0], arrivals[-1]
        return (last - first) / (end - start) if end > start else 0.0

    def result(self) -> Ended:
        """Return how the request ended; to be called once `ended` is set."""
        elapsed = self._over - self.sent
        meta, problem = self._outcome()
        if not self._arrivals:
            return Ended(meta, problem, elapsed)
        ttft = self._arrivals[0][0] - self.sent
        gaps = self._gaps()
        if problem or not gaps or self._arrivals[-1][1] != meta.get("completion_tokens"):
            return Ended(meta, problem, elapsed, ttft)
        gaps.sort()
        return Ended(
            meta,
            problem,
            elapsed,
            ttft,
            itl_p50_ms=1000.0 * gaps[len(gaps) // 2],
            itl_p99_ms=1000.0 * gaps[min(len(gaps) - 1, len(gaps) * 99 // 100)],
            decode_tokens_per_s=self.tokens_per_second(),
        )

    def _outcome(self) -> tuple[dict[str, Any], str | None]:
        if self._error is not None:
            return {}, str(self._error)
        try:
            event = json.loads(self._last.removeprefix(b"data: "))
            meta = event["meta_info"]
        except (ValueError, KeyError, TypeError):
            return (
                {},
                f"its last event has no meta_info: {quote(self._last.decode(errors='replace'))}",
            )
        if not isinstance(meta, dict):
            return {}, f"its last event's meta_info is {meta!r:.80}"
        return meta, None if self._done else "its stream ended without [DONE]"

    def _gaps(self) -> list[float]:
        """Return the seconds between tokens; tokens of one event share the time since the last."""
        gaps: list[float] = []
        for i in range(1, len(self._arrivals)):
            (before, had), (now, has) = self._arrivals[i - 1], self._arrivals[i]
            if has > had:
                gaps += [(now - before) / (has - had)] * (has - had)
        return gaps
