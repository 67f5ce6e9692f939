"""Fresh windows, spans, ranks and traces, each by itself."""

from __future__ import annotations

import json
import math

import pytest

from servematrix.gates import sequential, trace, windows
from servematrix.gates.ranks import every_rank, standing, weigh
from servematrix.gates.verdict import Verdict
from servematrix.gates.windows import RankReading, Scrape, Span, Windows, deciding_rank, span


def shown(*values: float, seconds: float = 1.0, counters=None) -> Windows:
    """Windows that were first seen `seconds` apart."""
    at = tuple(seconds * (i + 1) for i in range(len(values)))
    return Windows(values, at, counters or (None,) * len(values))


# -- fresh windows ------------------------------------------------------------------------------


def test_a_window_is_shown_in_the_middle_of_its_scrape():
    before = Scrape(-0.5, 0.0, False, {"dp0": RankReading("0", 0, 0, 50.0)})
    scrape = Scrape(1.0, 0.5, True, {"dp0": RankReading("0", 1, 0, 98.0, forward_seconds=7.0)})
    found = windows.fresh_windows([before, scrape])["dp0"]
    assert found == Windows((98.0,), (1.25,), (7.0,))


def test_the_last_scrape_before_the_request_tells_the_stale_value():
    scrapes = [
        Scrape(t, 0.0, t >= 0, {"dp0": RankReading("0", 1, 0, value)})
        for t, value in ((-0.3, 10.0), (-0.2, 20.0), (-0.1, 30.0), (0.0, 30.0), (0.1, 20.0))
    ]
    found = windows.fresh_windows(scrapes)["dp0"]
    assert (found.values, found.stale) == ((20.0,), 1)


def test_stale_and_nan_scrapes_are_known_by_time():
    nan = float("nan")
    scrapes = [
        Scrape(t, 0.0, t < 0.3, {"dp0": RankReading("0", 1, 0, value)})
        for t, value in ((-0.1, 30.0), (0.0, 30.0), (0.1, nan), (0.2, 98.0), (0.3, 98.0))
    ]
    found = windows.fresh_windows(scrapes)["dp0"]
    assert found.stale_scrapes == ((0.0, 30.0), (0.3, 98.0))
    assert found.nan_scrapes == (0.1,)
    assert (found.stale, found.nan) == (2, 1)


def test_only_the_last_scrape_before_the_request_is_asked_for_the_stale_value():
    here = {"dp0": RankReading("0", 1, 0, 98.0)}
    before = [Scrape(t, 0.0, False, ranks) for t, ranks in ((-3.0, {}), (-2.0, here), (-1.0, {}))]
    assert windows.fresh_windows([*before, Scrape(0.0, 0.0, True, here)])["dp0"].values == (98.0,)


def test_a_scrape_as_the_request_is_sent_is_one_of_the_request():
    scrapes = [
        Scrape(t, 0.0, True, {"dp0": RankReading("0", 1, 0, value)})
        for t, value in ((0.0, 10.0), (0.0, 20.0), (0.1, 30.0))
    ]
    assert windows.fresh_windows(scrapes)["dp0"].values == (20.0, 30.0)


def test_the_first_scrape_alone_is_stale_where_none_was_before():
    scrapes = [
        Scrape(0.1 * i, 0.0, True, {"dp0": RankReading("0", 1, 0, value)})
        for i, value in enumerate((10.0, 20.0, 30.0))
    ]
    found = windows.fresh_windows(scrapes)["dp0"]
    assert (found.values, found.stale) == ((20.0, 30.0), 0)


def test_a_scrape_without_the_rank_is_passed_over():
    here = {"dp0": RankReading("0", 1, 0, 98.0)}
    later = {"dp0": RankReading("0", 1, 0, 97.0)}
    scrapes = [Scrape(-0.1, 0.0, False, {}), Scrape(0.0, 0.0, True, here)]
    scrapes += [Scrape(0.1, 0.0, True, {}), Scrape(0.2, 0.0, True, later)]
    assert windows.fresh_windows(scrapes)["dp0"].values == (98.0, 97.0)


def test_a_rank_that_was_not_there_before_has_no_stale_value():
    scrapes = [Scrape(-0.1, 0.0, False, {"dp0": RankReading("0", 0, 0, 98.0)})]
    scrapes += [Scrape(0.0, 0.0, True, {"dp1": RankReading("1", 1, 0, 98.0)})]
    assert windows.fresh_windows(scrapes)["dp1"].values == (98.0,)


def test_requests_are_those_that_run_and_those_that_wait():
    ranks = {"a": RankReading("0", 1, 2, 98.0), "b": RankReading("0", 2, 0, 98.0)}
    assert Scrape(0.0, 0.0, True, ranks).requests() == 3
    assert Scrape(0.0, 0.0, True, {}).requests() == 0


def test_the_low_decile_is_interpolated():
    assert shown().low_decile() is None
    assert shown(5.0).low_decile() == 5.0
    assert shown(0.0, 10.0).low_decile() == pytest.approx(1.0)
    assert shown(*range(11)).low_decile() == pytest.approx(1.0)


def test_the_median_of_no_window_is_none():
    assert shown().median() is None
    assert shown(1.0, 2.0).median() == 1.5


# -- counter against gauge ----------------------------------------------------------------------


def test_a_span_weighs_each_window_by_the_time_it_took():
    # 1 s until the second window, 3 s until the third: (90 + 3 * 70) / 4, and 3 of 4 s were busy
    found = span(Windows((10.0, 90.0, 70.0), (1.0, 2.0, 5.0), (0.0, None, 3.0)))
    assert found == Span(seconds=4.0, counter=75.0, windows_mean=75.0)
    assert found.difference == 0.0


def test_two_windows_make_a_span_and_one_does_not():
    assert span(shown(90.0, 80.0, counters=(0.0, 0.5))) == Span(1.0, 50.0, 80.0)
    assert span(shown(90.0, counters=(0.0,))) is None


@pytest.mark.parametrize("counters", [(None, 1.0), (1.0, None), (None, None)])
def test_without_a_counter_there_is_no_span(counters):
    assert span(shown(90.0, 80.0, counters=counters)) is None


def test_a_counter_that_stands_still_is_idle_and_one_that_falls_is_another_server():
    assert span(shown(90.0, 80.0, counters=(2.0, 2.0))).counter == 0.0
    with pytest.raises(ValueError, match="ran backwards"):
        span(shown(90.0, 80.0, counters=(2.0, 1.9)))


def test_the_difference_has_no_sign():
    assert Span(1.0, 50.0, 80.0).difference == Span(1.0, 80.0, 50.0).difference == 30.0


# -- ranks --------------------------------------------------------------------------------------

RULE = sequential.Rule(97.0, 0.0, 1)


def test_the_deciding_rank_has_the_lowest_or_the_highest_median():
    ranks = {"a": shown(2.0), "b": shown(1.0), "c": shown(3.0), "d": shown()}
    assert deciding_rank(ranks, "min") == "b"
    assert deciding_rank(ranks, "max") == "c"
    assert deciding_rank({"d": shown()}, "min") is None
    assert deciding_rank({}, "max") is None


GOOD, BAD, UNCLEAR = shown(*[99.0] * 8), shown(*[90.0] * 8), shown(*[99.0, 90.0] * 4)


@pytest.mark.parametrize(
    ("ranks", "least", "most"),
    [
        ((GOOD, GOOD), "pass", "pass"),
        ((BAD, BAD), "fail", "fail"),
        ((GOOD, BAD), "fail", "pass"),
        ((GOOD, UNCLEAR), "inconclusive", "pass"),
        ((BAD, UNCLEAR), "fail", "inconclusive"),
        ((UNCLEAR, UNCLEAR), "inconclusive", "inconclusive"),
    ],
)
def test_ranks_are_joined_as_the_reduction_says(ranks, least, most):
    named = {str(i): one for i, one in enumerate(ranks)}
    for reduction, outcome in (("min", least), ("max", most)):
        assert weigh(named, RULE, reduction=reduction, counter_tolerance=2.0).outcome == outcome


@pytest.mark.parametrize(("reduction", "outcome"), [("min", "fail"), ("max", "pass")])
def test_how_it_stands_is_told_of_the_rank_that_decides(reduction, outcome):
    decisive = GOOD if outcome == "pass" else BAD
    found = standing({"a": GOOD, "b": BAD}, RULE, reduction)
    assert found == sequential.decide(decisive.values, decisive.shown, RULE)
    assert found.outcome == outcome


@pytest.mark.parametrize("ranks", [{}, {"a": shown()}])
def test_without_a_window_nothing_stands(ranks):
    assert standing(ranks, RULE, "min") is None


def apart(points: float) -> Windows:
    """Eight good windows, and a counter that is so many points below them."""
    busy = (99.0 - points) / 100.0
    return shown(*[99.0] * 8, counters=(0.0, *[None] * 6, 7 * busy))


def test_a_counter_may_differ_by_the_tolerance_and_no_more():
    whole = {"a": apart(2.0)}
    assert span(whole["a"]).difference == pytest.approx(2.0)
    exact = span(whole["a"]).difference
    assert weigh(whole, RULE, reduction="min", counter_tolerance=exact).outcome == "pass"
    assert weigh(whole, RULE, reduction="min", counter_tolerance=1.9).outcome == "inconclusive"


def test_the_rank_whose_counter_is_furthest_off_is_named_beside_the_decision():
    ranks = {"a": apart(9.0), "b": apart(3.0), "z": apart(0.0)}
    found = weigh(ranks, RULE, reduction="min", counter_tolerance=2.0)
    assert found.outcome == "inconclusive"
    assert found.reason.startswith(
        "median 99.00 % over 8 windows after the start-up; 4 of 4 blocks"
    )
    assert "counter of rank a are 9.00 points apart" in found.reason
    assert found.decision.outcome == "pass"


def test_the_level_is_that_after_the_start_up_once_a_block_is_there():
    rule = sequential.Rule(97.0, 2.0, 2)
    # shown at 1, 2, 3, 4 s: the one at 2 s is still start-up, two are later
    found = weigh(
        {"a": shown(10.0, 10.0, 99.0, 98.0)}, rule, reduction="min", counter_tolerance=2.0
    )
    assert found.reason.startswith("median 98.50 % over 2 windows after the start-up")
    found = weigh({"a": shown(10.0, 10.0, 99.0)}, rule, reduction="min", counter_tolerance=2.0)
    assert found.reason.startswith("median 10.00 % over 3 windows;")


def on_rank(outcome: str, rank: str | None, alpha: float | None = 0.25) -> Verdict:
    return Verdict(outcome, "rule", f"{rank} was measured", {"rank": rank, "median": 1.0}, alpha)


def test_of_requests_to_each_rank_the_worst_decides():
    verdict = every_rank([on_rank("pass", "dp0"), on_rank("fail", "dp1"), on_rank("error", "dp2")])
    assert verdict.outcome == "fail"
    assert verdict.numbers == {"rank": "dp1", "median": 1.0, "ranks": 3}
    assert verdict.reason == "rank dp1, the worst of 3: dp1 was measured"
    assert verdict.alpha == 0.75


@pytest.mark.parametrize(
    ("outcomes", "ranks", "outcome"),
    [
        (("pass", "pass"), ("dp0", "dp1"), "pass"),
        (("pass", "pass"), ("dp0", "dp0"), "inconclusive"),
        (("pass", "pass"), ("dp0", None), "inconclusive"),
        (("fail", "pass"), ("dp0", "dp0"), "fail"),
    ],
)
def test_a_rank_that_no_request_met_keeps_the_server_from_passing(outcomes, ranks, outcome):
    verdict = every_rank([on_rank(*one) for one in zip(outcomes, ranks, strict=True)])
    assert verdict.outcome == outcome
    met = len(set(ranks) - {None})
    assert verdict.numbers["ranks"] == met
    if outcome == "inconclusive":
        assert verdict.reason.startswith("requests for 2 ranks met 1 only")
        assert verdict.alpha == 0.5


# -- traces -------------------------------------------------------------------------------------

READING = RankReading("0", 1.0, 2.0, 98.5, 7.25, 540.0, 1.9)
ROW = {
    "t": 1.25,
    "scrape_s": 0.01,
    "request_running": True,
    "rank": "dp0/tp1",
    "group": "0",
    "num_running_reqs": 1.0,
    "num_queue_reqs": 2.0,
    "gen_throughput": 540.0,
    "spec_accept_length": 1.9,
    "fwd_occupancy": 98.5,
    "nan": False,
    "forward_seconds": 7.25,
}


def test_a_trace_has_these_columns_and_is_read_back_whole():
    scrapes = [Scrape(1.25, 0.01, True, {"dp0/tp1": READING})]
    assert trace.rows(scrapes) == [ROW]
    assert trace.scrapes(json.loads(json.dumps(trace.rows(scrapes)))) == scrapes


def test_a_trace_keeps_microseconds():
    rows = trace.rows([Scrape(0.12345678, 0.01234567, True, {"dp0": READING})])
    assert (rows[0]["t"], rows[0]["scrape_s"]) == (0.123457, 0.012346)


def test_nan_is_null_in_a_trace():
    scrapes = [Scrape(0.0, 0.0, True, {"dp0": RankReading("0", 1.0, 0.0, math.nan)})]
    row = trace.rows(scrapes)[0]
    assert (row["fwd_occupancy"], row["nan"]) == (None, True)
    assert math.isnan(trace.scrapes([row])[0].ranks["dp0"].occupancy)


def test_an_older_trace_is_of_one_rank_without_counter_or_queue():
    kept = ("t", "scrape_s", "request_running", "num_running_reqs", "fwd_occupancy")
    (scrape,) = trace.scrapes([{key: ROW[key] for key in kept}])
    assert scrape == Scrape(1.25, 0.01, True, {"dp0": RankReading("dp0", 1.0, 0.0, 98.5)})


def test_rows_of_one_moment_are_one_scrape():
    two = {"a": READING, "b": RankReading("1", 0.0, 0.0, 50.0)}
    scrapes = [Scrape(0.0, 0.1, True, two), Scrape(1.0, 0.1, False, two)]
    assert trace.scrapes(trace.rows(scrapes)) == scrapes
