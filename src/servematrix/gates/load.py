"""Does a server stay right under load: many questions at once, one very long prompt?"""

from __future__ import annotations

from collections.abc import Mapping

from servematrix.gates.text import quote
from servematrix.gates.verdict import Number, Verdict

MISSES_ALLOWED = 1
"""Published: one stochastic miss among eight; a broken prefix cache gets most of them wrong."""

LENGTH_TOLERANCE = 0.05
"""Largest relative distance of a prompt's length from what was aimed at."""


def at_once(problems: Mapping[str, str | None], *, allowed: int = MISSES_ALLOWED) -> Verdict:
    """Demand that at most `allowed` of the questions asked at once went wrong.

    `problems` maps each question to what was wrong with its answer, None where nothing was.
    """
    rule = f"of {len(problems)} questions at once at most {allowed} is missed"
    missed = {question: problem for question, problem in problems.items() if problem}
    numbers = {"questions": len(problems), "missed": len(missed)}
    if not problems:
        return Verdict("error", rule, "no question was asked", numbers)
    told = "; ".join(f"{question}: {problem}" for question, problem in missed.items())
    if len(missed) <= allowed:
        return Verdict("pass", rule, f"{len(missed)} missed" + (f" ({told})" * bool(told)), numbers)
    advice = "look at the scheduler and the prefix cache"
    return Verdict("fail", rule, f"{len(missed)} missed: {told}; {advice}", numbers)


def long_prompt(
    text: str, *, prompt_tokens: int, aimed: int, cached_tokens: int, context: int | None
) -> Verdict:
    """Demand an answer to a prompt that really was as long as aimed at, and was computed.

    All lengths in tokens. A prompt that missed its length, or came out of the prefix cache, did
    not exercise chunked prefill: an error, not a finding about the server.
    """
    rule = f"a prompt of {aimed} tokens, computed and not cached, is answered with text"
    numbers: dict[str, Number] = {
        "prompt_tokens": prompt_tokens,
        "aimed_tokens": aimed,
        "cached_tokens": cached_tokens,
        "context_tokens": context,
    }
    if abs(prompt_tokens - aimed) > LENGTH_TOLERANCE * aimed:
        reason = (
            f"the prompt had {prompt_tokens} tokens instead of {aimed}: the server counts tokens"
            " otherwise here than in its /tokenize or its usage"
        )
        return Verdict("error", rule, reason, numbers)
    if cached_tokens > LENGTH_TOLERANCE * prompt_tokens:
        reason = (
            f"{cached_tokens} of {prompt_tokens} prompt tokens came from the cache although the"
            " prompt is new: the long prefill was not exercised"
        )
        return Verdict("error", rule, reason, numbers)
    if not text:
        reason = f"no text after {prompt_tokens} prompt tokens; look at chunked prefill"
        return Verdict("fail", rule, reason, numbers)
    return Verdict("pass", rule, f"{prompt_tokens} tokens, answer {quote(text, 80)}", numbers)
