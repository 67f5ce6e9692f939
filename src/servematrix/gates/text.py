"""Is an answer right, readable, free of loops and repeatable? Rules on the text alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from servematrix.gates.verdict import Verdict

PRINTABLE_SHARE = 0.85
"""Published limit: English reads above 0.9, token salad of broken weights well below 0.5."""

NGRAM_SHARE = 0.25
"""Published limit on the share of the most frequent 5-gram."""

_N = 5
_SHORTEST = 50
"""Characters (published) below which a text is too short to call it a loop."""
_FEWEST_WORD_GRAMS = 12
"""Word 5-grams below which three equal ones could be chance; a loop of 64 tokens has more."""
_CUT = 200
_ADVICE = "check weights, attention backend and KV cache"


def quote(text: str, limit: int = _CUT) -> str:
    """Show `text` for a message: escaped and cut to about `limit` characters."""
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}… ({len(text)} characters)"


def first_line(text: str) -> str:
    """Return the first line that has something in it, stripped; empty where there is none."""
    return text.strip().split("\n", 1)[0].strip()


def contains(text: str, expected: str) -> Verdict:
    """Demand that the answer contain `expected`, whatever the case of its letters."""
    rule = f"the greedy answer contains {expected!r}"
    if expected.lower() in text.lower():
        return Verdict("pass", rule, f"found in {quote(first_line(text))}")
    return Verdict("fail", rule, f"not found in {quote(text)}; {_ADVICE}")


def readable(text: str) -> Verdict:
    """Demand that more than 0.85 of the characters be printable ASCII, newline or tab."""
    rule = f"printable-ASCII share > {PRINTABLE_SHARE}"
    if not text:
        return Verdict("fail", rule, f"the answer is empty; {_ADVICE}")
    printable = sum(1 for c in text if " " <= c <= "~" or c in "\n\t")
    share = printable / len(text)
    numbers = {"printable_share": share, "characters": len(text)}
    if share > PRINTABLE_SHARE:
        return Verdict("pass", rule, f"share {share:.3f}", numbers)
    reason = f"share {share:.3f}, the answer looks like noise: {quote(text)}; {_ADVICE}"
    return Verdict("fail", rule, reason, numbers)


def unrepetitive(text: str) -> Verdict:
    """Demand that the most frequent 5-gram make up less than 0.25 of all, by characters and words.

    A loop of p units holds p different 5-grams, each with a share of 1/p. Characters catch a run
    of one sign; a phrase of four words goes round after some twenty characters, a share of 0.05,
    and is caught by words alone.
    """
    rule = f"share of the most frequent 5-gram < {NGRAM_SHARE}, by characters and by words"
    if not text:
        return Verdict("fail", rule, f"the answer is empty; {_ADVICE}")
    words = text.split()
    by_characters = _top_share(text) if len(text) >= _SHORTEST else 0.0
    by_words = _top_share(words) if len(words) - _N + 1 >= _FEWEST_WORD_GRAMS else 0.0
    share = max(by_characters, by_words)
    numbers = {"top_5gram_characters": by_characters, "top_5gram_words": by_words}
    if share < NGRAM_SHARE:
        return Verdict("pass", rule, f"largest share {share:.3f}", numbers)
    reason = f"largest share {share:.3f}, the answer goes round: {quote(text)}; {_ADVICE}"
    return Verdict("fail", rule, reason, numbers)


def same(first: str, second: str) -> Verdict:
    """Demand that two greedy answers agree up to the first newline, and that there is one."""
    rule = "two greedy answers agree up to the first newline"
    one, two = first_line(first), first_line(second)
    if not one or not two:
        return Verdict("fail", rule, f"an answer is empty: {quote(first)}, {quote(second)}")
    if one == two:
        return Verdict("pass", rule, f"both times {quote(one)}")
    reason = f"{quote(one)} and then {quote(two)}; look at sampling and the prefix cache"
    return Verdict("fail", rule, reason)


def one_token(text: str, completion_tokens: int) -> Verdict:
    """Demand that an answer limited to one token have text, and that one token be accounted."""
    rule = "max_new_tokens=1 gives one token with text"
    numbers = {"completion_tokens": completion_tokens}
    if text and completion_tokens == 1:
        return Verdict("pass", rule, f"one token, {quote(text)}", numbers)
    reason = f"{completion_tokens} tokens, text {quote(text)}; look at the one-step decode path"
    return Verdict("fail", rule, reason, numbers)


def _top_share(sequence: Sequence[str]) -> float:
    """Return the share of the most frequent 5-gram among all 5-grams of a sequence."""
    grams = Counter(tuple(sequence[i : i + _N]) for i in range(len(sequence) - _N + 1))
    return max(grams.values()) / grams.total()
