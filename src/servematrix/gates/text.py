"""Is an answer right, readable, free of loops and repeatable? Rules on the text alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from servematrix.gates.verdict import Verdict

PRINTABLE_SHARE = 0.85
"""Published limit: English reads above 0.9, token salad of broken weights well below 0.5."""

NGRAM_SHARE = 0.25
"""Published limit on the share of the most frequent 5-gram."""

LOOP_SHARE = 0.5
"""Share of the words from which a loop at the end fails an answer: no text of sense repeats one
phrase over its second half."""

_N = 5
_SHORTEST = 50
"""Characters (published) below which a text is too short to call it a loop."""
_FEWEST_WORD_GRAMS = 12
"""Word 5-grams below which three equal ones could be chance; a loop of 64 tokens has more."""
STOP_RULE = "with a stop string the greedy answer ends where that string would begin"
_WORD = re.compile(r"\b[A-Za-z]{3,}")
_FEWEST_LOOPED = 12
"""Words below which a loop could be a refrain; one of 64 tokens has more."""
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
    """Demand that more than `PRINTABLE_SHARE` of the characters be printable ASCII.

    Newline and tab count as such; an empty answer fails.
    """
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
    """Demand that the most frequent 5-gram make up less than 0.25 of all, and that no loop end it.

    A loop of p units holds p different 5-grams, each with a share of 1/p. Characters catch a run
    of one sign, words a phrase of three; a longer phrase has a share below the published limit, so
    the text must not end with one that comes three times or more either and makes up half of it.
    """
    rule = (
        f"share of the most frequent 5-gram < {NGRAM_SHARE}, by characters and by words, and no"
        f" phrase three times or more at the end, in {LOOP_SHARE} of the words"
    )
    if not text:
        return Verdict("fail", rule, f"the answer is empty; {_ADVICE}")
    words = text.split()
    by_characters = _top_share(text) if len(text) >= _SHORTEST else 0.0
    by_words = _top_share(words) if len(words) - _N + 1 >= _FEWEST_WORD_GRAMS else 0.0
    share = max(by_characters, by_words)
    looped = _looped_share(words)
    numbers = {
        "top_5gram_characters": by_characters,
        "top_5gram_words": by_words,
        "looped_share": looped,
    }
    found = f"largest share {share:.3f}, {looped:.0%} of the words in a loop"
    if share < NGRAM_SHARE and looped < LOOP_SHARE:
        return Verdict("pass", rule, found, numbers)
    return Verdict("fail", rule, f"{found}: it goes round: {quote(text)}; {_ADVICE}", numbers)


def same(first: str, second: str) -> Verdict:
    """Demand that two greedy answers have the same first line, and that neither is empty."""
    rule = "two greedy answers agree up to the first newline"
    one, two = first_line(first), first_line(second)
    if not one or not two:
        return Verdict("fail", rule, f"an answer is empty: {quote(first)}, {quote(second)}")
    if one == two:
        return Verdict("pass", rule, f"both times {quote(one)}")
    reason = f"{quote(one)} and then {quote(two)}; look at sampling and the prefix cache"
    return Verdict("fail", rule, reason)


def stop_within(text: str) -> str | None:
    """Return a word from the second half of an answer to stop it at; None where there is none.

    The word has three letters or more and does not occur before, as a part of another neither.
    """
    for match in _WORD.finditer(text, len(text) // 2):
        if text.find(match.group()) == match.start():
            return match.group()
    return None


def stopped(text: str, *, whole: str, stop: str) -> Verdict:
    """Demand that an answer with a stop string be the `whole` one up to it."""
    cut = whole[: whole.index(stop)]
    if text.rstrip() == cut.rstrip():
        return Verdict("pass", STOP_RULE, f"ended at {stop!r}")
    if stop in text:
        reason = f"{stop!r} stands in {quote(text)}; look at the stop strings of the detokeniser"
        return Verdict("fail", STOP_RULE, reason)
    reason = (
        f"{quote(text)} where {quote(cut)} was expected before {stop!r}: the same question had two"
        " answers; look at sampling and the prefix cache"
    )
    return Verdict("inconclusive", STOP_RULE, reason)


def one_token(text: str, completion_tokens: int) -> Verdict:
    """Demand that an answer limited to one token have text, and that one token be accounted."""
    rule = "max_new_tokens=1 gives one token with text"
    numbers = {"completion_tokens": completion_tokens}
    if text and completion_tokens == 1:
        return Verdict("pass", rule, f"one token, {quote(text)}", numbers)
    reason = f"{completion_tokens} tokens, text {quote(text)}; look at the one-step decode path"
    return Verdict("fail", rule, reason, numbers)


def _looped_share(words: Sequence[str]) -> float:
    """Return the share of the words in the longest loop at the end, 0 without three rounds."""
    longest = 0
    for period in range(1, len(words) // 3 + 1):
        end = len(words)
        while end > period and words[end - 1] == words[end - 1 - period]:
            end -= 1
        covered = len(words) - end + period
        if covered >= max(3 * period, _FEWEST_LOOPED):
            longest = max(longest, covered)
    return longest / len(words) if words else 0.0


def _top_share(sequence: Sequence[str]) -> float:
    """Return the share of the most frequent 5-gram among all 5-grams of a sequence."""
    grams = Counter(tuple(sequence[i : i + _N]) for i in range(len(sequence) - _N + 1))
    return max(grams.values()) / grams.total()
