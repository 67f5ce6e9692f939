"""Is the GPU kept busy by one long request: fresh windows of the occupancy gauge, block by block.

How windows decide, and how often that errs, is told in `sequential`. A verdict about the server is
given only where the measurement holds: one request alone, complete or cut by us once its windows
were clear, with a gauge that moved as often as the decoded tokens imply and that agrees with the
forward-time counter, the second and independent estimate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from servematrix.gates import sequential
from servematrix.gates.ranks import Weighed, weigh
from servematrix.gates.verdict import Number, Verdict
from servematrix.gates.windows import (
    Reduction,
    Scrape,
    Windows,
    deciding_rank,
    fresh_windows,
)

COUNTER_TOLERANCE = 2.0
"""Points by which gauge and forward-time counter may differ. Over 12 runs of healthy and degraded
servers on an H100 the largest difference was 1.21 points, the median 0.40 (docs/validation.md)."""

SHORTEST_SPAN = 1.0
"""Seconds over which gauge and counter must have agreed before a request is cut. A scrape takes 10
to 20 ms and may read the counter anywhere within: over less that alone would be points."""

STARTUP_SECONDS = 5.0
"""Seconds of a request that may be slow on a healthy server. On H100s and H200s the requests of a
135M model read 65 to 93 % for up to the first 4 s, those of an 8B model were never slow."""

BLOCK_WINDOWS = 6
"""Windows of a block. After the start-up a healthy 135M model never showed two low windows in a row
(`nox -s bench -- gates`)."""

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
    `stopped` says that we asked the server to abort it, because its windows were clear.
    """

    asked_tokens: int
    completion_tokens: int | None
    finish_reason: str | None
    forward_passes: int | None
    served: float | None = None
    problem: str | None = None
    stopped: bool = False

    @property
    def cut_by_us(self) -> bool:
        """Whether it ended before its last token, and by our abort."""
        return self.stopped and self.finish_reason == "abort"


@dataclass(frozen=True)
class Limits:
    """What is demanded: percent, windows, points; `decode_log_interval` in batches.

    `startup_seconds` of the request are its start-up, which no fail may rest on; `block_windows`
    windows count once.
    """

    threshold: float
    min_samples: int
    decode_log_interval: int
    counter_tolerance: float = COUNTER_TOLERANCE
    rank_reduction: Reduction = "min"
    startup_seconds: float = STARTUP_SECONDS
    block_windows: int = BLOCK_WINDOWS

    @property
    def rule(self) -> sequential.Rule:
        """The part that decides window by window."""
        return sequential.Rule(self.threshold, self.startup_seconds, self.block_windows)

    def __post_init__(self) -> None:
        _ = self.rule  # which checks what it is made of
        if self.rank_reduction not in ("min", "max"):
            raise ValueError(f"rank_reduction is 'min' or 'max', not {self.rank_reduction!r}")


def unmeasurable(
    *, metrics_served: bool, older_name: str | None = None, required: bool = False
) -> Verdict:
    """Return the verdict on a server without the gauge, or without `/metrics` altogether.

    Not applicable where it was started without metrics, or where the forward times have the
    `older_name` of versions before the gauge; an error where the gauge alone is missing, and where
    it is `required` that there be metrics.
    """
    rule = "the server exposes sglang:fwd_occupancy on /metrics"
    advice = f"start the server with --enable-metrics and {_TIMER} in its environment"
    if not metrics_served and required:
        reason = "no /metrics although the server was started with --enable-metrics: see its log"
        return Verdict("error", rule, reason)
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


def clear(scrapes: Sequence[Scrape], limits: Limits) -> bool:
    """Whether a request that still runs was seen long enough for `judge` to pass or fail it.

    It is then safe to end the request: the windows have decided, enough of them were seen, and
    gauge and counter agree so far, over `SHORTEST_SPAN` at least, where there is a counter.
    """
    ranks = fresh_windows(scrapes)
    if not ranks or any(len(w.values) < limits.min_samples for w in ranks.values()):
        return False
    try:
        weighed = _weigh(ranks, limits)
    except ValueError:
        return False
    long_enough = weighed.span is None or weighed.span.seconds >= SHORTEST_SPAN
    return long_enough and weighed.outcome != "inconclusive"


def judge(
    scrapes: Sequence[Scrape], request: Request, limits: Limits, *, failed_scrapes: int = 0
) -> Verdict:
    """Judge the scrapes made around one long request.

    Outcomes: `error` where the measurement does not hold (request broken, other traffic, a gauge
    that is NaN or stalled, too few windows, a server restarted meanwhile); `inconclusive` where
    gauge and counter differ by more than `limits.counter_tolerance` points, where the windows were
    not clear by the end of the request, or said otherwise later; else `pass` or `fail`.

    `alpha` and `power` are those of `sequential`, `alpha` times the ranks that may each fail the
    server; `power` is that of as many blocks as the whole request has.
    """
    ranks = fresh_windows(scrapes)
    rule = (
        f"blocks of {limits.block_windows} fresh windows, median > {limits.threshold:g} %: a lead"
        f" of {sequential.LEAD} good ones passes, of {sequential.LEAD} others after the first"
        f" {limits.startup_seconds:g} s fails; at least {limits.min_samples} windows and half of"
        f" those the tokens imply, {limits.rank_reduction} over ranks, one request alone, counter"
        f" within {limits.counter_tolerance:g} points"
    )
    alpha = sequential.ALPHA * (len(ranks) if limits.rank_reduction == "min" else 1)
    fault = (
        _broken(request) or _crowded(scrapes, request) or _unmoved(scrapes, ranks, request, limits)
    )
    weighed: Weighed | None = None
    if fault is None:
        try:
            weighed = _weigh(ranks, limits)
        except ValueError as error:
            fault = f"{error}: was the server restarted?"
    numbers = _numbers(scrapes, ranks, weighed, request, limits)
    numbers["failed_scrapes"] = failed_scrapes
    if weighed is None:
        return Verdict("error", rule, fault or "", numbers)
    power = sequential.power(_blocks(ranks[weighed.rank], request, limits))
    return Verdict(weighed.outcome, rule, weighed.reason, numbers, alpha=alpha, power=power)


def _weigh(ranks: Mapping[str, Windows], limits: Limits) -> Weighed:
    return weigh(
        ranks,
        limits.rule,
        reduction=limits.rank_reduction,
        counter_tolerance=limits.counter_tolerance,
    )


def _blocks(windows: Windows, request: Request, limits: Limits) -> int:
    """Return how many blocks the whole request has after its start-up, had it not been cut."""
    passes = request.asked_tokens if request.cut_by_us else request.forward_passes or 0
    last = windows.shown[-1]
    left_out = limits.startup_seconds * len(windows.values) / last if last > 0 else 0.0
    later = passes / limits.decode_log_interval - left_out
    return max(0, int(later / limits.block_windows))


def _broken(request: Request) -> str | None:
    if request.problem is not None:
        return f"the long request failed: {request.problem}"
    if request.completion_tokens is None or request.forward_passes is None:
        return "the long request's last event does not say how many tokens were decoded"
    if request.cut_by_us:
        return None
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
    weighed: Weighed | None,
    request: Request,
    limits: Limits,
) -> dict[str, Number]:
    rank = deciding_rank(ranks, limits.rank_reduction) if weighed is None else weighed.rank
    windows = ranks[rank] if rank is not None else Windows((), (), ())
    decision = None if weighed is None else weighed.decision
    both = None if weighed is None else weighed.span
    passes = request.forward_passes
    return {
        "median": windows.median(),
        "settled_median": windows.median(sequential.LEAD * limits.block_windows),
        "peak": max(windows.values, default=None),
        "p10": windows.low_decile(),
        "windows": len(windows.values),
        "windows_implied": None if passes is None else passes / limits.decode_log_interval,
        "tokens": request.completion_tokens,
        "forward_passes": passes,
        "blocks": None if decision is None else decision.good + decision.bad,
        "good_blocks": None if decision is None else decision.good,
        "decided_s": decision.seconds if decision is not None and decision.outcome else None,
        "stopping_reason": "clear, cut by us" if request.cut_by_us else "the request ended",
        "smallest_effect": sequential.SMALLEST_EFFECT,
        "counter_occupancy": both.counter if both else None,
        "windows_mean": both.windows_mean if both else None,
        "counter_difference": both.difference if both else None,
        "scrapes": len(scrapes),
        "stale_scrapes": sum(w.stale for w in ranks.values()),
        "nan_scrapes": sum(w.nan for w in ranks.values()),
        "rank": rank,
        "ranks": len(ranks),
        "threshold": limits.threshold,
        "startup_s": limits.startup_seconds,
        "block_windows": limits.block_windows,
    }
