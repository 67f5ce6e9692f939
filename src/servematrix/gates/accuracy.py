"""Accuracy on a multiple-choice set: a floor, and agreement between two ways of asking."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import scipy  # its parts are loaded when they are used

from servematrix.gates.proportions import ALPHA, MISS, fewest, lower_bound, more, upper_bound
from servematrix.gates.verdict import Number, Verdict

FLOOR_EFFECT: Final = 0.10
"""How far below the floor an accuracy lies that must be seen; a floor is against collapse. Smaller
losses are for the comparison of paired items."""


def floor(
    correct: int,
    n: int,
    *,
    threshold: float,
    alpha: float = ALPHA,
    miss: float = MISS,
    effect: float = FLOOR_EFFECT,
) -> Verdict:
    """Demand that a server which answers `correct` of `n` items be above `threshold` (a fraction).

    The null hypothesis is that its accuracy is the floor or above. It fails where the exact upper
    bound of its accuracy (Clopper and Pearson 1934, wrong with a chance of at most `alpha`) is
    below the floor, and passes where the lower bound (wrong with a chance of at most `miss`) is
    above it; between the two more items are needed. `power` is the chance of failing a server
    whose accuracy is `effect` below the floor.

    The bounds are for accuracy over all items that could be asked, of which these are a sample.
    """
    rule = (
        f"accuracy above {threshold:.3f}: fails where its exact upper bound (risk {alpha:g}) is"
        f" below, passes where its lower bound (risk {miss:g}) is above"
    )
    if n < 1:
        return Verdict("error", rule, "no item was scored, so there is no accuracy to judge")
    if not 0 <= correct <= n or not math.isfinite(threshold):
        reason = f"{correct} of {n} right against a floor of {threshold}: no counts, or no floor"
        return Verdict("error", rule, reason)
    accuracy = correct / n
    low, high = float(lower_bound(correct, n, miss)), float(upper_bound(correct, n, alpha))
    power = floor_power(n, threshold=threshold, accuracy=threshold - effect, alpha=alpha)
    numbers: dict[str, Number] = {
        "n": n,
        "correct": correct,
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "standard_error": math.sqrt(accuracy * (1.0 - accuracy) / n),
        "accuracy_threshold": threshold,
        "floor_alpha": alpha,
        "floor_miss": miss,
        "floor_effect": effect,
        "floor_power": power,
    }
    found = f"{correct} of {n} right, accuracy {accuracy:.3f} (from {low:.3f} to {high:.3f})"
    if low > threshold:
        return Verdict("pass", rule, found, numbers, alpha, power)
    if high < threshold:
        advice = "check weights, quantisation and chat template, or the floor for this model"
        reason = f"{found}: below {threshold:.3f}; {advice}"
        return Verdict("fail", rule, reason, numbers, alpha, power)
    needed = fewest(
        n,
        lambda many: (
            (lower_bound((many * accuracy).round(), many, miss) > threshold)
            | (upper_bound((many * accuracy).round(), many, alpha) < threshold)
        ),
    )
    numbers["floor_items_needed"] = needed
    reason = f"{found}: neither above nor below {threshold:.3f}; {more(n, needed)}"
    return Verdict("inconclusive", rule, reason, numbers, alpha, power)


def floor_power(n: int, *, threshold: float, accuracy: float, alpha: float = ALPHA) -> float:
    """Return the chance that `floor` fails a server of this true `accuracy`. Exact."""
    # by the very bounds that decide: a quantile would differ where a bound lies on the floor
    failing = int((upper_bound(np.arange(n + 1), n, alpha) < threshold).sum())
    return float(scipy.stats.binom.cdf(failing - 1, n, min(max(accuracy, 0.0), 1.0)))


def agreement(batch: int, single: int, n: int, *, tolerance: float = 0.1) -> Verdict:
    """Demand that accuracy in batches and one by one differ by at most `tolerance` (a fraction).

    `batch` and `single` are counts of right answers over the same `n` items.
    """
    rule = f"accuracy in batches and one by one differ by at most {tolerance:g}"
    if n < 1:
        return Verdict("error", rule, "no item was scored, so there is nothing to compare")
    # one division of whole numbers: a difference of exactly the tolerance must not exceed it
    difference = abs(batch - single) / n
    numbers = {
        "correct_batch": batch,
        "correct_single": single,
        "accuracy_batch": batch / n,
        "accuracy_single": single / n,
        "accuracy_difference": difference,
    }
    found = f"{batch / n:.3f} in batches, {single / n:.3f} one by one"
    if difference <= tolerance:
        return Verdict("pass", rule, found, numbers)
    advice = "look at batching, padding and the prefix cache"
    return Verdict("fail", rule, f"{found}: {difference:.3f} apart; {advice}", numbers)
