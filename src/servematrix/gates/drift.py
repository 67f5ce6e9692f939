"""Did the numerics change, whether or not any accuracy was lost?

Scored with the whole prompt, one build on one card repeats itself to the last digit on nearly every
item. Another kernel, dtype or cache format moves nearly every item a little. So a change is seen
from a hundred items, long before any answer is lost, and it is a verdict of its own: a change that
is wanted can be accepted, by name.

Through the prefix cache repeats are not exact, and only a change larger than rounding shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from servematrix.gates.pairs import Pairs
from servematrix.gates.proportions import (
    ALPHA,
    MISS,
    exceeding,
    exceeding_power,
    fewest,
    more,
    upper_bound,
)
from servematrix.gates.verdict import Number, Verdict

EFFECT: Final = 0.10
"""Share of moved items that must be seen: a change of numerics moves nearly all."""


@dataclass(frozen=True, slots=True)
class Healthy:
    """What repeats of one healthy server show at most.

    An item has moved where the mean |Δ log-probability| of its endings is above `delta` nats a
    token. `moved` and `flips` are the shares of items that move, and that get another answer.
    """

    delta: float = 0.001
    moved: float = 0.01
    flips: float = 0.001

    def __post_init__(self) -> None:
        if not (self.delta >= 0 and 0 <= self.moved < EFFECT and 0 <= self.flips < 1):
            raise ValueError(
                f"no limits of healthy repeats: {self}; delta is 0 or more, flips a share, moved a"
                f" share below {EFFECT:g}"
            )


HEALTHY: Final = Healthy()
"""For whole prompts, with room: of 10,042 items one or two moved between recorded repeats, and one
flipped at most."""

HEALTHY_CACHED: Final = Healthy(delta=0.035, moved=0.01, flips=0.03)
"""For scoring through the prefix cache: what an item finds there was computed in another batch,
with other rounding. Of 400 items recorded twice on a CPU one moved so far and up to three flipped;
of 2,000 scored with and without the cache on a GPU 0.3 % did and 1.5 % flipped. A change of dtype
moves items no further: for that, score whole prompts."""


def healthy_limits(pairs: Pairs) -> Healthy:
    """Return the limits for runs that were scored as these were."""
    return HEALTHY_CACHED if pairs.cached else HEALTHY


def measured(repeats: Sequence[Pairs], miss: float = MISS) -> Healthy:
    """Return the limits that these repeats of a healthy server show, never tighter than `HEALTHY`.

    `delta` leaves one moved item in a hundred; the shares are exact upper bounds with risk `miss`.
    Raises `ValueError` without a repeat, or where they were not all scored the same way.
    """
    if len({pairs.cached for pairs in repeats}) != 1:
        raise ValueError("repeats of a healthy server are scored the same way, and one at least")
    shifts = np.concatenate([pairs.moved for pairs in repeats])
    flips = sum(int(pairs.flipped.sum()) for pairs in repeats)
    delta = max(HEALTHY.delta, float(np.quantile(shifts, 1 - HEALTHY.moved)))
    moved = upper_bound(int((shifts > delta).sum()), len(shifts), miss)
    return Healthy(
        delta,
        max(HEALTHY.moved, float(moved)),
        max(HEALTHY.flips, float(upper_bound(flips, len(shifts), miss))),
    )


def judge(
    pairs: Pairs,
    healthy: Healthy | None = None,
    *,
    accepted: str | None = None,
    alpha: float = ALPHA,
    miss: float = MISS,
) -> Verdict:
    """Demand that no more items moved or flipped than between repeats of a healthy server.

    The null hypothesis is that moved and flipped items have at most the shares of `healthy`, which
    are `healthy_limits` unless they were `measured`. Each is tested exactly, as binomial, at half
    of `alpha`; either rejected, the numerics changed. It passes where the exact upper bound (risk
    `miss`) of the share that moved is below `EFFECT`. `power` is the chance of seeing that this
    share moved.

    `accepted` names a change that is wanted; then it passes, and the record says under which name.
    Raises `ValueError` where the name is blank.
    """
    healthy = healthy or healthy_limits(pairs)
    if accepted is not None and not accepted.strip():
        raise ValueError("an accepted change has a name, such as 'fp8 KV cache'")
    rule = (
        f"no more than {healthy.moved:.2%} of the items move by more than {healthy.delta:g} nats a"
        f" token, and no more than {healthy.flips:.2%} flip (exact, risk {alpha:g})"
    )
    n = pairs.n
    moved, flips = int((pairs.moved > healthy.delta).sum()), int(pairs.flipped.sum())
    power = exceeding_power(n, healthy.moved, EFFECT, alpha / 2)
    high = float(upper_bound(moved, n, miss))
    p_moved = float(exceeding(moved, n, healthy.moved))
    p_flips = float(exceeding(flips, n, healthy.flips))
    numbers: dict[str, Number] = {
        "n": n,
        "drift_moved": moved,
        "drift_moved_share_high": high,
        "drift_flips": flips,
        "drift_delta_mean": float(pairs.moved.mean()),
        "drift_delta_p99": float(np.quantile(pairs.moved, 0.99)),
        "drift_delta_largest": float(pairs.moved.max()),
        "drift_p_moved": p_moved,
        "drift_p_flips": p_flips,
        "drift_healthy_delta": healthy.delta,
        "drift_healthy_moved": healthy.moved,
        "drift_healthy_flips": healthy.flips,
        "drift_alpha": alpha,
        "drift_miss": miss,
        "drift_effect": EFFECT,
        "drift_power": power,
        "drift_accepted": accepted,
    }
    found = (
        f"{moved} of {n} items moved, mean |Δ| {pairs.moved.mean():.5f} nats a token, and"
        f" {flips} flipped"
    )
    if min(p_moved, p_flips) <= alpha / 2:
        if accepted is not None:
            reason = f"{found}: the numerics changed, accepted as {accepted!r}"
            return Verdict("pass", rule, reason, numbers, alpha, power)
        reason = (
            f"{found}: the numerics changed, more than repeats of a healthy server differ; find the"
            " kernel, dtype or flag, and accept the change by name if it is wanted"
        )
        return Verdict("fail", rule, reason, numbers, alpha, power)
    if high < EFFECT:
        return Verdict("pass", rule, f"{found}: as repeats do", numbers, alpha, power)
    needed = fewest(
        n,
        lambda many: (
            (exceeding((moved / n * many).round(), many, healthy.moved) <= alpha / 2)
            | (upper_bound((moved / n * many).round(), many, miss) < EFFECT)
        ),
    )
    numbers["drift_items_needed"] = needed
    reason = f"{found}: neither more than repeats do nor clearly less; {more(n, needed)}"
    return Verdict("inconclusive", rule, reason, numbers, alpha, power)
