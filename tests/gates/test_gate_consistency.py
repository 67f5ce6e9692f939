from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from servematrix.gates import consistency
from servematrix.gates.consistency import (
    LIMITS,
    Compared,
    Limits,
    Summary,
    judge,
    summarise,
    verified,
)

RECORDED = Path(__file__).parents[2] / ".." / "shared" / "recordings" / "decode_consistency"


def recorded(name: str) -> dict[str, Summary]:
    path = RECORDED / f"{name}.json.gz"
    if not path.exists():
        pytest.skip("the recordings are not here")
    parts = {}
    for concurrency, part in json.loads(gzip.decompress(path.read_bytes()))["concurrency"].items():
        every = sorted(abs(d) for row in part["delta_logprob"] for d in row)
        means = [sum(map(abs, row)) / len(row) for row in part["delta_logprob"]]
        parts[concurrency] = Summary(
            tokens=len(every),
            mean=sum(every) / len(every),
            p99=every[math.ceil(0.99 * len(every)) - 1],
            largest=every[-1],
            top1=part["summary"]["argmax_agree"],
            largest_gap=part["summary"]["gap_max"],
            worst_sequence=max(means),
            worst_name="recorded",
        )
    return parts


def test_the_recorded_healthy_server_passes():
    verdict = judge(recorded("base"), LIMITS["bfloat16"], dtype="bfloat16")
    assert verdict.outcome == "pass"


@pytest.mark.parametrize("concurrency", ["1", "4", "16"])
def test_the_recorded_fp8_cache_fails_the_bf16_limits_at_each_concurrency(concurrency):
    part = recorded("kvfp8")[concurrency]
    verdict = judge({concurrency: part}, LIMITS["bfloat16"], dtype="bfloat16")
    assert verdict.outcome == "fail"
    for told in ("mean |Δ|", "99th percentile", "has mean", "below the likeliest"):
        assert told in verdict.reason


def sequence(delta=0.0, prefill=-1.0, gap=0.0, tokens=250, name="a"):
    return Compared(
        name,
        [prefill + delta] * tokens,
        [prefill - (i % 2) for i in range(tokens)],
        [prefill - (i % 2) + gap for i in range(tokens)],
    )


def part(**changed):
    found = summarise([sequence()])
    values = {key: getattr(found, key) for key in found.__dataclass_fields__}
    return Summary(
        **{**values, "mean": 0.0, "p99": 0.0, "worst_sequence": 0.0, "relative": 0.0, **changed}
    )


@pytest.mark.parametrize("key", ["relative", "mean", "p99", "worst_sequence", "largest_gap"])
def test_each_limit_decides_alone(key):
    limits = LIMITS["bfloat16"]
    at = getattr(limits, key)
    assert judge({"x": part(**{key: at})}, limits, dtype="bfloat16").outcome == "pass"
    assert judge({"x": part(**{key: at * 1.01})}, limits, dtype="bfloat16").outcome == "fail"


def test_top1_decides_alone():
    limits = LIMITS["bfloat16"]
    assert judge({"x": part(top1=limits.top1)}, limits, dtype="bfloat16").outcome == "pass"
    assert judge({"x": part(top1=limits.top1 - 0.001)}, limits, dtype="bfloat16").outcome == "fail"


def test_one_bad_part_fails_and_the_context_is_told():
    parts = {"good": part(), "bad": part(mean=1.0)}
    verdict = judge(parts, LIMITS["bfloat16"], dtype="bfloat16", context="the KV cache is fp8")
    assert verdict.outcome == "fail"
    assert verdict.reason.startswith("bad: mean |Δ| 1.0000 > 0.035 (the other parts hold); the KV")
    assert verdict.numbers["mean"] == 1.0
    assert verdict.numbers["mean, good"] == 0.0


@pytest.mark.parametrize(
    ("parts", "outcome", "told"),
    [
        ({}, "error", "nothing was compared"),
        ({"x": part(tokens=199)}, "error", "too few"),
        ({"x": part(mean=math.nan)}, "error", "no finite number"),
        ({"x": part(largest_gap=math.inf)}, "error", "no finite number"),
        ({"x": part(spread=0.0)}, "not_applicable", "dummy weights"),
        ({"x": part(spread=None, relative=None)}, "pass", "mean |Δ|"),
    ],
)
def test_what_cannot_be_judged_is_not(parts, outcome, told):
    verdict = judge(parts, LIMITS["bfloat16"], dtype="bfloat16")
    assert verdict.outcome == outcome
    assert told in verdict.reason


def test_a_summary_counts_what_it_says():
    good = Compared("good", [-1.0, -2.0], [-1.0, -2.0], [-1.0, -2.0])
    bad = Compared("bad", [-1.0, -2.5], [-1.2, -2.0], [-1.2, -1.0])
    found = summarise([good, bad])
    assert (found.tokens, found.top1, found.largest_gap) == (4, 0.75, 1.0)
    assert found.mean == pytest.approx(0.7 / 4)
    assert found.largest == found.p99 == 0.5
    assert (found.worst_name, found.worst_sequence) == ("bad", pytest.approx(0.35))
    assert found.spread == 1.0
    assert found.relative is None


def test_relative_is_the_difference_by_doubt():
    many = Compared("x", [-0.5] * 40, [math.log(0.5)] * 40, [math.log(0.5)] * 40)
    assert summarise([many]).relative == pytest.approx((math.log(2) - 0.5) / 0.5)


def test_sequences_must_fit():
    with pytest.raises(ValueError, match="not as many"):
        Compared("x", [1.0], [1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="no sequence"):
        summarise([])


@pytest.mark.parametrize(
    ("gap", "outcome", "wrong", "ties"),
    [(0.0, "pass", 0, 0), (0.5, "pass", 0, 250), (0.51, "fail", 250, 0), (math.nan, "error", 0, 0)],
)
def test_verified(gap, outcome, wrong, ties):
    verdict = verified([sequence(gap=gap)], near_tie=0.5, dtype="bfloat16")
    assert verdict.outcome == outcome
    assert (verdict.numbers["wrong_tokens"], verdict.numbers["near_ties"]) == (wrong, ties)


def test_verified_names_the_worst_token():
    one = Compared("p", [-1.0, -1.0, -2.0], [-1.0, -1.0, -4.0], [-1.0, -1.0, -1.0])
    verdict = verified([sequence(), one], near_tie=0.5, dtype="bfloat16")
    assert "worst 3.00 nats below its choice (token 2 of p)" in verdict.reason


def test_verified_needs_tokens_that_differ():
    flat = Compared("p", [-11.7] * 9, [-11.7] * 9, [-11.7] * 9)
    assert verified([flat], near_tie=0.5, dtype="bfloat16").outcome == "not_applicable"
    assert verified([], near_tie=0.5, dtype="bfloat16").outcome == "error"


def test_every_dtype_has_limits_and_finer_ones_are_tighter():
    assert set(LIMITS) == {"bfloat16", "float16", "float32"}
    assert LIMITS["float16"].mean == pytest.approx(LIMITS["bfloat16"].mean / 8)
    assert LIMITS["float16"].top1 == LIMITS["bfloat16"].top1
    assert consistency.FEWEST_TOKENS == 200


# -- what is stated, and where the limits lie ---------------------------------------------------


def test_a_finer_dtype_has_every_limit_but_top1_scaled():
    limits = Limits(relative=8, mean=16, p99=24, worst_sequence=32, largest_gap=40, top1=0.9)
    assert limits.scaled(1 / 8) == Limits(1, 2, 3, 4, 5, top1=0.9)


def test_the_99th_percentile_is_the_least_value_that_99_percent_do_not_exceed():
    deltas = [i / 1000 for i in range(200)]
    found = consistency.reduced([("a", deltas)], top1=1.0, largest_gap=0.0, scored=None)
    assert (found.p99, found.largest, found.tokens) == (0.197, 0.199, 200)
    one = consistency.reduced([("a", [-0.5])], top1=1.0, largest_gap=0.0, scored=None)
    assert (one.p99, one.largest, one.mean) == (0.5, 0.5, 0.5)


def test_of_sequences_equally_bad_the_first_is_named():
    found = consistency.reduced(
        [("a", [0.1]), ("b", [0.1])], top1=1.0, largest_gap=0.0, scored=None
    )
    assert (found.worst_name, found.relative, found.spread) == ("a", None, None)


def test_ten_doubts_are_enough_for_a_relative_difference():
    half = math.log(0.5)
    enough = consistency.reduced([("a", [0.1] * 20)], top1=1.0, largest_gap=0.0, scored=[half] * 20)
    assert enough.relative == pytest.approx(0.2)
    few = consistency.reduced([("a", [0.1] * 19)], top1=1.0, largest_gap=0.0, scored=[half] * 19)
    assert few.relative is None


PARTS = {
    "one": Summary(200, 0.01, 0.1, 0.2, 0.99, 0.3, 0.02, "a", relative=0.05, spread=4.0),
    "two": Summary(300, 0.02, 0.05, 0.1, 0.98, 0.4, 0.03, "b", relative=0.04, spread=3.0),
}
NUMBERS = {
    "tokens": 500,
    "relative": 0.05,
    "mean": 0.02,
    "p99": 0.1,
    "largest": 0.2,
    "top1": 0.98,
    "largest_gap": 0.4,
    "worst_sequence": 0.03,
    "worst_sequence_name": "b",
    "relative, one": 0.05,
    "mean, one": 0.01,
    "p99, one": 0.1,
    "top1, one": 0.99,
    "largest_gap, one": 0.3,
    "relative, two": 0.04,
    "mean, two": 0.02,
    "p99, two": 0.05,
    "top1, two": 0.98,
    "largest_gap, two": 0.4,
}


@pytest.mark.parametrize(
    ("changed", "outcome"),
    [
        ({}, "pass"),
        ({"worst_sequence": 0.08, "worst_name": "c"}, "fail"),
        ({"tokens": 199}, "error"),
        ({"largest": math.inf, "mean": math.inf}, "error"),
        ({"spread": 0.009}, "not_applicable"),
    ],
)
def test_the_worst_of_all_parts_is_stated_beside_each(changed, outcome):
    parts = {**PARTS, "two": replace(PARTS["two"], **changed)}
    verdict = judge(parts, LIMITS["bfloat16"], dtype="bfloat16")
    assert verdict.outcome == outcome
    stated = {"worst_sequence_name": changed["worst_name"]} if "worst_name" in changed else {}
    for key in changed.keys() & {"worst_sequence", "mean", "largest"}:
        stated[key] = changed[key]
        stated |= {f"{key}, two": changed[key]} if key == "mean" else {}
    if "tokens" in changed:
        stated["tokens"] = 399
    assert verdict.numbers == {**NUMBERS, **stated}


def test_without_probabilities_the_relative_difference_is_none():
    parts = {name: replace(one, relative=None) for name, one in PARTS.items()}
    assert judge(parts, LIMITS["bfloat16"], dtype="bfloat16").numbers["relative"] is None
    assert judge({}, LIMITS["bfloat16"], dtype="bfloat16").numbers == {}


@pytest.mark.parametrize(
    ("changed", "outcome"),
    [
        ({"tokens": 200, "spread": 0.01}, "pass"),
        ({"tokens": 199}, "error"),
        ({"spread": 0.0099}, "not_applicable"),
    ],
)
def test_two_hundred_tokens_and_a_hundredth_of_a_nat_are_enough(changed, outcome):
    assert judge({"x": part(**changed)}, LIMITS["bfloat16"], dtype="bfloat16").outcome == outcome


def test_a_failure_without_a_context_ends_with_the_advice():
    verdict = judge({"x": part(mean=1.0)}, LIMITS["bfloat16"], dtype="bfloat16")
    assert verdict.reason.startswith("x: mean |Δ| 1.0000 > 0.035; look at KV cache")


@pytest.mark.parametrize(
    ("gap", "prefill", "outcome", "wrong", "ties"),
    [
        (0.0, [-1.0, -2.0], "pass", 0, 0),
        (0.5, [-1.0, -2.0], "pass", 0, 1),
        (0.6, [-1.0, -2.0], "fail", 1, 0),
        (0.0, [0.0, -0.01], "pass", 0, 0),  # a spread of 0.01 nats exactly
        (0.0, [0.0, -0.009], "not_applicable", 0, 0),
        (math.inf, [-1.0, -2.0], "error", 1, 0),
    ],
)
def test_a_verified_text_states_its_wrong_tokens_and_ties(gap, prefill, outcome, wrong, ties):
    one = Compared("p", prefill, prefill, [prefill[0] + gap, prefill[1]])
    verdict = verified([one], near_tie=0.5, dtype="bfloat16")
    assert verdict.outcome == outcome
    assert verdict.numbers == {
        "tokens": 2,
        "wrong_tokens": wrong,
        "near_ties": ties,
        "largest_gap": pytest.approx(gap),
        "near_tie_limit": 0.5,
    }
