"""Accept length, streams, load, and how verdicts are joined."""

from __future__ import annotations

import ast
import gzip
import json
import re
from pathlib import Path

import pytest

from servematrix.gates import accept_length, load, stream
from servematrix.gates.ranks import every_rank
from servematrix.gates.verdict import Outcome, Verdict, worst

ROOT = Path(__file__).parents[2]
CONTRACT = ROOT / ".." / "shared" / "recordings" / "contract.json.gz"


def test_gates_import_nothing_of_ours_outside():
    for module in (ROOT / "src" / "servematrix" / "gates").glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("servematrix"):
                assert node.module.startswith("servematrix.gates"), module


# -- accept length ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "passes", "reported", "outcome"),
    [
        (None, None, None, "not_applicable"),
        ("EAGLE3", 1000, 2.0, "pass"),
        ("EAGLE3", 1000, 2.03, "pass"),
        ("EAGLE3", 1000, None, "pass"),
        (None, 1000, 2.0, "pass"),
        ("EAGLE3", 1000, 2.5, "inconclusive"),
        ("EAGLE3", 1112, None, "fail"),
        ("EAGLE3", None, None, "error"),
        ("EAGLE3", 0, None, "error"),
    ],
)
def test_accept_length(algorithm, passes, reported, outcome):
    verdict = accept_length.judge(
        algorithm=algorithm,
        completion_tokens=2000,
        verify_passes=passes,
        reported=reported,
        threshold=1.8,
    )
    assert verdict.outcome == outcome


# -- streams ------------------------------------------------------------------------------------


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"text": text}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def test_a_good_stream_passes():
    blocks = [event(" Pa"), event(" Paris"), event(" Paris\nB"), DONE]
    assert stream.judge(blocks, whole=" Paris\nelse", expected="paris").outcome == "pass"


@pytest.mark.parametrize(
    ("blocks", "told"),
    [
        ([], "without [DONE]"),
        ([event("Paris"), DONE], "not streamed"),
        ([event("P"), event("Paris")], "without [DONE]"),
        ([event("P"), event("Paris"), DONE, b"\n\n"], "follows [DONE]"),
        ([event("P"), event("Paris"), DONE[:-1]], "blank line"),
        ([event("P"), b"data:" + event("Paris")[6:], DONE], "is not one"),
        ([event("P"), b"event: x\n" + event("Paris"), DONE], "is not one"),
        ([event("P"), b"data: {\n\n", DONE], "is not JSON"),
        ([event("P"), b'data: {"text": 5}\n\n', DONE], "no string"),
        ([event("P"), b"data: [1]\n\n", DONE], "no string"),
        ([event("P"), event("Q"), DONE], "reads 'Q' after 'P'"),
        ([event("R"), event("Rome"), DONE], "not streamed 'Paris'"),
        ([event(""), event(""), DONE], "streamed ''"),
    ],
)
def test_a_bad_stream_fails(blocks, told):
    verdict = stream.judge(blocks, whole="Paris", expected=None)
    assert verdict.outcome == "fail"
    assert told in verdict.reason


def test_the_last_event_is_the_answer():
    grown = [event("P"), event("Par"), event("Paris"), DONE]
    good = stream.judge(grown, whole="Paris", expected="paris")
    assert (good.outcome, good.numbers) == ("pass", {"events": 3})
    # a middle one would do
    assert stream.judge(grown, whole="Par", expected=None).outcome == "fail"
    assert stream.judge(grown, whole="Paris", expected="rome").outcome == "fail"


@pytest.mark.parametrize(
    ("blocks", "events", "told"),
    [
        ([event("P"), event("Q"), event("Q!"), DONE], 3, "event 2 reads 'Q' after 'P'"),
        ([event("Paris"), DONE], 1, "1 events for a whole answer"),
        ([event("P"), event("Pa"), b"x\n\n"], 2, "event 3 is not one"),
        ([event("P"), b"data: a\nb\n\n", DONE], 1, "event 2 is not one"),
        ([event("P"), DONE, event("Q"), b"rest"], 1, '[DONE]: \'data: {"text": "Q"}\\n\\nrest\''),
        ([event("P"), b"data: \xff\n\n", DONE], 1, "event 2 is not JSON: '\ufffd'"),
    ],
)
def test_a_fault_is_told_with_its_event(blocks, events, told):
    verdict = stream.judge(blocks, whole="Paris", expected=None)
    assert (verdict.outcome, verdict.numbers) == ("fail", {"events": events})
    assert told in verdict.reason


def test_a_recorded_stream_passes():
    if not CONTRACT.exists():
        pytest.skip("the recorded contract is not here")
    recorded = json.loads(gzip.decompress(CONTRACT.read_bytes()))
    text = next(r["text"] for r in recorded if r["label"] == "stream")
    blocks = [block.encode() for block in re.findall(r".*?\n\n", text, re.DOTALL)]
    whole = json.loads(next(r["text"] for r in recorded if r["label"] == "generate"))["text"]
    assert stream.judge(blocks, whole=whole, expected="paris").outcome == "pass"


# -- load ---------------------------------------------------------------------------------------


def test_at_once_allows_one_wrong_answer_and_names_every_one():
    expected = {"a": "one", "b": "two", "c": "three"}
    assert load.at_once({"a": "One.", "b": "two", "c": "four"}, expected).outcome == "pass"
    failed = load.at_once({"a": "one", "b": "wrong", "c": "four"}, expected)
    assert failed.outcome == "fail"
    assert "b: no 'two' in 'wrong'; c: no 'three' in 'four'" in failed.reason
    assert load.at_once({}, {}).outcome == "error"


def test_at_once_allows_no_question_without_an_answer():
    answers = {"a": "one", "b": load.Unanswered("the connection was reset")}
    failed = load.at_once(answers, {"a": "one", "b": "two"})
    assert failed.outcome == "fail"
    assert "b: the connection was reset" in failed.reason
    assert load.at_once({}, {"a": "one"}).outcome == "fail"


def test_an_empty_expectation_is_never_met():
    answers = {"a": "anything", "b": "anything"}
    assert load.at_once(answers, {"a": "", "b": ""}).outcome == "fail"


@pytest.mark.parametrize(
    ("text", "tokens", "cached", "outcome"),
    [
        ("Paris", 8000, 0, "pass"),
        ("Paris", 7600, 300, "pass"),
        ("", 8000, 0, "fail"),
        ("Paris", 7000, 0, "error"),
        ("Paris", 8000, 500, "error"),
    ],
)
def test_long_prompt(text, tokens, cached, outcome):
    verdict = load.long_prompt(
        text, prompt_tokens=tokens, aimed=8000, cached_tokens=cached, context=None
    )
    assert verdict.outcome == outcome


# -- joining ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["pass", "pass"], "pass"),
        (["pass", "not_applicable"], "pass"),
        (["pass", "inconclusive"], "inconclusive"),
        (["error", "inconclusive"], "error"),
        (["error", "fail"], "fail"),
    ],
)
def test_the_worst_outcome_wins(outcomes, expected):
    parts = [Verdict(o, f"rule {i}", f"reason {i}", {f"n{i}": i}) for i, o in enumerate(outcomes)]
    joined = worst(parts)
    assert joined.outcome == expected
    assert joined.rule == "rule 0; rule 1"
    worse = outcomes.index(expected)
    assert joined.reason == f"reason {worse}; reason {1 - worse}"
    assert joined.numbers == {"n0": 0, "n1": 1}


def test_error_rates_add_up_where_all_are_known():
    one = Verdict("pass", "", "", alpha=0.01, power=0.9)
    two = Verdict("pass", "", "", alpha=0.02, power=0.8)
    assert worst([one, two]).alpha == pytest.approx(0.03)
    assert worst([one, two]).power == 0.8
    assert worst([one, Verdict("pass", "", "")]).alpha is None
    assert worst([one, Verdict("pass", "", "")]).power is None
    with pytest.raises(ValueError, match="no verdict"):
        worst([])


# -- many requests --------------------------------------------------------------------------------


def test_many_requests_bound_the_rate_at_which_some_are_dropped():
    verdict = load.all_served([], 700)
    assert verdict.outcome == "pass"
    assert verdict.numbers["rate_at_most"] == pytest.approx(0.00427, rel=0.01)
    assert verdict.power == pytest.approx(1 - 0.99**700)


@pytest.mark.parametrize(
    ("problems", "asked", "outcome"), [(["500"], 700, "fail"), ([], 1, "pass"), ([], 0, "error")]
)
def test_one_dropped_request_is_one_too_many(problems, asked, outcome):
    assert load.all_served(problems, asked).outcome == outcome


# -- data-parallel ranks --------------------------------------------------------------------------


def on(rank: str | None, outcome: Outcome = "pass") -> Verdict:
    return Verdict(outcome, "rule", f"of {rank}", {"rank": rank, "median": 99.0}, alpha=0.001)


@pytest.mark.parametrize(
    ("verdicts", "outcome", "told"),
    [
        ([on("dp0"), on("dp1")], "pass", "the worst of 2"),
        ([on("dp0"), on("dp1", "fail")], "fail", "rank dp1, the worst of 2: of dp1"),
        ([on("dp0", "error"), on("dp1", "fail")], "fail", "rank dp1"),
        ([on("dp0"), on("dp0")], "inconclusive", "met 1 only"),
        ([on("dp0"), on(None)], "inconclusive", "routed_dp_rank"),
        ([on("dp0", "fail"), on("dp0")], "fail", "rank dp0"),
    ],
)
def test_every_rank_is_measured_and_the_worst_decides(verdicts, outcome, told):
    verdict = every_rank(verdicts)
    assert verdict.outcome == outcome
    assert told in verdict.reason
    assert verdict.alpha == pytest.approx(0.002)
