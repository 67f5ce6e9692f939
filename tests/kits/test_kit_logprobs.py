"""Decoding with log-probabilities and scoring the same tokens: requests, order, broken answers."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest

from numeric_client import NumericClient, likeliest, logprob
from servematrix.client import BadStatus, ClientError, MalformedAnswer
from servematrix.kits import logprobs
from servematrix.kits.logprobs import Decoded, NoLogprobs, Prompt


class Scoring(NumericClient):
    """Keeps what it was asked to score, and drops the last answer if it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.scored: list[tuple[list[Any], Any, int, Any]] = []
        self.short = False

    def score(self, prompts: Any, starts: Any = None, *, top: int = 0, timeout: Any = None) -> Any:
        self.scored.append((list(prompts), starts, top, timeout))
        answers = super().score(prompts, starts, top=top, timeout=timeout)
        return answers[:-1] if self.short else answers


@pytest.fixture
def client():
    return Scoring()


def decoded(ids: int, tokens: int, name: str = "a") -> Decoded:
    """What greedy decoding of so many token ids gives."""
    context = list(range(ids))
    found, values = [], []
    for _ in range(tokens):
        token = likeliest(context)
        found.append(token)
        values.append(logprob(context, token))
        context.append(token)
    return Decoded(Prompt(name, tuple(range(ids))), tuple(found), tuple(values), {})


def test_prompts_are_scored_from_their_start_and_named_by_their_end(client):
    text = " ".join(f"word{i}" for i in range(20))
    found = logprobs.prompts(client, [text, "short"], 7.0)
    assert client.scored == [([text, "short"], [0, 0], 0, 7.0)]
    assert [one.name for one in found] == [repr(text[-48:]), "'short'"]
    assert [len(one.ids) for one in found] == [20, 1]


def test_as_many_answers_as_prompts_are_expected(client):
    client.short = True
    with pytest.raises(ValueError, match="shorter"):
        logprobs.prompts(client, ["one", "two"], 7.0)
    with pytest.raises(ValueError, match="shorter"):
        logprobs.compare(client, [decoded(4, 2), decoded(5, 2)], 7.0)


def test_decoded_tokens_are_scored_with_the_whole_prompt_and_one_top_token(client):
    one = decoded(4, 2)
    (found,) = logprobs.compare(client, [one], 7.0)
    assert client.scored == [([one.prompt.ids + one.tokens], [0], 1, 7.0)]
    assert (found.name, found.decode) == ("a", one.logprobs)
    assert found.prefill == found.top == pytest.approx(one.logprobs)


def test_every_batch_is_compared_in_the_order_given(client, monkeypatch):
    monkeypatch.setattr(logprobs, "_REQUEST_TOKENS", 12)
    some = [decoded(ids, 2, str(ids)) for ids in (4, 4, 5, 3, 10, 3, 2, 2, 11)]
    found = logprobs.compare(client, some, 7.0)
    assert [one.name for one in found] == ["4", "4", "5", "3", "10", "3", "2", "2", "11"]
    lengths = [[len(prompt) for prompt in prompts] for prompts, *_ in client.scored]
    # 12 tokens a request, and a longer one alone
    assert lengths == [[6, 6], [7, 5], [12], [5, 4], [4], [13]]
    assert [starts for _, starts, _, _ in client.scored] == [[0] * len(one) for one in lengths]


def test_nothing_is_sent_where_nothing_was_decoded(client):
    assert logprobs.compare(client, [], 7.0) == []
    assert client.scored == []


def test_tokens_are_decoded_in_the_order_of_their_prompts(client):
    asked = [Prompt(str(i), (i, i + 1)) for i in range(9)]
    found = logprobs.decode(client, asked, tokens=3, concurrency=4, timeout=5.0)
    assert [one.prompt for one in found] == asked
    assert all(len(one.tokens) == len(one.logprobs) == 3 for one in found)
    assert client.most_running <= 4


def test_a_failure_gives_up_requests_that_have_not_begun(client):
    asked = [Prompt(str(i), (i,)) for i in range(50)]
    client.seconds = 0.01
    count, lock = [0], threading.Lock()
    whole = client.generate

    def generate(prompt, **more):
        with lock:
            count[0] += 1
        if prompt == (0,):
            raise ClientError("broken")
        return whole(prompt, **more)

    client.generate = generate
    with pytest.raises(ClientError, match="broken"):
        logprobs.decode(client, asked, tokens=1, concurrency=1, timeout=5.0)
    assert count[0] < 50


@pytest.mark.parametrize(
    ("cached", "tokens"),
    [(1, 1), (2, 0), (0, 0), (-1, 0), (None, 0), ("1", 0)],
    ids=lambda one: repr(one),
)
def test_cached_tokens_are_those_that_the_server_counts(cached, tokens):
    assert Decoded(Prompt("a", (1,)), (1,), (-1.0,), {"cached_tokens": cached}).cached == tokens
    assert Decoded(Prompt("a", (1,)), (1,), (-1.0,), {}).cached == 0


@pytest.mark.parametrize(
    ("status", "raised"),
    [(400, NoLogprobs), (422, NoLogprobs), (501, NoLogprobs), (500, BadStatus)],
)
def test_a_refusal_is_told_from_a_failure(client, status, raised):
    client.status = {"score": status}
    with pytest.raises(raised):
        logprobs.prompts(client, ["one"], 7.0)


@pytest.mark.parametrize(
    ("status", "raised"),
    [(404, NoLogprobs), (405, NoLogprobs), (501, NoLogprobs), (500, BadStatus), (401, BadStatus)],
)
def test_a_cache_that_cannot_be_emptied_is_told_from_one_that_fails(client, status, raised):
    client.status = {"flush_cache": status}
    with pytest.raises(raised):
        logprobs.flush(client)


def scored(**changed: Any) -> dict[str, Any]:
    meta = {
        "input_token_logprobs": [[None, 0, None], [-1.0, 1, None], [-2.0, 7, None]],
        "input_top_logprobs": [None, [[-1.0, 1, None]], [[-0.5, 8, None]]],
        **changed,
    }
    return {"meta_info": meta}


ONE = Decoded(Prompt("p", (0, 1)), (7,), (-2.25,), {})


def test_a_scored_token_is_held_against_the_likeliest_at_its_place():
    found = logprobs._compared(ONE, scored())
    assert (found.decode, found.prefill, found.top) == ((-2.25,), (-2.0,), (-0.5,))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"input_token_logprobs": None}, "no input_token_logprobs or no top ones"),
        ({"input_top_logprobs": None}, "no input_token_logprobs or no top ones"),
        ({"input_token_logprobs": [[-2.0, 7, None]]}, "1 log-probabilities for 3"),
        ({"input_top_logprobs": [[[-0.5, 8, None]]]}, "3 log-probabilities for 3"),
        (
            {"input_token_logprobs": [[None, 0, None], [-1.0, 1, None], [-2.0, 6, None]]},
            "other tokens than it was given: p",
        ),
        ({"input_top_logprobs": [None, None, None]}, "no list of tokens"),
        ({"input_top_logprobs": [None, None, []]}, "no list of tokens"),
        ({"input_top_logprobs": [None, None, {}]}, "no list of tokens"),
        ({"input_top_logprobs": [None, None, [[]]]}, "missing or no number"),
        ({"input_top_logprobs": [None, None, ["x"]]}, "missing or no number"),
    ],
)
def test_a_broken_score_is_told(changed, told):
    with pytest.raises(MalformedAnswer, match=told):
        logprobs._compared(ONE, scored(**changed))


@pytest.mark.parametrize("entry", [[], ["x"], [None], [math.inf], [math.nan], "x", None, 5])
def test_a_value_that_is_no_finite_number_is_refused(entry):
    with pytest.raises(MalformedAnswer, match="missing or no number"):
        list(logprobs._values([entry]))


@pytest.mark.parametrize(
    "entry", [[], [-1.0], [-1.0, "x"], [-1.0, None], [-1.0, -1], [-1.0, 2**31 + 1], "xy", None]
)
def test_an_entry_without_a_token_id_is_refused(entry):
    with pytest.raises(MalformedAnswer, match="no entry"):
        list(logprobs._ids([entry]))


def test_an_entry_needs_a_value_and_an_id_and_no_text():
    assert list(logprobs._ids([[-1.0, 5], [-1.0, 0], [-1.0, 2**31]])) == [5, 0, 2**31]
    assert list(logprobs._values([[-1]])) == [-1.0]
