"""Speculation changes the number of rounds, never the text; its accept length is real."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

FLAGS = (
    "--enable-metrics", "--speculative-algorithm", "EAGLE3", "--speculative-num-steps", "3",
    "--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", "4",
)  # fmt: skip
PROMPTS = ("Once upon a time", "The capital of France is", "Q: What is 17 multiplied by 23?\nA:")


@pytest.fixture(scope="module")
def drafting(launch: Callable[..., Any]) -> Any:
    return launch(*FLAGS, "--speculative-draft-model-path", "test/draft")


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(
    "sampling", [{"ignore_eos": True}, {"stop": ["."]}, {"min_new_tokens": 30}]
)
def test_greedy_text_is_the_same(
    drafting: Any, server: Any, prompt: str, sampling: dict[str, Any]
) -> None:
    one = drafting.generate(prompt, tokens=90, sampling_params=sampling, return_logprob=True)
    other = server.generate(prompt, tokens=90, sampling_params=sampling, return_logprob=True)
    assert one["output_ids"] == other["output_ids"]
    assert one["text"] == other["text"]
    key = "output_token_logprobs"
    assert one["meta_info"][key] == other["meta_info"][key]
    assert one["meta_info"]["finish_reason"] == other["meta_info"]["finish_reason"]
    assert "spec_verify_ct" not in other["meta_info"]


def test_sampled_text_is_the_same(drafting: Any, server: Any) -> None:
    sampling = {"temperature": 1.0, "sampling_seed": 3, "ignore_eos": True}
    one = drafting.generate(PROMPTS[0], tokens=60, sampling_params=sampling)
    other = server.generate(PROMPTS[0], tokens=60, sampling_params=sampling)
    assert one["output_ids"] == other["output_ids"]


def test_the_accept_length_is_counted_in_rounds(drafting: Any) -> None:
    before = drafting.metrics()["cuda_graph_passes_total"].get(("decode_cuda_graph",), 0)
    meta = drafting.generate(PROMPTS[0], tokens=600, sampling_params={"ignore_eos": True})[
        "meta_info"
    ]
    rounds = meta["spec_verify_ct"]
    histogram = meta["spec_correct_drafts_histogram"]
    assert sum(histogram) == rounds
    assert (
        sum(index * count for index, count in enumerate(histogram))
        == (meta["spec_num_correct_drafts"])
    )
    assert meta["spec_num_proposed_drafts"] == 3 * rounds
    assert meta["spec_accept_length"] == pytest.approx(600 / rounds)
    assert 1.3 < meta["spec_accept_length"] < 4.0
    assert meta["spec_accept_rate"] == pytest.approx(meta["spec_num_correct_drafts"] / rounds / 3)
    scrape = drafting.metrics()
    assert scrape["cuda_graph_passes_total"][("decode_cuda_graph",)] - before == rounds
    assert 1 < scrape["spec_accept_length"][()] <= 4
    assert set(scrape["forward_execution_seconds_total"]) == {
        ("extend",), ("target_verify",), ("eagle_draft",), ("eagle_draft_extend",),
    }  # fmt: skip
    state = drafting.get("/server_info").json()["internal_states"][0]
    assert 1 < state["avg_spec_accept_length"] <= 4
    assert state["max_speculative_num_draft_tokens"] == 4


def test_a_target_that_drafts_for_itself_is_always_right(launch: Callable[..., Any]) -> None:
    server = launch(
        "--speculative-algorithm", "STANDALONE", "--speculative-draft-model-path", "test/model"
    )
    meta = server.generate(PROMPTS[0], tokens=401, sampling_params={"ignore_eos": True})[
        "meta_info"
    ]
    assert meta["spec_accept_rate"] == 1.0
    assert meta["spec_verify_ct"] == 100
    assert meta["spec_correct_drafts_histogram"] == [0, 0, 0, 100]
