"""Shares and paired shares: the exact bounds and tests that the accuracy gates decide by.

All functions take whole arrays, so that what a gate does once a benchmark can do 100,000 times.
Counts are numbers of items; shares and losses are fractions of 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import scipy  # its parts are loaded when they are used
from numpy.typing import ArrayLike, NDArray

ALPHA: Final = 0.001
"""Chance that a gate fails a server that has nothing wrong: with a dozen gates a run, a run in
about a hundred at worst, and far fewer where healthy servers repeat themselves exactly."""

MISS: Final = 0.01
"""Chance that a gate passes a server that is exactly as bad as the rule's limit. A worse one has
less, so this may be larger than `ALPHA`, and it saves items."""

MANY: Final = 10_000_000
"""Items beyond which nobody goes to decide a question."""

Array = NDArray[np.float64]


def lower_bound(k: ArrayLike, n: ArrayLike, risk: float) -> Array:
    """Return the one-sided lower bound of a share of which `k` in `n` were seen.

    It is above the true share with a chance of at most `risk` (Clopper and Pearson 1934).
    """
    k, n = np.asarray(k), np.asarray(n)
    bound = scipy.stats.beta.ppf(risk, np.maximum(k, 1), n - k + 1)
    return np.where(k > 0, bound, 0.0)


def upper_bound(k: ArrayLike, n: ArrayLike, risk: float) -> Array:
    """Return the one-sided upper bound of a share: `lower_bound` of what was not seen."""
    k, n = np.asarray(k), np.asarray(n)
    return 1.0 - lower_bound(n - k, n, risk)


def exceeding(k: ArrayLike, n: ArrayLike, share: float) -> Array:
    """Return the chance of `k` or more among `n` where each has the chance `share`."""
    return np.asarray(scipy.stats.binom.sf(np.asarray(k) - 1, n, share))


def exceeding_power(n: int, share: float, true: float, risk: float) -> float:
    """Return the chance that `exceeding(k, n, share)` is at most `risk` when the share is `true`.

    Exact: both are binomial.
    """
    needed = scipy.stats.binom.isf(risk, n, share) + 1
    return float(scipy.stats.binom.sf(needed - 1, n, min(max(true, 0.0), 1.0)))


def mcnemar(lost: ArrayLike, won: ArrayLike) -> Array:
    """Return the exact one-sided p-value of McNemar (1947): were more items lost than won?

    Only items whose outcome changed say anything. Without a loss each of them is as likely to be
    lost as won, so the lost ones are binomial with a chance of one half.
    """
    lost, won = np.asarray(lost), np.asarray(won)
    return exceeding(lost, lost + won, 0.5)


def mcnemar_power(n: int, loss: float, flips: float, alpha: float) -> float:
    """Return the chance that `mcnemar` is at most `alpha` on `n` items. Exact.

    The true `loss` is the share of items that are lost for good; beside it a share `flips` changes
    for no reason, half of it lost and half of it won.
    """
    changed = min(loss + flips, 1.0)
    if changed <= 0.0:
        return 0.0
    d = np.arange(n + 1)
    needed = scipy.stats.binom.isf(alpha, d, 0.5) + 1
    seen = scipy.stats.binom.sf(needed - 1, d, (loss + flips / 2) / (loss + flips))
    return float(np.sum(scipy.stats.binom.pmf(d, n, changed) * seen))


def tango(lost: ArrayLike, won: ArrayLike, n: ArrayLike, loss: ArrayLike) -> Array:
    """Return Tango's score statistic (1998) against the hypothesis that the true loss is `loss`.

    The loss is P(lost) - P(won). The statistic is about standard normal under the hypothesis, and
    negative where the items show less of a loss. The chance of a win under the hypothesis is its
    maximum-likelihood estimate, the root of a quadratic; without any changed item the statistic is
    -sqrt(n loss / (1 - loss)), so that even then few items prove little.
    """
    lost, won, n, loss = (np.asarray(x) for x in (lost, won, n, loss))
    b = (2 * n - lost + won) * loss - lost - won
    root = np.sqrt(np.maximum(b * b + 8 * n * won * loss * (1 - loss), 0.0))
    chance_won = (root - b) / (4 * n)
    variance = n * (2 * chance_won + loss * (1 - loss))
    distance = lost - won - n * loss
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(distance == 0, 0.0, distance / np.sqrt(np.maximum(variance, 0.0)))


def tango_bounds(lost: int, won: int, n: int, risk: float) -> tuple[float, float]:
    """Return the ends of Tango's interval for the loss, each wrong with a chance of about `risk`.

    The ends are the losses that the score statistic just does not reject.
    """
    z = float(scipy.stats.norm.isf(risk))
    seen = (lost - won) / n

    def solve(target: float, edge: float) -> float:
        def off(loss: float) -> float:
            return float(tango(lost, won, n, loss)) - target

        if off(edge) * off(seen) >= 0:
            return float(np.sign(edge))
        return float(scipy.optimize.brentq(off, seen, edge))

    rim = 1.0 - 1e-12
    return solve(z, -rim), solve(-z, rim)


def fewest(n: int, decided: Callable[[NDArray[np.int64]], NDArray[np.bool_]]) -> int | None:
    """Return about how many items, from `n` on, would decide if they went on like those seen.

    `decided` says it for an array of numbers of items. The answer is at most 1 % too high; None
    means that even `MANY` would not.
    """
    steps = np.arange(np.log(max(MANY / n, 1.0)) / np.log(1.01) + 1)
    numbers = np.unique(np.ceil(n * 1.01**steps).astype(np.int64))
    found = np.flatnonzero(decided(numbers))
    return int(numbers[found[0]]) if found.size else None


def more(n: int, needed: int | None) -> str:
    """Say how many items would decide, having seen `n`."""
    if needed is None:
        return f"not even {MANY:,} items like these would decide"
    return f"about {needed:,} items like these would decide, {needed - n:,} more than there are"
