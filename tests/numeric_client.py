"""A server without HTTP that has exact log-probabilities, and knobs that break its decode path."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from servematrix.client import BadStatus
from servematrix.transport import Event

WIDTH = 1000
"""Token ids; the likeliest after any context is drawn by a hash of it."""


def hashed(context: Sequence[int], salt: str = "") -> float:
    """A number in [0, 1) that depends on the whole context."""
    data = hashlib.blake2b(f"{salt}{list(context)}".encode(), digest_size=8).digest()
    return int.from_bytes(data, "big") / 2**64


def likeliest(context: Sequence[int]) -> int:
    return int(hashed(context) * WIDTH)


def logprob(context: Sequence[int], token: int) -> float:
    """The likeliest has a log-probability of -0.1 to -1.6, every other one 3 nats less."""
    top = -0.1 - 1.5 * hashed(context, "p")
    return top if token == likeliest(context) else top - 3.0


class NumericClient:
    """Stands in for `Client`; every knob is a healthy server's by default."""

    def __init__(self) -> None:
        self.info: dict[str, Any] = {
            "dtype": "bfloat16",
            "version": "1",
            "speculative_algorithm": None,
            "cuda_graph_config": {"decode": {"backend": "full", "max_bs": 4}},
            "internal_states": [{"effective_max_running_requests_per_dp": 64}],
        }
        # |decode - prefill| of each token, given its context
        self.noise: Callable[[Sequence[int]], float] = lambda context: 0.0
        # the context that decoding really sees, given the true one and whether some was cached
        self.seen: Callable[[Sequence[int], int], Sequence[int]] = lambda context, cached: context
        self.decoded: Callable[[Sequence[int]], int] = likeliest
        self.caches = True
        self.status: dict[str, int] = {}  # method -> status of a BadStatus
        self.without: set[str] = set()  # keys left out of meta_info
        self.meta: dict[str, Any] = {}
        self.graph: Callable[[int], bool] = lambda batch: batch <= 4
        self.older_gauge = False
        self.flat = False
        self.busy_flushes = 0
        self.seconds = 0.001  # that a request takes at least
        self.running = self.most_running = 0
        self._held: list[tuple[int, ...]] = []
        self._passes = {"decode_cuda_graph": 0, "decode_none": 0}
        self._counted = False
        self._lock = threading.Lock()

    # -- what kits call -------------------------------------------------------------------------

    def server_info(self) -> dict[str, Any]:
        self._fail("server_info")
        return self.info

    def score(self, prompts: Any, starts: Any = None, *, top: int = 0, timeout: Any = None) -> Any:
        self._fail("score")
        return [self._scored(_ids(prompt), top) for prompt in prompts]

    def generate(
        self,
        prompt: Any,
        *,
        max_new_tokens: int,
        ignore_eos: bool = False,
        logprobs: bool = False,
        timeout: Any = None,
    ) -> dict[str, Any]:
        self._fail("generate")
        with self._lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            time.sleep(self.seconds)
            return self._generated(_ids(prompt), max_new_tokens)
        finally:
            with self._lock:
                self.running -= 1

    def generate_batch(self, prompts: Any, *, max_new_tokens: int, **more: Any) -> list[Any]:
        self._fail("generate")
        self._count(len(prompts), max_new_tokens)
        return [{"meta_info": {}} for _ in prompts]

    def generate_stream(self, text: str, *, max_new_tokens: int, **more: Any) -> Iterator[Event]:
        for i in range(1, max_new_tokens + 1):
            yield Event(0.01 * i, b'data: {"meta_info":{"completion_tokens":%d}}\n\n' % i)
        yield Event(0.01 * max_new_tokens, b"data: [DONE]\n\n")

    def metrics_text(self, *, timeout: Any = None) -> str:
        self._fail("metrics_text")
        if self.older_gauge:
            return 'sglang:is_cuda_graph{tp_rank="0"} 1.0\n'
        if not self._counted:
            return ""  # the counter appears with the first pass
        name = "sglang:cuda_graph_passes_total"
        return "".join(f'{name}{{mode="{mode}"}} {n}\n' for mode, n in self._passes.items())

    def flush_cache(self) -> None:
        self._fail("flush_cache")
        if self.busy_flushes:
            self.busy_flushes -= 1
            raise BadStatus("busy", 400, "")
        self._held.clear()

    def excerpt(self, body: object) -> str:
        return repr(body)[:80]

    # -- how it computes ------------------------------------------------------------------------

    def _generated(self, ids: list[int], tokens: int) -> dict[str, Any]:
        with self._lock:
            cached = self._cached(ids) if self.caches else 0
            self._held.append(tuple(ids))
        context = list(ids)
        entries = []
        for _ in range(tokens):
            seen = self.seen(context, cached)
            token = self.decoded(seen)
            value = -11.76 if self.flat else logprob(seen, token)
            entries.append([value + self.noise(context), token, None])
            context.append(token)
        meta = {
            "prompt_tokens": len(ids),
            "completion_tokens": tokens,
            "cached_tokens": cached,
            "output_token_logprobs": entries,
            **self.meta,
        }
        return {"meta_info": {k: v for k, v in meta.items() if k not in self.without}}

    def _scored(self, ids: list[int], top: int) -> dict[str, Any]:
        entries: list[Any] = [[None, ids[0], None]]
        tops: list[Any] = [None]
        for i in range(1, len(ids)):
            best = likeliest(ids[:i])
            value = -11.76 if self.flat else logprob(ids[:i], ids[i])
            entries.append([value, ids[i], None])
            tops.append([[-11.76 if self.flat else logprob(ids[:i], best), best, None]])
        meta = {"input_token_logprobs": entries, "prompt_tokens": len(ids)}
        if top:
            meta["input_top_logprobs"] = tops
        return {"meta_info": {k: v for k, v in meta.items() if k not in self.without}}

    def _cached(self, ids: list[int]) -> int:
        return max((_common(ids, held) for held in self._held), default=0)

    def _count(self, batch: int, passes: int) -> None:
        self._counted = True
        mode = "decode_cuda_graph" if self.graph(batch) else "decode_none"
        self._passes[mode] += passes

    def _fail(self, method: str) -> None:
        if method in self.status:
            raise BadStatus(f"{method} is refused", self.status[method], "")


def _ids(prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return [int(hashed([], word) * WIDTH) for word in prompt.split()]
    return list(prompt)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
