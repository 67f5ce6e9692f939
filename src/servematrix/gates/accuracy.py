"""Accuracy on a multiple-choice set: a floor, and agreement between two ways of asking."""

from __future__ import annotations

import math

from servematrix.gates.verdict import Verdict


def floor(correct: int, n: int, *, threshold: float) -> Verdict:
    """Demand that `correct` of `n` answers be a share above `threshold` (a fraction).

    This is the published point-estimate rule. Its uncertainty is told, not used: the standard
    error is that of a binomial share, sqrt(p (1 - p) / n).
    """
    rule = f"accuracy > {threshold:.3f} over the items asked (point estimate)"
    if n < 1:
        return Verdict("error", rule, "no item was scored, so there is no accuracy to judge")
    accuracy = correct / n
    error = math.sqrt(accuracy * (1.0 - accuracy) / n)
    numbers = {
        "n": n,
        "correct": correct,
        "accuracy": accuracy,
        "standard_error": error,
        "accuracy_threshold": threshold,
    }
    found = f"{correct} of {n} right, accuracy {accuracy:.3f} (standard error {error:.3f})"
    if accuracy > threshold:
        return Verdict("pass", rule, found, numbers)
    advice = "check weights, quantisation and chat template, or the floor for this model"
    return Verdict("fail", rule, f"{found}: not above {threshold:.3f}; {advice}", numbers)


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
