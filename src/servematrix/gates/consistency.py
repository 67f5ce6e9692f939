"""Does decoding compute what prefill computes? The same tokens' log-probabilities, both ways.

A token that was decoded and then scored by prefill, after a cache flush, gets two log-probabilities
from the same server. Both paths round differently, so they differ a little; a broken decode path
(KV cache, attention kernel, CUDA graph, verification of drafts) makes them differ a lot. No
reference answers are needed, so this works for any model and for random weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from servematrix.gates.verdict import Number, Verdict

FEWEST_TOKENS = 200
"""Tokens of a part below which its 99th percentile is only its largest value."""

FEWEST_DOUBTS = 10.0
"""Least sum of (1 - p) over a part's tokens: one that a model is sure of shows no rounding."""

SPREAD = 0.01
"""Nats between the likeliest and the least likely token of all below which they say nothing: with
the dummy weights of SGLang every token of an 8B shape had the same log-probability to six digits,
and a broken decode path would have shown nothing."""

_ALIKE = (
    "all tokens have the same log-probability, as with dummy weights, so decode and prefill agree"
    " whatever they compute; take real weights"
)
_ADVICE = "look at KV cache (dtype, layout), attention backend, CUDA graphs and speculation"


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest differences that rounding explains; nats, except `top1`, a share of tokens.

    `relative` bounds the sum of |decode - prefill| over the sum of (1 - p), p the tokens'
    probabilities: to first order a logit that is off by d moves the log-probability by (1 - p) d,
    so this is the same for a text that the model is sure of and one that it is not. `mean` and
    `p99` bound |decode - prefill| over one part, `worst_sequence` its mean over any one sequence,
    `largest_gap` how far below prefill's likeliest token a decoded one may lie; at least the share
    `top1` must be prefill's likeliest.
    """

    relative: float
    mean: float
    p99: float
    worst_sequence: float
    largest_gap: float
    top1: float

    def scaled(self, factor: float) -> Limits:
        """Return the limits of a dtype that rounds `factor` times as coarsely."""
        return Limits(
            relative=self.relative * factor,
            mean=self.mean * factor,
            p99=self.p99 * factor,
            worst_sequence=self.worst_sequence * factor,
            largest_gap=self.largest_gap * factor,
            top1=self.top1,
        )


_BFLOAT16 = Limits(
    relative=0.14, mean=0.035, p99=0.26, worst_sequence=0.07, largest_gap=0.5, top1=0.97
)
LIMITS: Mapping[str, Limits] = {
    "bfloat16": _BFLOAT16,
    "float16": _BFLOAT16.scaled(1 / 8),
    "float32": _BFLOAT16.scaled(1 / 8),
}
"""Limits by the dtype in which a model computes.

bfloat16: between what SmolLM2-135M read on SGLang 0.5.16, healthy and with an fp8 (e5m2) KV cache
(docs/validation.md): relative 0.045 to 0.061 against 0.28 to 0.35, mean 0.010 to 0.026 against
0.047 to 0.115, 99th percentile 0.09 to 0.15 against 0.44 to 0.83, worst sequence 0.037 against
0.13, largest gap 0.25 against 0.75 to 3.4. Logits of 16 to 32 are 0.125 apart in bfloat16, so
0.5 is four roundings. float16 has three bits more, and measured an eighth of each. float32 on a
CPU measured a thousandth of that again, but GPU kernels may multiply it as TF32, which has the
significand of float16.
"""


@dataclass(frozen=True, slots=True)
class Compared:
    """One sequence: log-probabilities (nats) of its decoded tokens, by decoding and by prefill.

    `top` is that of prefill's likeliest token at each place. All three are of equal length.
    """

    name: str
    decode: Sequence[float]
    prefill: Sequence[float]
    top: Sequence[float]

    def __post_init__(self) -> None:
        if not self.decode or not len(self.decode) == len(self.prefill) == len(self.top):
            raise ValueError(f"{self.name}: not as many values of each kind, or none")

    @property
    def delta(self) -> list[float]:
        """Decode minus prefill, per token."""
        return [d - p for d, p in zip(self.decode, self.prefill, strict=True)]

    @property
    def gaps(self) -> list[float]:
        """How far each token lies below prefill's likeliest; 0 where it is the likeliest."""
        return [t - p for t, p in zip(self.top, self.prefill, strict=True)]


@dataclass(frozen=True, slots=True)
class Summary:
    """One part, such as all sequences decoded at one concurrency, in numbers as in `Limits`.

    `tokens` is their count, `largest` the largest |decode - prefill| of one token (nats),
    `worst_name` the sequence that `worst_sequence` is the mean of.
    """

    tokens: int
    mean: float
    p99: float
    largest: float
    top1: float
    largest_gap: float
    worst_sequence: float
    worst_name: str
    relative: float | None = None
    """None where the model is sure of nearly every token, or probabilities were not kept."""
    spread: float | None = None
    """Between the largest and the smallest log-probability of all tokens."""


def summarise(sequences: Sequence[Compared]) -> Summary:
    """Reduce the sequences of one part. Raises `ValueError` where there are none."""
    if not sequences:
        raise ValueError("there is no sequence to compare")
    gaps = [gap for one in sequences for gap in one.gaps]
    return reduced(
        [(one.name, one.delta) for one in sequences],
        top1=share_likeliest(gaps),
        largest_gap=max(gaps),
        scored=[value for one in sequences for value in one.prefill],
    )


def share_likeliest(gaps: Sequence[float]) -> float:
    """Return the share of tokens that are prefill's likeliest: those without a gap below it."""
    return sum(gap <= 0 for gap in gaps) / len(gaps)


def reduced(
    deltas: Sequence[tuple[str, Sequence[float]]],
    *,
    top1: float,
    largest_gap: float,
    scored: Sequence[float] | None,
) -> Summary:
    """Reduce one part that was kept as differences, decode minus prefill.

    `deltas` are the name of each sequence and its tokens' differences; none is empty, and there is
    one at least. `scored` are prefill's log-probabilities of all tokens, None where they were not
    kept.
    """
    every = sorted(abs(value) for _, delta in deltas for value in delta)
    total = math.fsum(every)
    doubt = math.fsum(1.0 - math.exp(value) for value in scored or ())
    means = [
        (math.fsum(abs(value) for value in delta) / len(delta), name) for name, delta in deltas
    ]
    worst_sequence, worst_name = max(means, key=lambda one: one[0])
    return Summary(
        tokens=len(every),
        mean=total / len(every),
        p99=every[math.ceil(0.99 * len(every)) - 1],
        largest=every[-1],
        top1=top1,
        largest_gap=largest_gap,
        worst_sequence=worst_sequence,
        worst_name=worst_name,
        relative=total / doubt if doubt >= FEWEST_DOUBTS else None,
        spread=max(scored) - min(scored) if scored else None,
    )


def judge(
    parts: Mapping[str, Summary], limits: Limits, *, dtype: str, context: str = ""
) -> Verdict:
    """Hold every part against the limits on its own: a fault may sit in one batch size only.

    `parts` are named for messages, such as "concurrency 4"; `context` is told beside a failure,
    such as the KV cache's dtype. Too few tokens, or a value that is no number, are an error.
    """
    rule = (
        f"decode and prefill agree as {dtype} rounding allows, in every part: |Δ log-probability|"
        f" ≤ {limits.relative:.3g} (1 - p), mean ≤ {limits.mean:.3g}, 99th percentile"
        f" ≤ {limits.p99:.3g}, no sequence's mean > {limits.worst_sequence:.3g}, no token"
        f" > {limits.largest_gap:.3g} nats below prefill's likeliest, {limits.top1:.1%} or more of"
        " them the likeliest"
    )
    if not parts:
        return Verdict("error", rule, "nothing was compared")
    numbers = _numbers(parts)
    for name, part in parts.items():
        if part.tokens < FEWEST_TOKENS:
            reason = f"{name}: {part.tokens} tokens are too few, {FEWEST_TOKENS} are needed"
            return Verdict("error", rule, reason, numbers)
        if not math.isfinite(part.mean + part.largest_gap):
            reason = f"{name}: a log-probability is no finite number"
            return Verdict("error", rule, reason, numbers)
        if part.spread is not None and part.spread < SPREAD:
            return Verdict("not_applicable", rule, f"{name}: {_ALIKE}", numbers)
    found = "; ".join(f"{name}: {_told(part)}" for name, part in parts.items())
    broken = {name: faults for name, part in parts.items() if (faults := _over(part, limits))}
    if not broken:
        return Verdict("pass", rule, found, numbers)
    told = "; ".join(f"{name}: {', '.join(faults)}" for name, faults in broken.items())
    only = "" if len(broken) == len(parts) else " (the other parts hold)"
    beside = f"; {context}" if context else ""
    return Verdict("fail", rule, f"{told}{only}{beside}; {_ADVICE}", numbers)


def verified(sequences: Sequence[Compared], *, near_tie: float, dtype: str) -> Verdict:
    """Demand that each decoded token be prefill's likeliest, or all but tie with it.

    `near_tie` (nats) is how far below it a token may lie: what rounding can turn round. A draft
    that was accepted wrongly lies anywhere below.
    """
    rule = (
        f"every token that speculation let through is the likeliest by prefill, or within"
        f" {near_tie:g} nats of it ({dtype} rounding)"
    )
    places = [(gap, one.name, place) for one in sequences for place, gap in enumerate(one.gaps)]
    if not places:
        return Verdict("error", rule, "no token was compared")
    gap, name, place = max(places)
    wrong = sum(gap > near_tie for gap, _, _ in places)
    ties = sum(0 < gap <= near_tie for gap, _, _ in places)
    numbers: dict[str, Number] = {
        "tokens": len(places),
        "wrong_tokens": wrong,
        "near_ties": ties,
        "largest_gap": gap,
        "near_tie_limit": near_tie,
    }
    if not all(math.isfinite(gap) for gap, _, _ in places):
        return Verdict("error", rule, "a log-probability is no finite number", numbers)
    scored = [value for one in sequences for value in one.prefill]
    if max(scored) - min(scored) < SPREAD:
        return Verdict("not_applicable", rule, _ALIKE, numbers)
    found = f"{len(places)} tokens, {ties} near-ties, largest gap {gap:.3f} nats"
    if not wrong:
        return Verdict("pass", rule, found, numbers)
    reason = (
        f"{wrong} of {len(places)} tokens are not what the target would have said, worst {gap:.2f}"
        f" nats below its choice (token {place} of {name}): drafts are accepted wrongly, or the"
        " verifying pass computes other numbers; compare with speculation off"
    )
    return Verdict("fail", rule, reason, numbers)


def _over(part: Summary, limits: Limits) -> list[str]:
    """Say which limits a part breaks."""
    checks = (
        (
            part.relative is not None and part.relative > limits.relative,
            f"|Δ| {part.relative or 0.0:.3f} (1 - p) > {limits.relative:.3g}",
        ),
        (part.mean > limits.mean, f"mean |Δ| {part.mean:.4f} > {limits.mean:.3g}"),
        (part.p99 > limits.p99, f"99th percentile {part.p99:.3f} > {limits.p99:.3g}"),
        (
            part.worst_sequence > limits.worst_sequence,
            f"{part.worst_name} has mean |Δ| {part.worst_sequence:.4f}"
            f" > {limits.worst_sequence:.3g}",
        ),
        (
            part.largest_gap > limits.largest_gap,
            f"a token {part.largest_gap:.2f} nats below the likeliest > {limits.largest_gap:.3g}",
        ),
        (part.top1 < limits.top1, f"top-1 agreement {part.top1:.2%} < {limits.top1:.1%}"),
    )
    return [told for breaks, told in checks if breaks]


def _told(part: Summary) -> str:
    return (
        f"mean |Δ| {part.mean:.4f}, 99th percentile {part.p99:.3f}, top-1 {part.top1:.2%}, largest"
        f" gap {part.largest_gap:.2f} over {part.tokens} tokens"
    )


def _numbers(parts: Mapping[str, Summary]) -> dict[str, Number]:
    """Every part's numbers, and over all parts the worst of each."""
    every = list(parts.values())
    worst = max(every, key=lambda part: part.worst_sequence)
    numbers: dict[str, Number] = {
        "tokens": sum(part.tokens for part in every),
        "relative": max((p.relative for p in every if p.relative is not None), default=None),
        "mean": max(part.mean for part in every),
        "p99": max(part.p99 for part in every),
        "largest": max(part.largest for part in every),
        "top1": min(part.top1 for part in every),
        "largest_gap": max(part.largest_gap for part in every),
        "worst_sequence": worst.worst_sequence,
        "worst_sequence_name": worst.worst_name,
    }
    for name, part in parts.items():
        for key in ("relative", "mean", "p99", "top1", "largest_gap"):
            numbers[f"{key}, {name}"] = getattr(part, key)
    return numbers
