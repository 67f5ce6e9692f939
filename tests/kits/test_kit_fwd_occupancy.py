from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from servematrix.gates import occupancy, sequential, throughput, trace
from servematrix.gates.verdict import Verdict
from servematrix.kits import FwdOccupancyMixin, scrapes
from servematrix.kits.base import Inconclusive, MeasurementError, NotApplicable, VerdictFailed
from servematrix.kits.fwd_occupancy import _ROWS, _Part, _Server
from servematrix.kits.long_request import Ended, Latency

TEST = "test_fwd_occupancy"
FAST = {
    "fwd_occupancy_max_new_tokens": 400,
    "fwd_occupancy_scrape_interval": 0.005,
    # a tenth of a second of wall clock on a busy machine: the counter is only roughly right
    "fwd_occupancy_counter_tolerance": 25.0,
    # ten windows in that tenth of a second: each is a block, and there is no start-up
    "fwd_occupancy_startup_seconds": 0.0,
    "fwd_occupancy_block_windows": 1,
    "fwd_occupancy_stop_early": False,
}
# where a request may be cut: the scripted one lasts half a second
EARLY = {"fwd_occupancy_stop_early": True, "fwd_occupancy_max_new_tokens": 2000}


@pytest.fixture
def run(run_kit):
    return lambda **attributes: run_kit(FwdOccupancyMixin, TEST, **{**FAST, **attributes})


def test_a_busy_server_passes(run, capsys):
    ran = run()
    assert ran.raised is None
    numbers = ran.verdict.numbers
    assert numbers["windows"] == 10
    assert numbers["tokens"] == 400
    assert numbers["median"] == pytest.approx(98.055)
    assert numbers["counter_occupancy"] == pytest.approx(98, abs=25)
    assert numbers["decode_tokens_per_s"] > 0
    assert numbers["ttft_s"] > 0
    assert numbers["itl_p50_ms"] <= numbers["itl_p99_ms"]
    table = capsys.readouterr().out
    for row in ("median", "peak", "p10", "itl p99", "ttft", "stale scrapes", "failed scrapes"):
        assert row in table
    assert table.index("median") < table.index("fwd_occupancy.test_fwd_occupancy: pass")


def test_the_trace_is_kept_and_gives_the_same_verdict_again(run):
    ran = run()
    kept = ran.reporter.attachments["trace"]
    request = occupancy.Request(400, 400, "length", 400)
    limits = occupancy.Limits(95, 5, 40, 25, startup_seconds=0, block_windows=1)
    gaps = kept["traces"][0]["gaps_ms"]
    assert sorted(gaps)[len(gaps) // 2] == pytest.approx(
        ran.verdict.numbers["itl_p50_ms"], abs=1e-3
    )
    again = occupancy.judge(trace.scrapes(kept["traces"][0]["samples"]), request, limits)
    assert again.outcome == "pass"
    assert again.numbers["median"] == ran.verdict.numbers["median"]
    assert again.numbers["counter_occupancy"] == pytest.approx(
        ran.verdict.numbers["counter_occupancy"], abs=0.5
    )


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(occupancy, "SHORTEST_SPAN", 0.0)


def aborts(scripted):
    return [body["rid"] for path, body in scripted.asked if path == "/abort_request"]


@pytest.mark.parametrize(("level", "share"), [(98.0, 0.98), (76.0, 0.76)])
def test_the_request_ends_as_soon_as_its_windows_are_clear(run, scripted, brief, level, share):
    scripted.gauge = lambda window: level + window / 100
    scripted.counter_share = share
    ran = run(**EARLY)
    numbers = ran.verdict.numbers
    assert ran.verdict.outcome == ("pass" if level > 95 else "fail"), ran.verdict.reason
    assert ran.verdict.alpha == sequential.ALPHA
    assert ran.verdict.power > 0.99
    assert numbers["stopping_reason"] == "clear, cut by us"
    # five windows are needed, and the abort comes while the sixth is made
    assert 5 <= numbers["windows"] < 10
    assert numbers["tokens"] < 2000
    assert numbers["decode_tokens_per_s"] > 0
    long = [body for path, body in scripted.asked if path == "/generate" and body.get("rid")]
    assert aborts(scripted) == [long[0]["rid"]]
    assert ran.reporter.attachments["trace"]["traces"][0]["stopped_early"] is True


def test_the_server_is_idle_before_the_next_request(run, scripted, brief):
    run(**EARLY)
    paths = [path for path, _ in scripted.asked]
    assert paths.index("/abort_request") < len(paths) - 1
    assert paths[-1] == "/generate"
    assert scripted._window == -1


@pytest.mark.parametrize("status", [401, 404, 500])
def test_a_server_that_does_not_abort_decodes_to_the_end(run, scripted, brief, status):
    scripted.abort_status = status
    ran = run(fwd_occupancy_stop_early=True)
    assert ran.raised is None
    assert len(aborts(scripted)) == 1
    assert ran.verdict.numbers["tokens"] == 400
    assert ran.verdict.numbers["stopping_reason"] == "the request ended"


def test_what_is_not_clear_runs_to_the_end_and_is_inconclusive(run, scripted):
    scripted.gauge = lambda window: (99.0 if window % 2 else 80.0) + window / 100
    ran = run(fwd_occupancy_stop_early=True)
    assert isinstance(ran.raised, Inconclusive)
    assert aborts(scripted) == []
    assert "5 of 10 blocks above 95 % when the request ended" in ran.verdict.reason
    assert "fwd_occupancy_max_new_tokens" in ran.verdict.reason


def test_a_counter_that_disagrees_stops_nothing(run, scripted, brief):
    scripted.counter_share = 0.30
    ran = run(fwd_occupancy_stop_early=True)
    assert isinstance(ran.raised, Inconclusive)
    assert aborts(scripted) == []


def test_a_slow_start_is_waited_for(run, scripted):
    scripted.gauge = lambda window: (70.0 if window < 7 else 98.0) + window / 100
    scripted.counter_share = None
    ran = run(**EARLY, fwd_occupancy_startup_seconds=60.0)
    assert ran.raised is None
    assert ran.verdict.numbers["windows"] > 10


def test_speculation_is_measured_to_the_end(run, scripted, brief):
    _speculate(scripted, 200, spec_accept_length=2.0)
    ran = run(fwd_occupancy_stop_early=True)
    assert ran.raised is None
    assert aborts(scripted) == []
    assert ran.verdict.numbers["tokens"] == 400


def test_a_request_that_somebody_else_aborts_is_an_error(run, scripted):
    scripted.finish, scripted.cut_to = "abort", 120
    ran = run(fwd_occupancy_stop_early=True)
    assert isinstance(ran.raised, MeasurementError)
    assert "was cut: 120 of 400" in ran.verdict.reason


def test_a_starved_gpu_fails_and_prints_the_table_first(run, scripted, capsys):
    scripted.gauge = lambda window: 76.0 + window / 100
    scripted.counter_share = 0.76
    ran = run()
    assert isinstance(ran.raised, VerdictFailed)
    out = capsys.readouterr().out
    assert out.index("median") < out.index(": fail:")


def test_the_value_of_the_request_before_never_counts(run, scripted):
    """The warm-up leaves 99.9 behind, and the gauge keeps it for the first windows."""
    scripted.idle_gauge = 99.9
    scripted.gauge = lambda window: 99.9 if window < 4 else 70.0 + window / 100
    scripted.counter_share = 0.70
    ran = run()
    assert isinstance(ran.raised, VerdictFailed)
    assert ran.verdict.numbers["windows"] == 7
    assert ran.verdict.numbers["peak"] < 71
    assert ran.verdict.numbers["stale_scrapes"] >= 4


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"timer": False}, "SGLANG_ENABLE_METRICS_DEVICE_TIMER=1"),
        ({"gauge": lambda window: math.nan, "idle_gauge": math.nan}, "only NaN"),
        ({"gauge": lambda window: 99.0}, "stalled gauge"),
        ({"gauge": lambda window: 55.5}, "stalled gauge"),
        ({"running_reqs": 2}, "other traffic"),
        ({"served_extra": 1}, "other traffic"),
        ({"finish": "abort"}, "was cut"),
        ({"cut_to": 390}, "was cut: 390 of 400"),
        ({"context": 300}, "context of 300 tokens"),
        ({"overrides": {"/generate": (500, "boom")}}, "boom"),
        ({"scrape_status": lambda number: 200 if number < 3 else 503}, "no scrape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_measurement_that_does_not_hold_is_an_error(run, scripted, knobs, told):
    for name, value in knobs.items():
        setattr(scripted, name, value)
    ran = run()
    assert isinstance(ran.raised, MeasurementError)
    assert told in ran.verdict.reason


def test_a_server_without_metrics_is_not_applicable(run, scripted):
    scripted.overrides["/metrics"] = (404, "")
    ran = run()
    assert isinstance(ran.raised, NotApplicable)
    assert "--enable-metrics" in ran.verdict.reason


def test_a_version_from_before_the_gauge_is_not_applicable(run, scripted):
    scripted.timer = False
    scripted.counter_share = None
    scripted.more_metrics = 'sglang:gpu_execution_seconds_total{category="forward_decode"} 1.5'
    ran = run()
    assert isinstance(ran.raised, NotApplicable)
    assert "sglang:gpu_execution_seconds_total" in ran.verdict.reason


@pytest.mark.parametrize(
    "answer", [{"error": {"message": "gone"}}, {"text": "gone", "meta_info": None}]
)
def test_an_answer_without_meta_info_is_an_error(run, scripted, answer):
    scripted._long = lambda body, limit: answer
    ran = run()
    assert isinstance(ran.raised, MeasurementError)
    assert "gone" in ran.verdict.reason


@pytest.mark.parametrize(
    "events",
    [
        [b'data: {"error": {"message": "gone"}}\n\n'],
        [b'data: {"text": "gone", "meta_info": {"completion_tokens": 1}}\n\n'],
    ],
    ids=["error", "no DONE"],
)
def test_a_broken_stream_is_an_error(run, scripted, events):
    scripted.broken_stream = events
    ran = run()
    assert isinstance(ran.raised, MeasurementError)
    assert "gone" in ran.verdict.reason


def test_too_few_windows_are_an_error_that_says_what_to_raise(run):
    ran = run(fwd_occupancy_min_samples=11)
    assert isinstance(ran.raised, MeasurementError)
    assert "fwd_occupancy_max_new_tokens" in ran.verdict.reason


def test_failed_scrapes_are_counted_and_are_no_samples(run, scripted):
    scripted.scrape_status = lambda number: 503 if number % 3 == 0 else 200
    ran = run()
    assert ran.raised is None
    assert ran.verdict.numbers["failed_scrapes"] > 0


def test_a_server_that_stops_answering_scrapes_ends_the_wait(run, scripted, monkeypatch):
    monkeypatch.setattr(scrapes, "SILENCE", 0.0)
    scripted.scrape_status = lambda number: 200 if number < 3 else 503
    ran = run()
    assert isinstance(ran.raised, MeasurementError)
    assert "no scrape answered" in ran.verdict.reason


def test_gauge_and_counter_apart_are_inconclusive(run, scripted):
    scripted.counter_share = 0.30
    ran = run()
    assert isinstance(ran.raised, Inconclusive)
    assert "counter" in ran.verdict.reason
    assert ran.verdict.numbers["counter_difference"] == pytest.approx(68, abs=25)


def test_without_a_counter_the_rest_decides(run, scripted):
    scripted.counter_share = None
    ran = run()
    assert ran.raised is None
    assert ran.verdict.numbers["counter_difference"] is None


def _speculate(scripted, verify_passes, **more):
    scripted.info["speculative_algorithm"] = "EAGLE3"
    scripted.info["decode_log_interval"] = 40
    scripted.spec = {"spec_verify_ct": verify_passes, **more}


def test_drafts_that_are_accepted_pass(run, scripted):
    _speculate(scripted, 200, spec_accept_length=2.0)
    ran = run()
    assert ran.raised is None
    assert ran.verdict.numbers["accept_length"] == 2.0
    assert ran.verdict.numbers["windows_implied"] == 5.0


def test_drafts_that_are_never_accepted_fail(run, scripted):
    _speculate(scripted, 399)
    ran = run()
    assert isinstance(ran.raised, VerdictFailed)
    assert "EAGLE3 hardly accepts" in ran.verdict.reason
    assert "median" in ran.verdict.reason


def test_both_faults_are_told(run, scripted):
    _speculate(scripted, 399)
    scripted.gauge = lambda window: 50.0 + window / 100
    scripted.counter_share = 0.5
    ran = run()
    assert isinstance(ran.raised, VerdictFailed)
    assert "not above 95 %" in ran.verdict.reason
    assert "hardly accepts" in ran.verdict.reason


def test_speculation_that_is_silently_off_fails_where_it_is_required(run):
    assert run().raised is None
    ran = run(fwd_occupancy_speculation_required=True)
    assert isinstance(ran.raised, VerdictFailed)
    assert "does not speculate although" in ran.verdict.reason


def test_speculation_that_leaves_no_trace_is_an_error(run, scripted):
    scripted.info["speculative_algorithm"] = "EAGLE3"
    ran = run()
    assert isinstance(ran.raised, MeasurementError)
    assert "spec_verify_ct" in ran.verdict.reason


def test_an_accept_length_that_the_server_contradicts_is_inconclusive(run, scripted):
    _speculate(scripted, 200, spec_accept_length=3.9)
    assert isinstance(run().raised, Inconclusive)


def test_a_baseline_decides_too(run):
    steady = {"settled_median": [98.0, 98.1, 98.2], "ttft_s": [1e-9, 2e-9, 3e-9]}
    ran = run(fwd_occupancy_baseline=throughput.Baseline(steady))
    assert ran.raised is None
    assert ran.verdict.numbers["baseline_settled_median_runs"] == 3
    assert "baseline_ttft_s_runs" not in ran.verdict.numbers
    fast = {**steady, "decode_tokens_per_s": [1.00e9, 1.01e9, 1.02e9]}
    ran = run(fwd_occupancy_baseline=throughput.Baseline(fast))
    assert isinstance(ran.raised, VerdictFailed)
    assert "decode_tokens_per_s" in ran.verdict.reason
    assert "worse than chance explains" in ran.verdict.reason
    drafted = {**steady, "accept_length": [3.0, 3.1, 3.2]}
    ran = run(fwd_occupancy_baseline=throughput.Baseline(drafted))
    assert isinstance(ran.raised, MeasurementError), "this run has none"


def test_a_server_that_was_started_with_metrics_must_have_them(run, scripted):
    scripted.overrides["/metrics"] = (404, "")
    ran = run(fwd_occupancy_required=True)
    assert isinstance(ran.raised, MeasurementError)
    assert "although the server was started with --enable-metrics" in ran.verdict.reason


def test_each_data_parallel_rank_is_sent_a_request_of_its_own(run, scripted):
    scripted.info["dp_size"] = 2
    ran = run()
    # the scripted server has one rank, whatever it says
    assert isinstance(ran.raised, Inconclusive)
    assert "requests for 2 ranks met 1 only" in ran.verdict.reason
    long = [body for path, body in scripted.asked if path == "/generate" and body.get("rid")]
    assert [body["routed_dp_rank"] for body in long] == [0, 1]
    assert len(ran.reporter.attachments["trace"]["traces"]) == 2


def test_one_rank_is_not_named(run, scripted):
    run()
    assert all("routed_dp_rank" not in (body or {}) for _, body in scripted.asked)


# -- what is asked, kept and stated -------------------------------------------------------------


def test_every_measurement_is_one_of_the_verdict(run):
    ran = run()
    found = {name: value for _, name, value, _ in ran.reporter.measurements}
    assert list(found) == [name for name, _ in _ROWS]
    assert found == {name: ran.verdict.numbers.get(name) for name in found}


def test_the_table_has_two_digits_and_a_dash_for_what_is_not_known(run, capsys):
    run()
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    shown = {name.strip(): value.strip() for _, name, value, *_ in rows}
    assert re.fullmatch(r"98\.0\d", shown["median"])
    assert (shown["windows"], shown["windows implied"]) == ("10", "10.00")
    assert shown["accept length"] == "-"


def test_each_rank_is_warmed_up_before_its_request(run, scripted):
    scripted.info["dp_size"] = 2
    run()
    sent = [body for path, body in scripted.asked if path == "/generate" and not body.get("stream")]
    assert [body["text"].startswith("First, ") for body in sent] == [True, False] * 2
    assert [body["routed_dp_rank"] for body in sent] == [0, 0, 1, 1]


def test_one_rank_is_judged_as_it_is(run):
    assert run().verdict.reason.startswith("median 98.0")


def test_a_baseline_is_judged_beside_the_rest(run, scripted):
    steady = throughput.Baseline({"settled_median": [98.0, 98.1, 98.2]})
    verdict = run(fwd_occupancy_baseline=steady).verdict
    assert "blocks of 1 fresh windows" in verdict.rule
    assert "median no worse than" in verdict.rule
    assert (verdict.numbers["windows"], verdict.numbers["baseline_settled_median_runs"]) == (10, 3)


def test_the_trace_says_what_it_is_of(run, scripted):
    scripted.info |= {"version": "0.5.16", "decode_log_interval": 40}
    kept = run().reporter.attachments["trace"]
    assert sorted(kept) == ["decode_log_interval", "scrape_interval_s", "server", "traces"]
    assert kept["server"] == {"version": "0.5.16", "speculative_algorithm": None}
    assert (kept["scrape_interval_s"], kept["decode_log_interval"]) == (0.005, 40)
    (one,) = kept["traces"]
    assert one.keys() == {
        *("elapsed_s", "failed_scrapes", "gaps_ms", "meta_info", "samples", "stopped_early")
    }
    assert 0 < one["elapsed_s"] < 60
    assert one["meta_info"]["completion_tokens"] == 400
    assert (one["stopped_early"], one["failed_scrapes"]) == (False, 0)
    assert len(one["samples"]) >= 11


def test_times_between_tokens_are_kept_to_a_microsecond():
    part = _Part(
        Verdict("pass", "", ""),
        scrapes.Watched([], 0, None),
        Ended({}, None, 1.0),
        Latency(gaps_ms=(1.23456, 2.0)),
    )
    assert part.trace()["gaps_ms"] == [1.235, 2.0]
    assert replace(part, timing=None).trace()["gaps_ms"] == []


def test_prompts_come_first_long_and_last(run, scripted):
    """Each is another text, so that no request finds the one before in the cache."""
    run(fwd_occupancy_prompt="Say much.")
    texts = [body["text"] for path, body in scripted.asked if path == "/generate"]
    assert texts == ["First, Say much.", "Say much.", "Last, Say much."]


@pytest.mark.parametrize(
    ("info", "server"),
    [
        ({}, _Server(40, None, 4096, "1")),
        ({"decode_log_interval": None}, _Server(40, None, 4096, "1")),
        ({"decode_log_interval": 10}, _Server(10, None, 4096, "1")),
        ({"speculative_algorithm": ""}, _Server(40, None, 4096, "1")),
        ({"speculative_algorithm": "EAGLE3"}, _Server(40, "EAGLE3", 4096, "1")),
        ({"dp_size": None}, _Server(40, None, 4096, "1")),
        ({"dp_size": 1}, _Server(40, None, 4096, "1")),
        ({"dp_size": 3}, _Server(40, None, 4096, "1", range(3))),
    ],
)
def test_the_server_is_asked_what_it_is(scripted, info, server):
    scripted.info |= info
    kit = type("Case", (FwdOccupancyMixin,), {"base_url": scripted.url})()
    assert kit._FwdOccupancyMixin__ask_server() == server


def test_without_a_listing_the_context_is_not_known(scripted):
    scripted.overrides["/v1/models"] = (200, {"data": []})
    kit = type("Case", (FwdOccupancyMixin,), {"base_url": scripted.url})()
    assert kit._FwdOccupancyMixin__ask_server().context is None


def test_the_limits_are_those_of_the_kit():
    kit = FwdOccupancyMixin()
    kit.fwd_occupancy_threshold, kit.fwd_occupancy_min_samples = 91.0, 7
    kit.fwd_occupancy_counter_tolerance, kit.fwd_occupancy_rank_reduction = 3.0, "max"
    kit.fwd_occupancy_startup_seconds, kit.fwd_occupancy_block_windows = 2.0, 5
    found = kit._FwdOccupancyMixin__limits(_Server(13, None, None, None))
    assert found == occupancy.Limits(91.0, 7, 13, 3.0, "max", 2.0, 5)


def test_a_finish_reason_may_be_a_word(run, scripted):
    scripted.edit = lambda path, body: (
        {**body, "meta_info": {**body["meta_info"], "finish_reason": "length"}}
        if path == "/generate"
        else body
    )
    assert run().raised is None


def test_a_warm_up_that_is_broken_is_told(run, scripted):
    scripted.edit = lambda path, body: {"text": 5} if path == "/generate" else body
    ran = run()
    assert isinstance(ran.raised, MeasurementError)
    assert "/generate answered the warm-up with a broken answer: text:" in ran.verdict.reason


def test_the_request_must_fit_with_the_warm_up_s_prompt(run, scripted):
    """The prompt has 12 words as the server counts, the warm-up one more."""
    words = len(f"First, {FwdOccupancyMixin.fwd_occupancy_prompt}".split())
    scripted.context = words + 400
    assert run().raised is None
    scripted.context -= 1
    ran = run()
    assert isinstance(ran.raised, MeasurementError)
    assert f"{words} prompt and 400 new tokens do not fit" in ran.verdict.reason


def test_metrics_that_are_required_and_not_there_are_an_error(run, scripted):
    scripted.overrides["/metrics"] = (404, "")
    assert isinstance(run(fwd_occupancy_required=True).raised, MeasurementError)


def test_a_failed_request_has_no_latency_and_no_speculation(run, scripted):
    scripted._long = lambda body, limit: {"text": "gone", "meta_info": None}
    ran = run(fwd_occupancy_speculation_required=True)
    numbers = ran.verdict.numbers
    for name in ("stream_tokens_per_s", "itl_p50_ms", "itl_p99_ms", "ttft_s"):
        assert name in numbers
        assert numbers[name] is None
    assert numbers["decode_tokens_per_s"] is None
    assert "speculate" not in ran.verdict.reason
    assert [path for path, _ in scripted.asked].count("/generate") == 2


def test_the_length_that_the_server_reports_is_held_against_the_count(run, scripted):
    _speculate(scripted, 200, spec_accept_length=2.0)
    numbers = run(fwd_occupancy_acc_length_threshold=1.5).verdict.numbers
    assert numbers["spec_algorithm"] == "EAGLE3"
    assert numbers["accept_length_reported"] == 2.0
    assert numbers["accept_length_threshold"] == 1.5
    assert numbers["verify_passes"] == numbers["forward_passes"] == 200
    assert isinstance(run(fwd_occupancy_acc_length_threshold=2.0).raised, VerdictFailed)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("decode_log_interval", wrong) for wrong in ("40", -40, 0, 1.5, 10**400, {"a": 1})),
        *(("speculative_algorithm", wrong) for wrong in (["EAGLE3"], 3, "x" * 201)),
        ("dp_size", 10**6),
    ],
)
def test_what_the_server_says_of_itself_is_checked(run, scripted, field, value):
    scripted.info[field] = value
    ran = run()
    assert isinstance(ran.raised, MeasurementError)
    assert f"/server_info: {field}" in ran.verdict.reason


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("spec_verify_ct", wrong) for wrong in ("9", -1, [], 10**400)),
        *(("spec_accept_length", wrong) for wrong in ("x", 1e308)),
        *(("completion_tokens", wrong) for wrong in ("400", 4e2, True)),
        ("finish_reason", ["length"]),
    ],
)
def test_an_account_of_the_request_that_is_none_is_an_error(run, scripted, field, value):
    scripted.edit = lambda path, body: (
        {**body, "meta_info": {**body["meta_info"], field: value}}
        if path == "/generate" and len(body["text"]) > 1000
        else body
    )
    ran = run()
    assert isinstance(ran.raised, MeasurementError)
    assert f"its meta_info is broken: {field}" in ran.verdict.reason
