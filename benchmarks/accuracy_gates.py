"""How often the accuracy gates cry wolf, and what they see: counted, not asserted.

Each rate is counted over `repeats` resamplings, in percent. Recorded runs are resampled item by
item, with replacement; so the rates hold for those runs, and variation between launches is in them
only as far as the recordings have it. Of two healthy runs either may be the baseline, so in their
resamplings it is drawn for each item which one is. Simulated outcomes have a rate of flips for no
reason, half of them lost and half won, and beside it items that are lost for good.
"""

from __future__ import annotations

import gzip
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from servematrix.gates import drift, paired
from servematrix.gates.pairs import Pairs, align
from servematrix.gates.proportions import (
    ALPHA,
    MISS,
    exceeding,
    lower_bound,
    mcnemar,
    mcnemar_power,
    upper_bound,
)

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT.parent / "shared" / "recordings" / "hellaswag"
ON_CPU = ROOT / "tests" / "data" / "hellaswag_cpu"

WHOLE = 10_042
"""Items of the whole validation split."""
ACCURACY = 0.40
"""Of the recorded model, on the whole split."""
HEALTHY_FLIPS = 0.0001
"""One in 10,042: the most that recorded repeats showed."""
FLIPS = (0.0, HEALTHY_FLIPS, 0.001, 0.005, 0.01, 0.02, 0.04, 0.06)

Row = tuple[str, list[float], str, float | None, bool]
"""Name, values, unit, aim, and whether more is better."""


def figures(repeats: int = 100_000) -> Iterator[Row]:
    """Count false alarms, wrong passes and power of the accuracy gates; see `Row`."""
    rng = np.random.default_rng(20_240_101)
    recorded = _recorded()
    yield from _false_alarms(rng, repeats, recorded)
    yield from _wrong_passes(rng, repeats)
    yield from _seen(rng, repeats, recorded)
    yield from _power_curve(rng, repeats)
    yield from _side_by_side(rng, repeats)


def _alarm(name: str, failed: Any) -> Row:
    return f"false alarms: {name}", [100 * float(np.mean(failed))], "%", 100 * ALPHA, False


def _edge(name: str, decided: Any) -> Row:
    """A server exactly at a rule's limit: rates are those that the rule states, give or take."""
    return f"at the edge: {name}", [100 * float(np.mean(decided))], "%", None, False


def _power(name: str, failed: Any, aim: float | None = 99.0) -> Row:
    return f"seen: {name}", [100 * float(np.mean(failed))], "%", aim, True


# -- the gates, for many resamplings at once ----------------------------------------------------


def _outcomes(
    rng: np.random.Generator, repeats: int, n: int, loss: float, flips: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lost and won items of `repeats` runs over `n` items."""
    counts = rng.multinomial(n, [loss + flips / 2, flips / 2, 1 - loss - flips], repeats)
    return counts[:, 0], counts[:, 1]


def _gold_bounds(
    rng: np.random.Generator, repeats: int, n: int, gold: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper bounds of the loss, over `repeats` resamplings of `n` differences."""
    low, high = np.empty(repeats), np.empty(repeats)
    for at in range(0, repeats, 1000):
        part = slice(at, min(at + 1000, repeats))
        chosen = rng.integers(0, len(gold), (part.stop - at, n), dtype=np.int32)
        _, _, low[part], high[part] = paired.gold_bounds(gold[chosen])
    return low, high


def _drifted(n: int, moved: Any, flips: Any, healthy: drift.Healthy) -> NDArray[np.bool_]:
    return (exceeding(moved, n, healthy.moved) <= ALPHA / 2) | (
        exceeding(flips, n, healthy.flips) <= ALPHA / 2
    )


def _drift_resampled(rng: np.random.Generator, repeats: int, n: int, pairs: Pairs) -> Any:
    """Whether each resampling of `n` items drifts; only how many moved and flipped matters."""
    healthy = drift.healthy_limits(pairs)
    kind = 2 * (pairs.moved > healthy.delta) + pairs.flipped
    counts = rng.multinomial(n, np.bincount(kind, minlength=4) / pairs.n, repeats)
    return _drifted(n, counts[:, 2] + counts[:, 3], counts[:, 1] + counts[:, 3], healthy)


def _lost_resampled(rng: np.random.Generator, repeats: int, n: int, pairs: Pairs) -> Any:
    before, after = pairs.right.T
    shares = np.array([(before & ~after).mean(), (~before & after).mean()])
    counts = rng.multinomial(n, [*shares, 1 - shares.sum()], repeats)
    return mcnemar(counts[:, 0], counts[:, 1]) <= ALPHA


# -- what is counted ----------------------------------------------------------------------------


def _false_alarms(
    rng: np.random.Generator, repeats: int, recorded: dict[str, Pairs]
) -> Iterator[Row]:
    for share, threshold in ((ACCURACY, 0.30), (0.60, 0.60)):
        k = rng.binomial(200, share, repeats)
        name = f"floor {threshold:g}, 200 items, accuracy {share:g}"
        yield _alarm(name, upper_bound(k, 200, ALPHA) < threshold)
    for name in (
        "base ~ base2",
        "base ~ nograph",
        "CPU bf16 ~ again",
        "CPU cached ~ again",
        "CPU cached ~ one by one",
    ):
        if name not in recorded:
            continue
        pairs = recorded[name]
        n = min(1000, pairs.n)
        told = f"{name}, {n:,} items"
        changed = float((pairs.right[:, 0] != pairs.right[:, 1]).mean())
        lost, won = _outcomes(rng, repeats, n, 0.0, changed)
        yield _alarm(f"McNemar, {told}", mcnemar(lost, won) <= ALPHA)
        low, _ = _gold_bounds(rng, repeats, n, np.concatenate([pairs.gold, -pairs.gold]))
        yield _alarm(f"gold, {told}", low > paired.GOLD_MARGIN)
        yield _alarm(f"drift, {told}", _drift_resampled(rng, repeats, n, pairs))
    for n in (1000, WHOLE):
        for flips in (HEALTHY_FLIPS, 0.01, 0.06):
            failed = mcnemar(*_outcomes(rng, repeats, n, 0.0, flips)) <= ALPHA
            yield _alarm(f"McNemar, {n:,} items, flips {flips:.2%}, no loss", failed)
    for name, noise in _noises(rng, recorded):
        low, _ = _gold_bounds(rng, repeats, 1000, noise)
        yield _alarm(f"gold, 1,000 items, {name}, no loss", low > paired.GOLD_MARGIN)
        low, _ = _gold_bounds(rng, repeats, 1000, noise - paired.GOLD_MARGIN)
        yield _edge(f"fails, gold, 1,000 items, {name}", low > paired.GOLD_MARGIN)
    healthy = drift.HEALTHY
    for n in (100, 1000, WHOLE):
        moved, flips = (rng.binomial(n, s, repeats) for s in (healthy.moved, healthy.flips))
        failed = _drifted(n, moved, flips, healthy)
        yield _alarm(f"drift, {n:,} items, both shares at the limit", failed)


def _noises(
    rng: np.random.Generator, recorded: dict[str, Pairs]
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Differences without a loss: recorded ones less their mean, and a heavy-tailed one."""
    for name in ("fp8 KV cache", "CPU bf16 ~ fp32"):
        if name in recorded:
            gold = recorded[name].gold
            yield f"noise of {name}", gold - gold.mean()
    heavy = rng.standard_t(3, 100_000) * 0.02
    yield "heavy tails (t, 3 degrees)", heavy - heavy.mean()


def _wrong_passes(rng: np.random.Generator, repeats: int) -> Iterator[Row]:
    """Servers exactly as bad as a limit: each gate states a risk of `MISS` of passing them."""
    k = rng.binomial(200, 0.60, repeats)
    yield _edge("passes, floor 0.6, 200 items", lower_bound(k, 200, MISS) > 0.6)
    for n in (536, 1000, 2000, WHOLE):
        for flips in (HEALTHY_FLIPS, 0.01, 0.06):
            lost, won = _outcomes(rng, repeats, n, paired.MARGIN, flips)
            passed = paired.excluded(lost, won, n, paired.MARGIN)
            passed &= mcnemar(lost, won) > ALPHA
            yield _edge(f"passes, Tango, {n:,} items, flips {flips:.2%}", passed)
    gold = rng.standard_t(3, 100_000) * 0.02
    _, high = _gold_bounds(rng, repeats, 1000, gold - gold.mean() - paired.GOLD_MARGIN)
    yield _edge("passes, gold, 1,000 items, heavy tails", high < paired.GOLD_MARGIN)
    moved = rng.binomial(200, drift.EFFECT, repeats)
    yield _edge("passes, drift, 200 items", upper_bound(moved, 200, MISS) < drift.EFFECT)


def _seen(rng: np.random.Generator, repeats: int, recorded: dict[str, Pairs]) -> Iterator[Row]:
    for name, sizes in (
        ("fp8 KV cache", (100, 500)),
        ("CPU bf16 ~ fp32", (100, 1000)),
        ("CPU bf16 ~ fp16", (100,)),
    ):
        for n in sizes if name in recorded else ():
            failed = _drift_resampled(rng, repeats, n, recorded[name])
            yield _power(f"drift, {name}, {n:,} items", failed, 100.0)
    if "fp8 KV cache" in recorded:
        pairs = recorded["fp8 KV cache"]
        for n in (500, 2000, WHOLE):
            few = min(repeats, 10_000)
            low, _ = _gold_bounds(rng, few, n, pairs.gold)
            yield _power(f"gold, fp8 KV cache, {n:,} items", low > paired.GOLD_MARGIN, None)
            failed = _lost_resampled(rng, repeats, n, pairs)
            yield _power(f"McNemar, fp8 KV cache, {n:,} items", failed, None)
    for n, threshold, share in ((200, 0.6, 0.5), (200, 0.6, 0.4), (200, 0.3, 0.15)):
        failed = upper_bound(rng.binomial(n, share, repeats), n, ALPHA) < threshold
        yield _power(f"floor {threshold:g}, {n} items, accuracy {share:g}", failed, None)


def _power_curve(rng: np.random.Generator, repeats: int) -> Iterator[Row]:
    """Losses among symmetric flips: exact power, and the loss that 99 % of runs would show."""
    for n, loss in ((1000, 0.02), (WHOLE, 0.003)):
        told = f"McNemar, {n:,} items, {100 * loss:g} points lost"
        failed = mcnemar(*_outcomes(rng, repeats, n, loss, HEALTHY_FLIPS)) <= ALPHA
        yield _power(f"{told}, flips {HEALTHY_FLIPS:.2%} (counted)", failed)
        for flips in FLIPS:
            aim = 99.0 if flips <= HEALTHY_FLIPS else None
            yield _power(f"{told}, flips {flips:.2%}", mcnemar_power(n, loss, flips, ALPHA), aim)
    for n in (1000, WHOLE):
        for flips in FLIPS:
            loss = brentq(lambda x: mcnemar_power(n, x, flips, ALPHA) - 0.99, 1e-6, 0.5)  # noqa: B023
            name = f"loss that McNemar sees 99 % of the time, {n:,} items, flips {flips:.2%}"
            yield name, [100 * loss], "points", None, False


def _side_by_side(rng: np.random.Generator, repeats: int) -> Iterator[Row]:
    """Three rules, healthy and with 2 points lost. The first two meet other items every time."""
    unpaired_n = math.ceil(
        (norm.isf(0.05) + norm.isf(0.2)) ** 2 * 2 * ACCURACY * (1 - ACCURACY) / 0.03**2
    )
    for loss, told in ((0.0, "healthy"), (0.02, "2 points lost")):
        for threshold in (0.30, ACCURACY - 0.03):
            failed = rng.binomial(200, ACCURACY - loss, repeats) <= threshold * 200
            name = f"published floor {threshold:.2f}, 200 items"
            yield f"fails, {told}: {name}", [100 * failed.mean()], "%", None, False
        for n in (1000, unpaired_n):
            before = rng.binomial(n, ACCURACY, repeats) / n
            after = rng.binomial(n, ACCURACY - loss, repeats) / n
            mean = (before + after) / 2
            failed = before - after > norm.isf(0.05) * np.sqrt(2 * mean * (1 - mean) / n)
            name = f"unpaired test, alpha 5 %, {n:,} items"
            yield f"fails, {told}: {name}", [100 * failed.mean()], "%", None, False
        for n in (200, 1000):
            failed = mcnemar(*_outcomes(rng, repeats, n, loss, HEALTHY_FLIPS)) <= ALPHA
            name = f"McNemar, {n:,} items"
            yield f"fails, {told}: {name}", [100 * failed.mean()], "%", None, False


# -- recordings ---------------------------------------------------------------------------------


def _recorded() -> dict[str, Pairs]:
    found = {}
    for name, folder, baseline, candidate in (
        ("base ~ base2", RECORDED, "base", "base2"),
        ("base ~ nograph", RECORDED, "base", "nograph"),
        ("fp8 KV cache", RECORDED, "base_cached_prefix", "kvfp8_cached_prefix"),
        ("CPU bf16 ~ again", ON_CPU, "bfloat16", "bfloat16_again"),
        ("CPU cached ~ again", ON_CPU, "cached_prefix", "cached_prefix_again"),
        ("CPU cached ~ one by one", ON_CPU, "cached_prefix", "cached_prefix_one_by_one"),
        ("CPU bf16 ~ fp32", ON_CPU, "bfloat16", "float32"),
        ("CPU bf16 ~ fp16", ON_CPU, "bfloat16", "float16"),
    ):
        paths = [folder / f"{run}.jsonl.gz" for run in (baseline, candidate)]
        if not all(path.exists() for path in paths):
            print(f"left out, not here: {name}", file=sys.stderr)
            continue
        rows = [
            [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
            for path in paths
        ]
        known = {row["ind"] for row in rows[1]}
        found[name] = align([row for row in rows[0] if row["ind"] in known], rows[1])
    return found
