"""Speculative decoding: a small draft model proposes a chain, the target model verifies it.

The draft is a language model of the same text with a much shorter memory. Every accepted token
is the one that the target would have produced anyway, drawn in the same order, so speculation
changes the number of rounds and never the text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from servematrix.engines.reference.sequence import Sequence

if TYPE_CHECKING:
    from servematrix.engines.reference.language import LanguageModel, State

Pick = Callable[[Sequence, "State", int], int]
"""Chooses the target's next token: (sequence, state, number of outputs before it)."""


@dataclass(frozen=True)
class Speculator:
    """A target, its draft, and the length of the chains that the draft proposes."""

    target: LanguageModel
    draft: LanguageModel
    steps: int

    def run(self, sequence: Sequence, pick: Pick) -> list[int]:
        """One round: the next tokens, from 1 (no draft token was right) to ``steps`` + 1."""
        chain = self._propose(sequence)
        state = sequence.states[-1]
        before = len(sequence.output)
        accepted: list[int] = []
        for position in range(self.steps + 1):
            token = pick(sequence, state, before + position)
            accepted.append(token)
            if position == self.steps or chain[position] != token:
                break
            state = self.target.advance(state, token)
        return accepted

    def count(self, sequence: Sequence, correct: int) -> None:
        """Notes a round with ``correct`` draft tokens in the sequence's own statistics."""
        if not sequence.accepted:
            sequence.accepted = [0] * (self.steps + 1)
        sequence.accepted[correct] += 1
        sequence.verify_steps += 1
        sequence.correct_drafts += correct
        sequence.proposed_drafts += self.steps

    def _propose(self, sequence: Sequence) -> list[int]:
        """The draft's greedy continuation of everything in the sequence."""
        state = sequence.draft_state
        if state is None:
            state = self.draft.start()
        seen, prompt = sequence.draft_seen, sequence.prompt
        for token in prompt[seen:]:
            state = self.draft.advance(state, token)
        for token in sequence.output[max(0, seen - len(prompt)) :]:
            state = self.draft.advance(state, token)
        sequence.draft_state = state
        sequence.draft_seen = len(prompt) + len(sequence.output)
        chain: list[int] = []
        for _ in range(self.steps):
            token = self.draft.top(state, 1)[0][1]
            chain.append(token)
            state = self.draft.advance(state, token)
        return chain
