"""Language models that are wrong in their weights, in prefill and decoding alike."""

from __future__ import annotations

import random

from servematrix.engines.reference.faults.catalogue import Faults
from servematrix.engines.reference.language import LanguageModel, State

_CANDIDATES = 16
"""Tokens among which the likeliest is looked for once their log-probabilities are off."""


def put_into(model: LanguageModel, faults: Faults) -> LanguageModel:
    """The model with the faults of its weights, if any."""
    if "weights-random" in faults:
        return _Scrambled(model)
    if "accuracy-loss" in faults:
        return _Distorted(model, faults["accuracy-loss"])
    return model


class _Scrambled(LanguageModel):
    """Each token has the probabilities of another one."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model.tokenizer, model.automaton, model.order)
        shuffled = list(range(model.tokenizer.vocabulary_size))
        random.Random(0).shuffle(shuffled)
        self._shown = shuffled
        self._meant = {shown: meant for meant, shown in enumerate(shuffled)}

    def logprob(self, state: State, token: int) -> float:
        """That of the token that this one stands for."""
        return super().logprob(state, self._meant[token])

    def top(self, state: State, k: int) -> list[tuple[float, int]]:
        """The most probable ones under their wrong names."""
        return [(value, self._shown[token]) for value, token in super().top(state, k)]

    def sample(
        self, state: State, *, temperature: float, top_p: float, top_k: int, rng: random.Random
    ) -> int:
        """One under its wrong name."""
        token = super().sample(state, temperature=temperature, top_p=top_p, top_k=top_k, rng=rng)
        return self._shown[token]


class _Distorted(LanguageModel):
    """Log-probabilities off by an amount that depends on the context and the token alone."""

    def __init__(self, model: LanguageModel, deviation: float) -> None:
        """``deviation``: standard deviation of the error, in nats."""
        super().__init__(model.tokenizer, model.automaton, model.order)
        self._deviation = deviation

    def logprob(self, state: State, token: int) -> float:
        """The true one and its error."""
        return self._off(super().logprob(state, token), state, token)

    def top(self, state: State, k: int) -> list[tuple[float, int]]:
        """The most probable tokens by what `logprob` says."""
        best = super().top(state, max(k, _CANDIDATES))
        off = [(self._off(value, state, token), token) for value, token in best]
        return sorted(off, key=lambda pair: (-pair[0], pair[1]))[:k]

    def _off(self, value: float, state: State, token: int) -> float:
        node, length = state[0]
        error = random.Random(f"{node} {length} {token}").gauss(0.0, self._deviation)
        return min(0.0, value + error)  # no probability is above 1
