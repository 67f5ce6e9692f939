from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servematrix.gates import text

ENGLISH = (
    "Gravity is the pull between masses. The closer and heavier they are, the stronger it is, which"
    " is why an apple falls and why the moon stays near the earth year after year."
)


def test_contains_ignores_case():
    assert text.contains("The answer is PARIS.", "paris").outcome == "pass"
    assert text.contains("The answer is Rome.", "paris").outcome == "fail"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (ENGLISH, "pass"),
        ("a" * 86 + "\u00e9" * 14, "pass"),
        ("a" * 85 + "\u00e9" * 15, "fail"),
        ("\x00" * 40, "fail"),
        ("", "fail"),
    ],
)
def test_readable(answer, outcome):
    assert text.readable(answer).outcome == outcome


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (ENGLISH, "pass"),
        ("!" * 60, "fail"),
        (ENGLISH[:60] + "!" * 60, "fail"),
        ("the cat sat down " * 10, "fail"),
        ("!" * 49, "pass"),
        ("yes yes yes", "pass"),
        ("", "fail"),
    ],
)
def test_unrepetitive(answer, outcome):
    assert text.unrepetitive(answer).outcome == outcome


def test_a_loop_of_words_is_not_seen_by_characters():
    numbers = text.unrepetitive("the cat sat down " * 10).numbers
    assert numbers["top_5gram_characters"] < 0.25 <= numbers["top_5gram_words"]


@given(st.text())
def test_any_text_gets_a_verdict(answer):
    assert text.readable(answer).outcome in ("pass", "fail")
    assert text.unrepetitive(answer).outcome in ("pass", "fail")


def test_same_compares_first_lines():
    assert text.same(" Paris\nand", "\nParis \nor").outcome == "pass"
    assert text.same("Paris", "Rome").outcome == "fail"
    assert text.same("\n", "\n").outcome == "fail"


def test_one_token():
    assert text.one_token(" P", 1).outcome == "pass"
    assert text.one_token("", 1).outcome == "fail"
    assert text.one_token("Paris is", 2).outcome == "fail"


def test_long_answers_are_cut_in_messages():
    assert len(text.contains("x" * 5000, "paris").reason) < 400


@pytest.mark.parametrize(
    ("words", "outcome"),
    [
        # a phrase of ten words, below the published limit on 5-grams
        ("one two three four five six seven eight nine ten " * 4, "fail"),
        ("prose " + "a b c d e f " * 3 + "a b", "fail"),
        # twice is a refrain, and a loop over less than half of the words may end a list
        ("one two three four five six seven eight nine ten " * 2, "pass"),
        (" ".join(f"word{i}" for i in range(40)) + " so it is" * 4, "pass"),
    ],
)
def test_a_loop_at_the_end_is_seen_whatever_its_length(words, outcome):
    verdict = text.unrepetitive(words)
    assert verdict.outcome == outcome
    assert verdict.numbers["top_5gram_words"] < 0.25


def test_the_word_to_stop_at_is_in_the_second_half_and_new():
    assert text.stop_within("red and blue and then green") == "then"
    assert text.stop_within("anda and") is None
    assert text.stop_within("") is None


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("red and blue and ", "pass"),
        ("red and blue and", "pass"),
        ("red and blue and then green", "fail"),
        ("red and blue", "inconclusive"),
        ("", "inconclusive"),
    ],
)
def test_an_answer_ends_where_its_stop_string_would_begin(answer, outcome):
    whole = "red and blue and then green"
    assert text.stopped(answer, whole=whole, stop="then").outcome == outcome


# -- what is stated, and where the limits lie ---------------------------------------------------


@pytest.mark.parametrize(("edge", "counts"), [(" ", 1), ("~", 1), ("\n", 1), ("\t", 1), ("X", 1)])
def test_printable_reaches_from_space_to_tilde_with_newline_and_tab(edge, counts):
    assert text.readable(edge).numbers == {"printable_share": counts, "characters": 1}


@pytest.mark.parametrize("edge", ["\x1f", "\x7f", "\r", "é"])
def test_all_else_is_not_printable(edge):
    verdict = text.readable(edge + "a")
    assert (verdict.outcome, verdict.numbers["printable_share"]) == ("fail", 0.5)


def test_a_share_of_085_exactly_is_not_readable():
    verdict = text.readable("a" * 17 + "é" * 3)
    assert verdict.outcome == "fail"
    assert verdict.numbers == {"printable_share": 0.85, "characters": 20}


def test_characters_count_from_fifty_on():
    stated = {"top_5gram_characters": 0.0, "top_5gram_words": 0.0, "looped_share": 0.0}
    assert text.unrepetitive("!" * 49).numbers == stated
    verdict = text.unrepetitive("!" * 50)
    assert verdict.outcome == "fail"
    assert verdict.numbers == {**stated, "top_5gram_characters": 1.0}


def test_words_count_from_twelve_5_grams_on():
    assert text.unrepetitive("a " * 15).numbers["top_5gram_words"] == 0.0  # 11 of them
    assert text.unrepetitive("a " * 16).numbers["top_5gram_words"] == 1.0


def test_a_share_of_a_quarter_exactly_is_a_loop():
    sixfold = text.unrepetitive("a b c d e f a b c d e f a b c d")  # 12 word 5-grams, 2 alike
    assert (sixfold.outcome, sixfold.numbers["top_5gram_words"]) == ("pass", 2 / 12)
    thrice = text.unrepetitive("a b c d e a b c d e a b c d e z")  # 3 of 12, and no loop ends it
    assert (thrice.outcome, thrice.numbers["top_5gram_words"]) == ("fail", 0.25)
    assert thrice.numbers["looped_share"] == 0.0
    verdict = text.unrepetitive("a b c d a b c d a b c d a b c d")
    assert (verdict.outcome, verdict.numbers["top_5gram_words"]) == ("fail", 0.25)


def test_the_first_line_ends_at_the_first_of_many():
    assert text.first_line("\n  one \n two \n three \n") == "one"
    assert text.first_line(" \n") == ""


@pytest.mark.parametrize(("first", "second"), [("", "Paris"), ("Paris", "")])
def test_one_empty_answer_is_told_as_empty(first, second):
    verdict = text.same(first, second)
    assert verdict.outcome == "fail"
    assert verdict.reason.startswith("an answer is empty")


@pytest.mark.parametrize(("answer", "tokens"), [("P", 1), ("", 1), ("P", 0), ("P", 2)])
def test_the_tokens_of_a_one_token_answer_are_stated(answer, tokens):
    verdict = text.one_token(answer, tokens)
    assert verdict.outcome == ("pass" if answer and tokens == 1 else "fail")
    assert verdict.numbers == {"completion_tokens": tokens}


def test_a_quote_is_cut_beyond_its_limit_only():
    assert text.quote("abcd", 4) == "'abcd'"
    assert text.quote("abcde", 4) == "'abcd'… (5 characters)"


PHRASE = "one two three four five six seven eight nine ten eleven twelve"


def told(words: int) -> str:
    """So many words, no two of them alike."""
    return " ".join(f"w{i}" for i in range(words))


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        (f"{told(4)} {'a b c d ' * 3}", 12 / 16),
        (f"{told(4)} {'a b c d ' * 2}a b c", 0.0),  # not three rounds
        (f"{told(4)} {'a b c d ' * 3}a b", 14 / 18),  # the last round is cut
        (f"{told(4)} {'a b c ' * 3}a b", 0.0),  # 11 words
        (f"{told(4)} {'a b c ' * 4}", 12 / 16),
        (f"{'a b c d ' * 3}{told(1)}", 0.0),  # not at the end
        ("a b c d " * 3, 1.0),
        (f"{PHRASE} " * 3, 1.0),
        (told(40), 0.0),
        ("a", 0.0),
        (" \n ", 0.0),
    ],
)
def test_a_loop_is_three_rounds_and_twelve_words_at_the_end(answer, share):
    assert text.unrepetitive(answer).numbers["looped_share"] == pytest.approx(share)


@pytest.mark.parametrize(("words", "outcome"), [(36, "fail"), (37, "pass")])
def test_a_loop_of_half_the_words_fails(words, outcome):
    verdict = text.unrepetitive(f"{told(words)} {PHRASE} {PHRASE} {PHRASE}")
    assert max(verdict.numbers["top_5gram_words"], verdict.numbers["top_5gram_characters"]) < 0.25
    assert verdict.outcome == outcome


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ("one two three four", "four"),  # the middle lies in a word
        ("aaa bbb aaa bbb ccc", "ccc"),
        ("however forever ever", None),  # it is part of one before
        ("one two on it", None),  # two letters are no word
        ("one two x1yz2 abc", "abc"),
        ("", None),
    ],
)
def test_an_answer_is_stopped_at_a_word_of_its_second_half_that_is_new(answer, word):
    assert text.stop_within(answer) == word


@pytest.mark.parametrize(
    ("answer", "outcome", "told"),
    [
        ("red and ", "pass", "ended at 'blue'"),
        ("red and", "pass", "ended at 'blue'"),
        ("red and blue", "fail", "'blue' stands in 'red and blue'"),
        ("red and blue, then", "fail", "stands in"),
        ("red", "inconclusive", "'red' where 'red and ' was expected before 'blue'"),
        ("red and green", "inconclusive", "two answers"),
    ],
)
def test_a_stopped_answer_is_the_whole_one_up_to_the_stop(answer, outcome, told):
    verdict = text.stopped(answer, whole="red and blue, then blue", stop="blue")
    assert verdict.outcome == outcome
    assert told in verdict.reason
