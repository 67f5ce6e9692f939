"""Is a server worse than a baseline on the same items: answers lost, and log-probability lost.

Runs of one model answer the same items almost identically, so comparing item by item removes the
luck of which items were asked, which is nearly all that makes an accuracy uncertain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import scipy  # its parts are loaded when they are used
from numpy.typing import ArrayLike, NDArray

from servematrix.gates import drift
from servematrix.gates.pairs import PairingError, Pairs, Row, align
from servematrix.gates.proportions import (
    ALPHA,
    MANY,
    MISS,
    Array,
    fewest,
    mcnemar,
    mcnemar_power,
    more,
    tango,
    tango_bounds,
)
from servematrix.gates.verdict import Number, Verdict

MARGIN: Final = 0.01
"""Loss of accuracy (a fraction) that is to be excluded, by default one point."""

GOLD_MARGIN: Final = 0.002
"""Loss of the right endings' log-probability that is allowed, nats a token (0.2 % of perplexity).

Rounding moves single items by ten times as much, either way; it moved the mean by 0.0001 between
recorded dtypes of one machine, and by 0.0013 between a GPU and a CPU.
"""

GOLD_EFFECT: Final = 0.01
"""Loss of log-probability that must be seen, nats a token (1 % of perplexity)."""

GOLD_SPREAD: Final = 0.07
"""Least standard deviation of an item's difference that power is stated for, nats a token: that of
the recorded fp8 KV cache. Exact repeats have none, but a loss brings its own."""

GOLD_CLIP: Final = 1.0
"""Nats a token beyond which a difference is taken as this much, so that no single item drowns all
others. The largest that a whole fp8 KV cache made was 0.37."""


def judge(
    baseline: Sequence[Row],
    candidate: Sequence[Row],
    *,
    margin: float = MARGIN,
    gold_margin: float = GOLD_MARGIN,
    healthy: drift.Healthy | None = None,
    accepted: str | None = None,
) -> dict[str, Verdict]:
    """Compare a run with a baseline over the same items, by every gate on pairs.

    Rows are as in `gates.pairs`. The verdicts are `paired_accuracy`, `gold_logprob` and `drift`;
    or one only, `pairing`, an error that says why the runs cannot be compared. `healthy` are limits
    from repeats of this server, where they were `measured`; `accepted` names a change of numerics
    that is wanted.
    """
    try:
        pairs = align(baseline, candidate)
    except PairingError as error:
        return {"pairing": Verdict("error", "both runs scored the same items alike", str(error))}
    return {
        "paired_accuracy": accuracy(pairs, margin=margin),
        "gold_logprob": gold_logprob(pairs, margin=gold_margin),
        "drift": drift.judge(pairs, healthy, accepted=accepted),
    }


def accuracy(
    pairs: Pairs, *, margin: float = MARGIN, alpha: float = ALPHA, miss: float = MISS
) -> Verdict:
    """Demand that no accuracy was lost, and that a loss of `margin` (a fraction) be excluded.

    The null hypothesis is "no loss": an item whose outcome changed was as likely won as lost. It
    fails where the exact one-sided test of McNemar (1947) rejects that at `alpha`, however small
    the loss. It passes where Tango's score interval (1998) for the loss, its upper end wrong with a
    chance of about `miss`, ends below `margin`. Else more items are needed. `power` is the chance
    of failing a server that truly loses `margin`, among as many flips for no reason as were seen.
    """
    rule = (
        f"no item lost beyond chance (McNemar, risk {alpha:g}), and a loss of {100 * margin:g}"
        f" points excluded (Tango's interval, risk {miss:g})"
    )
    n, before, after = pairs.n, *(int(k) for k in pairs.right.sum(axis=0))
    lost = int((pairs.right[:, 0] & ~pairs.right[:, 1]).sum())
    won = int((~pairs.right[:, 0] & pairs.right[:, 1]).sum())
    losable = math.ceil(-math.log2(alpha))
    if before < losable:
        reason = (
            f"the baseline has {before} of {n} right, and {losable} must be lost before a loss is"
            f" beyond chance: take more items, or a baseline that knows something"
        )
        return Verdict("error", rule, reason, {"n": n, "correct_baseline": before})
    p = float(mcnemar(lost, won))
    low, high = tango_bounds(lost, won, n, miss)
    flips = 2 * min(lost, won) / n
    power = mcnemar_power(n, margin, flips, alpha)
    numbers: dict[str, Number] = {
        "n": n,
        "correct_baseline": before,
        "correct_candidate": after,
        "lost": lost,
        "won": won,
        "loss": (lost - won) / n,
        "loss_low": low,
        "loss_high": high,
        "loss_margin": margin,
        "loss_p": p,
        "loss_alpha": alpha,
        "loss_miss": miss,
        "loss_effect": margin,
        "loss_power": power,
    }
    found = (
        f"{lost} of {n} items lost and {won} won, a loss of {100 * (lost - won) / n:.2f} points"
        f" (from {100 * low:.2f} to {100 * high:.2f})"
    )
    if p <= alpha:
        reason = f"{found}: by chance this happens with p = {p:.2g}; look at what changed"
        return Verdict("fail", rule, reason, numbers, alpha, power)
    if excluded(lost, won, n, margin, miss):
        return Verdict("pass", rule, found, numbers, alpha, power)

    def decided(many: NDArray[np.int64]) -> NDArray[np.bool_]:
        then_lost, then_won = (lost / n * many).round(), (won / n * many).round()
        rejected = mcnemar(then_lost, then_won) <= alpha
        return np.asarray(rejected | excluded(then_lost, then_won, many, margin, miss))

    needed = fewest(n, decided)
    numbers["loss_items_needed"] = needed
    reason = f"{found}: neither a loss nor the lack of one is shown; {more(n, needed)}"
    return Verdict("inconclusive", rule, reason, numbers, alpha, power)


def excluded(
    lost: ArrayLike, won: ArrayLike, n: ArrayLike, margin: float, miss: float = MISS
) -> NDArray[np.bool_]:
    """Return whether Tango's interval for the loss ends below `margin`, for whole arrays."""
    return np.asarray(tango(lost, won, n, margin) < -scipy.stats.norm.isf(miss))


def gold_logprob(
    pairs: Pairs,
    *,
    margin: float = GOLD_MARGIN,
    alpha: float = ALPHA,
    miss: float = MISS,
    effect: float = GOLD_EFFECT,
) -> Verdict:
    """Demand that the right endings lost no more than `margin` of log-probability, nats a token.

    The null hypothesis is that the true mean loss is `margin` or less. Each item counts once, with
    the difference of its right ending's mean log-probability a token, so a long ending weighs no
    more than a short one and the mean is the logarithm of a ratio of perplexities; differences are
    cut at `GOLD_CLIP`. It fails where the one-sided lower t bound of the mean loss is above
    `margin`, and passes where the upper one is below; their risks are `alpha` and `miss`. `power`
    is the chance of failing a server whose true loss is `effect`, with differences spread as seen,
    or as `GOLD_SPREAD` where that is more.

    A mean and not a median, as with signed ranks: a fault that ruins one item in twenty moves no
    median.
    """
    rule = (
        f"the right endings lose no more than {margin:g} nats a token: fails where the lower t"
        f" bound of the mean loss (risk {alpha:g}) is above, passes where the upper (risk {miss:g})"
        " is below"
    )
    mean, error, low, high = (float(x) for x in gold_bounds(pairs.gold, alpha, miss))
    n = pairs.n
    power = gold_power(n, max(error * math.sqrt(n), GOLD_SPREAD), effect - margin, alpha)
    numbers: dict[str, Number] = {
        "n": n,
        "gold_loss": mean,
        "gold_loss_low": low,
        "gold_loss_high": high,
        "gold_standard_error": error,
        "gold_clipped": int((np.abs(pairs.gold) > GOLD_CLIP).sum()),
        "gold_margin": margin,
        "gold_alpha": alpha,
        "gold_miss": miss,
        "gold_effect": effect,
        "gold_power": power,
    }
    found = (
        f"the right endings lost {mean:.5f} nats a token over {n} items"
        f" (from {low:.5f} to {high:.5f})"
    )
    if low > margin:
        reason = f"{found}: more than {margin:g}, the model lost quality; look at what changed"
        return Verdict("fail", rule, reason, numbers, alpha, power)
    if high < margin:
        return Verdict("pass", rule, found, numbers, alpha, power)
    # the bounds close in on the mean as one over the square root of the items
    z, distance = float(scipy.stats.norm.isf(alpha if mean > margin else miss)), abs(mean - margin)
    many = n * (z * error / distance) ** 2 if distance else math.inf
    needed = max(math.ceil(many), n + 1) if many <= MANY else None
    numbers["gold_items_needed"] = needed
    reason = f"{found}: neither above nor below {margin:g}; {more(n, needed)}"
    return Verdict("inconclusive", rule, reason, numbers, alpha, power)


def gold_bounds(
    gold: Array, alpha: float = ALPHA, miss: float = MISS
) -> tuple[Array, Array, Array, Array]:
    """Return mean loss, its standard error, its lower and its upper t bound, nats a token.

    `gold` has the items' differences, candidate minus baseline, along its last axis.
    """
    loss = -np.clip(gold, -GOLD_CLIP, GOLD_CLIP)
    n = loss.shape[-1]
    mean = loss.mean(axis=-1)
    error = loss.std(axis=-1, ddof=1) / math.sqrt(n)
    low = mean - scipy.stats.t.isf(alpha, n - 1) * error
    return mean, error, low, mean + scipy.stats.t.isf(miss, n - 1) * error


def gold_power(n: int, spread: float, beyond: float, alpha: float) -> float:
    """Return the chance of failing a server whose true loss is `beyond` the margin, nats a token.

    `spread`, above 0, is the standard deviation of one item's difference. The statistic is then
    noncentral t.
    """
    return float(
        scipy.stats.nct.sf(scipy.stats.t.isf(alpha, n - 1), n - 1, beyond * math.sqrt(n) / spread)
    )
