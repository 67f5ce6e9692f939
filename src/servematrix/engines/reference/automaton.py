"""Counts of every context of a text, however long, and the probabilities that follow from them.

A suffix automaton (Blumer et al., 1985) of the corpus holds all n-grams of all orders in memory
linear in the text; following its suffix links shortens the context, which is backing off.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from collections.abc import Iterator, Sequence

Context = tuple[int, int]
"""Automaton node and how many tokens of context it stands for."""

_ROOT = 0

EMPTY: Context = (_ROOT, 0)
"""No context at all."""

_DISCOUNT = 0.8  # of each count; on documents left out, perplexity is 45 here, 59 at 0.5, 46 at 0.9


class Automaton:
    """The contexts of a token sequence and the interpolated probabilities over them.

    A node stands for contexts that occur at the same places: the end tokens of its longest one,
    down to one token more than the longest context of `shorter`. The estimate is Kneser and Ney's
    (1995), interpolated over every length: a successor counts once for each distinct token that
    came before context and successor, every count gives up `_DISCOUNT`, and what they give up goes
    to the context that is one token shorter, from the empty one to the uniform distribution. Below
    the longest context of a node only one token ever came before, so that there every successor
    counts 1, and many such lengths in a row are a geometric series.
    """

    def __init__(self, tokens: Sequence[int], vocabulary_size: int) -> None:
        self.successors: list[dict[int, int]] = [{}]
        self.shorter: list[int] = [-1]
        self.lengths: list[int] = [0]
        self._build(tokens)
        size = len(self.successors)
        self._extensions = [0] * size
        for node in itertools.islice(self.shorter, 1, None):
            self._extensions[node] += 1
        self._vocabulary_size = vocabulary_size
        # Filled when first asked for: most contexts of a text are never met again.
        self._seen: list[dict[int, float] | None] = [None] * size
        self._left: list[float] = [1.0] * size
        self._ranked: dict[int, list[tuple[float, int]]] = {}
        self._best: dict[Context, tuple[float, int]] = {}

        counts = self._counts(_ROOT)
        total = sum(counts.values())
        self._unseen = _DISCOUNT * len(counts) / total / vocabulary_size
        self._seen[_ROOT] = {
            token: (count - _DISCOUNT) / total + self._unseen for token, count in counts.items()
        }

    def _build(self, tokens: Sequence[int]) -> None:
        """Build the suffix automaton (Blumer et al., 1985)."""
        successors, shorter, lengths = self.successors, self.shorter, self.lengths
        last = _ROOT
        for position, token in enumerate(tokens, start=1):
            new = len(successors)
            successors.append({})
            lengths.append(position)
            shorter.append(_ROOT)
            node = last
            while node != -1 and token not in successors[node]:
                successors[node][token] = new
                node = shorter[node]
            if node != -1:
                old = successors[node][token]
                if lengths[node] + 1 == lengths[old]:
                    shorter[new] = old
                else:
                    split = len(successors)
                    successors.append(successors[old].copy())
                    lengths.append(lengths[node] + 1)
                    shorter.append(shorter[old])
                    while node != -1 and successors[node].get(token) == old:
                        successors[node][token] = split
                        node = shorter[node]
                    shorter[old] = shorter[new] = split
            last = new

    def follow(self, context: Context, token: int, order: int) -> Context:
        """Return the longest known end, at most `order` tokens, of `context` and then `token`."""
        successors, shorter, lengths = self.successors, self.shorter, self.lengths
        node, length = context
        while token not in successors[node]:
            node = shorter[node]
            if node < 0:
                return EMPTY
            length = lengths[node]
        node = successors[node][token]
        length += 1
        if length > order:
            length = order
            while lengths[shorter[node]] >= length:
                node = shorter[node]
        return node, length

    def _counts(self, node: int) -> dict[int, int]:
        """Return how many distinct tokens stood before the longest context and each successor."""
        extended = self.lengths[node] + 1
        return {
            token: max(1, self._extensions[to]) if self.lengths[to] == extended else 1
            for token, to in self.successors[node].items()
        }

    def _longest(self, node: int) -> dict[int, float]:
        """Return the probability of each successor of the longest context of `node`."""
        seen = self._seen[node]
        if seen is not None:
            return seen
        chain = [node]
        while self._seen[self.shorter[chain[-1]]] is None:
            chain.append(self.shorter[chain[-1]])
        for deeper in reversed(chain):
            seen, left = self._within(deeper, self.lengths[deeper] - 1)
            counts = self._counts(deeper)
            total = sum(counts.values())
            if counts:
                given_up = _DISCOUNT * len(counts) / total
                seen = {
                    token: (count - _DISCOUNT) / total + given_up * seen[token]
                    for token, count in counts.items()
                }
                left *= given_up
            self._left[deeper], self._seen[deeper] = left, seen  # in this order: other threads read
        assert seen is not None
        return seen

    def _within(self, node: int, length: int) -> tuple[dict[int, float], float]:
        """Return the probabilities of the successors of a context shorter than the longest.

        The second value is the share left for all other tokens, by which their probability after
        the longest context of `shorter` is multiplied.
        """
        below = self._longest(self.shorter[node])
        successors = self.successors[node]
        if not successors:
            return {}, 1.0
        left = math.pow(_DISCOUNT, length - self.lengths[self.shorter[node]])
        own = (1 - left) / len(successors)
        return {token: own + left * below[token] for token in successors}, left

    def _after(self, context: Context) -> tuple[dict[int, float], float]:
        node, length = context
        if length < self.lengths[node]:
            return self._within(node, length)
        return self._longest(node), self._left[node]

    def _below(self, context: Context) -> Context:
        node = self.shorter[context[0]]
        return node, self.lengths[node]

    def probability(self, context: Context, token: int) -> float:
        """Return P(token | context), above 0 for every token of the vocabulary."""
        shares: list[float] = []
        while True:
            seen, left = self._after(context)
            found = seen.get(token)
            if found is not None or context[0] == _ROOT:
                break
            shares.append(left)
            context = self._below(context)
        probability = self._unseen if found is None else found
        # From the shortest context up, so that every way to a probability rounds the same.
        for share in reversed(shares):
            probability *= share
        return probability

    def best(self, context: Context) -> tuple[float, int]:
        """Return -P and the most probable token after `context`."""
        best = self._best.get(context)
        if best is None:
            best = self._best[context] = next(self.ranking(context))
        return best

    def ranking(self, context: Context) -> Iterator[tuple[float, int]]:
        """Yield -P and token over the whole vocabulary, most probable first, ties by token."""
        seen, left = self._after(context)
        node, length = context
        ranked = self._ranked.get(node) if length == self.lengths[node] else None
        if ranked is None:
            ranked = sorted((-value, token) for token, value in seen.items())
            if length == self.lengths[node]:
                self._ranked[node] = ranked
        if node == _ROOT:
            yield from ranked
            unseen = (token for token in range(self._vocabulary_size) if token not in seen)
            yield from ((-self._unseen, token) for token in unseen)
            return
        # What is left bounds every token that was not seen here.
        sure = 0
        while sure < len(ranked) and -ranked[sure][0] > left:
            yield ranked[sure]
            sure += 1
        shorter = self.ranking(self._below(context))
        rest = ((cost * left, token) for cost, token in shorter if token not in seen)
        yield from heapq.merge(ranked[sure:], rest)

    def power_sum(self, context: Context, exponent: float) -> float:
        """Return the sum of P ** exponent over the vocabulary."""
        if context[0] == _ROOT:
            return self._root_power_sum(exponent)
        seen, left = self._after(context)
        below = self._below(context)
        other = self.power_sum(below, exponent)
        under = self._longest(below[0])
        other -= math.fsum(math.pow(under[token], exponent) for token in seen)
        rest = max(0.0, other) * math.pow(left, exponent)
        return math.fsum(math.pow(value, exponent) for value in seen.values()) + rest

    @functools.lru_cache(maxsize=16)  # noqa: B019 - the automaton lives as long as the process
    def _root_power_sum(self, exponent: float) -> float:
        seen = self._longest(_ROOT).values()
        unseen = self._vocabulary_size - len(seen)
        rest = unseen * math.pow(self._unseen, exponent)
        return math.fsum(math.pow(value, exponent) for value in seen) + rest
