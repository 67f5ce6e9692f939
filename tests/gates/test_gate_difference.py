"""Paired runs of two servers: hand-computed intervals, and every verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import binom
from scipy.stats import nct as noncentral
from scipy.stats import t as student

from servematrix.gates import difference
from servematrix.gates.difference import ALPHA, MISS, QUANTITIES, judge


def test_a_loss_beyond_the_margin_fails_with_the_interval_by_hand() -> None:
    # losses 8, 7, 6: mean 7, s = 1, s / sqrt(3) = 0.57735; t(2) is 6.96456 at 1 %, 2.91999 at 5 %
    verdict = judge("occupancy", [98, 98, 98], [90, 91, 92])
    assert verdict.outcome == "fail"
    assert verdict.numbers["difference"] == pytest.approx(-7)
    assert verdict.numbers["standard_error"] == pytest.approx(0.57735, abs=1e-5)
    assert verdict.numbers["difference_low"] == pytest.approx(-7 - 2.91999 * 0.57735, abs=1e-4)
    assert verdict.numbers["difference_high"] == pytest.approx(-7 + 6.96456 * 0.57735, abs=1e-4)
    assert "more than 2; look at what differs" in verdict.reason
    assert verdict.alpha == ALPHA


@pytest.mark.parametrize(
    ("name", "a", "b", "margin", "outcome"),
    [
        ("occupancy", [98, 98.2, 98.1], [98.1, 98.2, 98], None, "pass"),
        ("occupancy", [98, 98, 98], [90, 91, 92], 10.0, "pass"),
        ("occupancy", [90, 91, 92], [98, 98, 98], None, "pass"),
        ("occupancy", [98, 98], [90, 98], None, "inconclusive"),
        # higher is worse for a latency; the margin is 5 % of A's mean of 2 ms
        ("itl_p50_ms", [2, 2, 2], [3, 3.1, 2.9], None, "fail"),
        ("itl_p50_ms", [3, 3.1, 2.9], [2, 2, 2], None, "pass"),
        ("itl_p50_ms", [2, 2, 2], [2.05, 2.06, 2.07], None, "pass"),
        ("itl_p50_ms", [2, 2, 2], [2.05, 2.06, 2.07], 0.005, "fail"),
        ("decode_tokens_per_s", [500, 501, 502], [460, 461, 463], None, "fail"),
        # all the same: an interval of no width
        ("accept_length", [2, 2], [2, 2], None, "pass"),
        ("accept_length", [2, 2], [1.5, 1.5], None, "fail"),
        # one pair has none
        ("occupancy", [98], [98], None, "not_applicable"),
        ("occupancy", [98], [97], None, "not_applicable"),
        ("occupancy", [98], [90], None, "inconclusive"),
    ],
)
def test_every_verdict(
    name: str, a: Sequence[float], b: Sequence[float], margin: float | None, outcome: str
) -> None:
    verdict = judge(name, a, b, margin=margin)
    assert verdict.outcome == outcome, verdict.reason


@pytest.mark.parametrize(
    ("name", "a", "b", "margin", "message"),
    [
        ("occupancy", [], [], None, "0 runs of A and 0 of B"),
        ("occupancy", [98, 98], [98], None, "2 runs of A and 1 of B"),
        ("occupancy", [98, math.nan], [98, 98], None, "A has [98, nan]: not finite"),
        ("occupancy", [98, 98], [98, math.inf], None, "B has [98, inf]: not finite"),
        ("occupancy", [98, 98], [98, 98], 0.0, "a margin of 0"),
        ("itl_p50_ms", [0, 0], [1, 1], None, "A's mean is 0"),
    ],
)
def test_what_cannot_be_compared_is_an_error(
    name: str, a: Sequence[float], b: Sequence[float], margin: float | None, message: str
) -> None:
    verdict = judge(name, a, b, margin=margin)
    assert verdict.outcome == "error"
    assert message in verdict.reason


def test_a_steady_drift_cancels() -> None:
    # one server in the order A B B A on a machine that loses 1 token/s from run to run
    first, second, third, fourth = 500.0, 499.0, 498.0, 497.0
    verdict = judge("decode_tokens_per_s", [first, fourth], [second, third])
    assert verdict.numbers["difference"] == 0
    assert verdict.outcome == "pass"


def test_the_pairs_that_would_decide_are_the_fewest() -> None:
    verdict = judge("occupancy", [98, 98], [90, 98])
    needed = verdict.numbers["pairs_needed"]
    assert isinstance(needed, int)
    spread, beyond = math.sqrt(32), 2.0

    def reach(pairs: int) -> float:
        return float(student.isf(ALPHA, pairs - 1) * spread / math.sqrt(pairs))

    assert reach(needed) < beyond <= reach(needed - 1)
    on_the_margin = judge("occupancy", [98, 98], [95, 97])
    assert on_the_margin.outcome == "inconclusive"
    assert on_the_margin.numbers["pairs_needed"] is None
    assert "no number of pairs" in on_the_margin.reason


def test_risks_and_power_are_as_stated() -> None:
    rng = np.random.default_rng(4)
    runs, pairs, margin = 2000, 4, QUANTITIES["occupancy"].margin
    spread = 0.7

    def share(loss: float, outcome: str) -> int:
        lost = rng.normal(loss, spread, (runs, pairs))
        return sum(
            judge("occupancy", [98.0] * pairs, list(98.0 - one)).outcome == outcome for one in lost
        )

    for found, stated in ((share(margin, "fail"), ALPHA), (share(margin, "pass"), MISS)):
        low, high = binom.interval(0.9999, runs, stated)
        assert low <= found <= high
    power = difference._power(pairs, margin, spread / math.sqrt(pairs), ALPHA)
    low, high = binom.interval(0.9999, runs, power)
    assert 0.3 < power < 0.95
    assert low <= share(2 * margin, "fail") <= high


@pytest.mark.parametrize(
    ("a", "b", "outcome"),
    [
        ([2.0, 2.0, 2.0], [3.0, 3.1, 2.9], "fail"),
        ([2.0, 2.0, 2.0], [2.0, 2.01, 2.02], "pass"),
        ([2.0, 2.0, 2.0], [2.0, 2.2, 2.1], "inconclusive"),
    ],
)
def test_every_number_of_a_comparison_is_stated(
    a: Sequence[float], b: Sequence[float], outcome: str
) -> None:
    verdict = judge("itl_p50_ms", a, b, alpha=0.02, miss=0.04)
    assert verdict.outcome == outcome
    loss, error = np.mean(b) - 2.0, np.std(b, ddof=1) / math.sqrt(3)
    needs = {"pairs_needed": verdict.numbers.get("pairs_needed")}
    power = noncentral.sf(student.isf(0.02, 2), 2, 0.1 / error)
    assert verdict.numbers == {
        "n": 3,
        "mean_a": 2.0,
        "mean_b": pytest.approx(2.0 + loss),
        "difference": pytest.approx(loss),
        "margin": 0.05,
        "allowed_loss": pytest.approx(0.1),
        "difference_low": pytest.approx(loss - student.isf(0.02, 2) * error),
        "difference_high": pytest.approx(loss + student.isf(0.04, 2) * error),
        "standard_error": pytest.approx(error),
        "alpha": 0.02,
        "miss": 0.04,
        "power": pytest.approx(power),
        **(needs if outcome == "inconclusive" else {}),
    }
    assert (verdict.alpha, verdict.power) == (0.02, pytest.approx(power))


@pytest.mark.parametrize(
    ("b", "outcome"), [(95.9, "inconclusive"), (96.0, "not_applicable"), (99.0, "not_applicable")]
)
def test_one_pair_states_what_it_found(b: float, outcome: str) -> None:
    verdict = judge("occupancy", [98.0], [b])
    assert verdict.outcome == outcome
    assert verdict.numbers == {
        "n": 1,
        "mean_a": 98.0,
        "mean_b": b,
        "difference": b - 98.0,
        "margin": 2.0,
        "allowed_loss": 2.0,
    }


def test_a_loss_on_the_margin_is_neither_failed_nor_passed() -> None:
    verdict = judge("occupancy", [98.0, 98.0], [96.0, 96.0])
    assert verdict.outcome == "inconclusive"
    assert verdict.numbers["pairs_needed"] is None


def test_runs_that_are_all_alike_have_no_spread_whatever_their_mean_rounds() -> None:
    a, b = [0.1] * 3, [0.0] * 3
    assert float(np.subtract(a, b).std(ddof=1)) > 0
    verdict = judge("occupancy", a, b)
    assert (verdict.numbers["standard_error"], verdict.power) == (0.0, 1.0)


@pytest.mark.parametrize(("beyond", "risk"), [(0.5, 0.01), (-0.5, 0.05), (3.0, 0.01)])
@pytest.mark.parametrize("pairs", [3, 4, 500, 1000, 1001])
def test_the_pairs_needed_are_counted_from_the_next_to_a_thousand(
    beyond: float, risk: float, pairs: int
) -> None:
    def reach(count: int) -> float:
        return float(student.isf(risk, count - 1)) / math.sqrt(count)

    spread = abs(beyond) / reach(pairs) * (1 - 1e-9)  # so many are just enough
    found = difference._needed(2, spread, beyond, 0.01, 0.05)
    assert found == (pairs if pairs <= 1000 else None)
