"""Does greedy decoding give right, readable, repeatable text: one prompt at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import ClassVar

from servematrix.gates import text as gate
from servematrix.gates.verdict import Verdict
from servematrix.kits.base import Kit, concludes

_KIT = "decode_correctness"
_PARIS = "Q: What is the capital of France?\nA:"
_STORY = "Continue this story. On a sunny day in the park,"
_STOPPED_TOKENS = 32
"""Few, so that the same question is unlikely to get two answers."""

PROBES: dict[str, str] = {
    "capital_france": "name the capital of France",
    "basic_math": "multiply",
    "color_completion": "name the primary colors",
    "ascii_ratio": "write readable English",
    "no_repetition_blowup": "write without going round in circles",
    "determinism_temp_zero": "answer twice alike",
    "max_token_one": "answer with one token",
}
"""The probes, and what a model must be able to do for each to mean something."""


def _probe(
    method: Callable[[BasicDecodeCorrectnessMixin], Verdict],
) -> Callable[[BasicDecodeCorrectnessMixin], Verdict]:
    """Ask only what the model can answer; the probe `x` is the method `test_x`."""

    @functools.wraps(method)
    def ask(self: BasicDecodeCorrectnessMixin) -> Verdict:
        return _excused(
            method.__name__.removeprefix("test_"), self.decode_correctness_probes
        ) or method(self)

    return ask


def _excused(probe: str, answerable: Sequence[str]) -> Verdict | None:
    rule = "decode_correctness_probes names the probes that the model can answer"
    unknown = sorted(set(answerable) - set(PROBES))
    if unknown:
        reason = f"unknown probes {', '.join(unknown)}; known are {', '.join(PROBES)}"
        return Verdict("error", rule, reason)
    if probe in answerable:
        return None
    reason = f"the configuration says this model cannot {PROBES[probe]}"
    return Verdict("not_applicable", rule, reason)


class BasicDecodeCorrectnessMixin(Kit):
    """Cheap probes of output quality.

    `decode_correctness_probes` names those that the model can answer; the rest are not applicable.
    Token limits are those of one answer; the timeout is in seconds.
    """

    kit: ClassVar[str] = _KIT
    decode_correctness_probes: Sequence[str] = tuple(PROBES)
    """Probes that the model can answer; the others are not applicable."""
    decode_correctness_timeout: float = 120.0
    """Seconds that one request may take."""
    sanity_max_new_tokens_short: int = 64
    """Most tokens of a short answer."""
    sanity_max_new_tokens_long: int = 128
    """Most tokens of a long answer."""

    @concludes(_KIT, beside_others=True)
    @_probe
    def test_capital_france(self) -> Verdict:
        """Guards against weights or attention so wrong that the commonest fact is lost."""
        return gate.contains(self.__answer(_PARIS), "paris")

    @concludes(_KIT, beside_others=True)
    @_probe
    def test_basic_math(self) -> Verdict:
        """Guards against numeric damage, such as quantisation, that fluent text would hide."""
        return gate.contains(self.__answer("Q: What is 17 multiplied by 23?\nA:"), "391")

    @concludes(_KIT, beside_others=True)
    @_probe
    def test_color_completion(self) -> Verdict:
        """Guards against a prefill that loses track of what the prompt listed."""
        prompt = "Painters start from three colors. The three primary colors are red, blue, and"
        return gate.contains(self.__answer(prompt), "yellow")

    @concludes(_KIT, beside_others=True)
    @_probe
    def test_ascii_ratio(self) -> Verdict:
        """Guards against token salad: weights loaded wrongly, or sampling from noise."""
        return gate.readable(self.__answer(_STORY, self.sanity_max_new_tokens_long))

    @concludes(_KIT, beside_others=True)
    @_probe
    def test_no_repetition_blowup(self) -> Verdict:
        """Guards against a KV cache or attention that makes the model loop on one phrase."""
        prompt = "Explain gravity in a few sentences. Gravity is"
        return gate.unrepetitive(self.__answer(prompt, self.sanity_max_new_tokens_long))

    # alone: what shares its batch may turn a near tie
    @concludes(_KIT)
    @_probe
    def test_determinism_temp_zero(self) -> Verdict:
        """Guards against sampling at temperature zero, and a prefix cache that changes answers."""
        return gate.same(self.__answer(_PARIS), self.__answer(_PARIS))

    @concludes(_KIT, beside_others=True)
    @_probe
    def test_max_token_one(self) -> Verdict:
        """Guards against step counting that fails where prefill is followed by no decoding."""
        answer = self._kit_generate(_PARIS, 1, self.decode_correctness_timeout)
        return gate.one_token(answer.text, answer.meta_info.completion_tokens)

    @concludes(_KIT, beside_others=True)
    def test_stop_string(self) -> Verdict:
        """Guards against answers that run past the stop string that an application relies on."""
        whole = self.__answer(_STORY, _STOPPED_TOKENS)
        stop = gate.stop_within(whole)
        if stop is None:
            reason = f"the model says too little to stop it in the middle: {gate.quote(whole)}"
            return Verdict("not_applicable", gate.STOP_RULE, reason)
        body = self.client.generate(
            _STORY,
            max_new_tokens=_STOPPED_TOKENS,
            stop=stop,
            timeout=self.decode_correctness_timeout,
        )
        return gate.stopped(self._kit_parsed(body).text, whole=whole, stop=stop)

    def __answer(self, prompt: str, max_new_tokens: int | None = None) -> str:
        limit = max_new_tokens or self.sanity_max_new_tokens_short
        return self._kit_generate(prompt, limit, self.decode_correctness_timeout).text
