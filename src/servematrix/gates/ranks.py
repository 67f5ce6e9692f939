"""What the fresh windows of all ranks say together: pass, fail, or not clear.

Each rank is decided by itself, as `sequential` tells. Then two things may still take the word
back: a forward-time counter that disagrees with the gauge, and later windows that disagree with the
decision.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from servematrix.gates import sequential
from servematrix.gates.sequential import Decision, Rule
from servematrix.gates.verdict import SEVERITY, Verdict, worst
from servematrix.gates.windows import Reduction, Span, Windows, deciding_rank, span


@dataclass(frozen=True)
class Weighed:
    """The outcome, why, and the rank that decided: its decision, its counter against its gauge."""

    outcome: Literal["pass", "fail", "inconclusive"]
    reason: str
    rank: str
    decision: Decision
    span: Span | None


def weigh(
    ranks: Mapping[str, Windows], rule: Rule, *, reduction: Reduction, counter_tolerance: float
) -> Weighed:
    """Put the decisions on all ranks together; there is at least one rank, and a window in each.

    With the reduction `min` one rank that fails is enough to fail and all must pass to pass, with
    `max` the other way round. `inconclusive` where that is not clear, where gauge and counter of
    any rank differ by more than `counter_tolerance` points, and where the windows after the
    start-up are on the other side of the threshold than the decision. Raises `ValueError` where a
    counter ran backwards.
    """
    decisions = {name: sequential.decide(w.values, w.shown, rule) for name, w in ranks.items()}
    outcomes = [decision.outcome for decision in decisions.values()]
    strict, lenient = ("fail", "pass") if reduction == "min" else ("pass", "fail")
    overall = strict if strict in outcomes else None if None in outcomes else lenient
    alike = {name: ranks[name] for name in ranks if decisions[name].outcome == overall}
    rank = deciding_rank(alike, reduction) or next(iter(alike))
    decision = decisions[rank]
    spans = {name: span(windows) for name, windows in ranks.items()}
    outcome, reason = _told(ranks[rank], decision, rule)
    apart = {
        name: s.difference
        for name, s in spans.items()
        if s is not None and s.difference > counter_tolerance
    }
    if apart:
        name = max(apart, key=lambda key: apart[key])
        outcome = "inconclusive"
        reason += (
            f"; but gauge and forward-time counter of rank {name} are {apart[name]:.2f} points"
            " apart over the same span: one of them is wrong, measure again"
        )
    return Weighed(outcome, reason, rank, decision, spans[rank])


def standing(ranks: Mapping[str, Windows], rule: Rule, reduction: Reduction) -> Decision | None:
    """Return how the decision stands on the rank that decides so far; None without a window.

    It is for whoever waits, and no verdict: gauge and counter are not compared.
    """
    rank = deciding_rank(ranks, reduction)
    return None if rank is None else sequential.decide(ranks[rank].values, ranks[rank].shown, rule)


def _told(
    windows: Windows, decision: Decision, rule: Rule
) -> tuple[Literal["pass", "fail", "inconclusive"], str]:
    """Put a decision on one rank into words; one that later windows contradict is none."""
    level, where = _level(windows, rule)
    above = f"above {rule.threshold:g} %"
    found = f"median {level:.2f} % over {where}"
    blocks = f"{decision.good} of {decision.good + decision.bad} blocks {above}"
    if decision.outcome is None:
        return "inconclusive", (
            f"{found}; {blocks} when the request ended, a lead of {sequential.LEAD} decides: not"
            " clear; raise fwd_occupancy_max_new_tokens, or measure again on a quieter host"
        )
    decided = f"{blocks} after {decision.seconds:.1f} s"
    if (level > rule.threshold) != (decision.outcome == "pass"):
        return "inconclusive", (
            f"{found}, but {decided}: the server changed while it was measured; measure again"
        )
    if decision.outcome == "pass":
        return "pass", f"{found}; {decided}"
    advice = "look at the overlap scheduler, CUDA graphs and CPU load on the host"
    return "fail", f"{found}: not {above}; {decided}; {advice}"


def _level(windows: Windows, rule: Rule) -> tuple[float, str]:
    """Return the median after the start-up, of all windows where none is later; and of which."""
    later = [
        value
        for value, shown in zip(windows.values, windows.shown, strict=True)
        if shown > rule.startup_seconds
    ]
    if len(later) < rule.block_windows:
        return statistics.median(windows.values), f"{len(windows.values)} windows"
    return statistics.median(later), f"{len(later)} windows after the start-up"


def every_rank(verdicts: Sequence[Verdict]) -> Verdict:
    """Put the verdicts on requests that were sent to one data-parallel rank each together.

    The worst decides, with its numbers; `ranks` is how many were measured. `inconclusive` where
    they pass and met fewer ranks than there are, so that one was not measured.
    """
    decisive = max(verdicts, key=lambda verdict: SEVERITY.index(verdict.outcome))
    met = {verdict.numbers.get("rank") for verdict in verdicts} - {None}
    numbers = {**decisive.numbers, "ranks": len(met)}
    decisive = replace(decisive, numbers=numbers, alpha=worst(verdicts).alpha)
    rank = decisive.numbers.get("rank")
    reason = f"rank {rank}, the worst of {len(verdicts)}: {decisive.reason}"
    if decisive.outcome == "pass" and len(met) < len(verdicts):
        reason = (
            f"requests for {len(verdicts)} ranks met {len(met)} only: the server sends requests"
            " where it likes (does it know routed_dp_rank?), so a slow rank may have gone unseen"
        )
        return replace(decisive, outcome="inconclusive", reason=reason)
    return replace(decisive, reason=reason)
