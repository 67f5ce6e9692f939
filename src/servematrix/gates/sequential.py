"""When a series of occupancy windows is clear: a sequential test on blocks of windows.

The published rule asks whether the median of the windows is above a threshold, that is, whether
more than half of them are. Here the question is put block by block, so that it may be answered as
soon as the answer is clear, with a bound on the errors that holds however often one looks.

Windows follow each other: a slow start or a busy host makes a run of them low. So a block of
`block_windows` windows counts once: it is good where its median is above the threshold. The first
`startup_seconds` of a request are its start-up. Counted from the end of the start-up,

- `fail` as soon as the blocks that are not good lead by `LEAD`;
- `pass` as soon as the good blocks lead by `LEAD`. Those may be counted from the first window too:
  a slow start can only delay a pass, never cause one.

**Null hypothesis of a fail**, the server is healthy: whatever came before, a block after the
start-up is good with a probability of at least `HEALTHY`. Then 9 to the power of the lead of the
blocks that are not good is a non-negative supermartingale (its expected factor is at most
0.1 x 9 + 0.9 / 9 = 1), and by Ville's inequality the chance that the lead ever reaches 4 is at most
9 ** -4: `ALPHA`. Nothing is assumed of windows within a block, nor that blocks are independent,
only that a low block is rare after whatever came before: blocks must be longer than the runs of
low windows of a healthy server. Null hypothesis of a pass, the server is degraded: a block is good
with a probability of at most `DEGRADED`; the same argument, made once for each of the two counts,
gives `BETA`. This is Wald's sequential probability ratio test (Annals of Mathematical Statistics
16, 1945) of 0.9 against 0.1, read as a test martingale (Ramdas et al., Statistical Science 38,
2023).

**Smallest effect of interest**: `DEGRADED` of the blocks are good instead of `HEALTHY`. A server
between the two may end undecided.
"""

from __future__ import annotations

import bisect
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

HEALTHY: Final = 0.9
"""Least probability of a good block on a healthy server, after its start-up."""

DEGRADED: Final = 0.1
"""Largest probability of a good block on a server that must fail."""

LEAD: Final = 4
"""Blocks by which one kind must lead the other."""

ALPHA: Final = (DEGRADED / HEALTHY) ** LEAD
"""Largest chance that a healthy server ever fails, 0.015 %."""

BETA: Final = 2 * ALPHA
"""Largest chance that a degraded server ever passes, 0.03 %: two counts may pass it."""

SMALLEST_EFFECT: Final = f"{DEGRADED:.0%} of the blocks are good instead of {HEALTHY:.0%}"


@dataclass(frozen=True)
class Rule:
    """Threshold in percent, start-up in seconds from sending the request, block in windows."""

    threshold: float
    startup_seconds: float
    block_windows: int

    def __post_init__(self) -> None:
        if self.startup_seconds < 0:
            raise ValueError(f"startup_seconds is not negative, but is {self.startup_seconds!r}")
        if self.block_windows < 1:
            raise ValueError(f"block_windows is at least 1, not {self.block_windows!r}")


@dataclass(frozen=True)
class Decision:
    """What the windows so far say; `outcome` is None while they are not clear.

    `windows` were looked at and `seconds` had passed when it became clear, or at the last window.
    `good` and `bad` are the blocks of the count that decided; while nothing is decided, of the
    count from the end of the start-up once it has a block, else of that from the first window.
    """

    outcome: Literal["pass", "fail"] | None
    seconds: float
    windows: int
    good: int
    bad: int


def decide(values: Sequence[float], shown: Sequence[float], rule: Rule) -> Decision:
    """Decide on the windows so far: percent, and seconds at which each was first shown.

    A decision stands: more windows never change it. A block that is not complete does not count.
    """
    settled = bisect.bisect_right(shown, rule.startup_seconds)
    whole = _count(values, shown, rule, first=0)
    steady = _count(values, shown, rule, first=settled)
    clear = [found for found in (whole, steady) if found.outcome is not None]
    if clear:
        return min(clear, key=lambda found: found.windows)
    return steady if steady.good + steady.bad else whole


def power(blocks: int) -> float:
    """Return the least chance that `blocks` blocks after the start-up fail a degraded server.

    Exact for blocks that are good with probability `DEGRADED` independently of each other, less the
    chance that the count from the first window passes the server before.
    """
    leads = {0: 1.0}
    failed = 0.0
    for _ in range(blocks):
        after: dict[int, float] = {}
        for lead, chance in leads.items():
            for step, share in ((1, DEGRADED), (-1, 1.0 - DEGRADED)):
                after[lead + step] = after.get(lead + step, 0.0) + chance * share
        failed += after.pop(-LEAD, 0.0)
        after.pop(LEAD, None)
        leads = after
    return max(0.0, failed - ALPHA)


def _count(values: Sequence[float], shown: Sequence[float], rule: Rule, *, first: int) -> Decision:
    """Count blocks from window `first` on until one kind leads; only a late count may fail."""
    good = bad = 0
    size = rule.block_windows
    for end in range(first + size, len(values) + 1, size):
        if statistics.median(values[end - size : end]) > rule.threshold:
            good += 1
        else:
            bad += 1
        if good - bad == LEAD:
            return Decision("pass", shown[end - 1], end, good, bad)
        if bad - good == LEAD and shown[first] > rule.startup_seconds:
            return Decision("fail", shown[end - 1], end, good, bad)
    return Decision(None, shown[-1] if shown else 0.0, len(values), good, bad)
