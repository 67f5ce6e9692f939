"""Paired runs of two servers: hand-computed intervals, and every verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import binom
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
