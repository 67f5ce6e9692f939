"""Fresh windows of the occupancy gauge, and what the forward-time counter says of the same span.

The gauge holds the occupancy of some dozens of batches and keeps it when the server falls idle, so
most readings repeat a window and some show the request before. This module takes a series of
readings apart: what is new, what is stale, what is missing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Reduction = Literal["min", "max"]


@dataclass(frozen=True, slots=True)
class RankReading:
    """What one scheduler rank showed in one scrape.

    `group` is its data-parallel rank: ranks of one group work on the same requests. `occupancy` is
    in percent and may be NaN; `forward_seconds` is the counter over all categories, None where it
    is not exposed.
    """

    group: str
    running: float
    queued: float
    occupancy: float
    forward_seconds: float | None = None
    gen_throughput: float = 0.0
    spec_accept_length: float = 0.0


@dataclass(frozen=True, slots=True)
class Scrape:
    """One successful reading of `/metrics`.

    `t` is in seconds since the request was sent, negative before it; `duration` is how long the
    scrape took; `request_running` is False once our request has ended.
    """

    t: float
    duration: float
    request_running: bool
    ranks: Mapping[str, RankReading]

    def requests(self) -> float:
        """Return the requests that run or wait: over data-parallel ranks, counted once in each."""
        groups: dict[str, float] = {}
        for reading in self.ranks.values():
            load = reading.running + reading.queued
            groups[reading.group] = max(groups.get(reading.group, 0.0), load)
        return sum(groups.values())


@dataclass(frozen=True)
class Windows:
    """The fresh windows of one rank: values in percent, in the order in which they were shown.

    `shown` holds when each was first seen, in seconds since the request was sent, and
    `forward_seconds` the counter in that scrape. `stale_scrapes` are those that showed an old
    value: when, and the value; `nan_scrapes` are when NaN was shown.
    """

    values: tuple[float, ...]
    shown: tuple[float, ...]
    forward_seconds: tuple[float | None, ...]
    stale_scrapes: tuple[tuple[float, float], ...] = ()
    nan_scrapes: tuple[float, ...] = ()

    @property
    def stale(self) -> int:
        """Return how many scrapes were stale."""
        return len(self.stale_scrapes)

    @property
    def nan(self) -> int:
        """Return how many scrapes were NaN."""
        return len(self.nan_scrapes)

    def median(self, newest: int = 0) -> float | None:
        """Return the median of the `newest` windows, of all by default, in percent; or None."""
        return statistics.median(self.values[-newest:]) if self.values else None

    def low_decile(self) -> float | None:
        """Return the 10th percentile in percent, interpolated; None without a window."""
        if len(self.values) < 2:
            return self.values[0] if self.values else None
        return statistics.quantiles(self.values, n=10, method="inclusive")[0]


@dataclass(frozen=True)
class Span:
    """Counter and gauge over the same stretch, from the first window shown to the last, percent.

    `windows_mean` weighs each window with how long it took to appear. The first window lies before
    the stretch and has no part in it.
    """

    seconds: float
    counter: float
    windows_mean: float

    @property
    def difference(self) -> float:
        """Return the distance between counter and gauge, in points."""
        return abs(self.counter - self.windows_mean)


def fresh_windows(scrapes: Sequence[Scrape]) -> dict[str, Windows]:
    """Find the fresh windows of every rank that had the request.

    The last scrape from before the request, or else the very first one, tells the value that is
    stale; so does every scrape in which the rank runs nothing. A reading is fresh while the
    request runs, once the gauge has left the stale value; NaN is left out and counted. Each change
    of the gauge from then on is a window.
    """
    before = [scrape for scrape in scrapes if scrape.t < 0][-1:] or list(scrapes[:1])
    during = [scrape for scrape in scrapes if scrape.t >= 0 and scrape not in before]
    ranks = {
        rank
        for scrape in during
        if scrape.request_running
        for rank, reading in scrape.ranks.items()
        if reading.running > 0
    }
    return {rank: _rank_windows(rank, before, during) for rank in sorted(ranks)}


def span(windows: Windows) -> Span | None:
    """Compare counter and gauge between the first showing of the first window and of the last.

    None where there is no counter or fewer than two windows. Raises `ValueError` where the counter
    ran backwards, which means that the server was restarted.
    """
    counters = windows.forward_seconds
    if len(windows.values) < 2 or counters[0] is None or counters[-1] is None:
        return None
    seconds = windows.shown[-1] - windows.shown[0]
    busy = counters[-1] - counters[0]
    if busy < 0:
        raise ValueError("the forward-time counter ran backwards while the request ran")
    weights = [
        after - before for before, after in zip(windows.shown, windows.shown[1:], strict=False)
    ]
    mean = sum(v * w for v, w in zip(windows.values[1:], weights, strict=True)) / seconds
    return Span(seconds=seconds, counter=100.0 * busy / seconds, windows_mean=mean)


def deciding_rank(ranks: Mapping[str, Windows], reduction: Reduction) -> str | None:
    """Return the rank with the lowest (`min`) or highest (`max`) median; None without windows."""
    medians = {rank: median for rank, w in ranks.items() if (median := w.median()) is not None}
    if not medians:
        return None
    pick = min if reduction == "min" else max
    return pick(sorted(medians), key=lambda rank: medians[rank])


def _rank_windows(rank: str, before: Sequence[Scrape], during: Sequence[Scrape]) -> Windows:
    stale_value = math.nan
    for scrape in before:
        if rank in scrape.ranks:
            stale_value = scrape.ranks[rank].occupancy
    values: list[float] = []
    shown: list[float] = []
    counters: list[float | None] = []
    stale: list[tuple[float, float]] = []
    nan: list[float] = []
    for scrape in during:
        reading = scrape.ranks.get(rank)
        if reading is None:
            continue
        value = reading.occupancy
        if math.isnan(value):
            nan.append(scrape.t)
        elif not scrape.request_running or reading.running <= 0:
            stale.append((scrape.t, value))
            if not values:
                stale_value = value
        elif not values and value == stale_value:
            # also after a NaN in between: equal to the last digit it is more likely the old value
            # than a new one, and leaving out a window costs little
            stale.append((scrape.t, value))
        elif not values or value != values[-1]:
            values.append(value)
            # the server reads its numbers somewhere within the scrape
            shown.append(scrape.t + scrape.duration / 2)
            counters.append(reading.forward_seconds)
    return Windows(tuple(values), tuple(shown), tuple(counters), tuple(stale), tuple(nan))
