from __future__ import annotations

import json
import math
import re
import threading
import time
from pathlib import Path

import pytest

from servematrix import data
from servematrix.client import Client
from servematrix.kits import HellaswagMixin
from servematrix.kits.base import Inconclusive, MeasurementError, NotApplicable, VerdictFailed
from servematrix.kits.hellaswag import _UNITS, _numbers
from servematrix.kits.scoring import (
    Scored,
    ScoringError,
    _length,
    _scored,
    examples,
    likeliest,
    score,
)

TEST = "test_accuracy_floor"


@pytest.fixture
def items(tmp_path):
    """Forty items whose right ending holds the word 'right'."""
    path = tmp_path / "items.jsonl"
    rows = [
        {
            "ind": i,
            "activity_label": f"Label{i}",
            "ctx": f"somebody begins number {i}",
            "endings": [f"does {'right' if k == i % 4 else 'wrong'} thing {k}" for k in range(4)],
            "label": str(i % 4),
        }
        for i in range(40)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


@pytest.fixture
def many(items):
    """A hundred and thirty items of the same kind, where runs are compared item by item."""
    path = Path(items)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    more = [{**rows[i % 40], "ind": i, "ctx": f"somebody begins number {i}"} for i in range(130)]
    path.write_text("\n".join(json.dumps(row) for row in more) + "\n")
    return {"hellaswag_num_questions": 120, "hellaswag_margin": 0.2}


@pytest.fixture
def run(run_kit, items, scripted):
    scripted.context = None
    scripted.logprob = lambda context, ending: -1.0 if "right" in ending else -2.0
    small = {"hellaswag_path": items, "hellaswag_num_questions": 30, "hellaswag_num_shots": 5}
    return lambda **attributes: run_kit(HellaswagMixin, TEST, **{**small, **attributes})


def test_a_model_that_knows_passes(run, capsys):
    ran = run()
    assert ran.raised is None
    numbers = ran.verdict.numbers
    assert (numbers["n"], numbers["correct"], numbers["correct_single"]) == (30, 30, 30)
    assert numbers["data_source"] == "file items.jsonl"
    assert len(numbers["checksum_questions"]) == 64
    assert "items per second" in capsys.readouterr().out


def test_a_floor_within_the_uncertainty_is_inconclusive_and_says_how_many_items_decide(run):
    ran = run(hellaswag_accuracy_threshold=0.9)
    assert isinstance(ran.raised, Inconclusive)
    assert "about 44 items like these would decide, 14 more" in ran.verdict.reason


def test_the_items_are_kept(run, items):
    ran = run(hellaswag_num_shots=0)
    kept = ran.reporter.attachments["items"]
    assert kept == ran.reporter.attachments["items_single"]
    assert kept[1] == {
        "ind": 1,
        "label": 1,
        "lp": [-8.0, -4.0, -8.0, -8.0],
        "nt": [4, 4, 4, 4],
        "cached": [0, 0, 0, 0],
        "n0": 5,
        "checksum": data.load(items).items[1].checksum,
    }


def test_a_model_that_guesses_fails(run, scripted):
    scripted.logprob = lambda context, ending: -1.0
    ran = run()
    assert isinstance(ran.raised, VerdictFailed)
    assert "accuracy 0.267" in ran.verdict.reason


def test_length_does_not_decide():
    """A longer ending has a smaller sum; only the mean over its tokens counts."""
    scored = Scored(0, 0, (-8.0, -6.0), (8, 4), cached=(0, 0), n0=3, joined=False, checksum="")
    assert scored.prediction == 0


def test_an_ending_without_its_tokens_is_no_ending():
    with pytest.raises(ValueError, match="longer"):
        likeliest((-8.0,), (8, 4))


def test_batches_that_answer_otherwise_fail(run, scripted):
    """What is right one by one is wrong in a batch of several."""

    def logprob(context, ending):
        body = scripted.asked[-1][1]
        right = "right" in ending
        return -1.0 if right == (len(body["text"]) <= 4) else -2.0

    scripted.logprob = logprob
    ran = run(hellaswag_parallel=1, hellaswag_accuracy_threshold=-1.0)
    assert isinstance(ran.raised, VerdictFailed)
    assert "prefix cache" in ran.verdict.reason


@pytest.mark.parametrize(
    "value", [None, math.nan, math.inf, "x", True, 1e308, -(10**400), 0.2, [], {}]
)
def test_a_log_probability_that_is_none_is_an_error(run, scripted, value):
    scripted.logprob = lambda context, ending: value if "number 7" in context else -1.0
    ran = run(hellaswag_num_shots=0)
    assert isinstance(ran.raised, MeasurementError)
    assert "item 7, ending 0" in ran.verdict.reason
    assert "missing or no number" in ran.verdict.reason


def test_a_short_list_is_an_error(run, scripted):
    def edit(path, body):
        if path == "/generate" and isinstance(body, list):
            for one in body:
                one["meta_info"].get("input_token_logprobs", [0])[1:2] = []
        return body

    scripted.edit = edit
    # of two batches under way at once either may be answered first
    ran = run(hellaswag_parallel=1)
    assert isinstance(ran.raised, MeasurementError)
    assert "item 0, ending 0: 4 log-probabilities" in ran.verdict.reason


def test_a_server_without_log_probabilities_is_not_applicable(run, scripted):
    def edit(path, body):
        for one in body if isinstance(body, list) else ():
            one["meta_info"].pop("input_token_logprobs", None)
        return body

    scripted.edit = edit
    ran = run()
    assert isinstance(ran.raised, NotApplicable)
    assert "no input_token_logprobs" in ran.verdict.reason


def test_an_answer_without_a_list_is_an_error(run, scripted):
    scripted.edit = lambda path, body: body[:1] if isinstance(body, list) else body
    ran = run()
    assert isinstance(ran.raised, MeasurementError)
    # two batches are under way at once, either may be answered first
    assert re.search("gave 1 answers to 1[46] prompts", ran.verdict.reason)


def test_data_that_is_not_there_is_an_error(run):
    ran = run(hellaswag_path="/no/such/file.jsonl")
    assert isinstance(ran.raised, MeasurementError)
    assert "--hellaswag" in ran.verdict.reason


def test_too_few_items_are_an_error(run):
    ran = run(hellaswag_num_questions=36)
    assert isinstance(ran.raised, MeasurementError)
    assert "40 items" in ran.verdict.reason


def test_shots_follow_the_questions_and_stand_before_each(run, scripted):
    run(hellaswag_batch_items=8, hellaswag_parallel=1)
    first = next(body for path, body in scripted.asked if path == "/generate")
    assert len(first["text"]) == 8
    for text in first["text"]:
        assert text.startswith("Label30: somebody begins number 30 does right thing 2\n\nLabel31:")
    asked = {body["text"][0].split("\n\n")[-1] for _, body in scripted.asked}
    assert not any(line.startswith("Label30") for line in asked)


def test_the_context_goes_first_and_the_endings_start_at_its_end(run, scripted):
    run(hellaswag_batch_items=2, hellaswag_parallel=1, hellaswag_num_shots=0)
    context, endings = (body for _, body in scripted.asked[:2])
    assert context["text"] == [
        "Label0: somebody begins number 0",
        "Label1: somebody begins number 1",
    ]
    assert "return_logprob" not in context
    assert endings["text"][0] == "Label0: somebody begins number 0 does right thing 0"
    assert endings["logprob_start_len"] == [4] * 8
    assert endings["sampling_params"] == {"temperature": 0.0, "max_new_tokens": 0}


def test_threads_do_not_change_the_order(items, scripted):
    scripted.logprob = lambda context, ending: -1.0 if "right" in ending else -2.0
    found = data.load(items).items
    scored = score(Client(scripted.url), found, examples([]), batch_items=3, parallel=4, timeout=10)
    assert [one.ind for one in scored] == [item.ind for item in found]


def test_a_baseline_is_compared_item_by_item(run, many, scripted):
    baseline = run(**many).reporter.attachments["items"]
    again = run(**many, hellaswag_baseline=baseline)
    assert again.raised is None
    assert again.verdict.numbers["lost"] == 0
    assert again.reporter.attachments["flips"] == {"count": 0, "items": []}
    scripted.logprob = lambda context, ending: -1.1 if "right" in ending else -2.0
    worse = run(**many, hellaswag_baseline=baseline)
    assert isinstance(worse.raised, VerdictFailed)
    assert worse.verdict.numbers["correct"] == 120, "no answer was lost"
    assert "nats a token" in worse.verdict.reason
    scripted.logprob = lambda context, ending: -0.5 if "right" in ending else -2.0
    changed = {**many, "hellaswag_baseline": baseline}
    assert isinstance(run(**changed).raised, VerdictFailed)
    assert run(**changed, hellaswag_accepted="a new kernel").raised is None
    few = run(**{**changed, "hellaswag_num_questions": 110})
    assert isinstance(few.raised, MeasurementError)
    assert "missing in the candidate" in few.verdict.reason
    assert "flips" not in few.reporter.attachments


def test_items_with_another_answer_than_the_baseline_are_kept_with_their_texts(run, many, scripted):
    baseline = run(**many).reporter.attachments["items"]
    scripted.logprob = lambda context, ending: -1.0 if "wrong" in ending else -2.0
    kept = run(**many, hellaswag_baseline=baseline).reporter.attachments["flips"]
    assert kept["count"] == len(kept["items"]) == 120
    first = kept["items"][0]
    assert "right" in first["endings"][first["baseline"]]
    assert "wrong" in first["endings"][first["candidate"]]
    assert first["label"] == first["baseline"]
    assert first["ctx"] == "somebody begins number 0"


def test_a_failure_gives_up_batches_that_have_not_begun(items, scripted):
    """One request at a time, and the first answer is broken: nobody asks for all forty."""
    scripted.edit = lambda path, body: [{"text": ""}] * len(body)
    with pytest.raises(ScoringError, match="item 0"):
        score(
            Client(scripted.url), data.load(items).items, "", batch_items=1, parallel=1, timeout=9
        )
    assert len(scripted.asked) < 40


# -- what is stated, and where the limits lie ---------------------------------------------------


def scored(prediction: int, *, cached=(0, 0), n0=4, joined=False) -> Scored:
    lp = (-1.0, -2.0) if prediction == 0 else (-2.0, -1.0)
    return Scored(0, 0, lp, (1, 1), cached=cached, n0=n0, joined=joined, checksum="")


def test_flips_cached_context_and_joined_items_are_counted():
    batch = [scored(0, cached=(2, 4)), scored(1, n0=6, joined=True), scored(1)]
    single = [scored(0), scored(0), scored(1)]
    # 6 of 2 * 4 + 2 * 6 + 2 * 4 context tokens came from the cache
    assert _numbers(batch, single) == {"flips": 1, "cached_share": 6 / 28, "joined": 1}


def test_every_measurement_is_one_of_the_verdict(run, capsys):
    ran = run()
    found = {name: value for _, name, value, _ in ran.reporter.measurements}
    expected = [*_UNITS, "data_source", "checksum_questions", "checksum_shots"]
    assert list(found) == expected
    assert found == {name: ran.verdict.numbers[name] for name in expected}
    numbers = ran.verdict.numbers
    assert 0 < numbers["seconds_batch"] < 60
    assert 0 < numbers["seconds_single"] < 60
    assert numbers["items_per_second"] == pytest.approx(30 / numbers["seconds_batch"])
    table = capsys.readouterr().out
    for row in ("│ items per second", "│ 30 ", "│ share of context tokens", "│ HellaSwag"):
        assert row.replace("│ HellaSwag", "HellaSwag") in table


def test_one_by_one_means_one_request_at_a_time(run, scripted):
    """Batches go out in parallel, single items never: a request meets no other."""
    busy, most, lock = {}, {}, threading.Lock()
    whole = scripted.generate

    def generate(body):
        kind = "single" if len(body["text"]) in (1, 4) else "batch"
        with lock:
            busy[kind] = busy.get(kind, 0) + 1
            most[kind] = max(most.get(kind, 0), busy[kind])
        time.sleep(0.02)
        try:
            return whole(body)
        finally:
            with lock:
                busy[kind] -= 1

    scripted.generate = generate
    run(hellaswag_batch_items=2, hellaswag_parallel=4, hellaswag_num_questions=10)
    assert most == {"single": 1, "batch": 4}


def test_the_packaged_items_are_taken_when_they_are_asked_for(run):
    ran = run(hellaswag_path=None, hellaswag_packaged=True, hellaswag_num_shots=0)
    assert ran.verdict.numbers["data_source"].startswith("packaged")


ITEM = data.Item(7, "Label", "somebody begins", ("a", "b"), 0)


def answer(values, *, first=5, tokens=None, cached=None) -> dict:
    entries = [[None, first, None], *([value, 8, None] for value in values)]
    length = 3 + len(values) if tokens is None else tokens
    return {
        "meta_info": {
            "input_token_logprobs": entries,
            "prompt_tokens": length,
            "cached_tokens": cached,
        }
    }


def test_an_ending_of_one_token_is_scored_and_its_cached_tokens_are_kept():
    found = _scored(ITEM, 3, iter([answer([-1.0], cached=2), answer([-2.0, -0.5])]))
    assert (found.lp, found.nt, found.cached) == ((-1.0, -2.5), (1, 2), (2, 0))
    assert (found.n0, found.joined, found.prediction) == (3, False, 0)


@pytest.mark.parametrize(("cached", "kept"), [(4, 4), (0, 0), (None, 0)])
def test_at_most_the_whole_text_is_cached(cached, kept):
    found = _scored(ITEM, 3, iter([answer([-1.0], cached=cached), answer([-2.0])]))
    assert found.cached == (kept, 0)


@pytest.mark.parametrize("cached", [5, -1, "2", 1.5, [2]])
def test_cached_tokens_that_cannot_be_are_an_error(cached):
    with pytest.raises(ScoringError, match=r"item 7, ending 0: cached_tokens .* of 4 tokens"):
        _scored(ITEM, 3, iter([answer([-1.0], cached=cached), answer([-2.0])]))


def test_an_ending_without_a_token_of_its_own_is_an_error():
    with pytest.raises(ScoringError, match="ending 1: 1 log-prob"):
        _scored(ITEM, 3, iter([answer([-1.0]), answer([])]))


def test_an_item_whose_context_is_cut_in_two_ways_is_joined():
    assert _scored(ITEM, 3, iter([answer([-1.0]), answer([-1.0], first=6)])).joined
    assert not _scored(ITEM, 3, iter([answer([-1.0]), answer([-1.0])])).joined


@pytest.mark.parametrize("n0", [0, -1, 10**9 + 1, None, "3"])
def test_a_context_without_tokens_is_an_error(n0):
    with pytest.raises(ScoringError, match="item 7: its context has prompt_tokens"):
        _length({"meta_info": {"prompt_tokens": n0}}, ITEM)


@pytest.mark.parametrize("n0", [1, 10**9])
def test_a_context_has_a_length_from_one_token_on(n0):
    assert _length({"meta_info": {"prompt_tokens": n0}}, ITEM) == n0


def test_log_probabilities_are_kept_to_six_digits():
    one = Scored(0, 0, (-1.23456789, -2.0), (1, 1), (0, 0), n0=3, joined=False, checksum="c")
    assert one.row()["lp"] == [-1.234568, -2.0]
