"""What each kit asks of a server, within which time, and which numbers it reports."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from numeric_client import NumericClient
from servematrix import kits
from servematrix.client import Client

TIMEOUT = 77.0
SMALL = {
    "fwd_occupancy": {
        "fwd_occupancy_max_new_tokens": 400,
        "fwd_occupancy_scrape_interval": 0.005,
        "fwd_occupancy_counter_tolerance": 25.0,
        "fwd_occupancy_startup_seconds": 0.0,
        "fwd_occupancy_block_windows": 1,
        "fwd_occupancy_stop_early": False,
    },
    "hellaswag": {
        "hellaswag_packaged": True,
        "hellaswag_num_questions": 20,
        "hellaswag_num_shots": 0,
    },
    "scheduler_stress": {"scheduler_stress_requests": 3},
    "decode_consistency": {"decode_consistency_prompts": {"1": 2, "2": 2}},
}
NUMERIC = (kits.CudaGraphMixin, kits.DecodeConsistencyMixin, kits.SpecDecodingMixin)


class Spy:
    """A client that keeps the keywords of each call; a first one like an earlier is kept once."""

    def __init__(self, client: Any) -> None:
        self._spied = client
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._spied, name)

        def call(*positional: Any, **keywords: Any) -> Any:
            kept = {key: value for key, value in keywords.items() if key != "rid"}
            if (name, kept) not in self.calls:
                self.calls.append((name, kept))
            return found(*positional, **keywords)

        return call if callable(found) else found


def short(tokens: int, **more: Any) -> dict[str, Any]:
    return {"max_new_tokens": tokens, **more, "timeout": TIMEOUT}


SCRAPE = ("metrics_text", {"timeout": 10.0})
INFO = ("server_info", {})
FLUSH = ("flush_cache", {})
TOP = ("score", {"top": 1, "timeout": TIMEOUT})
DECODES = {"ignore_eos": True, "logprobs": True}
API, DECODE, STRESS = (
    kits.BasicAPIContractMixin,
    kits.BasicDecodeCorrectnessMixin,
    kits.BasicSchedulerStressMixin,
)
ASKED = [
    (API, "test_health", [("health", {})]),
    (API, "test_health_generate", [("health_generate", {"timeout": TIMEOUT})]),
    (API, "test_server_info", [INFO]),
    (API, "test_get_server_info", [("server_info", {"old_path": True})]),
    (API, "test_model_info", [("model_info", {})]),
    (API, "test_get_model_info", [("model_info", {"old_path": True})]),
    (API, "test_model_listing", [("models", {})]),
    (API, "test_openai_chat_completion", [("chat", {"timeout": TIMEOUT})]),
    (API, "test_openai_completion", [("completion", {"timeout": TIMEOUT})]),
    (DECODE, "test_capital_france", [("generate", short(64))]),
    (DECODE, "test_basic_math", [("generate", short(64))]),
    (DECODE, "test_color_completion", [("generate", short(64))]),
    (DECODE, "test_determinism_temp_zero", [("generate", short(64))]),
    (DECODE, "test_ascii_ratio", [("generate", short(128))]),
    (DECODE, "test_no_repetition_blowup", [("generate", short(128))]),
    (DECODE, "test_max_token_one", [("generate", short(1))]),
    (
        DECODE,
        "test_stop_string",
        [("generate", short(32)), ("generate", short(32, stop="and"))],
    ),
    (
        STRESS,
        "test_streaming_response",
        [("generate", short(64)), ("generate_stream", short(64))],
    ),
    (STRESS, "test_concurrent_requests", [("generate", short(64))]),
    (STRESS, "test_many_requests", [("generate", short(1))]),
    (
        STRESS,
        "test_long_prompt",
        [("models", {}), ("tokenize", {"model": "mine"}), ("generate", short(64))],
    ),
    (kits.HellaswagMixin, "test_accuracy_floor", [("score", {"timeout": TIMEOUT})]),
    (
        kits.FwdOccupancyMixin,
        "test_fwd_occupancy",
        [
            SCRAPE,
            INFO,
            ("models", {}),
            ("generate", short(64, ignore_eos=True, dp_rank=None)),
            ("generate", short(400, ignore_eos=True, dp_rank=None)),
            ("generate_stream", short(256, ignore_eos=True)),
        ],
    ),
    (
        kits.CudaGraphMixin,
        "test_cuda_graph_passes",
        [
            INFO,
            SCRAPE,
            ("generate_batch", short(96, ignore_eos=True)),
            ("generate_stream", short(96, ignore_eos=True)),
        ],
    ),
    (
        kits.SpecDecodingMixin,
        "test_accept_length",
        [
            INFO,
            ("generate", short(192, ignore_eos=True)),
            ("generate_stream", short(192, ignore_eos=True)),
        ],
    ),
    (
        kits.SpecDecodingMixin,
        "test_accepted_tokens_are_top1",
        [INFO, ("score", {"timeout": TIMEOUT}), ("generate", short(192, **DECODES)), FLUSH, TOP],
    ),
    (
        kits.DecodeConsistencyMixin,
        "test_decode_matches_prefill",
        [("score", {"timeout": TIMEOUT}), ("generate", short(192, **DECODES)), FLUSH, TOP, INFO],
    ),
    (
        kits.DecodeConsistencyMixin,
        "test_prefix_cache_isolation",
        [("score", {"timeout": TIMEOUT}), FLUSH, ("generate", short(48, **DECODES)), TOP, INFO],
    ),
]


@pytest.fixture
def spied(run_kit, scripted):
    """Run one test of a kit on a healthy server; what it asked, and what came of it."""

    def run(mixin, test, **more):
        client: Any = Client(scripted.url)
        if mixin in NUMERIC:
            client = NumericClient()
            client.info["speculative_algorithm"] = "EAGLE3"
        scripted.logprob = lambda context, ending: -1.0
        spy = Spy(client)
        more = {**SMALL.get(mixin.kit, {}), f"{mixin.kit}_timeout": TIMEOUT, **more}
        ran = run_kit(mixin, test, _kit_client=spy, served_model_name="mine", **more)
        return spy.calls, ran

    return run


@pytest.mark.parametrize(("mixin", "test", "calls"), ASKED, ids=lambda one: str(one)[:40])
def test_each_request_has_its_length_and_ends_in_the_kits_time(spied, mixin, test, calls):
    assert spied(mixin, test)[0] == calls


def test_the_table_has_every_test_of_every_kit():
    tests = {(m, name) for m in kits.MIXINS for name in dir(m) if name.startswith("test_")}
    assert {(mixin, test) for mixin, test, _ in ASKED} == tests


TABLE = ("relative", "mean", "p99", "top1", "largest_gap")
MEASURED = [
    (API, "test_openai_completion", ["completion_tokens"]),
    (API, "test_openai_chat_completion", ["completion_tokens"]),
    (STRESS, "test_streaming_response", ["stream_events"]),
    (STRESS, "test_concurrent_requests", ["concurrent_missed", "concurrent_unanswered"]),
    (STRESS, "test_many_requests", ["many_requests", "many_unanswered"]),
    (STRESS, "test_long_prompt", ["long_prompt_tokens", "long_prompt_answer_right"]),
    (
        kits.CudaGraphMixin,
        "test_cuda_graph_passes",
        ["decode_tokens_per_s", "graph_share_at_1", "graph_share_at_4", "graph_share_at_5"],
    ),
    (
        kits.SpecDecodingMixin,
        "test_accept_length",
        ["accept_length", "accept_rate", "decode_tokens_per_s"],
    ),
    (kits.SpecDecodingMixin, "test_accepted_tokens_are_top1", ["near_ties", "largest_gap"]),
    (
        kits.DecodeConsistencyMixin,
        "test_decode_matches_prefill",
        [
            "decode_seconds",
            "prefill_seconds",
            *(f"{key}, concurrency {n}" for n in (1, 2) for key in TABLE),
        ],
    ),
    (
        kits.DecodeConsistencyMixin,
        "test_prefix_cache_isolation",
        [
            "cached_tokens",
            *(f"{key}, {part}" for part in ("empty cache", "shared prefix") for key in TABLE),
        ],
    ),
]


@pytest.mark.parametrize(("mixin", "test", "names"), MEASURED, ids=lambda one: str(one)[:40])
def test_each_measurement_has_its_name_and_is_what_the_verdict_states(spied, mixin, test, names):
    ran = spied(mixin, test)[1]
    found = {name: value for kit, name, value, _ in ran.reporter.measurements}
    assert list(found) == names
    assert {kit for kit, *_ in ran.reporter.measurements} == {mixin.kit}
    for name in found.keys() & ran.verdict.numbers.keys():
        assert found[name] == ran.verdict.numbers[name]


@pytest.mark.parametrize(
    ("mixin", "test", "name", "value"),
    [
        (API, "test_openai_completion", "completion_tokens", 1),
        (STRESS, "test_streaming_response", "stream_events", 8),  # with [DONE]
        (STRESS, "test_concurrent_requests", "concurrent_missed", 0),
        (STRESS, "test_concurrent_requests", "concurrent_unanswered", 0),
        (STRESS, "test_many_requests", "many_requests", 3),
        (STRESS, "test_many_requests", "many_unanswered", 0),
        (STRESS, "test_long_prompt", "long_prompt_tokens", 3091),
        (STRESS, "test_long_prompt", "long_prompt_answer_right", True),
    ],
)
def test_what_a_healthy_server_measures(spied, mixin, test, name, value):
    ran = spied(mixin, test)[1]
    assert (name, value) in [one[1:3] for one in ran.reporter.measurements]


def test_seconds_are_those_that_passed(spied):
    ran = spied(kits.DecodeConsistencyMixin, "test_decode_matches_prefill")[1]
    found = {name: value for _, name, value, _ in ran.reporter.measurements}
    assert 0 < found["decode_seconds"] < 60
    assert 0 < found["prefill_seconds"] < 60


CHAT = {
    "model": "mine",
    "messages": [{"role": "user", "content": "Greet me with one word."}],
    "temperature": 0.0,
    "max_tokens": 16,
}
COMPLETION = {
    "model": "mine",
    "prompt": "The capital of France is",
    "temperature": 0.0,
    "max_tokens": 16,
}


@pytest.mark.parametrize(
    ("test", "path", "body"),
    [
        ("test_openai_chat_completion", "/v1/chat/completions", CHAT),
        ("test_openai_completion", "/v1/completions", COMPLETION),
    ],
)
def test_the_openai_routes_are_asked_greedily_and_briefly(spied, scripted, test, path, body):
    spied(API, test)
    assert scripted.asked == [(path, body)]


def test_eight_questions_are_really_asked_at_once(spied, scripted):
    """Nobody is answered before all eight have arrived."""
    all_there = threading.Barrier(8)
    answer = scripted.reply

    def reply(prompt):
        all_there.wait(timeout=10)
        return answer(prompt)

    scripted.reply = reply
    assert spied(STRESS, "test_concurrent_requests")[1].raised is None


def test_of_many_requests_sixteen_are_asked_at_once(spied, scripted):
    all_there = threading.Barrier(16)
    answer = scripted.reply

    def reply(prompt):
        all_there.wait(timeout=10)
        return answer(prompt)

    scripted.reply = reply
    ran = spied(STRESS, "test_many_requests", scheduler_stress_requests=32)[1]
    assert ran.raised is None
    assert ran.verdict.numbers["asked"] == 32
