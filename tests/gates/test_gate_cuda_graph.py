"""CUDA graphs by counted passes: where they must run, where they may, where they must not."""

from __future__ import annotations

import pytest

from servematrix.gates.cuda_graph import Passes, judge

ALL = [Passes(1, 96, 0), Passes(8, 95, 5), Passes(9, 10, 90)]


def outcome(passes, *, enabled=True, max_bs=8, expected=None):
    return judge(passes, enabled=enabled, max_bs=max_bs, expected=expected).outcome


def test_every_count_is_stated():
    verdict = judge(ALL, enabled=True, max_bs=8, expected="on")
    assert verdict.outcome == "pass"
    assert verdict.numbers == {
        "graphs_enabled": True,
        "max_bs": 8,
        "graph_passes_at_1": 96,
        "eager_passes_at_1": 0,
        "graph_passes_at_8": 95,
        "eager_passes_at_8": 5,
        "graph_passes_at_9": 10,
        "eager_passes_at_9": 90,
    }


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (Passes(1, 19, 1), "pass"),  # 95 % exactly
        (Passes(1, 94, 6), "fail"),
        (Passes(8, 94, 6), "fail"),
        (Passes(9, 94, 6), "fail"),
        (Passes(9, 50, 50), "pass"),  # 50 % exactly
        (Passes(9, 51, 49), "fail"),
        (Passes(9, 0, 100), "pass"),
    ],
)
def test_graphs_are_demanded_up_to_the_largest_batch_and_bounded_above_it(one, expected):
    assert outcome([one]) == expected


@pytest.mark.parametrize("max_bs", [None, 0])
def test_without_a_largest_batch_only_a_batch_of_one_must_have_graphs(max_bs):
    assert outcome([Passes(1, 100, 0)], max_bs=max_bs) == "pass"
    assert outcome([Passes(1, 0, 100)], max_bs=max_bs) == "fail"
    assert outcome([Passes(2, 0, 100)], max_bs=max_bs) == "pass"


def test_one_graph_is_too_many_where_they_are_off():
    assert outcome([Passes(4, 0, 100)], enabled=False) == "pass"
    assert outcome([Passes(4, 1, 99)], enabled=False) == "fail"


@pytest.mark.parametrize(
    ("enabled", "expected", "found"),
    [(True, "on", "pass"), (True, "off", "fail"), (False, "on", "fail"), (False, "off", "pass")],
)
def test_the_configuration_has_its_way(enabled, expected, found):
    passes = [Passes(1, 100, 0) if enabled else Passes(1, 0, 100)]
    verdict = judge(passes, enabled=enabled, max_bs=8, expected=expected)
    assert verdict.outcome == found
    assert verdict.numbers["graphs_enabled"] is enabled
    assert len(verdict.numbers) == 4


@pytest.mark.parametrize("passes", [[], [Passes(1, 4, 5)], [Passes(1, 10, 0), Passes(8, 0, 9)]])
def test_nine_passes_are_too_few(passes):
    verdict = judge(passes, enabled=True, max_bs=8, expected=None)
    assert verdict.outcome == "error"
    assert len(verdict.numbers) == 2 + 2 * len(passes)


def test_ten_passes_are_enough():
    assert outcome([Passes(1, 10, 0)]) == "pass"


def test_too_few_passes_are_told_with_their_batch():
    verdict = judge([Passes(1, 10, 0), Passes(8, 4, 5)], enabled=True, max_bs=8, expected=None)
    assert "9 decode passes were counted at a batch of 8" in verdict.reason
    none = judge([], enabled=True, max_bs=8, expected=None)
    assert "0 decode passes were counted at a batch of 0" in none.reason


def test_each_fault_is_told_beside_all_shares():
    verdict = judge([Passes(1, 0, 100), *ALL[1:]], enabled=True, max_bs=8, expected=None)
    assert verdict.outcome == "fail"
    assert len(verdict.numbers) == 8
    assert verdict.reason.startswith("only 0 of 100 decode passes at a batch of 1")
    assert verdict.reason.endswith(
        "all: 0% at a batch of 1; 95% at a batch of 8; 10% at a batch of 9"
    )
