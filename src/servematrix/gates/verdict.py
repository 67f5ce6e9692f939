"""What a gate returns: an outcome together with the rule, the reason and the numbers behind it.

A verdict explains itself. Whoever reads one in a record, long after the server is gone, must be
able to tell what was demanded and what was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

Outcome = Literal["pass", "fail", "inconclusive", "not_applicable", "error"]
Number = float | int | str | bool | None

# From best to worst. A proven fault outranks a measurement that went wrong beside it: the fault
# would still be there after the measurement is repeated.
SEVERITY: Final[tuple[Outcome, ...]] = ("not_applicable", "pass", "inconclusive", "error", "fail")


@dataclass(frozen=True)
class Verdict:
    """The outcome of one gate.

    `rule` states what was demanded, with its limits; `reason` what was found and, unless it is a
    pass, what to do about it; `alpha` is the rule's chance of failing a healthy server, `power` its
    chance of failing one that is worse by the smallest effect of interest, where they are known.
    """

    outcome: Outcome
    rule: str
    reason: str
    numbers: Mapping[str, Number] = field(default_factory=dict)
    alpha: float | None = None
    power: float | None = None


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Join verdicts on one test: the worst outcome wins, and every rule and reason is told.

    The order is fail, error, inconclusive, pass, not applicable. The most severe reason comes
    first. Numbers are merged; `alpha` is the sum of the parts' (a union bound) and `power` their
    least, where all have one.
    """
    if not verdicts:
        raise ValueError("there is no verdict to join")
    ranked = sorted(verdicts, key=lambda verdict: -SEVERITY.index(verdict.outcome))
    numbers: dict[str, Number] = {}
    for verdict in verdicts:
        numbers.update(verdict.numbers)
    alphas = [verdict.alpha for verdict in verdicts if verdict.alpha is not None]
    powers = [verdict.power for verdict in verdicts if verdict.power is not None]
    return Verdict(
        outcome=ranked[0].outcome,
        rule="; ".join(verdict.rule for verdict in verdicts),
        reason="; ".join(verdict.reason for verdict in ranked),
        numbers=numbers,
        alpha=sum(alphas) if len(alphas) == len(verdicts) else None,
        power=min(powers) if len(powers) == len(verdicts) else None,
    )
