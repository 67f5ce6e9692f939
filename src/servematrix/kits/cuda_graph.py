"""Do CUDA graphs really run, by the server's own count of forward passes.

Occupancy hardly sees a lost CUDA graph: measured on an H100, throughput falls to an eighth where
occupancy falls by eight points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from servematrix.gates import cuda_graph
from servematrix.gates.cuda_graph import Expected, Passes
from servematrix.gates.verdict import Verdict
from servematrix.kits import scrapes
from servematrix.kits.base import Kit, concludes
from servematrix.kits.long_request import latency

_KIT = "cuda_graph"
_OFF_BATCH = 4
_MOST_REQUESTS = 8192
"""More at once than any server takes."""
_RULE = "the server counts forward passes by CUDA graph (sglang:cuda_graph_passes_total)"


class CudaGraphMixin(Kit):
    """Decode passes with and without a CUDA graph at a batch of 1, the largest captured, and above.

    `cuda_graph_expected` is `on` or `off` where the configuration wants one of them, None where the
    server's own account is to be believed; `cuda_graph_required` makes an error of what cannot be
    measured. Lengths in tokens, the timeout in seconds.
    """

    kit: ClassVar[str] = _KIT
    cuda_graph_expected: Expected | None = None
    """Whether graphs must run (`on`) or must not (`off`); None believes the server's own
    account."""
    cuda_graph_required: bool = False
    """Whether it is an error that passes cannot be counted; set it where metrics are configured."""
    cuda_graph_tokens: int = 96
    """Tokens of each request."""
    cuda_graph_timeout: float = 120.0
    """Seconds that one request may take."""

    @concludes(_KIT)
    def test_cuda_graph_passes(self) -> Verdict:
        """Guards against CUDA graphs that are captured and not replayed, or silently off."""
        info = self._kit_server_info()
        if info.get("device") == "cpu":
            return Verdict("not_applicable", _RULE, "the server runs on a CPU: no CUDA graphs")
        if not scrapes.served(self.client):
            return self.__unmeasured("no /metrics: start the server with --enable-metrics")
        first = self.__passes(1)
        if first is None:
            return self.__unmeasured(self.__no_counter())
        enabled, max_bs = _configured(info)
        more = [self.__passes(batch) for batch in _batches(info, enabled, max_bs)]
        passes = [first, *(one for one in more if one is not None)]
        alone = latency(
            self.client, _prompt(0), self.cuda_graph_tokens, self.cuda_graph_timeout
        ).decode_tokens_per_s
        self.measure("decode_tokens_per_s", alone, "tokens/s")
        for one in passes:
            share = one.share if one.graph + one.eager else None
            self.measure(f"graph_share_at_{one.batch}", share, "share of decode passes")
        verdict = cuda_graph.judge(
            passes, enabled=enabled, max_bs=max_bs, expected=self.cuda_graph_expected
        )
        return replace(verdict, numbers={**verdict.numbers, "decode_tokens_per_s": alone})

    def __unmeasured(self, reason: str) -> Verdict:
        if not self.cuda_graph_required:
            return Verdict("not_applicable", _RULE, reason)
        asked = "although the server was started with --enable-metrics"
        return Verdict("error", _RULE, f"{reason}; {asked}")

    def __passes(self, batch: int) -> Passes | None:
        """Count the decode passes of `batch` equal requests sent as one; None without a counter."""
        before = scrapes.read(self.client).cuda_graph_passes or {}
        self.client.generate_batch(
            [_prompt(number) for number in range(batch)],
            max_new_tokens=self.cuda_graph_tokens,
            ignore_eos=True,
            timeout=self.cuda_graph_timeout,
        )
        after = scrapes.read(self.client).cuda_graph_passes
        if after is None:
            return None
        graph, eager = (
            round(after.get(mode, 0.0) - before.get(mode, 0.0))
            for mode in ("decode_cuda_graph", "decode_none")
        )
        return Passes(batch, graph, eager)

    def __no_counter(self) -> str:
        older = sorted(scrapes.read(self.client).older_names)
        if older:
            return (
                f"/metrics has {', '.join(older)} and no counter: a gauge shows the last pass only;"
                " take a newer SGLang (0.5.8 has the counter)"
            )
        return "/metrics has no such counter: is this SGLang 0.5.8 or newer, with --enable-metrics?"


def _configured(info: Mapping[str, Any]) -> tuple[bool, int | None]:
    """Whether decode graphs are on, and the largest captured batch; None where it is not told."""
    config = info.get("cuda_graph_config")
    decode = config.get("decode") if isinstance(config, dict) else None
    decode = decode if isinstance(decode, dict) else {}
    off = (
        info.get("disable_cuda_graph")
        or info.get("disable_decode_cuda_graph")
        or decode.get("backend") == "disabled"
    )
    # 0.5.14 renamed the argument; what was resolved stands in the table
    names = ("cuda_graph_max_bs_decode", "cuda_graph_max_bs")
    told = [decode.get("max_bs"), *(info.get(name) for name in names)]
    return not off, next((batch for value in told if (batch := _batch(value))), None)


def _batches(info: Mapping[str, Any], enabled: bool, max_bs: int | None) -> list[int]:
    """Batches to measure beside a batch of one, as far as the server runs so many at once.

    Over several data-parallel ranks nobody knows which rank gets how many.
    """
    if info.get("dp_size", 1) != 1:
        return []
    if not enabled:
        return [_OFF_BATCH]
    if max_bs is None:
        return []
    states = info.get("internal_states")
    state = states[0] if isinstance(states, list) and states else None
    named = state.get("effective_max_running_requests_per_dp") if isinstance(state, dict) else None
    most = _batch(named)
    wanted = sorted({max_bs, max_bs + 1} - {1})
    return [batch for batch in wanted if most is None or batch <= most]


def _batch(value: object) -> int | None:
    """A value as a number of requests at once; None where it cannot be one."""
    return value if type(value) is int and 1 <= value <= _MOST_REQUESTS else None


def _prompt(number: int) -> str:
    return f"Story {number}: once upon a time"
