"""Accept length of one request, and of many whose accounts must add up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from servematrix.gates import accept_length
from servematrix.gates.accept_length import Drafts, judge_requests

ASKED = {
    "algorithm": "EAGLE3",
    "completion_tokens": 2000,
    "verify_passes": 1000,
    "reported": 2.0,
    "threshold": 1.8,
}
STATED = {
    "spec_algorithm": "EAGLE3",
    "accept_length": 2.0,
    "accept_length_reported": 2.0,
    "accept_length_threshold": 1.8,
    "verify_passes": 1000,
}


@pytest.mark.parametrize(
    ("changed", "outcome", "stated"),
    [
        ({}, "pass", {}),
        ({"threshold": 2.0}, "fail", {"accept_length_threshold": 2.0}),
        ({"reported": None}, "pass", {"accept_length_reported": None}),
        ({"reported": 2.5}, "inconclusive", {"accept_length_reported": 2.5}),
        ({"reported": 1.5}, "inconclusive", {"accept_length_reported": 1.5}),
        ({"algorithm": None}, "pass", {"spec_algorithm": "speculation"}),
    ],
)
def test_a_length_is_stated_with_what_it_was_held_against(changed, outcome, stated):
    verdict = accept_length.judge(**{**ASKED, **changed})
    assert (verdict.outcome, verdict.numbers) == (outcome, {**STATED, **stated})


@pytest.mark.parametrize(
    ("changed", "outcome", "stated"),
    [
        ({"algorithm": None, "verify_passes": None}, "not_applicable", {}),
        (
            {"algorithm": None, "verify_passes": None, "required": True},
            "fail",
            {"spec_algorithm": None},
        ),
        ({"completion_tokens": None}, "error", {"spec_algorithm": "EAGLE3"}),
        ({"verify_passes": None}, "error", {"spec_algorithm": "EAGLE3"}),
        ({"verify_passes": None, "required": True}, "error", {"spec_algorithm": "EAGLE3"}),
    ],
)
def test_without_a_length_there_is_none_to_judge(changed, outcome, stated):
    verdict = accept_length.judge(**{**ASKED, **changed})
    assert (verdict.outcome, verdict.numbers) == (outcome, stated)


def test_a_reported_length_may_differ_by_two_percent_and_no_more():
    long = {**ASKED, "completion_tokens": 5000, "verify_passes": 100}  # 50 tokens a pass
    assert accept_length.judge(**{**long, "reported": 51.0}).outcome == "pass"
    assert accept_length.judge(**{**long, "reported": 49.0}).outcome == "pass"
    assert accept_length.judge(**{**long, "reported": 51.1}).outcome == "inconclusive"


# -- one request's account ----------------------------------------------------------------------

# 10 passes: 2 let nothing through, 3 one draft, 5 two; 13 drafts and 10 tokens of the target
WHOLE = Drafts(23, 10, (2, 3, 5), correct=13, proposed=20, length=2.3, rate=0.65)


def test_a_whole_account_adds_up():
    assert WHOLE.contradictions == []
    assert Drafts(23, 10).contradictions == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"length": 2.4}, "accept length 2.400, its tokens and passes 2.300"),
        ({"length": 2.2}, "accept length 2.200, its tokens and passes 2.300"),
        ({"rate": 0.5}, "accept rate 0.500, its drafts 0.650"),
        ({"rate": 0.7}, "accept rate 0.700, its drafts 0.650"),
        ({"histogram": (2, 3, 6)}, "10 passes, 11 in the histogram"),
        ({"correct": 12, "rate": 0.6}, "12 correct drafts, 13 in the histogram"),
    ],
)
def test_each_contradiction_is_named(changed, told):
    found = replace(WHOLE, **changed).contradictions
    assert found[0] == told


@pytest.mark.parametrize(("tokens", "adds_up"), [(19, False), (20, True), (26, True), (27, False)])
def test_tokens_may_differ_from_the_histogram_by_the_longest_chain_and_one(tokens, adds_up):
    found = Drafts(tokens, 10, (2, 3, 5)).contradictions
    assert found == ([] if adds_up else [f"{tokens} tokens, 23 by the histogram"])


def test_a_rate_and_a_length_may_differ_by_two_percent():
    assert Drafts(23, 10, correct=0, proposed=100, rate=0.02).contradictions == []
    assert Drafts(23, 10, correct=0, proposed=100, rate=0.021).contradictions
    assert Drafts(5000, 100, length=51.0).contradictions == []
    assert Drafts(5000, 100, length=51.1).contradictions


@pytest.mark.parametrize("unknown", [{"correct": None}, {"proposed": None}, {"proposed": 0}])
def test_a_rate_without_its_drafts_contradicts_nothing(unknown):
    account = replace(Drafts(23, 10, correct=13, proposed=20, rate=0.1), **unknown)
    assert account.contradictions == []


# -- many requests ------------------------------------------------------------------------------

MANY = [WHOLE, Drafts(30, 10), Drafts(12, 10, (8, 2), correct=2, proposed=20)]


def test_many_requests_are_pooled():
    verdict = judge_requests(MANY, algorithm="EAGLE3", threshold=2.0)
    assert verdict.outcome == "pass"
    assert verdict.numbers == {
        "spec_algorithm": "EAGLE3",
        "requests": 3,
        "accept_length": 65 / 30,
        "accept_length_lowest": 1.2,
        "accept_length_highest": 3.0,
        "accept_rate": 15 / 40,
        "accept_length_threshold": 2.0,
        "verify_passes": 30,
        "histograms": 2,
    }


def test_a_pooled_length_on_the_threshold_fails():
    verdict = judge_requests([Drafts(20, 10)], algorithm="EAGLE3", threshold=2.0)
    assert verdict.outcome == "fail"
    assert verdict.numbers["accept_length"] == 2.0
    assert verdict.numbers["accept_rate"] is None


def test_requests_without_drafts_fail_and_no_requests_are_an_error():
    one = judge_requests([WHOLE, Drafts(23, 0)], algorithm="EAGLE3", threshold=1.0)
    assert one.outcome == "fail"
    assert one.numbers == {"spec_algorithm": "EAGLE3", "requests": 2}
    assert one.reason.startswith("1 of 2 requests were decoded without drafts")
    none = judge_requests([], algorithm="EAGLE3", threshold=1.0)
    assert (none.outcome, none.numbers) == ("error", {"spec_algorithm": "EAGLE3", "requests": 0})


def test_one_pass_is_drafting():
    assert judge_requests([Drafts(2, 1)], algorithm="EAGLE3", threshold=1.0).outcome == "pass"


def test_requests_that_contradict_themselves_are_inconclusive_and_numbered():
    wrong = replace(WHOLE, length=9.0)
    verdict = judge_requests([WHOLE, wrong], algorithm="EAGLE3", threshold=1.0)
    assert verdict.outcome == "inconclusive"
    assert "request 1: accept length 9.000" in verdict.reason
    assert verdict.numbers["accept_length"] == 2.3
