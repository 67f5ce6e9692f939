"""The recorded answers of SGLang 0.5.16 against ours, request by request.

Every recorded request is sent twice, because whether a prompt is in the cache shows in the
shape of an answer; the second answers are compared. Compared are status, content type, the
keys and types of everything, recursively, and error messages literally, numbers aside where
they count tokens. What differs on purpose stands in DIFFERENCES.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

DIFFERENCES = {
    "*/meta_info/finish_reason": "our model's text may end where the recorded one goes on",
    "*/meta_info/decode_throughput": "so there may be a single token, which has no throughput",
    "*/choices/*/matched_stop": "the same, in the words of the OpenAI routes",
    "*/choices/*/logprobs/top_logprobs/*": "the keys are the tokens' texts",
    "openapi": "paths and methods only; the schemas are SGLang's business",
    "bad_chat_role": "the places name pydantic classes of SGLang's; status and shape are equal",
    "bad_chat_no_messages": "SGLang adds a default to the input before it complains about it",
    "server_info/engine": "ours: nobody may mistake this server for SGLang",
    "server_info/time_scale": "ours: how much faster than its hardware the simulation runs",
    "server_info/version": "ours: 'reference-…'",
    "server_info/cuda_graph_config": "the names of SGLang's graph compilers are left out",
    "server_info/internal_states/*/*": "private fields of SGLang's scheduler are left out",
    "server_info/context_length": "given as a flag here; the recorded model knows its own",
    "health": "answers at once; SGLang sleeps a second",
    "*/bytes": "empty for our end-of-sequence token, which has no text",
}
PRIVATE = {"grpc_worker_threads"}  # and everything that begins with an underscore
TOKEN_COUNTS = {"bad_too_long", "bad_huge_max"}
OPTIONAL = {"decode_throughput"}
SOURCE = re.compile(r'  File "[^"]+",( line \d+,)? in \w+\n')
TOP_BY_TEXT = re.compile(r"/logprobs/top_logprobs/\d+$")
KNOWN = ({"type", "length"}, {"type", "matched"})

FLAGS = (
    "--context-length", "8192", "--enable-metrics", "--attention-backend", "triton",
    "--sampling-backend", "pytorch", "--mem-fraction-static", "0.3", "--cuda-graph-max-bs", "4",
)  # fmt: skip


def read(recordings: Path) -> list[dict[str, Any]]:
    with gzip.open(recordings / "contract.json.gz", "rt", encoding="utf-8") as file:
        entries: list[dict[str, Any]] = json.load(file)
    return entries


def replay(server: Any, entry: dict[str, Any]) -> requests.Response:
    body = entry.get("raw") or (None if entry["body"] is None else json.dumps(entry["body"]))
    headers = {"content-type": "application/json"} if body else {}
    return server.session.request(
        entry["method"], server.url + entry["path"], data=body, headers=headers, timeout=60
    )


def name(entry: dict[str, Any]) -> str:
    """A label for the recorded requests that share one."""
    return entry["label"] if entry["label"] != "get" else entry["path"].strip("/") or "root"


@pytest.fixture(scope="module")
def answers(
    launch: Callable[..., Any], recordings: Path
) -> list[tuple[dict[str, Any], requests.Response]]:
    server = launch(*FLAGS)
    entries = read(recordings)
    for entry in entries:
        if entry["path"] != "/flush_cache":
            replay(server, entry)
    return [(entry, replay(server, entry)) for entry in entries]


def compare(ours: Any, theirs: Any, place: str = "") -> Iterator[str]:
    """Every difference in shape, as a sentence."""
    last = place.rsplit("/", 1)[-1]
    if last == "finish_reason" and isinstance(ours, dict):
        if set(ours) not in KNOWN:
            yield f"{place}: {ours}"
    elif last == "matched_stop":
        if not isinstance(ours, (int, str, type(None))):
            yield f"{place}: {ours}"
    elif isinstance(theirs, dict) and isinstance(ours, dict):
        if TOP_BY_TEXT.search(place):
            ours = dict(enumerate(ours.values()))
            theirs = dict(enumerate(theirs.values()))
        elif set(ours) - OPTIONAL != set(theirs) - OPTIONAL:
            yield f"{place}: {sorted(set(ours) ^ set(theirs))} in one of them only"
        for key in ours.keys() & theirs.keys():
            yield from compare(ours[key], theirs[key], f"{place}/{key}")
    elif isinstance(theirs, list) and isinstance(ours, list):
        if bool(theirs) != bool(ours) and last != "bytes":
            yield f"{place}: one list is empty, the other is not"
        for index, entry in enumerate(ours):
            # Entries of one list may differ in shape, such as the first log-probability: null.
            other = theirs[min(index, len(theirs) - 1)] if theirs else None
            yield from compare(entry, other, f"{place}/{index}") if theirs else ()
    elif type(ours) is not type(theirs):
        yield f"{place}: {type(ours).__name__} {ours!r}, recorded {type(theirs).__name__}"


def events(text: str) -> list[Any]:
    parts = [part for part in text.split("\n\n") if part]
    assert all(part.startswith("data: ") for part in parts)
    assert parts[-1] == "data: [DONE]"
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-1]]


def error_message(content: dict[str, Any], label: str) -> str:
    message: str = content.get("message") or content["error"]["message"]
    message = SOURCE.sub("", message)
    return re.sub(r"\d+", "#", message) if label in TOKEN_COUNTS else message


def test_every_recorded_request_gets_the_recorded_shape(
    answers: list[tuple[dict[str, Any], requests.Response]],
) -> None:
    problems = []
    for entry, ours in answers:
        label = name(entry)
        found = [*differences(entry, ours, label)]
        problems += [f"{label}: {sentence}" for sentence in found]
    assert not problems, "\n".join(problems)
    assert len(answers) == 54


def differences(entry: dict[str, Any], ours: requests.Response, label: str) -> Iterator[str]:
    if ours.status_code != entry["status"]:
        yield f"status {ours.status_code}, recorded {entry['status']}: {ours.text[:200]}"
        return
    if ours.headers.get("content-type") != entry["content_type"]:
        yield f"content type {ours.headers.get('content-type')}"
    if label in ("openapi", "openapi.json", "metrics"):
        return
    if "event-stream" in (entry["content_type"] or ""):
        mine, theirs = events(ours.text), events(entry["text"])
        yield from compare(mine[0], theirs[0], "first")
        yield from compare(mine[1], theirs[1], "second")
        yield from compare(mine[-1], theirs[-1], "last")
        yield from compare(mine[-2], theirs[-2], "last but one")
    elif entry["content_type"] != "application/json":
        if ours.text != entry["text"]:
            yield f"{ours.text!r}, recorded {entry['text']!r}"
    elif entry["n"] == len(entry["text"]):
        content, theirs = ours.json(), json.loads(entry["text"])
        yield from compare(content, theirs)
        if entry["status"] == 400 and label not in DIFFERENCES:
            mine = error_message(content, label)
            if mine != error_message(theirs, label):
                yield f"{mine!r}, recorded {error_message(theirs, label)!r}"


def test_the_server_tells_all_that_sglang_tells(
    launch: Callable[..., Any], recordings: Path
) -> None:
    with gzip.open(recordings / "server_info.json.gz", "rt", encoding="utf-8") as file:
        theirs = json.load(file)
    ours = launch(*FLAGS).get("/server_info").json()
    assert ours.pop("engine") == "servematrix-reference"
    assert ours.pop("version").startswith("reference-")
    assert ours.pop("time_scale") > 0
    del theirs["version"]
    state = theirs["internal_states"][0]
    for key in [key for key in state if key.startswith("_") or key in PRIVATE]:
        del state[key]
    for content in (ours, theirs, ours["internal_states"][0], state):
        assert content.pop("context_length") in (8192, None)
        for half in content["cuda_graph_config"].values():
            del half["full_prefill_max_req"]
    assert not [*compare(ours, theirs)]


def test_the_scrape_has_the_recorded_families_and_labels(
    launch: Callable[..., Any], recordings: Path
) -> None:
    server = launch(*FLAGS)
    server.generate("The capital of France is", tokens=90, sampling_params={"ignore_eos": True})
    recorded = next(entry for entry in read(recordings) if entry["path"] == "/metrics")
    whole = recorded["text"][: recorded["text"].rindex("# HELP")]  # the recording was cut

    def shape(text: str) -> dict[str, tuple[str, set[frozenset[str]]]]:
        return {
            family.name: (family.type, {frozenset(one.labels) for one in family.samples})
            for family in text_string_to_metric_families(text)
        }

    theirs, ours = shape(whole), shape(server.get("/metrics").text)
    assert len(theirs) >= 8
    assert {key: ours.get(key) for key in theirs} == theirs
    assert 400 <= len(server.get("/metrics").text.splitlines()) <= 600


# ------------------------------------------------------------ without the recordings
def test_comparison_finds_differences() -> None:
    assert not [*compare({"a": [1, None]}, {"a": [2, None]})]
    assert [*compare({"a": 1}, {"a": 1.0})]
    assert [*compare({"a": 1}, {"b": 1})]
    assert [*compare({"a": [1]}, {"a": ["1"]})]
    assert [*compare({"a": []}, {"a": [1]})]
    assert [*compare({"finish_reason": {"kind": 1}}, {"finish_reason": {"type": "length"}})]


META = {
    "id", "finish_reason", "prompt_tokens", "weight_version", "num_retractions", "queue_time",
    "reasoning_tokens", "completion_tokens", "cached_tokens", "cached_tokens_details", "dp_rank",
    "e2e_latency", "request_received_ts", "api_server_dispatch_finish_ts", "request_finished_ts",
    "response_sent_to_client_ts",
}  # fmt: skip


def test_generate_answers_with_sglangs_fields(server: Any) -> None:
    answer = server.generate("The capital of France is", tokens=1)
    assert set(answer) == {"text", "output_ids", "meta_info"}
    assert set(answer["meta_info"]) == META
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 1}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "Either text, input_ids or input_embeds should be provided."),
        ({"text": ""}, "texts cannot be empty and tokenizer must be initialized"),
        ({"input_ids": []}, "input_ids cannot be empty."),
        ({"input_ids": [10**9]}, "outside the vocabulary"),
        ({"input_ids": [-1]}, "outside the vocabulary"),
        ({"text": "a", "sampling_params": {"top_k": 0}}, "top_k must be"),
        ({"text": "a", "sampling_params": {"n": 10**9}}, "4096 sequences at most"),
        ({"text": "a", "sampling_params": {"min_new_tokens": 9, "max_new_tokens": 3}}, "min_new"),
        ({"text": "a", "sampling_params": {"max_new_tokens": "many"}}, "sampling_params"),
        ({"text": "a", "sampling_params": {"regex": "a+"}}, "regex is not supported"),
        ({"text": "a", "image_data": "x"}, "image_data is not supported"),
        ({"text": ["a", "b"], "logprob_start_len": [0], "return_logprob": True}, "1 entries for 2"),
        ({"text": "a", "logprob_start_len": 99, "return_logprob": True}, "logprob_start_len=99"),
        ({"text": "a", "top_logprobs_num": 10**6, "return_logprob": True}, "top_logprobs_num"),
        ({"text": ["a", "b"], "rid": ["same", "same"]}, "Duplicate request ID"),
    ],
)
def test_impossible_requests_are_refused_with_a_reason(
    server: Any, body: dict[str, Any], message: str
) -> None:
    answer = server.post("/generate", body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_the_other_error_bodies(server: Any) -> None:
    unknown = server.post("/generate", {"text": "a", "sampling_params": {"no_such": 1}})
    assert (unknown.status_code, unknown.text) == (500, "Internal Server Error")
    shape = server.post("/generate", {"text": 1}).json()
    assert (shape["object"], shape["code"], shape["type"]) == ("error", 400, "Bad Request")
    chat = server.post("/v1/chat/completions", {"messages": []}).json()
    assert chat["type"] == "BadRequestError"
    assert server.get("/no_such").json() == {"detail": "Not Found"}
    assert server.get("/generate").status_code == 405
    deep = server.session.post(server.url + "/generate", data="[" * 100_000, timeout=60)
    assert deep.status_code == 400
    stream = server.post("/generate", {"text": "", "stream": True})
    assert "cannot be empty" in events(stream.text)[0]["error"]["message"]


def test_an_api_key_is_asked_for_and_never_told(launch: Callable[..., Any]) -> None:
    server = launch("--enable-metrics", SERVEMATRIX_API_KEY="a-secret-key")
    key = {"Authorization": "Bearer a-secret-key"}
    for path in ("/server_info", "/v1/models", "/no_such"):
        refused = server.get(path)
        assert (refused.status_code, refused.json()) == (401, {"error": "Unauthorized"})
        assert server.get(path, headers={"Authorization": "Bearer other"}).status_code == 401
        assert server.get(path, headers=key).status_code != 401
    for path in ("/health", "/health_generate", "/metrics"):
        assert server.get(path).status_code == 200
    assert "a-secret-key" not in server.get("/server_info", headers=key).text
    assert not any("a-secret-key" in line for line in server.log)
