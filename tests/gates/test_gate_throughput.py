"""A run against the repeats of a baseline, by prediction interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import nct as noncentral
from scipy.stats import t as student

from servematrix.gates import throughput
from servematrix.gates.throughput import QUANTITIES, Baseline, bound, compare, judge

RUNS = [540.0, 550.0, 545.0, 555.0, 560.0]
"""Mean 550, standard deviation 7.90569."""


def test_the_bound_is_the_one_computed_by_hand():
    # t(4, 0.95) = 2.131847 and 7.905694 sqrt(1 + 1/5) = 8.660254: it lies 18.46233 from the mean
    assert bound("decode_tokens_per_s", RUNS, 0.05) == pytest.approx(550 - 18.46233, abs=1e-4)
    assert bound("itl_p50_ms", RUNS, 0.05) == pytest.approx(550 + 18.46233, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "value", "outcome"),
    [
        ("decode_tokens_per_s", 531.6, "pass"),
        ("decode_tokens_per_s", 531.5, "fail"),
        ("decode_tokens_per_s", 900.0, "pass"),
        ("accept_length", 300.0, "fail"),
        ("settled_median", 531.5, "fail"),
        ("itl_p50_ms", 568.4, "pass"),
        ("itl_p50_ms", 568.5, "fail"),
        ("itl_p50_ms", 1.0, "pass"),
    ],
)
def test_a_run_beyond_the_bound_on_the_bad_side_fails(name, value, outcome):
    verdict = judge(name, value, RUNS, alpha=0.05)
    assert verdict.outcome == outcome
    assert verdict.numbers[name] == value
    assert verdict.numbers[f"baseline_{name}_runs"] == 5
    assert (verdict.numbers[f"baseline_{name}_p"] < 0.05) == (outcome == "fail")
    assert verdict.alpha == 0.05
    assert 0 < verdict.power <= 1


@pytest.mark.parametrize(
    ("value", "values", "outcome", "told"),
    [
        (math.nan, RUNS, "error", "this run measured none"),
        (None, RUNS, "error", "this run measured none"),
        ("nan", RUNS, "error", "this run measured none"),
        (True, RUNS, "error", "this run measured none"),
        (540.0, [], "error", "calibrate again"),
        (540.0, [540.0, math.inf, 550.0], "error", "calibrate again"),
        (1.0, [540.0, 550.0], "inconclusive", "3 runs are needed"),
        (533.2, [540.0] * 3, "inconclusive", "spread is unknown"),
        (533.3, [540.0] * 3, "pass", "all alike"),  # a quarter of 5 % is 6.75
        (540.0, [540.0] * 3, "pass", "all alike"),
        (541.0, [540.0] * 3, "pass", "all alike"),
    ],
)
def test_what_cannot_be_compared_is_told(value, values, outcome, told):
    verdict = judge("decode_tokens_per_s", value, values)
    assert verdict.outcome == outcome
    assert told in verdict.reason


@pytest.mark.parametrize("alpha", [0.0, 0.5, -1.0, math.nan])
def test_a_risk_that_is_none_is_an_error(alpha):
    assert judge("settled_median", 99.0, RUNS, alpha=alpha).outcome == "error"


def test_a_risk_beyond_what_the_runs_show_is_called_extrapolated():
    for alpha, expected in ((0.16, True), (0.17, False)):  # 1/6 lies between
        verdict = judge("settled_median", 550.0, RUNS, alpha=alpha)
        assert verdict.numbers["baseline_settled_median_extrapolated"] is expected


def test_one_request_s_first_token_and_accuracy_are_not_judged_by_their_spread():
    found = dict.fromkeys(QUANTITIES, 550.0) | {
        "ttft_s": 9e9,
        "accuracy": 0.0,
        "settled_median": 1.0,
    }
    verdicts = compare(found, Baseline(dict.fromkeys(QUANTITIES, RUNS)))
    assert [verdict.outcome for verdict in verdicts] == ["fail", "pass", "pass", "pass"]


def test_every_number_of_a_comparison_is_stated():
    verdict = judge("itl_p50_ms", 565.0, RUNS, alpha=0.05)
    reach = 7.905694 * math.sqrt(1.2)  # one standard deviation of the next run: 8.660254
    assert verdict.numbers == {
        "itl_p50_ms": 565.0,
        "baseline_itl_p50_ms_runs": 5,
        "baseline_itl_p50_ms_mean": 550.0,
        "baseline_itl_p50_ms_deviation": pytest.approx(7.905694),
        "baseline_itl_p50_ms_bound": pytest.approx(550 + 18.46233, abs=1e-4),
        "baseline_itl_p50_ms_alpha": 0.05,
        "baseline_itl_p50_ms_extrapolated": True,
        "baseline_itl_p50_ms_effect": 0.05,
        "baseline_itl_p50_ms_margin": pytest.approx(6.875),
        "baseline_itl_p50_ms_p": pytest.approx(student.sf(15.0 / reach, 4)),
        "baseline_itl_p50_ms_power": verdict.power,
    }
    # 5 % of the mean of 550 is 27.5
    power = noncentral.sf(student.isf(0.05, 4), 4, 27.5 / reach)
    assert verdict.power == pytest.approx(power)
    better = judge("decode_tokens_per_s", 565.0, RUNS, alpha=0.05)
    assert better.numbers["baseline_decode_tokens_per_s_p"] == pytest.approx(
        student.sf(-15.0 / reach, 4)
    )


@pytest.mark.parametrize(
    ("value", "values", "outcome"),
    [
        (1.0, [540.0, 550.0], "inconclusive"),
        (533.0, [540.0] * 3, "inconclusive"),
        (540.0, [540.0] * 3, "pass"),
        (1.0, [540.0, 540.0, 550.0], "fail"),
        (544.0, [540.0, 540.0, 550.0], "pass"),
    ],
)
def test_each_verdict_states_its_risk(value, values, outcome):
    verdict = judge("decode_tokens_per_s", value, values, alpha=0.07)
    assert (verdict.outcome, verdict.alpha) == (outcome, 0.07)
    assert verdict.numbers["baseline_decode_tokens_per_s_alpha"] == 0.07


def test_three_runs_and_two_values_have_a_bound():
    # mean 1, s = sqrt(3), t(2, 0.95) = 2.919986
    reach = 2.919986 * math.sqrt(3) * math.sqrt(4 / 3)
    assert bound("itl_p50_ms", [0.0, 0.0, 3.0], 0.05) == pytest.approx(1 + reach, abs=1e-5)
    assert bound("itl_p50_ms", [0.0, 3.0], 0.05) is None


@pytest.mark.parametrize(
    ("name", "value", "outcome"),
    [
        ("settled_median", 98.0, "pass"),
        ("settled_median", 97.9, "fail"),
        ("itl_p50_ms", 99.6, "pass"),
        ("itl_p50_ms", 99.7, "fail"),
    ],
)
def test_runs_that_are_more_alike_than_days_fail_nothing_by_a_trifle(name, value, outcome):
    # a quarter of 2 % of 98.4 is 0.492, of 5 % is 1.23; chance alone would allow 0.014
    verdict = judge(name, value, [98.399, 98.4, 98.401], alpha=0.001)
    assert verdict.outcome == outcome
    assert verdict.power > 0.999


@pytest.mark.parametrize("name", ["itl_p50_ms", "decode_tokens_per_s"])
def test_a_value_on_the_bound_is_not_beyond_it(name):
    assert not throughput.beyond(name, 5.0, 5.0)
    assert throughput.beyond(name, 5.1 if name == "itl_p50_ms" else 4.9, 5.0)


def test_an_alpha_that_the_runs_just_show_is_not_extrapolated():
    assert not throughput.extrapolated(3, 0.25)
    assert throughput.extrapolated(3, 0.2499)


def test_a_comparison_has_the_baselines_risk():
    (verdict,) = compare({"settled_median": 550.0}, Baseline({"settled_median": RUNS}, alpha=0.2))
    assert verdict.alpha == 0.2


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_alpha_and_power_are_what_is_stated(alpha):
    # baselines of five runs and the next one, healthy and 5 % slower
    draws = np.random.default_rng(7).normal(100.0, 2.0, (4000, 6))
    failed = slow = 0
    for row in draws:
        limit = bound("decode_tokens_per_s", list(row[:5]), alpha)
        failed += row[5] < limit
        slow += row[5] - 5.0 < limit
    stated = throughput._power(5, 5.0 / (2.0 * math.sqrt(1.2)), student.isf(alpha, 4))
    assert failed / 4000 == pytest.approx(alpha, abs=4 * math.sqrt(alpha / 4000))
    assert slow / 4000 == pytest.approx(stated, abs=0.03)
