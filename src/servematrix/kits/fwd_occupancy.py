"""Is the GPU busy while one request decodes, and does speculation pay where it is on?

One request alone is where the host's overhead shows first: a lost overlap scheduler or CUDA graph
moves this number before it moves any batched throughput.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from rich.table import Table

from servematrix.client import MalformedAnswer
from servematrix.gates import accept_length, occupancy, throughput, trace
from servematrix.gates.ranks import every_rank, standing
from servematrix.gates.sequential import Decision
from servematrix.gates.verdict import Number, Verdict, worst
from servematrix.gates.windows import Reduction, Scrape, fresh_windows
from servematrix.kits import answers, scrapes
from servematrix.kits.base import Kit, concludes
from servematrix.kits.long_request import Ended, Latency, LongRequest, latency
from servematrix.terminal import console

_KIT = "fwd_occupancy"
DECODE_LOG_INTERVAL = 40
"""SGLang's default, in batches."""
_TELL_SECONDS = 0.5
"""From one word on the windows so far to the next."""

_ROWS = (
    ("median", "%"),
    ("settled_median", "%"),
    ("peak", "%"),
    ("p10", "%"),
    ("windows", "windows"),
    ("windows_implied", "windows"),
    ("blocks", "blocks"),
    ("good_blocks", "blocks"),
    ("decided_s", "s"),
    ("tokens", "tokens"),
    ("decode_tokens_per_s", "tokens/s"),
    ("stream_tokens_per_s", "tokens/s"),
    ("itl_p50_ms", "ms"),
    ("itl_p99_ms", "ms"),
    ("ttft_s", "s"),
    ("counter_occupancy", "%"),
    ("windows_mean", "%"),
    ("counter_difference", "points"),
    ("accept_length", "tokens/pass"),
    ("scrapes", "scrapes"),
    ("stale_scrapes", "scrapes"),
    ("nan_scrapes", "scrapes"),
    ("failed_scrapes", "scrapes"),
)


@dataclass(frozen=True)
class _Server:
    """What the server says of itself: batches between log lines, speculation, context in tokens."""

    decode_log_interval: int
    algorithm: str | None
    context: int | None
    version: str | None
    dp_ranks: Sequence[int | None] = (None,)
    """The data-parallel ranks to send to; None where there is one and nothing to choose."""


@dataclass(frozen=True)
class _Part:
    """What one long request gave: the verdict, and the trace where it came to one.

    `timing` is of the stream that followed it.
    """

    verdict: Verdict
    watched: scrapes.Watched | None = None
    ended: Ended | None = None
    timing: Latency | None = None

    def trace(self) -> dict[str, Any] | None:
        """The trace in the form of recordings."""
        if self.watched is None or self.ended is None:
            return None
        return {
            "elapsed_s": self.ended.elapsed_s,
            "meta_info": self.ended.meta,
            "stopped_early": self.ended.stopped,
            "failed_scrapes": self.watched.failed,
            "gaps_ms": [round(gap, 3) for gap in self.timing.gaps_ms] if self.timing else [],
            "samples": trace.rows(self.watched.scrapes),
        }


class FwdOccupancyMixin(Kit):
    """`sglang:fwd_occupancy` over the fresh windows of one long request, block by block.

    The server must run with `--enable-metrics` and `SGLANG_ENABLE_METRICS_DEVICE_TIMER=1`.
    Threshold in percent, samples and blocks in distinct windows, intervals, start-up and timeout in
    seconds, lengths in tokens, tolerance between gauge and counter in points, accept length in
    tokens a pass. 95 %, five windows and 1.8 tokens a pass are the published limits; how windows
    become a verdict, and with which errors, is `gates.occupancy`.
    """

    kit: ClassVar[str] = _KIT
    fwd_occupancy_threshold: float = 95.0
    """Occupancy, in percent, that the median of a good block of windows is above."""
    fwd_occupancy_min_samples: int = 5
    """Fewest fresh windows that a verdict may rest on."""
    fwd_occupancy_scrape_interval: float = 0.05
    """Longest time between two reads of `/metrics`, in seconds."""
    fwd_occupancy_acc_length_threshold: float = 1.8
    """Least accept length, in tokens a verifying pass, where the server speculates."""
    fwd_occupancy_warmup_max_new_tokens: int = 64
    """Tokens of the request that warms the server up and is not judged."""
    fwd_occupancy_max_new_tokens: int = 2048
    """Most tokens of the long request; it ends earlier once it is clear."""
    fwd_occupancy_stream_max_new_tokens: int = 256
    """Tokens of the streamed request that latency between tokens is read from."""
    fwd_occupancy_prompt: str = (
        "Human: Write a small web service with FastAPI and explain each part.\n\nAssistant:"
    )
    """What the long request asks."""
    fwd_occupancy_rank_reduction: Reduction = "min"
    """Which rank decides where several work on one request: that of the lowest median (`min`) or of
    the highest (`max`)."""
    fwd_occupancy_counter_tolerance: float = occupancy.COUNTER_TOLERANCE
    """Points by which gauge and forward-time counter may differ."""
    fwd_occupancy_startup_seconds: float = occupancy.STARTUP_SECONDS
    """First seconds of the request that no failure may rest on."""
    fwd_occupancy_block_windows: int = occupancy.BLOCK_WINDOWS
    """Windows that together count once."""
    fwd_occupancy_stop_early: bool = True
    """Whether the request is aborted as soon as its windows are clear. With speculation it never
    is: the accept length is that of the whole request, and occupancy rises while it runs."""
    fwd_occupancy_timeout: float = 600.0
    """Seconds that one request may take."""
    fwd_occupancy_required: bool = False
    """Whether a server without /metrics is an error; set it where metrics are configured."""
    fwd_occupancy_speculation_required: bool = False
    """Whether a server that does not speculate fails; set it where speculation is configured."""
    fwd_occupancy_baseline: throughput.Baseline | None = None
    """What earlier runs of this server measured on such a GPU; None compares with nothing."""

    @concludes(_KIT, faults="error")
    def test_fwd_occupancy(self) -> Verdict:
        """Guards against host overhead that starves the GPU, and drafts that are never accepted."""
        if not scrapes.served(self.client):
            required = self.fwd_occupancy_required
            return occupancy.unmeasurable(metrics_served=False, required=required)
        server = self.__ask_server()
        parts = [self.__measure(server, rank) for rank in server.dp_ranks]
        self.__report(parts, server)
        verdicts = [part.verdict for part in parts]
        return verdicts[0] if len(verdicts) == 1 else every_rank(verdicts)

    def __measure(self, server: _Server, dp_rank: int | None) -> _Part:
        """Watch one long request, on the data-parallel rank where there are several."""
        client, limits = self.client, self.__limits(server)
        self.progressed("warms up")
        warmup = client.generate(
            f"First, {self.fwd_occupancy_prompt}",
            max_new_tokens=self.fwd_occupancy_warmup_max_new_tokens,
            ignore_eos=True,
            dp_rank=dp_rank,
            timeout=self.fwd_occupancy_timeout,
        )
        before = scrapes.before(client, self.fwd_occupancy_scrape_interval)
        unfit = occupancy.unfit(
            before.scrape,
            gauge_exposed=before.gauge_exposed,
            older_name=before.older_name,
            prompt_tokens=_prompt_tokens(warmup),
            new_tokens=self.fwd_occupancy_max_new_tokens,
            context=server.context,
        )
        if unfit is not None:
            return _Part(unfit)
        self.progressed("one long request", "no window yet")
        request = LongRequest(
            client,
            self.fwd_occupancy_prompt,
            self.fwd_occupancy_max_new_tokens,
            self.fwd_occupancy_timeout,
            dp_rank,
        )
        stops = self.fwd_occupancy_stop_early and server.algorithm is None

        def clear(seen: Sequence[Scrape]) -> bool:
            return stops and occupancy.clear(seen, limits)

        watched = scrapes.watch(
            client,
            request,
            before,
            longest_interval=self.fwd_occupancy_scrape_interval,
            batches=server.decode_log_interval,
            clear=clear,
            each=self.__each(limits),
        )
        ended = request.result()
        timing = Latency()
        if ended.problem is None:
            self.progressed("one short stream")
            timing = latency(
                client,
                f"Last, {self.fwd_occupancy_prompt}",
                self.fwd_occupancy_stream_max_new_tokens,
                self.fwd_occupancy_timeout,
            )
        judged = self.__judge(server, limits, watched, ended, timing)
        return _Part(judged, watched, ended, timing)

    def __each(self, limits: occupancy.Limits) -> Callable[[Sequence[Scrape]], None]:
        """Return what tells the windows so far, at most twice a second: it reads all scrapes."""
        told = -math.inf

        def each(seen: Sequence[Scrape]) -> None:
            nonlocal told
            now = time.monotonic()
            if self.progress is None or now - told < _TELL_SECONDS:
                return
            told = now
            decision = standing(fresh_windows(seen), limits.rule, limits.rank_reduction)
            if decision is not None:
                self.progressed("one long request", _so_far(decision, limits.threshold))

        return each

    def __limits(self, server: _Server) -> occupancy.Limits:
        return occupancy.Limits(
            threshold=self.fwd_occupancy_threshold,
            min_samples=self.fwd_occupancy_min_samples,
            decode_log_interval=server.decode_log_interval,
            counter_tolerance=self.fwd_occupancy_counter_tolerance,
            rank_reduction=self.fwd_occupancy_rank_reduction,
            startup_seconds=self.fwd_occupancy_startup_seconds,
            block_windows=self.fwd_occupancy_block_windows,
        )

    def __ask_server(self) -> _Server:
        info = self._kit_server_info()
        listing = answers.parse(answers.ModelListing, self.client.models())
        dp_size = int(info.get("dp_size") or 1)
        return _Server(
            decode_log_interval=int(info.get("decode_log_interval") or DECODE_LOG_INTERVAL),
            algorithm=info.get("speculative_algorithm") or None,
            context=None if isinstance(listing, str) else listing.data[0].max_model_len,
            version=info.get("version"),
            dp_ranks=range(dp_size) if dp_size > 1 else (None,),
        )

    def __judge(
        self,
        server: _Server,
        limits: occupancy.Limits,
        watched: scrapes.Watched,
        ended: Ended,
        latency: Latency,
    ) -> Verdict:
        meta = ended.meta
        tokens, passes = meta.get("completion_tokens"), meta.get("spec_verify_ct")
        finish = meta.get("finish_reason")
        request = occupancy.Request(
            asked_tokens=self.fwd_occupancy_max_new_tokens,
            completion_tokens=tokens,
            finish_reason=finish.get("type") if isinstance(finish, dict) else finish,
            forward_passes=passes or tokens,
            served=watched.served,
            problem=ended.problem,
            stopped=ended.stopped,
        )
        busy = occupancy.judge(watched.scrapes, request, limits, failed_scrapes=watched.failed)
        timing: dict[str, Number] = {
            "decode_tokens_per_s": ended.decode_tokens_per_s,
            "stream_tokens_per_s": latency.decode_tokens_per_s,
            "itl_p50_ms": latency.itl_p50_ms,
            "itl_p99_ms": latency.itl_p99_ms,
            "ttft_s": latency.ttft_s,
        }
        busy = replace(busy, numbers={**busy.numbers, **timing})
        if ended.problem is not None:
            return busy
        pays = accept_length.judge(
            algorithm=server.algorithm,
            completion_tokens=tokens,
            verify_passes=passes,
            reported=meta.get("spec_accept_length"),
            threshold=self.fwd_occupancy_acc_length_threshold,
            required=self.fwd_occupancy_speculation_required,
        )
        verdicts = [busy, pays] if pays.outcome != "not_applicable" else [busy]
        if self.fwd_occupancy_baseline is not None:
            found = {**busy.numbers, **pays.numbers}
            verdicts += throughput.compare(found, self.fwd_occupancy_baseline)
        return worst(verdicts)

    def __report(self, parts: Sequence[_Part], server: _Server) -> None:
        """Print a table and hand on numbers and traces, before anything concludes."""
        for part in parts:
            if part.ended is not None:
                self.__tabulate(part.verdict)
        traces = [found for part in parts if (found := part.trace()) is not None]
        if not traces:
            return
        self.attach(
            "trace",
            {
                "server": {"version": server.version, "speculative_algorithm": server.algorithm},
                "scrape_interval_s": self.fwd_occupancy_scrape_interval,
                "decode_log_interval": server.decode_log_interval,
                "traces": traces,
            },
        )

    def __tabulate(self, verdict: Verdict) -> None:
        table = Table("one request alone", "value", "unit", title="Forward occupancy")
        for name, unit in _ROWS:
            value = verdict.numbers.get(name)
            shown = f"{value:.2f}" if isinstance(value, float) else str(value)
            table.add_row(name.replace("_", " "), "-" if value is None else shown, unit)
            self.measure(name, value, unit)
        console().print(table)


def _so_far(decision: Decision, threshold: float) -> str:
    """Say how a decision stands: `9 windows in 2.1 s, 2 of 3 blocks above 97 %, not clear yet`."""
    blocks = decision.good + decision.bad
    clear = "not clear yet" if decision.outcome is None else "clear"
    return (
        f"{decision.windows} windows in {decision.seconds:.1f} s, {decision.good} of {blocks}"
        f" blocks above {threshold:g} %, {clear}"
    )


def _prompt_tokens(answer: dict[str, Any]) -> int:
    parsed = answers.parse(answers.Generated, answer)
    if isinstance(parsed, str):
        raise MalformedAnswer(f"/generate answered the warm-up with a broken answer: {parsed}")
    return parsed.meta_info.prompt_tokens
