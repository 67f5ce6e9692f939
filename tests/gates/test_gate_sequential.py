from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servematrix.gates import sequential
from servematrix.gates.sequential import LEAD, Decision, Rule

RULE = Rule(threshold=97.0, startup_seconds=2.0, block_windows=3)
GOOD, BAD = 99.0, 90.0


def decided(values: list[float], rule: Rule = RULE, seconds: float = 0.1) -> Decision:
    """The decision on windows that come each `seconds`."""
    return sequential.decide(values, [seconds * (i + 1) for i in range(len(values))], rule)


def blocks(signs: str, size: int = 3) -> list[float]:
    return [GOOD if sign == "+" else BAD for sign in signs for _ in range(size)]


STARTUP = blocks("-", 20)  # the first 2 s


def test_good_windows_pass_from_the_start():
    found = decided(blocks("++++++++"))
    assert found == Decision("pass", pytest.approx(1.2), 12, 4, 0)


def test_bad_windows_fail_once_the_start_up_is_over():
    assert decided([*STARTUP, *blocks("---"), BAD, BAD]).outcome is None
    found = decided([*STARTUP, *blocks("----")])
    assert found == Decision("fail", pytest.approx(3.2), 32, 0, 4)


def test_a_slow_start_alone_neither_fails_nor_passes():
    assert decided(STARTUP) == Decision(None, pytest.approx(2.0), 20, 0, 6)
    # 6 blocks of the start-up are low: from the first window on, good ones are not ahead
    found = decided([*STARTUP, *blocks("++++")])
    assert found == Decision("pass", pytest.approx(3.2), 32, 4, 0)


def test_a_start_that_never_ends_fails():
    assert decided(blocks("-" * 40)).outcome == "fail"


def test_a_cluster_in_the_middle_is_made_up_for():
    found = decided([*STARTUP, *blocks("+--" + "+" * 5)])
    assert (found.outcome, found.good, found.bad) == ("pass", 6, 2)


def test_single_low_windows_never_spoil_a_block():
    found = decided([GOOD, BAD, GOOD] * 10)
    assert found.outcome == "pass"


def test_alternating_blocks_stay_undecided():
    assert decided([*STARTUP, *blocks("+-" * 50)]).outcome is None


def test_a_block_on_the_threshold_is_not_good():
    assert decided([97.0] * 60).outcome == "fail"
    assert decided([97.0001] * 60).outcome == "pass"


def test_the_median_of_an_even_block_is_the_mean_of_its_middle():
    rule = Rule(97.0, 0.0, 2)
    assert decided([96.0, 98.1] * 4, rule).outcome == "pass"
    assert decided([96.0, 98.0] * 4, rule).outcome == "fail"


@pytest.mark.parametrize("count", [0, 1, 11])
def test_too_few_windows_decide_nothing(count):
    found = decided([GOOD] * count)
    assert (found.outcome, found.windows) == (None, count)


def test_without_a_start_up_everything_counts():
    found = decided([BAD] * 12, Rule(97.0, 0.0, 3))
    assert (found.outcome, found.windows) == ("fail", 12)


@pytest.mark.parametrize(("startup", "size"), [(-1.0, 3), (0.0, 0)])
def test_a_rule_that_makes_no_sense_is_refused(startup, size):
    with pytest.raises(ValueError, match="is"):
        Rule(97.0, startup, size)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([GOOD, BAD, 97.0]), max_size=120),
    st.integers(1, 5),
    st.floats(0, 5),
)
def test_a_decision_stands(values, size, startup):
    """More windows never change it, so looking often costs nothing."""
    rule = Rule(97.0, startup, size)
    whole = decided(values, rule)
    if whole.outcome is None:
        assert all(decided(values[:end], rule).outcome is None for end in range(len(values)))
    else:
        assert decided(values[: whole.windows], rule) == whole
        assert decided(values[: whole.windows - 1], rule).outcome is None


def test_alpha_is_the_chance_of_a_lead_however_often_one_looks():
    """Exactly, by all series of 12 blocks of the healthiest server that the null still excludes."""
    rule = Rule(97.0, 0.0, 1)
    failed = passed = 0.0
    for series in itertools.product((GOOD, BAD), repeat=12):
        good = series.count(GOOD)
        chance = sequential.HEALTHY**good * (1 - sequential.HEALTHY) ** (12 - good)
        outcome = decided(list(series), rule).outcome
        failed += chance * (outcome == "fail")
        passed += chance * (outcome == "pass")
    assert failed <= sequential.ALPHA
    assert passed > 0.99
    assert pytest.approx(sequential.ALPHA) == 9.0**-LEAD
    assert sequential.BETA < 0.001


def test_power_is_that_of_the_blocks_there_are():
    assert sequential.power(LEAD - 1) == 0
    assert sequential.power(LEAD) == pytest.approx(0.9**4, abs=0.001)
    assert sequential.power(12) > 0.99
    assert sequential.power(10_000) < 1


@pytest.mark.parametrize("blocks", [4, 5, 6, 9])
def test_power_is_the_sum_over_all_series_that_fail(blocks):
    rule = Rule(97.0, 0.0, 1)
    failed = 0.0
    for series in itertools.product((GOOD, BAD), repeat=blocks):
        good = series.count(GOOD)
        chance = sequential.DEGRADED**good * (1 - sequential.DEGRADED) ** (blocks - good)
        failed += chance * (decided(list(series), rule).outcome == "fail")
    assert sequential.power(blocks) == pytest.approx(failed - sequential.ALPHA)


def test_a_window_shown_as_the_start_up_ends_is_part_of_it():
    # windows at 1, 2, 3, 4 and 5 s; those after the first second are four low blocks
    rule = Rule(97.0, 1.0, 1)
    assert decided([BAD] * 4, rule, seconds=1.0).outcome is None
    assert decided([BAD] * 5, rule, seconds=1.0) == Decision("fail", 5.0, 5, 0, 4)


def test_what_is_undecided_is_counted_from_the_end_of_the_start_up_once_there_is_a_block():
    assert decided([*STARTUP, *blocks("+-")]) == Decision(None, pytest.approx(2.6), 26, 1, 1)
    assert decided([*STARTUP, *blocks("-")]) == Decision(None, pytest.approx(2.3), 23, 0, 1)
    assert decided([*STARTUP, BAD]) == Decision(None, pytest.approx(2.1), 21, 0, 7)
    assert decided([]) == Decision(None, 0.0, 0, 0, 0)
