"""Is one run worse than the repeats of a baseline: speed, latency, occupancy, accept length.

Each run of a baseline gives one number. The next run of the same server gives another, which
differs from them by chance; a prediction interval says by how much at most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import scipy  # its parts are loaded when they are used

from servematrix.gates.proportions import ALPHA
from servematrix.gates.verdict import Number, Verdict

FEWEST_RUNS: Final = 3
"""Runs of a baseline below which their spread is not known even roughly."""

MARGIN: Final = 0.25
"""Share of a quantity's `effect` by which a run may be worse, however alike the baseline's were.

Three runs can be more alike than later ones are. On GPUs the settled medians of two healthy
launches differed by 0.21 points (8B) and 0.37 (135M), those of requests to one launch by 0.04 and
0.08 (docs/gates.md); the margin is half a point, and a lost overlap scheduler costs ten."""

ASSUMPTION: Final = (
    "the runs, and the next one, are independent draws of one normal distribution; an alpha below"
    " 1/(N + 1) rests on its tail beyond what N runs show, and is called extrapolated"
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """What is compared: its unit, which way is better, and the change that must be seen.

    `effect` is a fraction of the baseline's mean. What is not `judged` has a bound to be read, by
    which no run fails.
    """

    unit: str
    better: Literal["higher", "lower"]
    effect: float
    judged: bool = True


QUANTITIES: Final[Mapping[str, Quantity]] = {
    # of the newest windows: how long a start-up takes differs from one launch to the next
    "settled_median": Quantity("% occupancy", "higher", 0.02),
    "decode_tokens_per_s": Quantity("tokens/s", "higher", 0.05),
    "itl_p50_ms": Quantity("ms", "lower", 0.05),
    # one request's first token: healthy servers took 4 to 15 ms, and 17 to 35, which is not normal
    "ttft_s": Quantity("s", "lower", 0.5, judged=False),
    "accept_length": Quantity("tokens/pass", "higher", 0.05),
    # compared item by item, which sees far less than the spread of its repeats would
    "accuracy": Quantity("share", "higher", 0.02, judged=False),
}
"""By the name that a kit's verdict gives to the number."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """The values of each quantity, one a run, and the risk of each comparison."""

    values: Mapping[str, Sequence[float]]
    alpha: float = ALPHA


def extrapolated(runs: int, alpha: float) -> bool:
    """Return whether an `alpha` lies beyond what this many runs can show without an assumption.

    The next of N + 1 alike draws is the worst of them with a chance of 1/(N + 1).
    """
    return alpha < 1 / (runs + 1)


def bound(name: str, values: Sequence[float], alpha: float) -> float | None:
    """Return the one-sided prediction bound of the next value, None where there is none.

    It is mean ± t(n - 1, 1 - alpha) s sqrt(1 + 1/n) on the bad side (Hahn and Meeker 1991, ch. 4),
    and no nearer to the mean than `MARGIN` allows. There is none for fewer than `FEWEST_RUNS`
    values, or where all are the same.
    """
    if len(values) < FEWEST_RUNS or _spread(values) == 0:
        return None
    return _worse(name, values, _reach(name, values, alpha))


def beyond(name: str, value: float, limit: float) -> bool:
    """Return whether a value lies on the bad side of a bound."""
    return value < limit if QUANTITIES[name].better == "higher" else value > limit


def compare(found: Mapping[str, Number], baseline: Baseline) -> list[Verdict]:
    """Judge each quantity that is judged by the number that this run found for it."""
    return [
        judge(name, found.get(name), values, alpha=baseline.alpha)
        for name, values in baseline.values.items()
        if QUANTITIES[name].judged
    ]


def judge(name: str, value: Number, values: Sequence[float], *, alpha: float = ALPHA) -> Verdict:
    """Demand that `value` be no worse than the next run of the baseline may be by chance.

    `name` is one of `QUANTITIES`. The null hypothesis is that this run and the baseline's are
    draws of one normal distribution; it fails where the value is beyond the prediction bound on
    the bad side, with a chance of `alpha` where the null hypothesis is true. `power` is the chance
    of failing a server that is worse by the quantity's `effect`, its spread as in the baseline: the
    statistic is then noncentral t.

    Where all baseline values are the same there is no bound, but it could only lie on their bad
    side; so a value that is no worse, but for `MARGIN`, passes, and a worse one is inconclusive.
    """
    quantity = QUANTITIES[name]
    rule = (
        f"{name} no worse than the next run of the baseline may be (one-sided prediction bound of"
        f" {len(values)} runs, risk {alpha:g}), nor by less than {MARGIN * quantity.effect:.2%}"
    )
    if not 0 < alpha < 0.5:
        return Verdict("error", rule, f"alpha {alpha:g}: a risk lies above 0 and below 0.5")
    if not values or not all(math.isfinite(one) for one in values):
        reason = f"the baseline's {name} are {list(values)}: no numbers; calibrate again"
        return Verdict("error", rule, reason)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        reason = f"{name} is {value}: this run measured none, and each of the baseline's did"
        return Verdict("error", rule, reason)
    n, mean, spread = len(values), float(np.mean(values)), _spread(values)
    limit = bound(name, values, alpha)
    key = f"baseline_{name}"
    numbers: dict[str, Number] = {
        name: value,
        f"{key}_runs": n,
        f"{key}_mean": mean,
        f"{key}_deviation": spread,
        f"{key}_bound": limit,
        f"{key}_alpha": alpha,
        f"{key}_extrapolated": extrapolated(n, alpha),
        f"{key}_effect": quantity.effect,
        f"{key}_margin": _margin(name, values),
    }
    found = f"{name} {value:.4g} {quantity.unit}, baseline {mean:.4g} over {n} runs"
    if n < FEWEST_RUNS:
        reason = f"{found}: {FEWEST_RUNS} runs are needed to know their spread; calibrate with more"
        return Verdict("inconclusive", rule, reason, numbers, alpha)
    if limit is None:
        if not beyond(name, value, _worse(name, values, _margin(name, values))):
            return Verdict("pass", rule, f"{found}, all alike", numbers, alpha)
        reason = f"{found}, all alike: worse than they, and their spread is unknown"
        return Verdict("inconclusive", rule, reason, numbers, alpha)
    scale = spread * math.sqrt(1 + 1 / n)
    worse = (mean - value) if quantity.better == "higher" else (value - mean)
    power = _power(n, quantity.effect * abs(mean) / scale, _reach(name, values, alpha) / scale)
    numbers |= {f"{key}_p": float(scipy.stats.t.sf(worse / scale, n - 1)), f"{key}_power": power}
    side = "at least" if quantity.better == "higher" else "at most"
    found = f"{found} ({side} {limit:.4g})"
    if beyond(name, value, limit):
        reason = f"{found}: worse than chance explains; look at what changed since the baseline"
        return Verdict("fail", rule, reason, numbers, alpha, power)
    return Verdict("pass", rule, found, numbers, alpha, power)


def _spread(values: Sequence[float]) -> float:
    """Return the standard deviation; exactly 0 where all are the same, whatever the mean rounds."""
    if len(set(values)) < 2:
        return 0.0
    return float(np.std(values, ddof=1))


def _margin(name: str, values: Sequence[float]) -> float:
    return MARGIN * QUANTITIES[name].effect * abs(float(np.mean(values)))


def _reach(name: str, values: Sequence[float], alpha: float) -> float:
    """How far from the mean the bound lies."""
    n = len(values)
    chance = float(scipy.stats.t.isf(alpha, n - 1)) * _spread(values) * math.sqrt(1 + 1 / n)
    return max(chance, _margin(name, values))


def _worse(name: str, values: Sequence[float], by: float) -> float:
    """The mean, worse by so much."""
    mean = float(np.mean(values))
    return mean - by if QUANTITIES[name].better == "higher" else mean + by


def _power(n: int, noncentrality: float, critical: float) -> float:
    return float(scipy.stats.nct.sf(critical, n - 1, noncentrality))
