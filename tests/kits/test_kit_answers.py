"""The answers of a real server, as recorded, are of the shapes that the kits demand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from servematrix.kits import answers

CONTRACT = Path(__file__).parents[2] / ".." / "shared" / "recordings" / "contract.json.gz"
SERVER_INFO = CONTRACT.with_name("server_info.json.gz")


def recorded(label: str, path: str | None = None) -> object:
    if not CONTRACT.exists():
        pytest.skip("the recorded contract is not here")
    for one in json.loads(gzip.decompress(CONTRACT.read_bytes())):
        if one["label"] == label and path in (None, one["path"]):
            return json.loads(one["text"])
    raise AssertionError(label)


@pytest.mark.parametrize(
    ("model", "label", "path"),
    [
        (answers.ModelInfo, "get", "/model_info"),
        (answers.ModelListing, "get", "/v1/models"),
        (answers.Generated, "generate", None),
        (answers.ChatCompletion, "chat", None),
        (answers.ChatCompletion, "chat_logprobs", None),
        (answers.Completion, "completion", None),
        (answers.Completion, "completion_batch", None),
    ],
)
def test_recorded_answers_conform(model, label, path):
    parsed = answers.parse(model, recorded(label, path))
    assert not isinstance(parsed, str), parsed


def test_the_recorded_server_info_conforms():
    if not SERVER_INFO.exists():
        pytest.skip("the recorded server info is not here")
    info = json.loads(gzip.decompress(SERVER_INFO.read_bytes()))
    assert isinstance(answers.parse(answers.ServerInfo, info), answers.ServerInfo)


@pytest.mark.parametrize("body", [None, [], "text", 5, {"error": {"message": "no"}}])
def test_what_is_something_else_is_told(body):
    assert isinstance(answers.parse(answers.Generated, body), str)


@pytest.mark.parametrize(("total", "whole"), [(6, True), (5, False), (4, False), (7, False)])
def test_usage_adds_up(total, whole):
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": total}
    found = answers.parse(answers.Usage, usage)
    assert isinstance(found, answers.Usage) is whole
    if not whole:
        assert f"do not make {total}" in found


def test_each_wrong_field_is_named_with_what_was_found():
    found = answers.parse(answers.ModelInfo, {"model_path": "", "is_generation": "x" * 200})
    first, second = found.split("; ")
    assert first.startswith("model_path: ")
    assert first.endswith("(found '')")
    assert second.startswith("is_generation: ")
    assert second.endswith("(found '" + "x" * 79 + ")")


@pytest.mark.parametrize(("faults", "rest"), [(5, ""), (6, "; and 1 more"), (8, "; and 3 more")])
def test_five_wrong_fields_are_named_and_the_rest_counted(faults, rest):
    models = [{"id": "m", "object": "model", "max_model_len": 0}] * faults
    found = answers.parse(answers.ModelListing, {"object": "list", "data": models})
    assert found.count("max_model_len: ") == 5
    assert found.endswith(f"(found 0){rest}")


@pytest.mark.parametrize(
    ("value", "kept"), [(-1e9, True), (-1.1e9, False), (0, True), (0.1, True), (0.11, False)]
)
def test_a_log_probability_lies_within_its_limits(value, kept):
    assert answers.logprob(value) == (value if kept else None)


def test_a_missing_field_and_a_wrong_object_are_told_without_their_whole():
    assert "found" not in answers.parse(answers.ModelInfo, {"model_path": "m"})
    assert answers.parse(answers.ModelInfo, []).startswith("the answer: ")
    assert "found" not in answers.parse(answers.ModelInfo, [])
    assert "(found 5)" in answers.parse(answers.ModelInfo, 5)
