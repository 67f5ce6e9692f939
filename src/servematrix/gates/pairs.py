"""Two runs over the same items, put side by side, or a plain word on why they cannot be.

A row is one item as a run recorded it: `ind`, `label` (the right ending), `lp` (the sum of each
ending's token log-probabilities, natural logarithm), `nt` (each ending's tokens); `checksum` (of
the item's text) where it is known; `n0` and `cached` (the context's tokens; those of each ending's
prompt that came from the cache) where the endings were scored through the prefix cache.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Row = Mapping[str, Any]

FEWEST_ITEMS: Final = 100
"""Items below which no pair of runs is judged: no gate on pairs could pass one, and the mean of a
hundred differences is the least that is near enough to normal for a risk of one in a thousand."""

CACHED_APART: Final = 0.1
"""Largest gap between the shares of context tokens that came from the cache. Scoring with and
without the cache differed in 30 of 2,000 predictions of one healthy server."""


class PairingError(ValueError):
    """Two runs that cannot be compared; the message names the items and says what to do."""


@dataclass(frozen=True)
class Pairs:
    """Two runs over the same `n` items, in the baseline's order.

    `baseline` and `candidate` are the mean log-probabilities of the endings' tokens, in nats a
    token, one row an item and one column an ending; `labels` are the right columns. `cached` tells
    that both runs were scored through the prefix cache, not with whole prompts.
    """

    labels: NDArray[np.int64]
    baseline: NDArray[np.float64]
    candidate: NDArray[np.float64]
    cached: bool

    @property
    def n(self) -> int:
        """Return the number of items."""
        return len(self.labels)

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """Whether each item was answered rightly, a column each for baseline and candidate.

        The answer is the ending with the largest mean; the first of equals.
        """
        answers = [run.argmax(axis=1) == self.labels for run in (self.baseline, self.candidate)]
        return np.stack(answers, axis=1)

    @cached_property
    def flipped(self) -> NDArray[np.bool_]:
        """Whether each item got another answer, right or wrong."""
        flipped: NDArray[np.bool_] = self.baseline.argmax(axis=1) != self.candidate.argmax(axis=1)
        return flipped

    @cached_property
    def gold(self) -> NDArray[np.float64]:
        """Each item's right ending: candidate minus baseline, in nats a token."""
        items = np.arange(self.n)
        gold: NDArray[np.float64] = (self.candidate - self.baseline)[items, self.labels]
        return gold

    @cached_property
    def moved(self) -> NDArray[np.float64]:
        """By how much each item's log-probabilities moved: mean |Δ| of its endings, nats a token.

        Rounded to nine digits: a sum that is recorded with six must not differ by its division.
        """
        moved: NDArray[np.float64] = np.abs(self.candidate - self.baseline).mean(axis=1).round(9)
        return moved


def align(baseline: Sequence[Row], candidate: Sequence[Row]) -> Pairs:
    """Put the rows of two runs side by side, by `ind`.

    Raises `PairingError` where a row is not whole (a number that is NaN included), an item is
    missing or there twice, items differ in text, label or tokens, the runs were scored differently,
    there are fewer than `FEWEST_ITEMS`, or they cannot show a difference: all labels the same, or
    all of the baseline's answers.
    """
    a, b = _by_ind(baseline, "baseline"), _by_ind(candidate, "candidate")
    _same(a, b)
    if len(a) < FEWEST_ITEMS:
        raise PairingError(f"{len(a)} items are too few to compare: score {FEWEST_ITEMS} or more")
    labels = np.array([row["label"] for row in a.values()])
    cached = "n0" in next(iter(a.values()))
    pairs = Pairs(labels, _means(a.values()), _means(b[ind] for ind in a), cached)
    for chosen, told in (
        (labels, "label of all items: the items were not loaded as they should be"),
        (
            pairs.baseline.argmax(axis=1),
            "answer of the baseline to all items: its log-probabilities say nothing (dummy"
            " weights?); take another baseline",
        ),
    ):
        if len(np.unique(chosen)) < 2:
            raise PairingError(f"one class only: {chosen[0]} is the {told}")
    return pairs


def _means(rows: Iterable[Row]) -> NDArray[np.float64]:
    return np.array([[lp / nt for lp, nt in zip(r["lp"], r["nt"], strict=True)] for r in rows])


def _by_ind(rows: Sequence[Row], run: str) -> dict[int, Row]:
    for number, row in enumerate(rows):
        problem = problem_of(row)
        if problem is not None:
            raise PairingError(f"row {number} of the {run}: {problem}; score the items again")
    counts = Counter(row["ind"] for row in rows)
    doubled = [ind for ind, count in counts.items() if count > 1]
    if doubled:
        raise PairingError(f"more than once in the {run}: {_named(doubled)}; keep one row each")
    lengths = sorted({len(row["lp"]) for row in rows})
    if len(lengths) > 1:
        raise PairingError(
            f"items of the {run} have {lengths} endings: compare items with as many each"
        )
    return {row["ind"]: row for row in rows}


def problem_of(row: Row) -> str | None:
    """Return what is wrong with a row of any content, None where it is whole."""
    if not isinstance(row, Mapping):
        return f"an item is an object, found {type(row).__name__}"
    missing = [key for key in ("ind", "label", "lp", "nt") if key not in row]
    if missing:
        return f"no {', '.join(missing)}"
    name = f"item {row['ind']}"
    if not _whole(row["ind"]) or not _whole(row["label"]):
        return f"{name} with label {row['label']!r}: whole numbers are expected"
    lp, nt = row["lp"], row["nt"]
    if not isinstance(lp, list | tuple) or not isinstance(nt, list | tuple) or len(lp) != len(nt):
        return f"{name}: lp and nt are not two lists of one length"
    if len(lp) < 2 or not 0 <= row["label"] < len(lp):
        return f"{name}: {len(lp)} endings and label {row['label']}"
    if not all(_whole(tokens) and tokens > 0 for tokens in nt):
        return f"{name}: nt is {list(nt)}, tokens are counted from 1"
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in lp):
        return f"{name}: lp is {list(lp)}, not finite numbers"
    if ("n0" in row) != ("cached" in row):
        return f"{name}: n0 and cached belong together, one is missing"
    if "n0" in row and not (_whole(row["n0"]) and row["n0"] > 0 and _counts(row["cached"])):
        return f"{name}: n0 {row['n0']!r} and cached {row['cached']!r} are no counts of tokens"
    return None


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _counts(values: object) -> bool:
    if not isinstance(values, list | tuple) or not values:
        return False
    return all(_whole(value) and value >= 0 for value in values)


def _same(a: Mapping[int, Row], b: Mapping[int, Row]) -> None:
    """Raise `PairingError` where the runs do not hold the same items, scored the same way."""
    for one, other, lacking in ((a, b, "candidate"), (b, a, "baseline")):
        missing = [ind for ind in one if ind not in other]
        if missing:
            raise PairingError(f"missing in the {lacking}: {_named(missing)}; score the same items")
    if not a:
        raise PairingError("both runs are empty: score the items first")
    share_a, share_b = _share_cached(a, "baseline"), _share_cached(b, "candidate")
    if share_a is None or share_b is None:
        if share_a is not share_b:
            run = "baseline" if share_a is None else "candidate"
            raise PairingError(
                f"scored differently: the {run} with the whole prompt (no n0 and cached), the"
                " other through the prefix cache; healthy runs differ there, score both alike"
            )
    elif abs(share_a - share_b) > CACHED_APART:
        raise PairingError(
            f"scored differently: {share_a:.0%} of the baseline's context tokens came from the"
            f" prefix cache, {share_b:.0%} of the candidate's; score both alike"
        )
    _agree(a, b, lambda row: row["label"], "not the same items, by their labels")
    _agree(a, b, lambda row: list(row["nt"]), "another tokenizer or model, by the endings' tokens")
    _agree(
        a,
        b,
        lambda row: row.get("n0"),
        "other examples or another tokenizer, by the contexts' lengths",
    )
    known = {ind: row for ind, row in a.items() if "checksum" in row and "checksum" in b[ind]}
    _agree(
        known, b, lambda row: row["checksum"], "not the same items, by the checksums of their texts"
    )


def _share_cached(run: Mapping[int, Row], name: str) -> float | None:
    """Return the share of context tokens that came from the cache; None for whole prompts."""
    through = [row for row in run.values() if "n0" in row]
    if not through:
        return None
    if len(through) < len(run):
        raise PairingError(
            f"{len(through)} of {len(run)} items of the {name} were scored through the prefix cache"
            " and the others with the whole prompt: score them all alike"
        )
    context = sum(row["n0"] * len(row["cached"]) for row in through)
    return float(sum(sum(row["cached"]) for row in through) / context)


def _agree(
    a: Mapping[int, Row], b: Mapping[int, Row], key: Callable[[Row], object], told: str
) -> None:
    differing = [ind for ind, row in a.items() if key(row) != key(b[ind])]
    if differing:
        raise PairingError(f"{told}: {_named(differing)} differ between the runs")


def _named(inds: Sequence[int], most: int = 5) -> str:
    names = ", ".join(map(str, inds[:most]))
    beyond = f" and {len(inds) - most} more" if len(inds) > most else ""
    return f"item{'s' if len(inds) > 1 else ''} {names}{beyond}"
