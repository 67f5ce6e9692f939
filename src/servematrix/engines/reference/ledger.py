"""The books of one scheduler: from forward passes to occupancy, throughput, counters and logs.

Gauge and counter come from the same records, as on a real server. What SGLang 0.5.16 does and
FACTS describe holds here as well: figures are published once per ``decode_log_interval`` decode
forwards and with every prefill; when the server goes idle the running-requests gauge falls to
0 at once while the occupancy keeps its last value; the next prefill shows NaN, until the first
window of the new request is complete. A window is everything between two publications, so the
first one after idling may be shorter than the others.
"""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

from servematrix.engines.reference.device import Record
from servematrix.engines.reference.sequence import Sequence
from servematrix.engines.reference.telemetry import RankMetrics

if TYPE_CHECKING:
    from servematrix.engines.reference.scheduler import Scheduler

logger = logging.getLogger(__name__)


class Ledger:
    """Keeps and publishes the figures of one scheduler."""

    def __init__(
        self,
        metrics: RankMetrics | None,
        *,
        interval: int = 40,
        device_timer: bool = False,
        draft_tokens: int = 0,
    ) -> None:
        """``metrics`` None: nothing is exposed. ``draft_tokens``: proposed per round."""
        self.interval = interval
        self.throughput = 0.0
        self.cache_hit_rate = 0.0
        self._metrics = metrics
        self._timer = device_timer
        self._draft_tokens = draft_tokens
        self._occupancy = math.nan
        self._window_device = 0.0
        self._window_elapsed = 0.0
        self._published = time.perf_counter()
        self.reset()

    def reset(self) -> None:
        """Forgets what a flush forgets: the phase of the windows and speculation's averages."""
        self._decode_forwards = 0
        self._generated = 0
        self._accepted = 0
        self._rounds = 0
        self._total_accepted = 0
        self._total_rounds = 0

    @property
    def accept_length(self) -> float | None:
        """Tokens per speculative round over the server's life; None before the first one."""
        return self._total_accepted / self._total_rounds if self._total_rounds else None

    # ---------------------------------------------------------------- from the scheduler
    def idle(self, scheduler: Scheduler) -> None:
        """The last sequence ended."""
        self._occupancy = math.nan
        self.throughput = 0.0
        if self._metrics is not None:
            self._metrics.set("gen_throughput", 0.0)
            self._publish_load(scheduler, 0, 0)

    def resume(self) -> None:
        """Work arrived after idling: a new window begins."""
        self._window_device = self._window_elapsed = 0.0

    def prefill(
        self, record: Record, scheduler: Scheduler, batch: list[tuple[Sequence, int]]
    ) -> None:
        """A prefill forward ended; ``batch`` has its sequences and their new tokens."""
        self._forward(record, "prefill")
        computed = sum(tokens for _, tokens in batch)
        fresh = [item for item, tokens in batch if item.prefilled - tokens == item.cached]
        cached = sum(item.cached for item in fresh)
        self.cache_hit_rate = cached / (cached + computed)
        waiting = max(0, len(scheduler.waiting) - len(batch))  # some may have been aborted
        logger.info(
            "Prefill batch, #new-seq: %d, #new-token: %d, #cached-token: %d, token usage: %.2f, "
            "#running-req: %d, #queue-req: %d",
            len(batch), computed, cached, self._usage(scheduler), len(scheduler.running), waiting,
        )  # fmt: skip
        if self._metrics is None:
            return
        for item, _ in batch:
            stage = "prefill_forward" if item.prefilled == len(item.prompt) else "chunked_prefill"
            self._metrics.observe("per_stage_req_latency_seconds", record.elapsed, stage)
        for item in fresh:
            self._metrics.observe("queue_time_seconds", item.started - item.received)
        self._metrics.count("realtime_tokens_total", computed, mode="prefill_compute")
        self._metrics.count("realtime_tokens_total", cached, mode="prefill_cache")
        self._metrics.set("cache_hit_rate", self.cache_hit_rate)
        self._publish_load(scheduler, len(scheduler.running), waiting)
        self._publish_occupancy()

    def decode(
        self,
        record: Record,
        scheduler: Scheduler,
        batch: list[Sequence],
        tokens: int,
        accepted: int,
    ) -> None:
        """A decode forward ended: ``tokens`` delivered, ``accepted`` by the target."""
        self._forward(record, "decode")
        self._decode_forwards += 1
        self._generated += tokens
        if self._draft_tokens:
            self._accepted += accepted
            self._rounds += len(batch)
        if self._metrics is not None:
            self._metrics.count("realtime_tokens_total", tokens, mode="decode")
        if self._decode_forwards % self.interval:
            return
        self._close_window(record)
        self._publish_decode(record, scheduler, batch)

    def delivered(self, sequence: Sequence, tokens: int) -> None:
        """A sequence got ``tokens`` more tokens, or ended without any."""
        now = time.time()
        first = not sequence.first_token
        previous = sequence.last_token
        sequence.last_token = now
        if first:
            sequence.first_token = now
        if self._metrics is None or sequence.internal:
            return
        if first:
            self._metrics.observe("time_to_first_token_seconds", now - sequence.received)
        else:
            for _ in range(tokens):
                self._metrics.observe("inter_token_latency_seconds", (now - previous) / tokens)
        if sequence.finish is not None:
            self._metrics.finished(sequence)
            seconds = sequence.finished - sequence.received
            self._metrics.observe("per_stage_req_latency_seconds", seconds, "request_process")

    def evicted(self, tokens: int) -> None:
        """The prefix cache dropped ``tokens`` tokens to make room."""
        if self._metrics is not None and tokens:
            self._metrics.count("evicted_tokens_total", tokens)

    def aborted(self, sequence: Sequence) -> None:
        """A sequence was aborted."""
        if self._metrics is not None and not sequence.internal:
            self._metrics.count("num_aborted_requests_total", 1)

    # ---------------------------------------------------------------- to the registry and log
    def _forward(self, record: Record, kind: str) -> None:
        self._window_device += record.device_seconds
        self._window_elapsed += record.elapsed
        if self._metrics is None:
            return
        graph = "cuda_graph" if record.forward.graph else "none"
        self._metrics.count("cuda_graph_passes_total", 1, mode=f"{kind}_{graph}")
        self._metrics.set("is_cuda_graph", float(record.forward.graph))
        if self._timer:
            for category, share in record.forward.categories:
                self._metrics.count(
                    "forward_execution_seconds_total",
                    record.device_seconds * share,
                    category=category,
                )

    def _close_window(self, record: Record) -> None:
        self.throughput = self._generated / max(record.ended - self._published, 1e-9)
        self._published = record.ended
        self._generated = 0
        if self._window_elapsed > 0:
            self._occupancy = min(100 * self._window_device / self._window_elapsed, 100.0)
        self._window_device = self._window_elapsed = 0.0

    def _publish_decode(self, record: Record, scheduler: Scheduler, batch: list[Sequence]) -> None:
        accept = self._publish_speculation() if self._draft_tokens else ""
        occupancy = f", fwd occupancy: {self._occupancy:.2f}%" if self._timer else ""
        logger.info(
            "Decode batch, #running-req: %d, #token: %d, token usage: %.2f, %scuda graph: %s, "
            "gen throughput (token/s): %.2f, #queue-req: %d%s",
            len(batch), scheduler.used_tokens, self._usage(scheduler), accept,
            record.forward.graph, self.throughput, len(scheduler.waiting), occupancy,
        )  # fmt: skip
        if self._metrics is None:
            return
        self._metrics.set("gen_throughput", self.throughput)
        self._metrics.set("cache_hit_rate", 0.0)
        self._publish_load(scheduler, len(batch), len(scheduler.waiting))
        self._publish_occupancy()

    def _publish_speculation(self) -> str:
        length = self._accepted / self._rounds
        rate = (self._accepted - self._rounds) / (self._rounds * self._draft_tokens)
        self._total_accepted += self._accepted
        self._total_rounds += self._rounds
        self._accepted = self._rounds = 0
        if self._metrics is not None:
            self._metrics.set("spec_accept_length", length)
            self._metrics.set("spec_accept_rate", rate)
        return f"accept len: {length:.2f}, accept rate: {rate:.2f}, "

    def _publish_occupancy(self) -> None:
        if self._metrics is not None and self._timer:
            self._metrics.set("fwd_occupancy", self._occupancy)

    def _publish_load(self, scheduler: Scheduler, running: int, waiting: int) -> None:
        metrics = self._metrics
        assert metrics is not None, "callers publish only where metrics are on"
        used, evictable = scheduler.used_tokens, scheduler.cache.size
        usage = self._usage(scheduler)
        metrics.set("num_running_reqs", running)
        metrics.set("num_queue_reqs", waiting)
        metrics.set("token_usage", usage)
        metrics.set("full_token_usage", usage)
        metrics.set("num_used_tokens", used)
        metrics.set("kv_used_tokens", used)
        metrics.set("kv_evictable_tokens", evictable)
        metrics.set("kv_available_tokens", max(0, scheduler.limits.capacity - used - evictable))
        metrics.set("decode_sum_seq_lens", used)

    @staticmethod
    def _usage(scheduler: Scheduler) -> float:
        return min(1.0, scheduler.used_tokens / scheduler.limits.capacity)
