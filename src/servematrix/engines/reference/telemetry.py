"""``/metrics``: the families that SGLang 0.5.16 exposes, fed from the simulated device.

Names, label sets and bucket bounds are those of the recorded scrape and of SGLang's interface;
the descriptions are ours. Families of features that this server does not have (sliding-window
and state-space caches, disaggregation, grammars) are there as on a real server that does not
use them: at zero. A scrape is about 500 lines, as recorded.
"""

from __future__ import annotations

import itertools
import math
import resource
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest

from servematrix.engines.reference.sequence import Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ENGINE_TYPE = "unified"

_TOKENS = (
    100, 300, 500, 700, 1_000, 1_500, 2_000, 3_000, 4_000, 5_000, 6_000, 7_000, 8_000, 9_000,
    10_000, 12_500, 15_000, 17_500, 20_000, 22_500, 25_000, 27_500, 30_000, 35_000, 40_000,
    60_000, 80_000, 100_000, 200_000, 300_000, 400_000, 600_000, 800_000, 1_000_000, 1_100_000,
)  # fmt: skip
_FIRST_TOKEN = (0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400)
_INTER_TOKEN = (
    0.002, 0.004, 0.006, 0.008, 0.010, 0.015, 0.020, 0.025, 0.030, 0.035, 0.040, 0.060, 0.080,
    0.100, 0.200, 0.400, 0.600, 0.800, 1, 2, 4, 6, 8,
)  # fmt: skip
_QUEUE = (
    0, 0.001, 0.005, 0.010, 0.050, 0.100, 0.200, 0.500, 1, 2, 3, 4, 5, 10, 15, 20, 30, 40, 50,
    60, 70, 80, 90, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1_000, 1_200, 1_400, 1_600,
    1_800, 2_000, 2_500, 3_000,
)  # fmt: skip
_STAGE = tuple(0.001 * 1.62**power for power in range(30))
_STAGES = ("prefill_forward", "request_process")  # "chunked_prefill" shows once there was one
_LOADS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1)
_ROUTING_BOUNDS = ("0", "1", "2", "3", "5", "7", "10", "20", "50", "100", "200", "+Inf")

# Of a request, labelled with model and engine type only.
_REQUEST_HISTOGRAMS = {
    "time_to_first_token_seconds": ("Seconds from arrival to the first token.", _FIRST_TOKEN),
    "inter_token_latency_seconds": ("Seconds between two tokens.", _INTER_TOKEN),
    "e2e_request_latency_seconds": (
        "Seconds from arrival to the last token.",
        (*_FIRST_TOKEN, 600, 1_200, 1_800, 2_400),
    ),
    "prompt_tokens_histogram": ("Prompt tokens a request.", _TOKENS),
    "uncached_prompt_tokens_histogram": ("Computed prompt tokens a request.", _TOKENS),
    "generation_tokens_histogram": ("Generated tokens a request.", _TOKENS),
    "get_loads_duration_seconds": ("Seconds to answer /v1/loads.", _LOADS),
}
_REQUEST_COUNTERS = {
    "prompt_tokens_total": "Prompt tokens of finished requests.",
    "generation_tokens_total": "Generated tokens of finished requests.",
    "spec_verify_calls_total": "Speculative rounds of finished requests.",
    "num_requests_total": "Finished requests.",
    "num_so_requests_total": "Finished requests with structured output.",
    "num_aborted_requests_total": "Aborted requests.",
}
# Of a scheduler, with its ranks as labels.
_GAUGES = {
    "num_running_reqs": "Sequences that run.",
    "num_queue_reqs": "Sequences that wait.",
    "gen_throughput": "Generated tokens a second, over the last decode interval.",
    "cache_hit_rate": "Share of the prompt tokens found in the prefix cache, last prefill.",
    "decode_sum_seq_lens": "Tokens of all running sequences.",
    "token_usage": "Share of the KV cache in use.",
    "full_token_usage": "Share of the KV cache of full attention in use.",
    "num_used_tokens": "Tokens in use.",
    "kv_available_tokens": "Free tokens of the KV cache.",
    "kv_evictable_tokens": "Tokens held only by the prefix cache.",
    "kv_used_tokens": "Tokens of running sequences.",
    "spec_accept_length": "Tokens per speculative round, over the last decode interval.",
    "spec_accept_rate": "Share of the draft tokens accepted, over the last decode interval.",
    "spec_num_steps": "Draft steps per round.",
    "spec_num_draft_tokens": "Draft tokens per round.",
    "is_cuda_graph": "Whether the last forward used a CUDA graph.",
    "max_total_num_tokens": "Tokens that the KV cache can hold.",
    "engine_startup_time": "Seconds from start to ready.",
    "engine_load_weights_time": "Seconds to load the model.",
    "page_size": "Tokens per page of the KV cache.",
    "num_pages": "Pages of the KV cache.",
    "context_len": "Longest sequence in tokens.",
}
_UNUSED_GAUGES = (
    "num_grammar_queue_reqs", "swa_token_usage", "mamba_usage", "swa_available_tokens",
    "swa_evictable_tokens", "swa_used_tokens", "mamba_available_tokens",
    "mamba_evictable_tokens", "mamba_used_tokens", "spec_cap_length",
    "spec_block_accept_length", "num_retracted_reqs", "num_paused_reqs",
    "num_prefill_bootstrap_queue_reqs", "num_prefill_inflight_queue_reqs",
    "num_decode_prealloc_queue_reqs", "num_decode_transfer_queue_reqs",
    "pending_prealloc_token_usage", "utilization", "new_token_ratio",
    "num_unique_running_routing_keys", "startup_available_gpu_memory_gb",
)  # fmt: skip
_ROUTING_GAUGES = ("routing_key_running_req_count", "routing_key_all_req_count")
_COUNTERS = {
    "cuda_graph_passes_total": ("Forward passes with and without a CUDA graph.", "mode"),
    "realtime_tokens_total": ("Tokens processed so far, as they are processed.", "mode"),
    "forward_execution_seconds_total": ("Seconds the device spent in forwards.", "category"),
}
_PLAIN_COUNTERS = {
    "evicted_tokens_total": "Tokens dropped from the prefix cache to make room.",
    "num_retracted_requests_total": "Not used by this server.",
}
_RANK_HISTOGRAMS = {
    "queue_time_seconds": ("Seconds in the waiting queue.", _QUEUE),
}

Metric = Gauge | Counter | Histogram


class Telemetry:
    """The registry of one server, and the ways to count in it."""

    def __init__(self, model_name: str, *, ranks: int, device_timer: bool) -> None:
        """``ranks``: data-parallel ranks. ``device_timer``: whether occupancy is exposed."""
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._labels = {"engine_type": ENGINE_TYPE, "model_name": model_name}
        names = list(self._labels)
        self._histograms = {
            name: Histogram(_name(name), text, names, buckets=buckets, registry=self.registry)
            for name, (text, buckets) in _REQUEST_HISTOGRAMS.items()
        }
        self._counters = {
            name: Counter(_name(name), text, names, registry=self.registry)
            for name, text in _REQUEST_COUNTERS.items()
        }
        self._cached = Counter(
            _name("cached_tokens_total"), "Prompt tokens found in the prefix cache.",
            [*names, "cache_source"], registry=self.registry,
        )  # fmt: skip
        self.http_requests = Counter(
            _name("http_requests_total"), "HTTP requests.",
            ["endpoint", "method"], registry=self.registry,
        )  # fmt: skip
        self.http_responses = Counter(
            _name("http_responses_total"), "HTTP responses.",
            ["endpoint", "status_code", "method"], registry=self.registry,
        )  # fmt: skip
        self.http_active = Gauge(
            _name("http_requests_active"), "HTTP requests in progress.",
            ["endpoint", "method"], registry=self.registry,
        )  # fmt: skip
        self._cpu = Counter(
            _name("process_cpu_seconds_total"), "CPU seconds of this process.",
            ["component"], registry=self.registry,
        )  # fmt: skip
        self._cpu_seen = 0.0
        self.ranks = self._make_ranks(ranks, device_timer)

    def render(self) -> bytes:
        """The scrape, in Prometheus' text format."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = used.ru_utime + used.ru_stime
        self._cpu.labels(component="tokenizer").inc(seconds - self._cpu_seen)
        self._cpu_seen = seconds
        return generate_latest(self.registry)

    def observe(self, name: str, value: float) -> None:
        """Adds a value to a histogram of requests."""
        self._histograms[name].labels(**self._labels).observe(value)

    def count(self, name: str, value: float) -> None:
        """Adds to a counter of requests."""
        self._counters[name].labels(**self._labels).inc(value)

    def finished(self, sequence: Sequence) -> None:
        """Counts a sequence that has ended."""
        prompt, output = len(sequence.prompt), len(sequence.output)
        self.count("num_requests_total", 1)
        self.count("prompt_tokens_total", prompt)
        self.count("generation_tokens_total", output)
        if sequence.verify_steps:
            self.count("spec_verify_calls_total", sequence.verify_steps)
        if sequence.cached:
            self._cached.labels(**self._labels, cache_source="device").inc(sequence.cached)
        self.observe("e2e_request_latency_seconds", sequence.finished - sequence.received)
        self.observe("prompt_tokens_histogram", prompt)
        self.observe("uncached_prompt_tokens_histogram", prompt - sequence.cached)
        self.observe("generation_tokens_histogram", output)

    def _make_ranks(self, ranks: int, device_timer: bool) -> list[RankMetrics]:
        labels = [*self._labels, "moe_ep_rank", "pp_rank", "tp_rank"]
        if ranks > 1:
            labels.append("dp_rank")  # SGLang has this label only where there are several
        gauges = dict.fromkeys(_UNUSED_GAUGES, "Not used by this server.") | _GAUGES
        if device_timer:
            gauges["fwd_occupancy"] = "Share of the time in which the device computes, percent."
        families: dict[str, Metric] = {
            name: Gauge(_name(name), text, labels, registry=self.registry)
            for name, text in gauges.items()
        }
        for name in _ROUTING_GAUGES:
            families[name] = Gauge(
                _name(name), "Not used by this server.", [*labels, "gt", "le"],
                registry=self.registry,
            )  # fmt: skip
        for name, (text, label) in _COUNTERS.items():
            families[name] = Counter(_name(name), text, [*labels, label], registry=self.registry)
        for name, text in _PLAIN_COUNTERS.items():
            families[name] = Counter(_name(name), text, labels, registry=self.registry)
        for name, (text, buckets) in _RANK_HISTOGRAMS.items():
            families[name] = Histogram(
                _name(name), text, labels, buckets=buckets, registry=self.registry
            )
        families["per_stage_req_latency_seconds"] = Histogram(
            _name("per_stage_req_latency_seconds"), "Seconds that a request spends in a stage.",
            [*labels, "stage"], buckets=_STAGE, registry=self.registry,
        )  # fmt: skip
        common = self._labels | {"moe_ep_rank": "0", "pp_rank": "0", "tp_rank": "0"}
        return [
            RankMetrics(self, families, common | ({"dp_rank": str(rank)} if ranks > 1 else {}))
            for rank in range(ranks)
        ]


class RankMetrics:
    """The families of one scheduler, its labels bound."""

    def __init__(
        self,
        telemetry: Telemetry,
        families: Mapping[str, Metric],
        labels: Mapping[str, str],
    ) -> None:
        self._telemetry = telemetry
        self._families = families
        self._labels = dict(labels)
        self._bound: dict[tuple[str, str], Metric] = {}
        for name in (*_UNUSED_GAUGES, *_GAUGES):
            self.set(name, 0.0)
        for name in _ROUTING_GAUGES:
            for low, high in itertools.pairwise(_ROUTING_BOUNDS):
                families[name].labels(**self._labels, gt=low, le=high)
        for stage in _STAGES:
            self._child("per_stage_req_latency_seconds", "stage", stage)
        for name in (*_RANK_HISTOGRAMS, *_PLAIN_COUNTERS):
            self._child(name)
        if "fwd_occupancy" in families:
            self.set("fwd_occupancy", math.nan)

    def set(self, name: str, value: float) -> None:
        """Sets a gauge of this scheduler."""
        child = self._child(name)
        assert isinstance(child, Gauge), f"{name} is no gauge"
        child.set(value)

    def count(self, name: str, value: float, **label: str) -> None:
        """Adds to a counter, of this scheduler where it has a label, else of all requests."""
        if name not in self._families:
            self._telemetry.count(name, value)
            return
        ((key, label_value),) = label.items() or [("", "")]
        child = self._child(name, key, label_value)
        assert isinstance(child, Counter), f"{name} is no counter"
        child.inc(value)

    def observe(self, name: str, value: float, stage: str = "") -> None:
        """Adds a value to a histogram, of this scheduler or of all requests."""
        if name not in self._families:
            self._telemetry.observe(name, value)
            return
        child = self._child(name, "stage" if stage else "", stage)
        assert isinstance(child, Histogram), f"{name} is no histogram"
        child.observe(value)

    def finished(self, sequence: Sequence) -> None:
        """Counts a sequence that has ended."""
        self._telemetry.finished(sequence)

    def _child(self, name: str, label: str = "", value: str = "") -> Metric:
        child = self._bound.get((name, value))
        if child is None:
            extra = {label: value} if label else {}
            child = self._families[name].labels(**self._labels, **extra)
            self._bound[name, value] = child
        return child


def _name(name: str) -> str:
    return f"sglang:{name}"
