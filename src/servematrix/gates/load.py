"""Does a server stay right under load: many questions at once, one very long prompt?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from servematrix.gates.proportions import upper_bound
from servematrix.gates.text import quote
from servematrix.gates.verdict import Number, Verdict

MISSES_ALLOWED = 1
"""Published: one stochastic miss among eight; a broken prefix cache gets most of them wrong."""

SMALLEST_RATE = 0.01
"""Share of dropped requests that a server is to be caught with."""

LENGTH_TOLERANCE = 0.05
"""Largest relative distance of a prompt's length from what was aimed at."""


@dataclass(frozen=True)
class Unanswered:
    """A question that got no answer, and why."""

    problem: str


def at_once(
    answers: Mapping[str, str | Unanswered],
    expected: Mapping[str, str],
    *,
    allowed: int = MISSES_ALLOWED,
) -> Verdict:
    """Demand an answer to every question asked at once, and at most `allowed` wrong ones.

    An answer is right where it contains what is expected, whatever the case. A question without an
    answer is never a miss that may happen: a model can be wrong, a server must answer.
    """
    rule = f"all {len(expected)} questions at once are answered, at most {allowed} of them wrongly"
    missed: list[str] = []
    unanswered: list[str] = []
    for question, word in expected.items():
        answer = answers.get(question, Unanswered("it was not asked"))
        if isinstance(answer, Unanswered):
            unanswered.append(f"{question}: {answer.problem}")
        elif not word or word.lower() not in answer.lower():
            missed.append(f"{question}: no {word!r} in {quote(answer, 60)}")
    numbers = {
        "questions": len(expected),
        "missed": len(missed),
        "unanswered": len(unanswered),
    }
    if not expected:
        return Verdict("error", rule, "no question was asked", numbers)
    told = "; ".join([*unanswered, *missed])
    found = f"{len(unanswered)} unanswered, {len(missed)} missed" + (f" ({told})" if told else "")
    if not unanswered and len(missed) <= allowed:
        return Verdict("pass", rule, found, numbers)
    return Verdict("fail", rule, f"{found}; look at the scheduler and the prefix cache", numbers)


def all_served(problems: Sequence[str], asked: int) -> Verdict:
    """Demand that every one of `asked` small requests be served; `problems` are the others.

    `power` is the probability that a server which drops `SMALLEST_RATE` of its requests, each on
    its own, is caught. Where none was dropped, `rate_at_most` is the largest rate that 95 % of such
    measurements would have caught: 1 - 0.05^(1/asked), three in `asked`.
    """
    rule = f"all of {asked} small requests are served"
    numbers: dict[str, Number] = {"asked": asked, "unserved": len(problems)}
    if asked < 1:
        return Verdict("error", rule, "nothing was asked", numbers)
    power = 1.0 - (1.0 - SMALLEST_RATE) ** asked
    if not problems:
        bound = float(upper_bound(0, asked, 0.05))
        numbers["rate_at_most"] = bound
        reason = f"none was dropped: the rate is at most {100 * bound:.2g} % (95 % confidence)"
        return Verdict("pass", rule, reason, numbers, power=power)
    share = len(problems) / asked
    reason = f"{len(problems)} dropped, {100 * share:.2g} %; the first: {quote(problems[0])}"
    return Verdict("fail", rule, reason, numbers, power=power)


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
