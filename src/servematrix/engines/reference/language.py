"""The language model behind the embedded server: n-grams of any order, trained at start.

It learns from the text beside it, so that log-probabilities, greedy decoding and prefill agree by
construction and an answer comes from what the text says. A model of small order shares the counts
of a large one and serves as its draft.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Iterator
from importlib import resources

from servematrix.engines.reference.automaton import EMPTY, Automaton, Context
from servematrix.engines.reference.tokenizer import MESSAGE_END, MESSAGE_START, Tokenizer

__all__ = ["MESSAGE_END", "MESSAGE_START", "LanguageModel", "State", "Tokenizer", "load"]

State = tuple[Context, Context | None]
"""The context, and what it was at the line's last question mark, if there was one."""

_DOCUMENT_END = "\n***\n"
_WRAP = 64  # tokens of the start repeated after the end, so that the last document has a successor
_LARGEST_ORDER = 256  # each token of context may leave 0.8 of the mass: far from underflow


class LanguageModel:
    """Next-token probabilities given at most `order` tokens of context; see `load`.

    A question is often followed by an instruction on how to answer ("Reply with one word.") that
    does not change the answer. So the model also remembers where it was at the line's last question
    mark, and at the end of the line goes on from there if more of its text is known that way.
    """

    def __init__(self, tokenizer: Tokenizer, automaton: Automaton, order: int) -> None:
        if not 1 <= order <= _LARGEST_ORDER:
            raise ValueError(f"order is {order}; give 1 to {_LARGEST_ORDER} tokens of context")
        self.tokenizer = tokenizer
        self.order = order
        self.automaton = automaton
        (self._question,) = tokenizer.encode("?")
        self._line_ends = frozenset(tokenizer.encode("\n" + MESSAGE_END))

    def start(self) -> State:
        """Return the state at the beginning of a text."""
        return self.advance((EMPTY, None), self.tokenizer.eos)

    def advance(self, state: State, token: int) -> State:
        """Return the state after one more token."""
        context, asked = state
        context = self.automaton.follow(context, token, self.order)
        if token == self._question:
            return context, context
        if asked is not None and token in self._line_ends:
            other = self.automaton.follow(asked, token, self.order)
            return (other if other[1] > context[1] else context), None
        return context, asked

    def logprob(self, state: State, token: int) -> float:
        """Return the natural logarithm of P(token | state); finite for every token."""
        return math.log(self.automaton.probability(state[0], token))

    def top(self, state: State, k: int) -> list[tuple[float, int]]:
        """Return the `k` most probable tokens as (log-probability, token), ties by token."""
        context = state[0]
        if k == 1:
            best = [self.automaton.best(context)]
        else:
            best = list(itertools.islice(self.automaton.ranking(context), k))
        return [(math.log(-cost), token) for cost, token in best]

    def sample(
        self, state: State, *, temperature: float, top_p: float, top_k: int, rng: random.Random
    ) -> int:
        """Draw a token from P ** (1 / temperature), kept to `top_k` tokens and to `top_p` of mass.

        `temperature` 0 or `top_k` 1 take the most probable token; `top_k` below 1 keeps all.
        """
        context = state[0]
        if temperature <= 0 or top_k == 1:
            return self.automaton.best(context)[1]
        exponent = 1 / temperature
        total = self.automaton.power_sum(context, exponent)
        weighted: Iterator[tuple[float, int]] = (
            (math.pow(-cost, exponent), token) for cost, token in self.automaton.ranking(context)
        )
        if top_k > 1:
            weighted = itertools.islice(weighted, top_k)
        if top_k > 1 or top_p < 1:
            kept = _until(weighted, top_p * total)
            total = math.fsum(weight for weight, _ in kept)
            weighted = iter(kept)
        return _until(weighted, rng.random() * total)[-1][1]


def _until(weighted: Iterator[tuple[float, int]], mass: float) -> list[tuple[float, int]]:
    """Take pairs until their weights reach `mass`; at least one."""
    kept: list[tuple[float, int]] = []
    for weight, token in weighted:
        kept.append((weight, token))
        mass -= weight
        if mass <= 0:
            break
    return kept


@functools.cache
def _trained() -> tuple[Tokenizer, Automaton]:
    corpus = resources.files(__package__).joinpath("corpus.txt").read_text(encoding="utf-8")
    documents = corpus.strip("\n").split(_DOCUMENT_END)
    tokenizer = Tokenizer(documents)
    tokens = [tokenizer.eos]
    for document in documents:
        tokens += tokenizer.encode(document)
        tokens.append(tokenizer.eos)
    return tokenizer, Automaton(tokens + tokens[1:_WRAP], tokenizer.vocabulary_size)


def load(order: int = 32) -> LanguageModel:
    """Return a model that looks at most `order` tokens back, trained on the packaged corpus."""
    tokenizer, automaton = _trained()
    return LanguageModel(tokenizer, automaton, order)
