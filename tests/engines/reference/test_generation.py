"""Generating: cache and batch, decode against prefill, stops, copies, streams, abort and flush."""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

PROMPT = "Write one line about a warm day in the gardens. "
LONG = {"ignore_eos": True}


def events(answer: Any) -> list[Any]:
    lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == b"data: [DONE]"
    return [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.002)


def test_the_cache_serves_all_but_the_last_token(server: Any) -> None:
    server.flush()
    first = server.generate(PROMPT)["meta_info"]
    again = server.generate(PROMPT)["meta_info"]
    longer = server.generate(PROMPT + "It was warm.")["meta_info"]
    assert first["cached_tokens"] == 0
    assert first["cached_tokens_details"] is None
    assert again["cached_tokens"] == again["prompt_tokens"] - 1
    assert again["cached_tokens_details"] == {"device": again["cached_tokens"], "host": 0}
    assert again["prompt_tokens"] - 1 <= longer["cached_tokens"] < longer["prompt_tokens"]
    server.flush()
    assert server.generate(PROMPT)["meta_info"]["cached_tokens"] == 0


def test_logprobs_are_cached_only_up_to_where_they_are_wanted(server: Any) -> None:
    server.generate(PROMPT, tokens=0)
    scored = server.generate(PROMPT, tokens=0, return_logprob=True, logprob_start_len=4)
    meta = scored["meta_info"]
    assert scored["text"] == ""
    assert scored["output_ids"] == []
    assert meta["cached_tokens"] == 4
    assert len(meta["input_token_logprobs"]) == meta["prompt_tokens"] - 4
    assert meta["input_token_logprobs"][0][0] is None
    assert all(value < 0 for value, _, _ in meta["input_token_logprobs"][1:])


def test_a_server_without_the_cache_finds_nothing(launch: Callable[..., Any]) -> None:
    server = launch("--disable-radix-cache")
    server.generate(PROMPT)
    assert server.generate(PROMPT)["meta_info"]["cached_tokens"] == 0


def test_decode_and_prefill_agree(server: Any) -> None:
    """What greedy decoding said about its tokens is what prefill says about them."""
    tokens = server.post("/tokenize", {"prompt": PROMPT}).json()["tokens"]
    decoded = server.generate(
        input_ids=tokens, tokens=48, return_logprob=True, top_logprobs_num=2, sampling_params=LONG
    )
    said = decoded["meta_info"]["output_token_logprobs"]
    server.flush()
    scored = server.generate(
        input_ids=tokens + decoded["output_ids"], tokens=0, return_logprob=True,
        logprob_start_len=len(tokens) - 1, top_logprobs_num=2,
    )["meta_info"]  # fmt: skip
    assert scored["input_token_logprobs"][1:] == said
    assert scored["input_top_logprobs"][1:] == decoded["meta_info"]["output_top_logprobs"]
    best = [top[0][1] for top in decoded["meta_info"]["output_top_logprobs"]]
    assert best == decoded["output_ids"]


def test_chunks_and_cached_prefixes_change_no_score(
    launch: Callable[..., Any], server: Any
) -> None:
    text = PROMPT * 20
    whole = server.generate(text, tokens=0, return_logprob=True, logprob_start_len=0)
    chunked = launch("--chunked-prefill-size", "7", "--enable-metrics")
    cut = chunked.generate(text, tokens=0, return_logprob=True, logprob_start_len=0)
    assert cut["meta_info"]["input_token_logprobs"] == whole["meta_info"]["input_token_logprobs"]
    forwards = chunked.metrics()["cuda_graph_passes_total"][("prefill_cuda_graph",)]
    assert forwards >= cut["meta_info"]["prompt_tokens"] / 7


def test_a_batch_answers_as_its_members_alone(server: Any) -> None:
    texts = [f"{PROMPT}{number}" for number in range(6)]
    batch = server.generate(texts, tokens=24)
    alone = [server.generate(text, tokens=24) for text in texts]
    assert [one["text"] for one in batch] == [one["text"] for one in alone]
    with ThreadPoolExecutor(6) as pool:
        crowd = list(pool.map(lambda text: server.generate(text, tokens=24), texts))
    assert [one["text"] for one in crowd] == [one["text"] for one in alone]


def test_a_list_has_one_entry_per_text_each_with_its_own_parameters(server: Any) -> None:
    answers = server.post(
        "/generate",
        {
            "text": ["one", "two"],
            "sampling_params": [{"max_new_tokens": 1}, {"max_new_tokens": 3, "ignore_eos": True}],
            "return_logprob": [True, False],
            "logprob_start_len": [0, -1],
        },
    ).json()
    assert [one["meta_info"]["completion_tokens"] for one in answers] == [1, 3]
    assert ["input_token_logprobs" in one["meta_info"] for one in answers] == [True, False]


def test_a_stop_string_ends_the_text_before_it(server: Any) -> None:
    free = server.generate(PROMPT, tokens=24, sampling_params=LONG)["text"]
    stop = free[8:12]
    cut = server.generate(PROMPT, tokens=24, sampling_params={"stop": ["never", stop], **LONG})
    assert cut["text"] == free[: free.index(stop)]
    assert cut["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
    sampling = {"stop": stop, "no_stop_trim": True, **LONG}
    kept = server.generate(PROMPT, tokens=24, sampling_params=sampling)
    assert kept["text"] == cut["text"] + stop


def test_a_stop_token_ends_the_text_before_it(server: Any) -> None:
    free = server.generate(PROMPT, tokens=12, sampling_params=LONG)
    token = free["output_ids"][5]
    cut = server.generate(PROMPT, tokens=12, sampling_params={"stop_token_ids": [token], **LONG})
    first = free["output_ids"].index(token)
    assert cut["output_ids"] == free["output_ids"][: first + 1]
    assert cut["meta_info"]["finish_reason"] == {"type": "stop", "matched": token}
    late = server.generate(
        PROMPT, tokens=12, sampling_params={"stop_token_ids": [token], "min_new_tokens": 12}
    )
    assert len(late["output_ids"]) == 12


def test_the_end_of_the_text_ends_the_answer_unless_ignored(server: Any) -> None:
    ended = server.generate("Q: What is the capital of France?\nA:", tokens=200)
    assert ended["meta_info"]["finish_reason"]["type"] == "stop"
    assert ended["meta_info"]["completion_tokens"] < 200
    ignored = server.generate(
        "Q: What is the capital of France?\nA:", tokens=200, sampling_params=LONG
    )
    assert ignored["meta_info"]["completion_tokens"] == 200


def test_copies_share_the_prompt_and_differ(server: Any) -> None:
    server.flush()
    sampling = {"n": 4, "temperature": 1.0, "max_new_tokens": 16}
    answers = server.post("/generate", {"text": PROMPT, "sampling_params": sampling}).json()
    assert len(answers) == 4
    assert len({one["text"] for one in answers}) > 1
    assert len({one["meta_info"]["id"] for one in answers}) == 4
    cached = {one["meta_info"]["cached_tokens"] for one in answers}
    assert cached == {answers[0]["meta_info"]["prompt_tokens"] - 1}


def test_a_seed_repeats_a_sample(server: Any) -> None:
    sampling = {"temperature": 1.0, "sampling_seed": 7}
    texts = {server.generate(PROMPT, sampling_params=sampling)["text"] for _ in range(3)}
    assert len(texts) == 1


def test_a_stream_grows_to_the_whole_answer(server: Any) -> None:
    whole = server.generate(PROMPT, tokens=24, sampling_params=LONG)
    sampling = {"temperature": 0, "max_new_tokens": 24, **LONG}
    body = {"text": PROMPT, "sampling_params": sampling, "stream": True, "return_logprob": True}
    answer = server.post("/generate", body, stream=True)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    found = events(answer)
    texts = [one["text"] for one in found]
    assert all(late.startswith(early) for early, late in itertools.pairwise(texts))
    assert texts[-1] == whole["text"]
    assert found[-1]["output_ids"] == whole["output_ids"]
    assert [one["meta_info"]["finish_reason"] is None for one in found].index(False) == len(
        found
    ) - 1
    assert len(found[-1]["meta_info"]["output_token_logprobs"]) == 24
    assert {one["meta_info"]["id"] for one in found} == {found[0]["meta_info"]["id"]}


def test_a_streamed_batch_names_its_members(server: Any) -> None:
    body = {"text": ["one", "two"], "sampling_params": {"max_new_tokens": 3}, "stream": True}
    found = events(server.post("/generate", body, stream=True))
    assert {one["index"] for one in found} == {0, 1}


def test_a_stream_shows_no_part_of_a_stop_string(server: Any) -> None:
    free = server.generate(PROMPT, tokens=24, sampling_params=LONG)["text"]
    stop = free[10:20]
    sampling = {"temperature": 0, "max_new_tokens": 24, "stop": stop, **LONG}
    body = {"text": PROMPT, "sampling_params": sampling, "stream": True}
    for one in events(server.post("/generate", body, stream=True)):
        assert free[: free.index(stop)].startswith(one["text"])


def test_characters_of_several_tokens_come_whole(server: Any) -> None:
    tokens = server.post("/tokenize", {"prompt": "\N{SNOWMAN}\N{OGHAM LETTER BEITH}"}).json()
    assert tokens["count"] > 2
    back = server.post("/detokenize", {"tokens": tokens["tokens"]}).json()
    assert back == {"text": "\N{SNOWMAN}\N{OGHAM LETTER BEITH}"}


def test_the_openai_routes_stream_what_they_answer(server: Any) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    chat = {"messages": messages, "temperature": 0, "max_tokens": 24}
    plain = {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 8}
    for path, body, key in (
        ("/v1/chat/completions", chat, "delta"),
        ("/v1/completions", plain, "text"),
    ):
        whole = server.post(path, body).json()
        options = {"stream": True, "stream_options": {"include_usage": True}}
        found = events(server.post(path, body | options, stream=True))
        pieces = [one["choices"][0][key] for one in found[:-1]]
        texts = [one.get("content", "") if key == "delta" else one for one in pieces]
        choice = whole["choices"][0]
        assert "".join(texts) == (
            choice["message"]["content"] if key == "delta" else choice["text"]
        )
        assert found[-1]["usage"] == whole["usage"]
        assert found[-2]["choices"][0]["finish_reason"] == choice["finish_reason"]
        usage = whole["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_echoed_logprobs_are_those_of_generate(server: Any) -> None:
    text = "The capital of France is Paris"
    scored = server.generate(text, tokens=0, return_logprob=True, logprob_start_len=0)
    body = {"prompt": text, "temperature": 0, "max_tokens": 0, "echo": True, "logprobs": 1}
    echoed = server.post("/v1/completions", body).json()["choices"][0]
    values = [value for value, _, _ in scored["meta_info"]["input_token_logprobs"]]
    assert echoed["logprobs"]["token_logprobs"] == values
    assert "".join(echoed["logprobs"]["tokens"]) == text == echoed["text"]


def test_probabilities_sum_to_at_most_one(server: Any) -> None:
    meta = server.generate(PROMPT, tokens=4, return_logprob=True, top_logprobs_num=100)["meta_info"]
    for top in meta["output_top_logprobs"]:
        values = [value for value, _, _ in top]
        assert values == sorted(values, reverse=True)
        assert 0 < sum(math.exp(value) for value in values) <= 1 + 1e-9


@pytest.mark.parametrize("named", [True, False])
def test_a_running_request_can_be_aborted(server: Any, named: bool) -> None:
    found: dict[str, Any] = {}

    def long() -> None:
        found["answer"] = server.generate(
            PROMPT, tokens=12_000, rid="to-abort", sampling_params=LONG
        )

    thread = threading.Thread(target=long)
    thread.start()
    until(lambda: server.get("/get_load").json()[0]["num_reqs"] == 1)
    refused = server.post("/flush_cache", None)
    assert refused.status_code == 400
    body = {"rid": "to-abort"} if named else {"abort_all": True}
    assert server.post("/abort_request", body).status_code == 200
    thread.join(30)
    assert found["answer"]["meta_info"]["finish_reason"]["type"] == "abort"
    assert server.get("/get_load").json()[0]["num_reqs"] == 0


def test_a_client_that_hangs_up_frees_the_server(server: Any) -> None:
    sampling = {"max_new_tokens": 12_000, **LONG}
    body = {"text": PROMPT, "sampling_params": sampling, "stream": True}
    answer = server.post("/generate", body, stream=True)
    next(answer.iter_content(1))
    answer.close()
    until(lambda: server.get("/get_load").json()[0]["num_reqs"] == 0)


def test_more_requests_than_slots_wait_their_turn(launch: Callable[..., Any]) -> None:
    server = launch("--max-running-requests", "2", "--max-total-tokens", "600")
    answers = server.generate([f"{PROMPT}{i}" for i in range(8)], tokens=20, sampling_params=LONG)
    assert [one["meta_info"]["completion_tokens"] for one in answers] == [20] * 8
    load = server.get("/v1/loads").json()["loads"][0]
    assert (load["num_running_reqs"], load["num_waiting_reqs"]) == (0, 0)
    too_long = server.post("/generate", {"text": "word " * 700})
    assert "exceeds the maximum allowed length (594 tokens)" in too_long.text


def test_ranks_take_turns(launch: Callable[..., Any]) -> None:
    server = launch("--dp-size", "2", "--enable-metrics")
    ranks = [server.generate(PROMPT)["meta_info"]["dp_rank"] for _ in range(4)]
    assert ranks == [0, 1, 0, 1]
    assert set(server.metrics()["num_running_reqs"]) == {("0",), ("1",)}
    assert len(server.get("/get_load").json()) == 2
