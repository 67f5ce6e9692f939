from __future__ import annotations

import threading

import pytest

from servematrix.kits import BasicSchedulerStressMixin, scheduler_stress
from servematrix.kits.base import MeasurementError, VerdictFailed

STREAM, MANY, LONG = "test_streaming_response", "test_concurrent_requests", "test_long_prompt"


@pytest.mark.parametrize("test", [STREAM, MANY, LONG])
def test_a_healthy_server_passes(run_kit, test):
    assert run_kit(BasicSchedulerStressMixin, test).raised is None


@pytest.mark.parametrize(
    ("frames", "told"),
    [
        (lambda f: f[:-1], "without [DONE]"),
        (lambda f: [*f, b"data: {}\n\n"], "follows [DONE]"),
        (lambda f: [f[0].replace(b"\n\n", b"\n"), *f[1:]], "is not one"),
        (lambda f: [f[1], f[0], *f[2:]], "reads"),
        (lambda f: [f[0][:-9] + b"\n\n", *f[1:]], "is not JSON"),
        (lambda f: [f[2], f[-1]], "1 events"),
    ],
)
def test_a_broken_stream_fails(run_kit, scripted, frames, told):
    scripted.frames = frames
    ran = run_kit(BasicSchedulerStressMixin, STREAM)
    assert isinstance(ran.raised, VerdictFailed)
    assert told in ran.verdict.reason


def test_a_streamed_answer_that_differs_fails(run_kit, scripted):
    scripted.edit = lambda path, body: (
        {**body, "text": "It is Paris\n"} if path == "/generate" else body
    )
    ran = run_kit(BasicSchedulerStressMixin, STREAM)
    assert isinstance(ran.raised, VerdictFailed)
    assert "'It is Paris'" in ran.verdict.reason


def test_a_wrong_streamed_answer_fails(run_kit, scripted):
    scripted.reply = lambda prompt: "Rome is the capital"
    assert isinstance(run_kit(BasicSchedulerStressMixin, STREAM).raised, VerdictFailed)


def test_one_miss_among_eight_passes_and_is_named(run_kit, scripted):
    right = scripted.reply
    scripted.reply = lambda p: "Nice" if "capital of France?" in p else right(p)
    ran = run_kit(BasicSchedulerStressMixin, MANY)
    assert ran.raised is None
    assert "France: no 'Paris' in 'Nice'" in ran.verdict.reason


def test_two_misses_fail(run_kit, scripted):
    right = scripted.reply
    scripted.reply = lambda p: "Nice" if "of France?" in p or "of Italy?" in p else right(p)
    ran = run_kit(BasicSchedulerStressMixin, MANY)
    assert isinstance(ran.raised, VerdictFailed)
    assert "Italy" in ran.verdict.reason


def test_a_question_without_an_answer_fails(run_kit, scripted):
    scripted.overrides["/generate"] = (500, "Internal Server Error")
    ran = run_kit(BasicSchedulerStressMixin, MANY)
    assert isinstance(ran.raised, VerdictFailed)
    assert ran.verdict.numbers["unanswered"] == 8
    assert "500" in ran.verdict.reason


def test_a_hang_ends_by_the_deadline(run_kit, scripted):
    hold = threading.Event()
    right = scripted.reply

    def reply(prompt):
        if "of France?" in prompt or "of Italy?" in prompt:
            hold.wait(5)
        return right(prompt)

    scripted.reply = reply
    try:
        ran = run_kit(BasicSchedulerStressMixin, MANY, scheduler_stress_timeout=0.3)
    finally:
        hold.set()
    assert isinstance(ran.raised, VerdictFailed)
    assert "deadline" in ran.verdict.reason


def test_a_model_that_knows_no_capitals_is_compared_with_itself(run_kit, scripted):
    def reply(prompt):
        return "City of " + prompt[-40:].split("capital of ")[1].split("?")[0]

    scripted.reply = reply
    knows = {"scheduler_stress_knows_capitals": False}
    assert run_kit(BasicSchedulerStressMixin, MANY, **knows).raised is None
    assert run_kit(BasicSchedulerStressMixin, STREAM, **knows).raised is None
    scripted.reply = lambda prompt: ""
    assert isinstance(run_kit(BasicSchedulerStressMixin, MANY, **knows).raised, VerdictFailed)


@pytest.mark.parametrize("has_tokenize", [True, False])
def test_the_long_prompt_fills_three_quarters_of_a_small_context(run_kit, scripted, has_tokenize):
    scripted.has_tokenize = has_tokenize
    ran = run_kit(BasicSchedulerStressMixin, LONG)
    assert ran.verdict.numbers["aimed_tokens"] == 3072
    assert abs(ran.verdict.numbers["prompt_tokens"] - 3072) < 31


def test_the_long_prompt_has_8192_tokens_where_they_fit(run_kit, scripted):
    scripted.context = 131072
    ran = run_kit(BasicSchedulerStressMixin, LONG)
    assert ran.verdict.numbers["aimed_tokens"] == 8192
    scripted.context = None
    assert run_kit(BasicSchedulerStressMixin, LONG).verdict.numbers["aimed_tokens"] == 8192


def test_a_long_prompt_without_an_answer_fails(run_kit, scripted):
    scripted.reply = lambda prompt: ""
    assert isinstance(run_kit(BasicSchedulerStressMixin, LONG).raised, VerdictFailed)


def test_a_long_prompt_from_the_cache_is_an_error(run_kit, scripted):
    scripted.cached = 3000
    ran = run_kit(BasicSchedulerStressMixin, LONG)
    assert isinstance(ran.raised, MeasurementError)
    assert "cache" in ran.verdict.reason


def test_a_long_prompt_of_another_length_is_an_error(run_kit, scripted):
    scripted.edit = lambda path, body: {"count": 9 * body["count"]} if path == "/tokenize" else body
    ran = run_kit(BasicSchedulerStressMixin, LONG)
    assert isinstance(ran.raised, MeasurementError)
    assert "instead of 3072" in ran.verdict.reason


def test_a_server_that_cannot_count_fails(run_kit, scripted):
    scripted.edit = lambda path, body: {"count": 5} if path == "/tokenize" else body
    assert isinstance(run_kit(BasicSchedulerStressMixin, LONG).raised, VerdictFailed)


SERVED = "test_many_requests"


def test_every_one_of_many_requests_is_served(run_kit, scripted):
    ran = run_kit(BasicSchedulerStressMixin, SERVED, scheduler_stress_requests=60)
    assert ran.raised is None
    asked = [body for path, body in scripted.asked if path == "/generate"]
    assert len({body["text"] for body in asked}) == 60
    assert ran.verdict.numbers["asked"] == 60


def test_one_dropped_request_of_many_fails(run_kit, scripted):
    right = scripted.reply

    def reply(prompt):
        if prompt.startswith("Request 41:"):
            raise ConnectionAbortedError
        return right(prompt)

    scripted.reply = reply
    ran = run_kit(BasicSchedulerStressMixin, SERVED, scheduler_stress_requests=60)
    assert isinstance(ran.raised, VerdictFailed)
    assert ran.verdict.numbers["unserved"] == 1


def test_a_server_that_drops_everything_is_not_asked_for_ever(run_kit, scripted):
    scripted.overrides["/generate"] = (503, "busy")
    ran = run_kit(BasicSchedulerStressMixin, SERVED, scheduler_stress_requests=5000)
    assert isinstance(ran.raised, VerdictFailed)
    assert 32 <= ran.verdict.numbers["asked"] < 100
    assert "503" in ran.verdict.reason


@pytest.mark.parametrize("status", [404, 405, 501])
def test_without_a_tokenizer_route_a_request_for_one_token_counts(run_kit, scripted, status):
    scripted.overrides["/tokenize"] = (status, "")
    ran = run_kit(BasicSchedulerStressMixin, LONG)
    assert ran.raised is None
    lengths = [
        body["sampling_params"]["max_new_tokens"]
        for path, body in scripted.asked
        if path == "/generate"
    ]
    assert lengths == [1, 1, 64]


def test_a_tokenizer_that_breaks_is_no_tokenizer_that_lacks(run_kit, scripted):
    scripted.overrides["/tokenize"] = (500, "broken")
    ran = run_kit(BasicSchedulerStressMixin, LONG)
    assert isinstance(ran.raised, VerdictFailed)
    assert "500" in ran.verdict.reason


@pytest.mark.parametrize(("tokens", "rounds"), [(1, 1), (150, 2), (200, 3)])
def test_the_filler_goes_round_as_often_as_the_length_asks(run_kit, scripted, tokens, rounds):
    """Fifty words a round, about 50 words around it, and one round at least."""
    run_kit(BasicSchedulerStressMixin, LONG, scheduler_stress_long_prompt_tokens=tokens)
    (text,) = [body["text"] for path, body in scripted.asked if path == "/generate"]
    assert text.count("The ferry leaves") == rounds


def test_a_server_that_counts_one_token_a_round_is_believed(run_kit, scripted):
    def edit(path, body):
        if path != "/tokenize":
            return body
        return {"count": scripted.asked[-1][1]["prompt"].count("The ferry leaves")}

    scripted.edit = edit
    ran = run_kit(BasicSchedulerStressMixin, LONG, scheduler_stress_long_prompt_tokens=20)
    assert ran.verdict.outcome == "error"
    assert "instead of 20" in ran.verdict.reason


def test_the_context_stands_in_the_verdict(run_kit, scripted):
    assert run_kit(BasicSchedulerStressMixin, LONG).verdict.numbers["context_tokens"] == 4096
    scripted.overrides["/v1/models"] = (200, {"data": "broken"})
    assert run_kit(BasicSchedulerStressMixin, LONG).verdict.numbers["context_tokens"] is None


def test_a_long_prompt_that_is_answered_wrongly_is_measured_so(run_kit, scripted):
    scripted.reply = lambda prompt: "Rome"
    ran = run_kit(BasicSchedulerStressMixin, LONG)
    assert ran.raised is None
    found = {name: value for _, name, value, _ in ran.reporter.measurements}
    assert found["long_prompt_answer_right"] is False
    assert found["long_prompt_tokens"] == ran.verdict.numbers["prompt_tokens"]


def test_what_was_dropped_is_measured(run_kit, scripted):
    right = scripted.generate

    def generate(body):
        if body["text"].startswith("Request 5:"):
            return {"text": None}
        return right(body)

    scripted.generate = generate
    ran = run_kit(BasicSchedulerStressMixin, SERVED, scheduler_stress_requests=20)
    assert isinstance(ran.raised, VerdictFailed)
    assert ran.verdict.numbers == {"asked": 20, "unserved": 1}
    found = {name: value for _, name, value, _ in ran.reporter.measurements}
    assert found == {"many_requests": 20, "many_unanswered": 1}


def test_a_server_that_drops_all_is_not_asked_for_the_rest(run_kit, scripted, monkeypatch):
    monkeypatch.setattr(scheduler_stress, "_AT_ONCE", 1)
    scripted.overrides["/generate"] = (500, "broken")
    ran = run_kit(BasicSchedulerStressMixin, SERVED, scheduler_stress_requests=50)
    assert isinstance(ran.raised, VerdictFailed)
    assert ran.verdict.numbers == {"asked": 32, "unserved": 32}
    assert "500" in ran.verdict.reason
