from __future__ import annotations

import gzip
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from servematrix.gates import accuracy, proportions

RECORDED = Path(__file__).parents[2] / ".." / "shared" / "recordings" / "hellaswag"


# -- floor --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("correct", "n", "threshold", "outcome"),
    [
        (82, 200, 0.30, "pass"),  # the 135M model on its first 200 items
        (165, 200, 0.60, "pass"),  # the embedded server on the packaged items
        (150, 200, 0.60, "pass"),  # an 8B model against the published floor
        (137, 200, 0.60, "pass"),
        (136, 200, 0.60, "inconclusive"),
        (121, 200, 0.60, "inconclusive"),  # above the floor, as the published rule wanted it
        (98, 200, 0.60, "inconclusive"),
        (97, 200, 0.60, "fail"),
        (50, 200, 0.60, "fail"),
        (0, 200, 0.60, "fail"),
        (0, 200, 0.0, "inconclusive"),
        (200, 200, 1.0, "inconclusive"),
        (1, 1, 0.60, "inconclusive"),
    ],
)
def test_floor(correct, n, threshold, outcome):
    verdict = accuracy.floor(correct, n, threshold=threshold)
    assert verdict.outcome == outcome
    assert verdict.numbers["accuracy"] == correct / n


def test_a_verdict_states_its_error_rates():
    verdict = accuracy.floor(165, 200, threshold=0.6)
    assert (verdict.alpha, verdict.numbers["floor_miss"]) == (0.001, 0.01)
    assert verdict.power == verdict.numbers["floor_power"] == pytest.approx(0.362, abs=1e-3)
    assert verdict.numbers["floor_effect"] == 0.1
    assert verdict.numbers["standard_error"] == pytest.approx(0.0269, abs=1e-4)


def test_the_items_that_are_asked_for_do_decide():
    verdict = accuracy.floor(130, 200, threshold=0.6)
    needed = verdict.numbers["floor_items_needed"]
    assert f"about {needed:,} items like these would decide, {needed - 200:,} more" in (
        verdict.reason
    )
    for n, outcome in ((needed, "pass"), (int(needed * 0.9), "inconclusive")):
        assert accuracy.floor(round(0.65 * n), n, threshold=0.6).outcome == outcome


def test_an_accuracy_on_the_floor_is_never_decided():
    verdict = accuracy.floor(120, 200, threshold=0.6)
    assert verdict.numbers["floor_items_needed"] is None
    assert "not even 10,000,000 items" in verdict.reason


@pytest.mark.parametrize(
    ("correct", "n", "threshold"), [(0, 0, 0.6), (-1, 10, 0.6), (11, 10, 0.6), (5, 10, math.nan)]
)
def test_what_is_no_count_is_an_error(correct, n, threshold):
    assert accuracy.floor(correct, n, threshold=threshold).outcome == "error"


@given(st.integers(1, 400), st.floats(0.0, 1.0), st.data())
def test_the_floor_decides_as_the_exact_test_does(n, threshold, data):
    correct = data.draw(st.integers(0, n))
    below = binomtest(correct, n, threshold, alternative="less").pvalue
    above = binomtest(correct, n, threshold, alternative="greater").pvalue
    if min(abs(below - 0.001), abs(above - 0.01)) < 1e-9:
        return
    expected = "fail" if below < 0.001 else "pass" if above < 0.01 else "inconclusive"
    assert accuracy.floor(correct, n, threshold=threshold).outcome == expected


@given(st.integers(1, 300), st.sampled_from([0.3, 0.6, 0.9]), st.sampled_from([0.05, 0.2, 0.29]))
def test_the_floors_power_is_that_of_its_verdicts(n, threshold, true):
    k = np.arange(n + 1)
    fails = proportions.upper_bound(k, n, 0.001) < threshold
    chance = sum(binom_pmf(int(j), n, true) for j in k[fails])
    assert accuracy.floor_power(n, threshold=threshold, accuracy=true) == pytest.approx(chance)


def binom_pmf(k: int, n: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


@pytest.mark.parametrize("threshold", [0.0, -1.0])
def test_nothing_can_fall_below_a_floor_of_zero(threshold):
    assert accuracy.floor(0, 100, threshold=threshold).power == 0.0


def test_a_recorded_run_on_any_200_of_its_items_is_never_failed():
    path = RECORDED / "base.jsonl.gz"
    if not path.exists():
        pytest.skip("the recordings are not here")
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    means = np.array([r["lp"] for r in rows]) / np.array([r["nt"] for r in rows])
    right = means.argmax(axis=1) == [r["label"] for r in rows]
    chosen = np.random.default_rng(1).integers(0, len(right), (10_000, 200))
    k = right[chosen].sum(axis=1)
    assert not (proportions.upper_bound(k, 200, proportions.ALPHA) < 0.30).any()


@pytest.mark.parametrize(
    ("correct", "outcome", "needed"), [(165, "pass", 0), (97, "fail", 0), (121, "inconclusive", 1)]
)
def test_every_number_of_a_floor_is_stated(correct, outcome, needed):
    verdict = accuracy.floor(correct, 200, threshold=0.6, alpha=0.002, miss=0.02, effect=0.2)
    assert verdict.outcome == outcome
    share = correct / 200
    needs = {"floor_items_needed": verdict.numbers.get("floor_items_needed")} if needed else {}
    assert verdict.numbers == {
        "n": 200,
        "correct": correct,
        "accuracy": share,
        "accuracy_low": pytest.approx(proportions.lower_bound(correct, 200, 0.02)),
        "accuracy_high": pytest.approx(proportions.upper_bound(correct, 200, 0.002)),
        "standard_error": pytest.approx(math.sqrt(share * (1 - share) / 200)),
        "accuracy_threshold": 0.6,
        "floor_alpha": 0.002,
        "floor_miss": 0.02,
        "floor_effect": 0.2,
        "floor_power": verdict.power,
        **needs,
    }
    power = accuracy.floor_power(200, threshold=0.6, accuracy=0.4, alpha=0.002)
    assert (verdict.alpha, verdict.power) == (0.002, power)


def test_the_items_that_are_asked_for_below_the_floor_do_fail():
    needed = accuracy.floor(110, 200, threshold=0.6).numbers["floor_items_needed"]
    assert accuracy.floor(round(0.55 * needed), needed, threshold=0.6).outcome == "fail"
    fewer = int(needed * 0.9)
    assert accuracy.floor(round(0.55 * fewer), fewer, threshold=0.6).outcome == "inconclusive"


@pytest.mark.parametrize(("correct", "threshold"), [(0, 0.0), (200, 1.0)])
def test_a_bound_on_the_floor_is_decided_by_no_number_of_items(correct, threshold):
    verdict = accuracy.floor(correct, 200, threshold=threshold)
    assert verdict.numbers["floor_items_needed"] is None


def test_below_a_floor_of_all_items_lies_whoever_errs_once():
    power = accuracy.floor_power(5, threshold=1.0, accuracy=0.5)
    assert power == pytest.approx(1 - 0.5**5)
    assert accuracy.floor_power(5, threshold=2.0, accuracy=1.5) == 1.0


# -- agreement ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("single", "outcome"), [(120, "pass"), (100, "pass"), (99, "fail")])
def test_agreement_allows_exactly_the_tolerance(single, outcome):
    assert accuracy.agreement(120, single, 200).outcome == outcome
    assert accuracy.agreement(single, 120, 200).outcome == outcome


@pytest.mark.parametrize(
    ("single", "outcome", "difference"), [(3, "pass", 0.0), (1, "fail", 0.5), (4, "fail", 0.25)]
)
def test_agreement_states_both_counts_and_shares(single, outcome, difference):
    verdict = accuracy.agreement(3, single, 4)
    assert verdict.outcome == outcome
    assert verdict.numbers == {
        "correct_batch": 3,
        "correct_single": single,
        "accuracy_batch": 0.75,
        "accuracy_single": single / 4,
        "accuracy_difference": difference,
    }


def test_agreement_on_one_item_is_judged():
    assert accuracy.agreement(1, 1, 1).outcome == "pass"
    assert accuracy.agreement(1, 0, 1).outcome == "fail"


def test_agreement_without_items_is_an_error():
    assert accuracy.agreement(0, 0, 0).outcome == "error"


# -- the bounds and tests of shares -------------------------------------------------------------


@given(st.integers(1, 3000), st.sampled_from([0.001, 0.01, 0.05]), st.data())
def test_bounds_are_those_of_scipy(n, risk, data):
    k = data.draw(st.integers(0, n))
    low, high = binomtest(k, n).proportion_ci(confidence_level=1 - 2 * risk, method="exact")
    assert proportions.lower_bound(k, n, risk) == pytest.approx(low, abs=1e-9)
    assert proportions.upper_bound(k, n, risk) == pytest.approx(high, abs=1e-9)


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_the_exact_binomial_test(lost, won):
    expected = 1.0
    if lost + won:
        expected = binomtest(lost, lost + won, 0.5, alternative="greater").pvalue
    assert proportions.mcnemar(lost, won) == pytest.approx(expected)


@pytest.mark.parametrize(("loss", "flips"), [(0.02, 0.0001), (0.02, 0.01), (0.02, 0.06), (0, 0.06)])
def test_mcnemars_power_is_what_simulation_finds(loss, flips):
    rng = np.random.default_rng(1)
    counts = rng.multinomial(1000, [loss + flips / 2, flips / 2, 1 - loss - flips], 100_000)
    found = (proportions.mcnemar(counts[:, 0], counts[:, 1]) <= 0.001).mean()
    power = proportions.mcnemar_power(1000, loss, flips, 0.001)
    assert power == pytest.approx(found, abs=4 * math.sqrt(max(power, 1e-4) / 100_000))


def test_mcnemars_power_reaches_its_aims_at_the_healthy_flip_rate():
    assert proportions.mcnemar_power(1000, 0.02, 0.0001, 0.001) > 0.99
    assert proportions.mcnemar_power(10_042, 0.003, 0.0001, 0.001) > 0.99
    assert proportions.mcnemar_power(1000, 0.0, 0.0, 0.001) == 0.0


@pytest.mark.parametrize(
    ("lost", "won", "n", "risk", "low", "high"),
    [
        # as the R package PropCIs has them: scoreci.mp(25, 28, 618, 0.90), scoreci.mp(41, 48, 549)
        (28, 25, 618, 0.05, -0.0148, 0.0247),
        (48, 41, 549, 0.05, -0.0157, 0.0414),
        # without changed items the ends are z² / (n + z²)
        (0, 0, 1000, 0.001, -0.0095, 0.0095),
        (10, 0, 10, 0.01, 0.2977, 1.0),
    ],
)
def test_tangos_interval(lost, won, n, risk, low, high):
    assert proportions.tango_bounds(lost, won, n, risk) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 2000), st.sampled_from([0.001, 0.01, 0.05]), st.data())
def test_tangos_interval_holds_the_estimate_and_mirrors(n, risk, data):
    lost = data.draw(st.integers(0, n))
    won = data.draw(st.integers(0, n - lost))
    low, high = proportions.tango_bounds(lost, won, n, risk)
    assert -1 <= low <= (lost - won) / n <= high <= 1
    assert proportions.tango_bounds(won, lost, n, risk) == pytest.approx((-high, -low), abs=1e-6)


@given(st.integers(2, 500), st.integers(-50, 50), st.data())
def test_tangos_estimate_has_the_largest_likelihood(n, percent, data):
    """The statistic's variance is that of the likeliest chances under the hypothesis."""
    loss = percent / 100
    lost = data.draw(st.integers(0, n))
    won = data.draw(st.integers(0, n - lost))
    chances = np.linspace(max(0, -loss), (1 - loss) / 2, 20_001)[1:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = (
            lost * np.log(chances + loss)
            + won * np.log(chances)
            + (n - lost - won) * np.log(1 - loss - 2 * chances)
        )
    best = chances[np.nanargmax(likelihood)]
    expected = (lost - won - n * loss) / math.sqrt(n * max(2 * best + loss - loss**2, 1e-12))
    found = float(proportions.tango(lost, won, n, loss))
    if abs(expected) < 20:
        assert found == pytest.approx(expected, rel=0.02, abs=0.02)


def test_the_power_of_an_exact_test_of_a_share():
    power = proportions.exceeding_power(1000, 0.01, 0.02, 0.0005)
    k = np.random.default_rng(1).binomial(1000, 0.02, 100_000)
    assert power == pytest.approx((proportions.exceeding(k, 1000, 0.01) <= 0.0005).mean(), abs=0.01)


def test_a_share_above_one_is_all():
    assert proportions.exceeding_power(10, 0.01, 1.5, 0.001) == 1.0
    assert proportions.exceeding_power(10, 0.01, -0.5, 0.001) == 0.0


def test_power_where_every_item_changes_is_that_of_all_items():
    assert proportions.mcnemar_power(10, 1.0, 0.0, 0.001) == 1.0  # 2 ** -10 < 0.001
    assert proportions.mcnemar_power(9, 1.0, 0.0, 0.001) == 0.0
    # a loss and flips that together are more than all: each item changes, 9 in 10 are lost
    power = proportions.mcnemar_power(10, 1.2, 0.3, 0.001)
    assert power == pytest.approx(0.9**10)


def test_tangos_statistic_without_a_variance_is_infinite_or_nothing_and_warns_of_neither():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert proportions.tango(5, 0, 10, 1.0) == -math.inf
        assert proportions.tango(10, 0, 10, 1.0) == 0.0


def test_tangos_interval_ends_at_the_edge_where_the_statistic_never_gets_there():
    assert proportions.tango_bounds(10, 0, 10, 0.4)[1] == 1.0
    assert proportions.tango_bounds(0, 10, 10, 0.4)[0] == -1.0


MANY = proportions.MANY


@pytest.mark.parametrize(
    ("n", "least", "found"),
    [
        (100, 1, 100),
        (100, 150, 151),  # the steps of 1 % are 100, 101, 103, ..., 149, 151
        (100, MANY, MANY),
        (100, 1.01 * MANY, None),
        (MANY, 1, MANY),
        (MANY, 1.01 * MANY, None),
    ],
)
def test_the_fewest_items_are_looked_for_up_to_as_many_as_anybody_takes(n, least, found):
    def decided(many):
        assert many.dtype == np.int64
        return many > least if least > MANY else many >= least

    assert proportions.fewest(n, decided) == (found and pytest.approx(found, rel=0.01 * (n < MANY)))
    if found == 151:
        assert proportions.fewest(n, decided) == 151
