from __future__ import annotations

import pytest

from numeric_client import NumericClient
from servematrix.kits import CudaGraphMixin
from servematrix.kits.base import MeasurementError, NotApplicable, VerdictFailed
from servematrix.kits.cuda_graph import _batches, _configured

TEST = "test_cuda_graph_passes"


@pytest.fixture
def server():
    return NumericClient()


@pytest.fixture
def run(run_kit, server):
    return lambda **more: run_kit(CudaGraphMixin, TEST, _kit_client=server, **more)


def test_graphs_where_they_must_be_and_not_above_pass(run, server):
    ran = run()
    assert ran.raised is None
    numbers = ran.verdict.numbers
    assert (numbers["graph_passes_at_1"], numbers["eager_passes_at_1"]) == (96, 0)
    assert (numbers["graph_passes_at_4"], numbers["eager_passes_at_5"]) == (96, 96)
    assert numbers["decode_tokens_per_s"] == pytest.approx(100)
    assert ("cuda_graph", "graph_share_at_5", 0.0, "share of decode passes") in (
        ran.reporter.measurements
    )


@pytest.mark.parametrize(
    ("graph", "told"),
    [
        (lambda batch: False, "only 0 of 96 decode passes at a batch of 1"),
        (lambda batch: batch < 4, "only 0 of 96 decode passes at a batch of 4"),
        (lambda batch: True, "96 of 96 decode passes at a batch of 5 used a CUDA graph"),
    ],
)
def test_graphs_that_are_not_where_they_should_be_fail(run, server, graph, told):
    server.graph = graph
    ran = run()
    assert isinstance(ran.raised, VerdictFailed)
    assert told in ran.verdict.reason


def test_graphs_off_must_not_run(run, server):
    server.info["disable_cuda_graph"] = True
    assert isinstance(run().raised, VerdictFailed)
    server.graph = lambda batch: False
    ran = run()
    assert ran.raised is None
    assert "graphs off" in ran.verdict.reason


@pytest.mark.parametrize(("expected", "off"), [("on", True), ("off", False)])
def test_what_the_configuration_wants_decides(run, server, expected, off):
    server.info["disable_decode_cuda_graph"] = off
    server.graph = lambda batch: not off and batch <= 4
    assert run().raised is None
    ran = run(cuda_graph_expected=expected)
    assert isinstance(ran.raised, VerdictFailed)
    assert f"wants them {expected}" in ran.verdict.reason


@pytest.mark.parametrize(
    ("info", "batches"),
    [
        ({"internal_states": [{"effective_max_running_requests_per_dp": 4}]}, {1, 4}),
        ({"dp_size": 2}, {1}),
        ({"cuda_graph_config": None, "cuda_graph_max_bs": 2}, {1, 2, 3}),
        ({"cuda_graph_config": None}, {1}),
        ({"cuda_graph_config": {"decode": {"backend": "full", "max_bs": 1}}}, {1, 2}),
    ],
)
def test_batches_follow_what_the_server_tells(run, server, info, batches):
    server.info |= info
    largest = max(batches - {max(batches)}, default=1) if len(batches) > 2 else max(batches)
    server.graph = lambda batch: (
        batch <= largest if "max_bs" not in str(info) else batch < max(batches)
    )
    ran = run()
    found = {int(key.rsplit("_", 1)[1]) for key in ran.verdict.numbers if "_passes_at_" in key}
    assert found == batches
    assert ran.raised is None


@pytest.mark.parametrize(
    ("info", "told"),
    [
        ({}, (True, None)),
        ({"cuda_graph_config": {"decode": {"backend": "full", "max_bs": 8}}}, (True, 8)),
        ({"cuda_graph_config": {"decode": {"backend": "disabled", "max_bs": 8}}}, (False, 8)),
        ({"cuda_graph_config": {"decode": None}, "cuda_graph_max_bs": 4}, (True, 4)),
        ({"cuda_graph_config": [], "cuda_graph_max_bs_decode": 2}, (True, 2)),
        ({"cuda_graph_max_bs_decode": 2, "cuda_graph_max_bs": 4}, (True, 2)),
        ({"cuda_graph_max_bs_decode": None, "cuda_graph_max_bs": 4}, (True, 4)),
        ({"cuda_graph_max_bs": 8192}, (True, 8192)),
        ({"cuda_graph_max_bs": 8193}, (True, None)),
        ({"disable_cuda_graph": True}, (False, None)),
        ({"disable_decode_cuda_graph": True}, (False, None)),
    ],
)
def test_graphs_are_as_each_version_tells_them(info, told):
    assert _configured(info) == told


@pytest.mark.parametrize(
    ("info", "enabled", "max_bs", "batches"),
    [
        ({}, True, 8, [8, 9]),
        ({"internal_states": []}, True, 8, [8, 9]),
        ({"internal_states": [{"effective_max_running_requests_per_dp": 9}]}, True, 8, [8, 9]),
        ({"internal_states": [{"effective_max_running_requests_per_dp": 8}]}, True, 8, [8]),
        ({"internal_states": [{"effective_max_running_requests_per_dp": 7}]}, True, 8, []),
        ({"dp_size": 1}, True, 1, [2]),
        ({"dp_size": 2}, True, 8, []),
        ({"dp_size": 2}, False, 8, []),
        ({}, False, 8, [4]),
        ({}, True, None, []),
    ],
)
def test_batches_reach_one_beyond_the_largest_graph_if_so_many_run(info, enabled, max_bs, batches):
    assert _batches(info, enabled, max_bs) == batches


@pytest.mark.parametrize(("eager", "share"), [(96, 0.5), (0, 1.0)])
def test_the_share_is_told_also_where_half_have_a_graph(run, server, eager, share):
    whole = server._count

    def count(batch, passes):
        whole(batch, passes)
        if batch == 5:
            server._passes["decode_none"] += eager

    server._count, server.graph = count, lambda batch: True
    told = {name: value for _, name, value, _ in run().reporter.measurements}
    assert told["graph_share_at_5"] == share


def test_no_share_is_told_where_no_pass_was_counted(run, server):
    server._count(1, 1)
    server._count = lambda batch, passes: None
    told = {name: value for _, name, value, _ in run().reporter.measurements}
    assert told["graph_share_at_1"] is None


def test_passes_before_the_measurement_are_not_counted(run, server):
    server._count(1, 1000)
    server._count(9, 500)
    numbers = run().verdict.numbers
    assert (numbers["graph_passes_at_1"], numbers["eager_passes_at_1"]) == (96, 0)
    assert (numbers["graph_passes_at_5"], numbers["eager_passes_at_5"]) == (0, 96)


def test_a_mode_that_the_server_does_not_name_has_no_passes(run, server):
    whole = server.metrics_text
    server.metrics_text = lambda **more: (
        "\n".join(line for line in whole(**more).splitlines() if "decode_none" not in line) + "\n"
    )
    server.graph = lambda batch: True
    assert run().verdict.numbers["eager_passes_at_1"] == 0


@pytest.mark.parametrize(
    "knobs", [{"status": {"metrics_text": 404}}, {"older_gauge": True}], ids=["none", "older"]
)
def test_what_was_asked_for_and_cannot_be_measured_is_an_error(run, server, knobs):
    for name, value in knobs.items():
        setattr(server, name, value)
    ran = run(cuda_graph_required=True)
    assert isinstance(ran.raised, MeasurementError)
    assert ran.verdict.reason.endswith("although the server was started with --enable-metrics")


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"status": {"metrics_text": 404}}, "--enable-metrics"),
        ({"older_gauge": True}, "sglang:is_cuda_graph"),
        ({"metrics_text": lambda **_: "sglang:num_running_reqs{} 0.0\n"}, "no such counter"),
        ({"info": {"device": "cpu"}}, "on a CPU"),
    ],
)
def test_a_server_that_does_not_count_is_not_applicable(run, server, knobs, told):
    for name, value in knobs.items():
        setattr(server, name, value)
    ran = run()
    assert isinstance(ran.raised, NotApplicable)
    assert told in ran.verdict.reason


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_an_error(run, server, status):
    server.status = {"metrics_text": status}
    assert isinstance(run().raised, MeasurementError)


def test_too_few_passes_are_an_error(run):
    ran = run(cuda_graph_tokens=8)
    assert isinstance(ran.raised, MeasurementError)
    assert "does something else reset the counter" in ran.verdict.reason


def test_a_server_that_was_started_with_metrics_must_count(run, server):
    server.status = {"metrics_text": 404}
    ran = run(cuda_graph_required=True)
    assert isinstance(ran.raised, MeasurementError)
    assert "although the server was started with --enable-metrics" in ran.verdict.reason


@pytest.mark.parametrize("step", [0, -50])
def test_a_counter_that_stands_still_or_falls_is_an_error(run, server, monkeypatch, step):
    """A server that was restarted meanwhile counts from the beginning."""
    counts = iter(range(10_000, 0, step) if step else [96] * 100)

    def metrics_text(*, timeout=None):
        return f'sglang:cuda_graph_passes_total{{mode="decode_cuda_graph"}} {next(counts)}\n'

    monkeypatch.setattr(server, "metrics_text", metrics_text)
    ran = run()
    assert isinstance(ran.raised, MeasurementError)
    assert "does something else reset the counter" in ran.verdict.reason


@pytest.mark.parametrize("largest", [10**9, -1, True, "4", 1e300])
def test_a_largest_batch_that_cannot_be_is_not_asked_for(run, server, largest):
    server.info["cuda_graph_config"]["decode"]["max_bs"] = largest
    ran = run()
    assert ran.raised is None
    assert ran.verdict.numbers["max_bs"] is None


@pytest.mark.parametrize("states", [{"a": 1}, "x", [None], [{}], 7])
def test_states_that_tell_nothing_limit_no_batch(run, server, states):
    server.info["internal_states"] = states
    assert "eager_passes_at_5" in run().verdict.numbers
