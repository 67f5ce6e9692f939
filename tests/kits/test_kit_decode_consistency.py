from __future__ import annotations

import math

import pytest

from numeric_client import NumericClient, hashed, likeliest
from servematrix.kits import DecodeConsistencyMixin, logprobs
from servematrix.kits.base import MeasurementError, NotApplicable, VerdictFailed
from servematrix.kits.decode_consistency import (
    _PASSAGE,
    _QUESTIONS,
    _SHARERS,
    _texts,
    dtype_of,
    limits_for,
)

DECODE = "test_decode_matches_prefill"
CACHE = "test_prefix_cache_isolation"
SMALL = {
    "decode_consistency_prompts": {"1": 5, "4": 5},
    "decode_consistency_tokens": 48,
    "decode_consistency_cache_tokens": 40,
}


@pytest.fixture
def server():
    return NumericClient()


@pytest.fixture
def run(run_kit, server):
    return lambda test, **more: run_kit(
        DecodeConsistencyMixin, test, _kit_client=server, **{**SMALL, **more}
    )


def rounding(context):
    """About what bfloat16 does."""
    return 0.06 * (hashed(context, "r") - 0.5)


@pytest.mark.parametrize("test", [DECODE, CACHE])
def test_a_healthy_server_passes(run, server, test):
    server.noise = rounding
    ran = run(test)
    assert ran.raised is None
    assert 0 < ran.verdict.numbers["mean"] < 0.03
    assert ran.verdict.numbers["top1"] == 1.0


def test_each_concurrency_is_reached_and_told(run, server, capsys):
    server.seconds = 0.1
    ran = run(DECODE)
    assert server.most_running == 4
    assert {"mean, concurrency 1", "mean, concurrency 4"} <= set(ran.verdict.numbers)
    kept = ran.reporter.attachments["decode_matches_prefill"]["concurrency"]
    assert [len(kept[c]["delta_logprob"]) for c in ("1", "4")] == [5, 5]
    assert {len(row) for row in kept["1"]["delta_logprob"]} == {48}
    table = capsys.readouterr().out
    assert "Log-probabilities, nats" in table
    assert "concurrency 4" in table


def test_coarse_numbers_in_the_decode_path_fail(run, server):
    server.info["kv_cache_dtype"] = "fp8_e5m2"
    server.noise = lambda context: 8 * rounding(context)
    ran = run(DECODE)
    assert isinstance(ran.raised, VerdictFailed)
    assert "the KV cache is fp8_e5m2" in ran.verdict.reason


def test_a_fault_of_one_batch_size_is_not_diluted(run, server):
    server.seconds = 0.05
    server.noise = lambda context: rounding(context) * (8 if server.running > 1 else 1)
    ran = run(DECODE)
    assert isinstance(ran.raised, VerdictFailed)
    assert "concurrency 4: " in ran.verdict.reason
    assert "the other parts hold" in ran.verdict.reason


def test_one_wrong_token_among_many_fails(run, server):
    victim = []

    def sometimes(context):
        if not victim:
            victim.append(tuple(context))
        return 7 if tuple(context) == victim[0] else likeliest(context)

    server.decoded = sometimes
    ran = run(DECODE)
    assert isinstance(ran.raised, VerdictFailed)
    assert "nats below the likeliest" in ran.verdict.reason


def test_a_cache_that_mixes_requests_fails_and_decoding_alone_does_not(run, server):
    """A cached request decodes as if its prompt's last token were another's."""
    server.seen = lambda context, cached: [*context[1:], 3] if cached else context
    ran = run(CACHE)
    assert isinstance(ran.raised, VerdictFailed)
    assert "shared prefix: " in ran.verdict.reason
    assert "empty cache: mean" not in ran.verdict.reason
    server.seen = lambda context, cached: context
    assert run(CACHE).raised is None


def test_the_limits_follow_the_dtype(run, server):
    server.noise = rounding
    server.info["dtype"] = "half"
    ran = run(DECODE)
    assert isinstance(ran.raised, VerdictFailed)
    assert "as float16 rounding allows" in ran.verdict.rule
    wide = dict.fromkeys(("mean", "relative", "p99", "worst_sequence"), 1.0)
    assert run(DECODE, decode_consistency_float16=wide).raised is None


def test_auto_dtype_is_the_model_s(run, server):
    server.noise = rounding
    server.info["dtype"] = "auto"
    assert run(DECODE).raised is None
    assert isinstance(run(DECODE, decode_consistency_auto_dtype="float16").raised, VerdictFailed)


def test_dummy_weights_say_nothing(run, server):
    server.flat = True
    ran = run(DECODE)
    assert isinstance(ran.raised, NotApplicable)
    assert "dummy weights" in ran.verdict.reason


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"status": {"score": 400}}, "refuses to return log-probabilities"),
        ({"status": {"flush_cache": 404}}, "cannot be emptied"),
        ({"without": {"input_token_logprobs"}}, "no input_token_logprobs"),
        ({"without": {"output_token_logprobs"}}, "no output_token_logprobs"),
    ],
)
@pytest.mark.parametrize("test", [DECODE, CACHE])
def test_a_server_that_cannot_tell_is_not_applicable(run, server, knobs, told, test):
    for name, value in knobs.items():
        setattr(server, name, value)
    ran = run(test)
    assert isinstance(ran.raised, NotApplicable)
    assert told in ran.verdict.reason


def test_a_server_without_a_prefix_cache_is_not_applicable(run, server):
    server.caches = False
    server.info["disable_radix_cache"] = True
    ran = run(CACHE)
    assert isinstance(ran.raised, NotApplicable)
    assert "radix cache off" in ran.verdict.reason


def test_a_server_that_is_just_falling_idle_is_waited_for(run, server):
    server.busy_flushes = 3
    assert run(DECODE).raised is None


def test_a_server_that_never_falls_idle_is_told(run, server, monkeypatch):
    monkeypatch.setattr(logprobs, "_IDLE_SECONDS", 0.1)
    server.busy_flushes = 10**9
    ran = run(DECODE)
    assert isinstance(ran.raised, MeasurementError)
    assert "keep other traffic away" in ran.verdict.reason


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([[-0.5, 1, None]] * 47, "47 log-probabilities for 48 tokens"),
        ([[None, 1, None]] * 48, "missing or no number"),
        ([[math.nan, 1, None]] * 48, "missing or no number"),
        ([["x", 1, None]] * 48, "missing or no number"),
        (["x"] * 48, "no entry"),
        ([[-0.5, "x", None]] * 48, "no entry"),
    ],
)
def test_broken_log_probabilities_fail(run, server, entries, told):
    server.meta = {"output_token_logprobs": entries}
    ran = run(DECODE)
    assert isinstance(ran.raised, VerdictFailed)
    assert told in ran.verdict.reason


def test_a_server_that_scores_other_tokens_fails(run, server):
    whole = server.score

    def garbled(prompts, starts=None, *, top=0, timeout=None):
        return whole([[*list(ids)[:-1], 5] if top else ids for ids in prompts], starts, top=top)

    server.score = garbled
    ran = run(DECODE)
    assert isinstance(ran.raised, VerdictFailed)
    assert "scored other tokens" in ran.verdict.reason


def test_what_is_kept_has_the_form_of_recordings(run, server):
    server.info["kv_cache_dtype"] = "auto"
    server.noise = lambda context: -0.00000149
    server.decoded = lambda context: 7 if len(context) % 7 == 0 else likeliest(context)
    kept = run(DECODE, decode_consistency_prompts={"2": 3}).reporter.attachments
    assert kept["decode_matches_prefill"]["server"] == {
        "version": "1",
        "dtype": "bfloat16",
        "kv_cache_dtype": "auto",
    }
    assert list(kept["decode_matches_prefill"]["concurrency"]) == ["2"]
    part = kept["decode_matches_prefill"]["concurrency"]["2"]
    assert sorted(part) == ["delta_logprob", "gap", "logprob", "summary"]
    for rows in (part["delta_logprob"], part["logprob"], part["gap"]):
        assert [len(row) for row in rows] == [48] * 3
    assert {value for row in part["delta_logprob"] for value in row} == {-0.000001}
    assert {value for row in part["gap"] for value in row} == {0.0, 3.0}
    values = [value for row in part["logprob"] for value in row]
    assert all(round(value, 6) == value and round(value, 3) != value for value in values[:5])
    assert part["summary"]["tokens"] == 144
    assert part["summary"]["largest_gap"] == pytest.approx(3.0)


def test_others_share_the_passage_up_to_each_quarter(run, server):
    asked = []
    whole = server.score

    def score(prompts, starts=None, *, top=0, timeout=None):
        asked.extend(prompts if not top else ())
        return whole(prompts, starts, top=top)

    server.score = score
    ran = run(CACHE)
    assert asked[:6] == [f"{_PASSAGE}\n\n{question}" for question in _QUESTIONS]
    words = _PASSAGE.split()
    quarters = [" ".join(words[: len(words) * i // 4]) for i in (1, 2, 3, 4)]
    ends = [f"{one} {question}" for one, question in zip(quarters, _SHARERS, strict=True)]
    assert asked[6:] == ends
    found = {name: value for _, name, value, _ in ran.reporter.measurements}
    # each of the six finds the passage that they share, all of it
    assert found["cached_tokens"] >= 6 * len(words)


def test_gaps_are_kept_to_six_digits(run, server):
    whole = server.score

    def score(prompts, starts=None, *, top=0, timeout=None):
        answers = whole(prompts, starts, top=top)
        for answer in answers if top else ():
            for first, *_ in answer["meta_info"]["input_top_logprobs"][1:]:
                first[0] += 0.1234564
        return answers

    server.score = score
    kept = run(DECODE).reporter.attachments["decode_matches_prefill"]["concurrency"]["1"]
    assert {gap for row in kept["gap"] for gap in row} == {0.123456}


def test_each_part_is_measured_as_its_summary_says(run):
    ran = run(DECODE)
    found = {name: value for _, name, value, _ in ran.reporter.measurements}
    for part in ("1", "4"):
        summary = ran.reporter.attachments["decode_matches_prefill"]["concurrency"][part]["summary"]
        for key in ("relative", "mean", "p99", "top1", "largest_gap"):
            assert found[f"{key}, concurrency {part}"] == pytest.approx(summary[key])


@pytest.mark.parametrize(
    ("named", "dtype"),
    [
        ("bfloat16", "bfloat16"),
        ("half", "float16"),
        ("float", "float32"),
        ("auto", "mine"),
        (None, "mine"),
        ("mxfp4", "mxfp4"),
    ],
)
def test_a_dtype_is_told_by_its_name_and_auto_by_the_configuration(named, dtype):
    assert dtype_of({"dtype": named}, "mine") == dtype
    assert dtype_of({}, "mine") == "mine"


def test_a_dtype_without_limits_of_its_own_is_judged_by_bfloat16_s(run, server):
    server.info["dtype"] = "mxfp4"
    ran = run(DECODE)
    assert ran.raised is None
    assert "as mxfp4 rounding allows" in ran.verdict.rule


def test_prompts_differ():
    assert len(set(_texts(150))) == 150


def test_an_unknown_dtype_takes_bfloat16_s_limits():
    assert limits_for("mxfp4", {}) == limits_for("bfloat16", {})


@pytest.mark.parametrize("dtype", ["tokens", "prompts", "timeout", "auto_dtype", "../x"])
def test_a_dtype_is_no_name_of_a_setting(run, server, dtype):
    server.info["dtype"] = dtype
    ran = run(DECODE)
    assert ran.raised is None
    assert f"as {dtype} rounding allows" in ran.verdict.rule
