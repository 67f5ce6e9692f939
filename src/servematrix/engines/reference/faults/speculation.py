"""Speculation whose drafts, verification or accounts are wrong."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from servematrix.engines.reference.faults.catalogue import Faults
from servematrix.engines.reference.sequence import Sequence
from servematrix.engines.reference.speculation import Pick, Speculator


@dataclass(frozen=True)
class FaultySpeculator(Speculator):
    """A speculator with the faults that concern it."""

    faults: Faults = field(default_factory=dict)
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    def run(self, sequence: Sequence, pick: Pick) -> list[int]:
        """One round; a wrong draft token may be let through in place of the target's."""
        accepted = super().run(sequence, pick)
        share = self.faults.get("drafts-unverified", 0.0)
        if len(accepted) <= self.steps and self._random.random() < share:
            # the last token is the target's own where the draft was wrong
            accepted[-1] = self.draft.top(self.draft.start(), 1)[0][1]
        return accepted

    def count(self, sequence: Sequence, correct: int) -> None:
        """Notes a round, as one in which every draft was right where the account is wrong."""
        super().count(sequence, self.steps if "accept-miscounted" in self.faults else correct)

    def _propose(self, sequence: Sequence) -> list[int]:
        if "drafts-rejected" in self.faults:
            return [self.target.tokenizer.eos] * self.steps
        return super()._propose(sequence)
