"""Is the GPU kept busy by one long request: the median of fresh occupancy windows.

A verdict about the server is given only where the measurement holds: one request alone, complete,
with a gauge that moved as often as the decoded tokens imply and that agrees with the counter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from servematrix.gates.verdict import Number, Verdict
from servematrix.gates.windows import (
    Reduction,
    Scrape,
    Span,
    Windows,
    deciding_rank,
    fresh_windows,
    span,
)

COUNTER_TOLERANCE = 2.0
"""Points by which gauge and forward-time counter may differ. Over 12 runs of healthy and degraded
servers on an H100 the largest difference was 1.21 points, the median 0.40 (docs/validation.md)."""

_TIMER = "SGLANG_ENABLE_METRICS_DEVICE_TIMER=1"
_ALONE = "keep all others away, health checks that generate included"
_FEWEST_SHARE = 0.5
"""Share of the implied windows that must be seen; fewer mean a gauge that does not move."""


@dataclass(frozen=True)
class Request:
    """The one long request, as it ended.

    `problem` is what went wrong with it, None where it was answered. `forward_passes` is the
    number of decoding batches: the tokens, or the verifying passes where the server speculates.
    `served` is by how much the server's count of requests rose, None where it has no such count.
    """

    asked_tokens: int
    completion_tokens: int | None
    finish_reason: str | None
    forward_passes: int | None
    served: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Limits:
    """What is demanded: percent, windows, points; `decode_log_interval` in batches."""

    threshold: float
    min_samples: int
    decode_log_interval: int
    counter_tolerance: float = COUNTER_TOLERANCE
    rank_reduction: Reduction = "min"

    def __post_init__(self) -> None:
        if self.rank_reduction not in ("min", "max"):
            raise ValueError(f"rank_reduction is 'min' or 'max', not {self.rank_reduction!r}")


def unmeasurable(*, metrics_served: bool, older_name: str | None = None) -> Verdict:
    """Return the verdict on a server without the gauge, or without `/metrics` altogether.

    Not applicable where it was started without metrics, or where the forward times have the
    `older_name` of versions before the gauge; an error where the gauge alone is missing.
    """
    rule = "the server exposes sglang:fwd_occupancy on /metrics"
    advice = f"start the server with --enable-metrics and {_TIMER} in its environment"
    if not metrics_served:
        return Verdict("not_applicable", rule, f"no /metrics: {advice}")
    if older_name:
        reason = f"/metrics has {older_name}, of a version without the gauge: take SGLang ≥ 0.5.12"
        return Verdict("not_applicable", rule, reason)
    return Verdict("error", rule, f"sglang:fwd_occupancy is not there after a warm-up: {advice}")


def unfit(
    before: Scrape,
    *,
    gauge_exposed: bool,
    prompt_tokens: int,
    new_tokens: int,
    context: int | None,
    older_name: str | None = None,
) -> Verdict | None:
    """Return the verdict that makes a measurement pointless, before it begins; None without one.

    `before` is the scrape after the warm-up; `prompt_tokens` is at least that of the long request;
    `context` is the server's limit in tokens, None where it is not known.
    """
    if not gauge_exposed:
        return unmeasurable(metrics_served=True, older_name=older_name)
    if context is not None and prompt_tokens + new_tokens > context:
        reason = (
            f"{prompt_tokens} prompt and {new_tokens} new tokens do not fit the server's context"
            f" of {context} tokens (max_model_len): lower fwd_occupancy_max_new_tokens or raise"
            " --context-length"
        )
        return Verdict("error", "the long request fits the server's context", reason)
    if before.requests() > 0:
        reason = f"other traffic: {before.requests():g} requests run without ours; {_ALONE}"
        return Verdict("error", "one request runs alone", reason)
    return None


def judge(
    scrapes: Sequence[Scrape], request: Request, limits: Limits, *, failed_scrapes: int = 0
) -> Verdict:
    """Judge the scrapes made around one long request.

    Outcomes: `error` where the measurement does not hold (request broken, other traffic, a gauge
    that is NaN or stalled, too few windows); `inconclusive` where gauge and counter disagree by
    more than `limits.counter_tolerance` points; else `pass` or `fail` by the median.
    """
    ranks = fresh_windows(scrapes)
    rank = deciding_rank(ranks, limits.rank_reduction)
    numbers = _numbers(scrapes, ranks, rank, request, limits)
    numbers["failed_scrapes"] = failed_scrapes
    rule = (
        f"median of fresh windows > {limits.threshold:g} %, at least {limits.min_samples} windows"
        f" and half of those the tokens imply, {limits.rank_reduction} over ranks, one request"
        f" alone, counter within {limits.counter_tolerance:g} points"
    )
    fault = (
        _broken(request) or _crowded(scrapes, request) or _unmoved(scrapes, ranks, request, limits)
    )
    if fault is not None or rank is None:
        return Verdict("error", rule, fault or "no rank has a fresh window", numbers)
    try:
        spans = {name: span(windows) for name, windows in ranks.items()}
    except ValueError as error:
        return Verdict("error", rule, f"{error}: was the server restarted?", numbers)
    _add_span(numbers, spans[rank])
    apart = {
        name: s.difference
        for name, s in spans.items()
        if s is not None and s.difference > limits.counter_tolerance
    }
    windows = ranks[rank]
    median = windows.median() or 0.0
    found = f"median {median:.2f} % over {len(windows.values)} windows"
    if apart:
        name = max(apart, key=lambda key: apart[key])
        reason = (
            f"{found}, but gauge and forward-time counter of rank {name} are {apart[name]:.2f}"
            " points apart over the same span: one of them is wrong, measure again"
        )
        return Verdict("inconclusive", rule, reason, numbers)
    if median > limits.threshold:
        return Verdict("pass", rule, found, numbers)
    advice = "look at the overlap scheduler, CUDA graphs and CPU load on the host"
    return Verdict("fail", rule, f"{found}: not above {limits.threshold:g} %; {advice}", numbers)


def _broken(request: Request) -> str | None:
    if request.problem is not None:
        return f"the long request failed: {request.problem}"
    if request.completion_tokens is None or request.forward_passes is None:
        return "the long request's last event does not say how many tokens were decoded"
    if request.finish_reason != "length" or request.completion_tokens < request.asked_tokens:
        return (
            f"the long request was cut: {request.completion_tokens} of {request.asked_tokens}"
            f" tokens, finish reason {request.finish_reason!r}; look at the server's log"
        )
    return None


def _crowded(scrapes: Sequence[Scrape], request: Request) -> str | None:
    most = max((scrape.requests() for scrape in scrapes), default=0.0)
    if most > 1:
        return f"other traffic: {most:g} requests ran or waited at once; {_ALONE}"
    if request.served is not None and request.served > 1:
        return (
            f"other traffic: the server finished {request.served:g} requests while ours ran;"
            f" {_ALONE}"
        )
    return None


def _unmoved(
    scrapes: Sequence[Scrape],
    ranks: Mapping[str, Windows],
    request: Request,
    limits: Limits,
) -> str | None:
    if not ranks:
        return (
            f"no scrape of {len(scrapes)} shows the request running (sglang:num_running_reqs > 0):"
            " it was too short, or /metrics is not this server's"
        )
    implied = (request.forward_passes or 0) / limits.decode_log_interval
    for rank, windows in ranks.items():
        seen = len(windows.values)
        if not seen and windows.nan and not windows.stale:
            return f"rank {rank} shows only NaN: is {_TIMER} set in the server's environment?"
        if seen < _FEWEST_SHARE * implied or not seen:
            return (
                f"stalled gauge: rank {rank} shows {seen} fresh windows where"
                f" {request.forward_passes} forward passes imply {implied:.1f}"
                f" ({windows.stale} stale and {windows.nan} NaN scrapes of {len(scrapes)})"
            )
        if seen < limits.min_samples:
            return (
                f"rank {rank} shows {seen} fresh windows, {limits.min_samples} are needed:"
                " raise fwd_occupancy_max_new_tokens"
            )
    return None


def _numbers(
    scrapes: Sequence[Scrape],
    ranks: Mapping[str, Windows],
    rank: str | None,
    request: Request,
    limits: Limits,
) -> dict[str, Number]:
    windows = ranks[rank] if rank is not None else Windows((), (), (), 0, 0)
    passes = request.forward_passes
    return {
        "median": windows.median(),
        "peak": max(windows.values, default=None),
        "p10": windows.low_decile(),
        "windows": len(windows.values),
        "windows_implied": None if passes is None else passes / limits.decode_log_interval,
        "tokens": request.completion_tokens,
        "forward_passes": passes,
        "counter_occupancy": None,
        "windows_mean": None,
        "counter_difference": None,
        "scrapes": len(scrapes),
        "stale_scrapes": sum(w.stale for w in ranks.values()),
        "nan_scrapes": sum(w.nan for w in ranks.values()),
        "rank": rank,
        "ranks": len(ranks),
        "threshold": limits.threshold,
    }


def _add_span(numbers: dict[str, Number], found: Span | None) -> None:
    if found is not None:
        numbers["counter_occupancy"] = found.counter
        numbers["windows_mean"] = found.windows_mean
        numbers["counter_difference"] = found.difference
