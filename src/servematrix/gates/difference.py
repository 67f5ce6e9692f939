"""Is server B worse than server A, by runs that were made in turn and paired.

A machine's speed drifts while it is measured: clocks, heat, neighbours. Runs in the order A B B A
are paired by position, the first A with the first B and the second B with the second A. A steady
drift then adds to one difference what it takes from the other: it cancels in their mean, and only
widens the interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import scipy  # its parts are loaded when they are used
from numpy.typing import NDArray

from servematrix.gates.verdict import Number, Verdict

ALPHA: Final = 0.01
"""Chance that a quantity fails though B is worse by no more than its margin. Each quantity has its
own: among ten of them the chance of any is ten times that at most."""

MISS: Final = 0.05
"""Chance that a quantity passes though B is worse by its margin. A run of a server costs a minute
and not a millisecond as an item does, so this is larger than that of the gates on items."""

FEWEST_PAIRS: Final = 2
"""Pairs of runs below which nothing is known of their spread."""

MOST_PAIRS: Final = 1000
"""Pairs of runs beyond which nobody goes to decide a question."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """What is compared: its unit, which way is better, and the loss that is to be excluded.

    `margin` is in the unit; where `relative`, a fraction of A's mean.
    """

    unit: str
    better: Literal["higher", "lower"]
    margin: float
    relative: bool = False


QUANTITIES: Final[Mapping[str, Quantity]] = {
    "occupancy": Quantity("%", "higher", 2.0),
    "decode_tokens_per_s": Quantity("tokens/s", "higher", 0.05, relative=True),
    "stream_tokens_per_s": Quantity("tokens/s", "higher", 0.05, relative=True),
    "itl_p50_ms": Quantity("ms", "lower", 0.05, relative=True),
    # a single short wait a run, most of it the host's
    "ttft_s": Quantity("s", "lower", 0.2, relative=True),
    "accept_length": Quantity("tokens/pass", "higher", 0.05, relative=True),
    # thrice or more what recorded healthy servers differ by; an fp8 cache adds five times as much
    "consistency_relative": Quantity("nats/(1 - p)", "lower", 0.02),
    "consistency_p99": Quantity("nats", "lower", 0.05),
    "consistency_top1": Quantity("share", "higher", 0.01),
}
"""By the name under which a comparison shows the number."""


def judge(
    name: str,
    a: Sequence[float],
    b: Sequence[float],
    *,
    margin: float | None = None,
    alpha: float = ALPHA,
    miss: float = MISS,
) -> Verdict:
    """Demand that B be worse than A by no more than a margin.

    `name` is one of `QUANTITIES`, `a` and `b` have one number a run, paired by place, and `margin`
    is that of the quantity unless it is given. The null hypothesis is that the true mean loss is
    the margin or less. It fails where the lower one-sided t bound of the mean of the paired losses
    (risk `alpha`) is above the margin, and passes where the upper bound (risk `miss`) is below:
    mean ± t(n - 1) s / sqrt(n) of Student (1908), which takes losses as normal. Else more runs are
    needed. A margin that is a fraction is one of A's mean, which is taken as known. `power` is the
    chance of failing a B whose true loss is twice the margin, losses spread as seen (noncentral t).

    One pair has no interval: it is not applicable, or inconclusive where B's number is worse by
    more than the margin. Losses that are all the same have an interval of no width.
    """
    quantity = QUANTITIES[name]
    limit = quantity.margin if margin is None else margin
    told_margin = f"{limit:.3g} of A's mean" if quantity.relative else f"{limit:g} {quantity.unit}"
    rule = (
        f"{name} ({quantity.better} is better) of B worse than A's by no more than {told_margin}:"
        f" fails where the lower t bound of the mean loss (risk {alpha:g}) is above, passes where"
        f" the upper (risk {miss:g}) is below"
    )
    problem = _problem(a, b, limit, quantity)
    if problem:
        return Verdict("error", rule, problem)
    n, mean_a, mean_b = len(a), float(np.mean(a)), float(np.mean(b))
    allowed = limit * abs(mean_a) if quantity.relative else limit
    losses = np.subtract(a, b) if quantity.better == "higher" else np.subtract(b, a)
    loss = float(losses.mean())
    sign = -1.0 if quantity.better == "higher" else 1.0
    numbers: dict[str, Number] = {
        "n": n,
        "mean_a": mean_a,
        "mean_b": mean_b,
        "difference": mean_b - mean_a,
        "margin": limit,
        "allowed_loss": allowed,
    }
    found = (
        f"{mean_a:.4g} {quantity.unit} for A and {mean_b:.4g} for B,"
        f" {f'worse by {loss:.3g}' if loss > 0 else f'better by {-loss:.3g}' if loss else 'equal'}"
    )
    if n < FEWEST_PAIRS:
        advice = "one run a side has no interval; measure both in turn, with --a and --b"
        if loss > allowed:
            reason = f"{found}, more than {allowed:.3g}: {advice}"
            return Verdict("inconclusive", rule, reason, numbers)
        return Verdict("not_applicable", rule, f"{found}: {advice}", numbers)
    spread = _spread(losses)
    error = spread / math.sqrt(n)
    low = loss - float(scipy.stats.t.isf(alpha, n - 1)) * error
    high = loss + float(scipy.stats.t.isf(miss, n - 1)) * error
    power = _power(n, allowed, error, alpha)
    ends = sorted((sign * low, sign * high))
    numbers |= {
        "difference_low": ends[0],
        "difference_high": ends[1],
        "standard_error": error,
        "alpha": alpha,
        "miss": miss,
        "power": power,
    }
    found = f"{found} ({n} pairs; the loss is from {low:.3g} to {high:.3g})"
    if low > allowed:
        reason = f"{found}, more than {allowed:.3g}; look at what differs between A and B"
        return Verdict("fail", rule, reason, numbers, alpha, power)
    if high < allowed:
        return Verdict("pass", rule, found, numbers, alpha, power)
    needed = _needed(n, spread, loss - allowed, alpha, miss)
    numbers["pairs_needed"] = needed
    more = f"about {needed} pairs would tell" if needed else "no number of pairs would tell soon"
    reason = f"{found}: neither above nor below {allowed:.3g}; {more}"
    return Verdict("inconclusive", rule, reason, numbers, alpha, power)


def _problem(
    a: Sequence[float], b: Sequence[float], margin: float, quantity: Quantity
) -> str | None:
    """Return why two lists cannot be compared, None where they can."""
    if not a or len(a) != len(b):
        return f"{len(a)} runs of A and {len(b)} of B: runs are paired, one pair at least"
    for side, values in (("A", a), ("B", b)):
        if not all(math.isfinite(value) for value in values):
            return f"{side} has {list(values)}: not finite numbers"
    if not (math.isfinite(margin) and margin > 0):
        return f"a margin of {margin:g}: it is a loss above 0"
    if quantity.relative and np.mean(a) == 0:
        return "A's mean is 0, and the margin a fraction of it"
    return None


def _spread(losses: NDArray[np.float64]) -> float:
    """Return the standard deviation; exactly 0 where all are the same, whatever the mean rounds."""
    return float(losses.std(ddof=1)) if len(np.unique(losses)) > 1 else 0.0


def _power(n: int, beyond: float, error: float, alpha: float) -> float:
    if error == 0:
        return 1.0
    return float(scipy.stats.nct.sf(scipy.stats.t.isf(alpha, n - 1), n - 1, beyond / error))


def _needed(n: int, spread: float, beyond: float, alpha: float, miss: float) -> int | None:
    """Return the fewest pairs that decide if all goes on as seen; None beyond `MOST_PAIRS`.

    `beyond` is by how much the mean loss is above the margin, or below where it is negative.
    """
    many = np.arange(n + 1, MOST_PAIRS + 1)
    reach = scipy.stats.t.isf(alpha if beyond > 0 else miss, many - 1) * spread / np.sqrt(many)
    decided = many[reach < abs(beyond)]
    return int(decided[0]) if len(decided) else None
