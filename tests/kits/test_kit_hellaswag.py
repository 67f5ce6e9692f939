from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from servematrix import data
from servematrix.client import Client
from servematrix.kits import HellaswagMixin
from servematrix.kits.base import Inconclusive, MeasurementError, NotApplicable, VerdictFailed
from servematrix.kits.scoring import Scored, examples, score

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
    ran = run()
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
    assert "gave 1 answers to 16 prompts" in ran.verdict.reason


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
