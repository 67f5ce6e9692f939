"""Questions at once and a long prompt: what is stated, and where the limits lie."""

from __future__ import annotations

import pytest

from servematrix.gates import load

EXPECTED = {"a": "one", "b": "two", "c": "three"}


@pytest.mark.parametrize(
    ("answers", "outcome", "missed", "unanswered"),
    [
        ({"a": "one", "b": "two", "c": "three"}, "pass", 0, 0),
        ({"a": "one", "b": "two", "c": "four"}, "pass", 1, 0),
        ({"a": "one", "b": "no", "c": "four"}, "fail", 2, 0),
        ({"a": "one", "b": "two", "c": load.Unanswered("reset")}, "fail", 0, 1),
        ({"a": "one", "b": "two"}, "fail", 0, 1),
    ],
)
def test_what_was_missed_is_counted(answers, outcome, missed, unanswered):
    verdict = load.at_once(answers, EXPECTED)
    assert verdict.outcome == outcome
    assert verdict.numbers == {"questions": 3, "missed": missed, "unanswered": unanswered}


def test_misses_are_allowed_as_many_as_are_allowed():
    answers = dict.fromkeys(EXPECTED, "wrong")
    assert load.at_once(answers, EXPECTED, allowed=3).outcome == "pass"
    assert load.at_once(answers, EXPECTED, allowed=2).outcome == "fail"


def test_no_question_states_its_counts_too():
    assert load.at_once({}, {}).numbers == {"questions": 0, "missed": 0, "unanswered": 0}


PROMPT = {"prompt_tokens": 8000, "aimed": 8000, "cached_tokens": 0, "context": 10_000}


@pytest.mark.parametrize(
    ("text", "changed", "outcome"),
    [
        ("Paris", {}, "pass"),
        ("", {}, "fail"),
        # 5 % of what was aimed at may be missing or too many
        ("Paris", {"prompt_tokens": 7600}, "pass"),
        ("Paris", {"prompt_tokens": 7599}, "error"),
        ("Paris", {"prompt_tokens": 8400}, "pass"),
        ("Paris", {"prompt_tokens": 8401}, "error"),
        # and 5 % of the prompt may come from the cache
        ("Paris", {"cached_tokens": 400}, "pass"),
        ("Paris", {"cached_tokens": 401}, "error"),
    ],
)
def test_a_long_prompt_is_held_to_its_length_and_computed(text, changed, outcome):
    asked = {**PROMPT, **changed}
    verdict = load.long_prompt(text, **asked)
    assert verdict.outcome == outcome
    assert verdict.numbers == {
        "prompt_tokens": asked["prompt_tokens"],
        "aimed_tokens": 8000,
        "cached_tokens": asked["cached_tokens"],
        "context_tokens": 10_000,
    }


def test_a_server_that_drops_nothing_has_a_rate_of_three_in_all_at_most():
    verdict = load.all_served([], 300)
    assert verdict.outcome == "pass"
    assert verdict.numbers == {
        "asked": 300,
        "unserved": 0,
        "rate_at_most": pytest.approx(1 - 0.05 ** (1 / 300)),
    }
    assert verdict.numbers["rate_at_most"] == pytest.approx(3 / 300, rel=0.01)
    assert verdict.power == pytest.approx(1 - 0.99**300)
    assert "at most 0.99 %" in verdict.reason


def test_one_dropped_request_fails_and_the_first_is_shown():
    verdict = load.all_served(["reset", "timeout"], 200)
    assert verdict.outcome == "fail"
    assert verdict.numbers == {"asked": 200, "unserved": 2}
    assert verdict.power == pytest.approx(1 - 0.99**200)
    assert verdict.reason == "2 dropped, 1 %; the first: 'reset'"


def test_one_request_is_a_measurement_and_none_is_not():
    assert load.all_served([], 1).outcome == "pass"
    none = load.all_served([], 0)
    assert (none.outcome, none.numbers) == ("error", {"asked": 0, "unserved": 0})
