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
