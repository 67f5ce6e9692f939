from __future__ import annotations

import pytest

from servematrix.kits import BasicAPIContractMixin
from servematrix.kits.base import MeasurementError, VerdictFailed

PATHS = {
    "test_health": "/health",
    "test_health_generate": "/health_generate",
    "test_server_info": "/server_info",
    "test_get_server_info": "/get_server_info",
    "test_model_info": "/model_info",
    "test_get_model_info": "/get_model_info",
    "test_model_listing": "/v1/models",
    "test_openai_chat_completion": "/v1/chat/completions",
    "test_openai_completion": "/v1/completions",
}


@pytest.mark.parametrize("test", PATHS)
def test_a_healthy_server_passes(run_kit, test):
    ran = run_kit(BasicAPIContractMixin, test)
    assert ran.raised is None
    assert "Guards against" in ran.verdict.rule


@pytest.mark.parametrize(("test", "path"), PATHS.items())
def test_an_error_status_fails(run_kit, scripted, test, path):
    scripted.overrides[path] = (503, {"error": "broken"})
    ran = run_kit(BasicAPIContractMixin, test)
    assert isinstance(ran.raised, VerdictFailed)
    assert "503" in ran.verdict.reason
    assert path in ran.verdict.reason


@pytest.mark.parametrize(
    ("test", "change", "named"),
    [
        ("test_server_info", {"internal_states": []}, "internal_states"),
        ("test_get_server_info", {"version": 16}, "version"),
        ("test_model_info", {"model_path": ""}, "model_path"),
        ("test_get_model_info", {"is_generation": "yes"}, "is_generation"),
        ("test_model_listing", {"data": []}, "data"),
        ("test_openai_chat_completion", {"usage": None}, "usage"),
        ("test_openai_chat_completion", {"choices": []}, "choices"),
        (
            "test_openai_chat_completion",
            {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant"}}]},
            "choices.0.message.content",
        ),
        (
            "test_openai_completion",
            {"choices": [{"index": 0, "finish_reason": "stop", "text": ""}]},
            "choices.0.text",
        ),
        (
            "test_openai_completion",
            {"usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 7}},
            "usage",
        ),
        (
            "test_openai_completion",
            {"usage": {"prompt_tokens": 5, "completion_tokens": 17, "total_tokens": 22}},
            "usage.completion_tokens",
        ),
    ],
)
def test_a_wrong_field_is_named(run_kit, scripted, test, change, named):
    scripted.edit = lambda path, body: {**body, **change}
    ran = run_kit(BasicAPIContractMixin, test)
    assert isinstance(ran.raised, VerdictFailed)
    assert f"{named}:" in ran.verdict.reason
    assert "the answer was {" in ran.verdict.reason


def test_an_answer_that_is_no_json_fails(run_kit, scripted):
    scripted.overrides["/model_info"] = (200, "<html>")
    ran = run_kit(BasicAPIContractMixin, "test_model_info")
    assert isinstance(ran.raised, VerdictFailed)
    assert "no JSON" in ran.verdict.reason


def test_a_refused_key_is_an_error_and_not_a_finding(run_kit, scripted):
    scripted.overrides["/health"] = (401, "who are you")
    ran = run_kit(BasicAPIContractMixin, "test_health")
    assert isinstance(ran.raised, MeasurementError)
    assert "API key" in ran.verdict.reason


def test_the_key_is_not_shown(run_kit, scripted):
    scripted.edit = lambda path, body: {"api_key": "s3cret", "model_path": ""}
    ran = run_kit(BasicAPIContractMixin, "test_server_info", api_key="s3cret")
    assert ran.verdict.outcome == "fail"
    assert "s3cret" not in ran.verdict.reason


def test_the_model_name_is_sent(run_kit, scripted):
    run_kit(BasicAPIContractMixin, "test_openai_completion", served_model_name="mine")
    assert scripted.asked[-1][1]["model"] == "mine"


@pytest.mark.parametrize(("test", "path"), [one for one in PATHS.items() if "health" not in one[1]])
def test_each_route_is_judged_under_its_own_name(run_kit, scripted, test, path):
    assert run_kit(BasicAPIContractMixin, test).verdict.rule.startswith(f"{path} answers 200 with")
    scripted.edit = lambda path, body: {}
    assert run_kit(BasicAPIContractMixin, test).verdict.reason.startswith(f"{path}: ")


@pytest.mark.parametrize(("tokens", "outcome"), [(16, "pass"), (17, "fail")])
def test_as_many_tokens_as_were_allowed_are_fine(run_kit, scripted, tokens, outcome):
    usage = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}
    scripted.edit = lambda path, body: {**body, "usage": usage}
    ran = run_kit(BasicAPIContractMixin, "test_openai_completion")
    assert ran.verdict.outcome == outcome
    assert ("api_contract", "completion_tokens", tokens, "tokens") in ran.reporter.measurements
