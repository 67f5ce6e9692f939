"""`/metrics` into numbers: the only place that knows metric names.

A scrape is some 500 lines, of which a dozen matter here, and it is read many times a second on the
machine that is being measured. Only those lines reach the parser. What no server could mean (a
negative count, an occupancy of 1e308 %, more ranks than machines have) is refused, so that nothing
is ever computed from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

_OCCUPANCY = "sglang:fwd_occupancy"
_RUNNING = "sglang:num_running_reqs"
_QUEUED = "sglang:num_queue_reqs"
_THROUGHPUT = "sglang:gen_throughput"
_ACCEPT = "sglang:spec_accept_length"
_FORWARD = "sglang:forward_execution_seconds_total"
_GRAPHS = "sglang:cuda_graph_passes_total"
GRAPH_GAUGE = "sglang:is_cuda_graph"
"""Shows whether the last pass had a CUDA graph; 0.5.8 has the counter beside it."""
_REQUESTS = "sglang:num_requests_total"
OLD_FORWARD = "sglang:gpu_execution_seconds_total"
"""The forward times' name up to 0.5.10, which has no occupancy gauge; 0.5.12 has the new name."""
DESCRIBED: Mapping[str, tuple[str, str]] = {
    _OCCUPANCY: (
        "percent",
        "share of wall time that forward passes took, over the last 40 batches or so; a gauge that"
        " keeps its value when a request ends, and NaN while there is none",
    ),
    _RUNNING: ("requests", "running now; more than ours means that the server is not ours alone"),
    _QUEUED: ("requests", "waiting now; more than none means that the server is not ours alone"),
    _THROUGHPUT: ("tokens/s", "decoded over the last batches, by the server's own account"),
    _ACCEPT: ("tokens/pass", "accept length of the last batches, where the server speculates"),
    _FORWARD: ("seconds", "spent in forward passes, by category: a second opinion on occupancy"),
    _GRAPHS: ("passes", "forward passes by mode, with a CUDA graph and without"),
    GRAPH_GAUGE: ("0 or 1", "whether the last pass had a CUDA graph; seen, not used"),
    _REQUESTS: ("requests", "finished; it shows whether another request came between"),
    OLD_FORWARD: ("seconds", "the forward times' name up to SGLang 0.5.10; seen, not used"),
}
"""Unit and meaning of every metric that is looked at; no line of another reaches the parser."""
_WANTED = tuple(name + end for name in DESCRIBED for end in ("{", " "))
_GAUGES = {
    _OCCUPANCY: "fwd_occupancy",
    _RUNNING: "num_running_reqs",
    _QUEUED: "num_queue_reqs",
    _THROUGHPUT: "gen_throughput",
    _ACCEPT: "spec_accept_length",
}


_MOST_LINES = 50_000
"""Lines that matter, some 20 a rank: parsing them takes half a second."""
_MOST_RANKS = 1024
_LONGEST_LABEL = 64
_LARGEST = 1e15
_LARGEST_OCCUPANCY = 101.0
"""Percent; the largest one recorded of a real server is 100.0."""


class MalformedMetrics(ValueError):
    """A line that matters cannot be read or means nothing; the message names it."""


@dataclass
class RankMetrics:
    """What one scheduler rank exposes; None where it does not expose it.

    `group` is its data-parallel rank. Occupancy is in percent and may be NaN, throughput in tokens
    a second, accept length in tokens a verifying pass, forward times in seconds by category since
    the server's start, graph passes as counts by mode; running and queued are requests.
    """

    group: str
    fwd_occupancy: float | None = None
    num_running_reqs: float | None = None
    num_queue_reqs: float | None = None
    gen_throughput: float | None = None
    spec_accept_length: float | None = None
    forward_seconds: dict[str, float] = field(default_factory=dict)
    cuda_graph_passes: dict[str, float] = field(default_factory=dict)

    @property
    def forward_seconds_total(self) -> float | None:
        """Seconds of forward passes over all categories; None where there is no counter."""
        return sum(self.forward_seconds.values()) if self.forward_seconds else None


@dataclass(frozen=True)
class Metrics:
    """One scrape: by rank (`dp0`, or `dp0/pp0/tp1` where several ranks of a group report).

    `num_requests_total` is the number of requests that the server has finished, None where it is
    not exposed.
    """

    ranks: Mapping[str, RankMetrics]
    num_requests_total: float | None
    older_names: frozenset[str] = frozenset()
    """Metrics found that a newer one replaces (`OLD_FORWARD`, `GRAPH_GAUGE`); they are not used."""

    @property
    def cuda_graph_passes(self) -> Mapping[str, float] | None:
        """Forward passes by mode, such as `decode_cuda_graph` and `decode_none`, over all ranks.

        None where no rank has the counter; a mode that no pass had yet is missing.
        """
        total: dict[str, float] = {}
        for rank in self.ranks.values():
            for mode, passes in rank.cuda_graph_passes.items():
                total[mode] = total.get(mode, 0.0) + passes
        return total or None

    @property
    def occupancy_exposed(self) -> bool:
        """Whether some rank shows the occupancy gauge, be it NaN."""
        return any(rank.fwd_occupancy is not None for rank in self.ranks.values())


def read(text: str) -> Metrics:
    """Read a Prometheus exposition; lines of other metrics are not looked at.

    Raises `MalformedMetrics` where a line that matters cannot be parsed, has a value that no server
    could mean, or where there are more of them than any machine has ranks for.
    """
    ranks: dict[tuple[str, str, str], RankMetrics] = {}
    requests: float | None = None
    older: set[str] = set()
    for name, labels, value in _samples(text):
        if not _meant(name, value):
            raise MalformedMetrics(f"/metrics shows {name} {value!r}, which it cannot be")
        if name in (GRAPH_GAUGE, OLD_FORWARD):
            older.add(name)
            continue
        if name == _REQUESTS:
            requests = (requests or 0.0) + value
            continue
        key = (labels.get("dp_rank", "0"), labels.get("pp_rank", "0"), labels.get("tp_rank", "0"))
        rank = ranks.setdefault(key, RankMetrics(group=key[0]))
        if len(ranks) > _MOST_RANKS or max(map(len, key)) > _LONGEST_LABEL:
            raise MalformedMetrics(
                f"/metrics names over {_MOST_RANKS} ranks, or one by over {_LONGEST_LABEL}"
                f" characters: {name} {key!r:.120}"
            )
        if name == _FORWARD:
            category = labels.get("category", "")
            rank.forward_seconds[category] = rank.forward_seconds.get(category, 0.0) + value
        elif name == _GRAPHS:
            mode = labels.get("mode", "")
            rank.cuda_graph_passes[mode] = rank.cuda_graph_passes.get(mode, 0.0) + value
        elif not labels.get("priority"):
            # with priorities a series for each stands beside the total, whose label is empty
            setattr(rank, _GAUGES[name], value)
    groups = [key[0] for key in ranks]
    return Metrics(
        ranks={
            f"dp{dp}" if groups.count(dp) == 1 else f"dp{dp}/pp{pp}/tp{tp}": rank
            for (dp, pp, tp), rank in ranks.items()
        },
        num_requests_total=requests,
        older_names=frozenset(older),
    )


def _samples(text: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    # not splitlines(), which also breaks at characters that label values may have
    lines = [line for line in text.split("\n") if line.startswith(_WANTED)]
    if len(lines) > _MOST_LINES:
        raise MalformedMetrics(f"/metrics has {len(lines)} lines that matter: is it one server's?")
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                yield sample.name, sample.labels, sample.value
    except ValueError as error:
        bad = next((line for line in lines if not _readable(line)), "")
        raise MalformedMetrics(f"/metrics has a line that cannot be read: {bad[:200]!r}") from error


def _meant(name: str, value: float) -> bool:
    """Whether a server can mean this value; an occupancy is NaN while there is none."""
    if name == _OCCUPANCY:
        return math.isnan(value) or 0 <= value <= _LARGEST_OCCUPANCY
    return 0 <= value <= _LARGEST


def _readable(line: str) -> bool:
    try:
        return bool(list(text_string_to_metric_families(line + "\n")))
    except ValueError:
        return False
