"""Do CUDA graphs run where they must, and nowhere else: counted forward passes by batch size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from servematrix.gates.verdict import Number, Verdict

Expected = Literal["on", "off"]

FEWEST_PASSES = 10
MUST_SHARE = 0.95
"""Least share of decode passes with a graph up to the largest captured batch. A recorded server
had 2,488 of 2,489."""
MAY_SHARE = 0.5
"""Largest share above it: a batch grows and shrinks through sizes that have a graph. Measured: 0 %
plain and 16 % with speculation, whose requests take few passes."""


@dataclass(frozen=True, slots=True)
class Passes:
    """Decode passes with (`graph`) and without (`eager`) a CUDA graph, at a batch of so many."""

    batch: int
    graph: int
    eager: int

    @property
    def share(self) -> float:
        """The share of passes with a graph."""
        return self.graph / (self.graph + self.eager)


def judge(
    passes: Sequence[Passes], *, enabled: bool, max_bs: int | None, expected: Expected | None
) -> Verdict:
    """Demand graphs at each batch up to `max_bs`, none above, and none where they are off.

    `enabled` and `max_bs` are what the server says of itself, None where it does not tell how far
    graphs reach; then only a batch of one is judged. `expected` is what the configuration wants.
    """
    rule = (
        f"CUDA graphs in {MUST_SHARE:.0%} or more of the decode passes up to the largest captured"
        f" batch, in at most {MAY_SHARE:.0%} above it, in none where they are off"
    )
    numbers: dict[str, Number] = {"graphs_enabled": enabled, "max_bs": max_bs}
    for one in passes:
        numbers[f"graph_passes_at_{one.batch}"] = one.graph
        numbers[f"eager_passes_at_{one.batch}"] = one.eager
    if expected is not None and enabled != (expected == "on"):
        reason = (
            f"CUDA graphs are {'on' if enabled else 'off'} and the configuration wants them"
            f" {expected}: look at --disable-cuda-graph in the server's command line"
        )
        return Verdict("fail", rule, reason, numbers)
    few = [
        one
        for one in passes
        if one.graph + one.eager < FEWEST_PASSES or min(one.graph, one.eager) < 0
    ]
    if few or not passes:
        at = few[0] if few else Passes(0, 0, 0)
        reason = (
            f"{at.graph + at.eager} decode passes were counted at a batch of {at.batch},"
            f" {FEWEST_PASSES} are needed: does something else reset the counter?"
        )
        return Verdict("error", rule, reason, numbers)
    faults = [told for one in passes if (told := _fault(one, enabled, max_bs))]
    found = "; ".join(f"{one.share:.0%} at a batch of {one.batch}" for one in passes)
    if not faults:
        reach = f"graphs up to {max_bs}" if enabled and max_bs else "the largest batch is not told"
        return Verdict("pass", rule, f"{found} ({reach if enabled else 'graphs off'})", numbers)
    return Verdict("fail", rule, f"{'; '.join(faults)}; all: {found}", numbers)


def _fault(one: Passes, enabled: bool, max_bs: int | None) -> str | None:
    shown = f"{one.graph} of {one.graph + one.eager} decode passes at a batch of {one.batch}"
    if not enabled:
        return f"{shown} used a CUDA graph although they are off" if one.graph else None
    if one.batch <= (max_bs or 1):
        if one.share >= MUST_SHARE:
            return None
        return (
            f"only {shown} used a CUDA graph: look in the log for a capture that failed, and at"
            " what keeps a batch from being replayed"
        )
    if one.share <= MAY_SHARE:
        return None
    return f"{shown} used a CUDA graph, which is captured up to {max_bs} only"
