from __future__ import annotations

import math

import pytest

from servematrix import metrics

RANK = 'engine_type="unified",model_name="m{}",moe_ep_rank="0",pp_rank="0",tp_rank="0"'
TEXT = f"""\
# HELP sglang:forward_execution_seconds_total Total time.
# TYPE sglang:forward_execution_seconds_total counter
sglang:forward_execution_seconds_total{{category="extend",{RANK}}} 4.25
sglang:forward_execution_seconds_total{{category="decode",{RANK}}} 3.5
sglang:cuda_graph_passes_total{{{RANK},mode="decode_cuda_graph"}} 2488.0
sglang:cuda_graph_passes_total{{{RANK},mode="decode_none"}} 1.0
sglang:num_running_reqs{{{RANK}}} 1.0
sglang:num_running_reqs_something_else{{{RANK}}} 77.0
sglang:num_queue_reqs{{{RANK}}} 0.0
sglang:gen_throughput{{{RANK}}} 530.5
sglang:spec_accept_length{{{RANK}}} 0.0
sglang:fwd_occupancy{{{RANK}}} 98.23457019254658
sglang:num_requests_total{{engine_type="unified",model_name="m"}} 2026.0
sglang:time_to_first_token_seconds_bucket{{le="0.1"}} 3.0
"""


def test_one_rank():
    found = metrics.read(TEXT)
    assert list(found.ranks) == ["dp0"]
    rank = found.ranks["dp0"]
    assert rank.fwd_occupancy == 98.23457019254658
    assert (rank.num_running_reqs, rank.num_queue_reqs) == (1.0, 0.0)
    assert (rank.gen_throughput, rank.spec_accept_length) == (530.5, 0.0)
    assert rank.forward_seconds == {"extend": 4.25, "decode": 3.5}
    assert rank.forward_seconds_total == 7.75
    assert rank.cuda_graph_passes == {"decode_cuda_graph": 2488.0, "decode_none": 1.0}
    assert found.num_requests_total == 2026.0
    assert found.occupancy_exposed


def test_nan_is_exposed():
    found = metrics.read("sglang:fwd_occupancy NaN\n")
    assert math.isnan(found.ranks["dp0"].fwd_occupancy or 0)
    assert found.occupancy_exposed


@pytest.mark.parametrize("text", ["", "up 1\n", "# TYPE sglang:fwd_occupancy gauge\n"])
def test_what_is_not_exposed_is_none(text):
    found = metrics.read(text)
    assert not found.occupancy_exposed
    assert found.num_requests_total is None
    assert found.ranks == {}
    assert metrics.read("sglang:num_running_reqs 1\n").ranks["dp0"].forward_seconds_total is None


def test_data_parallel_ranks_have_names_of_their_own():
    text = "".join(
        f'sglang:fwd_occupancy{{dp_rank="{r}",pp_rank="0",tp_rank="{r}"}} {r}\n' for r in (0, 1)
    )
    assert {k: v.fwd_occupancy for k, v in metrics.read(text).ranks.items()} == {"dp0": 0, "dp1": 1}


def test_ranks_of_one_group_are_told_apart():
    text = "".join(f'sglang:fwd_occupancy{{pp_rank="0",tp_rank="{r}"}} {r}\n' for r in (0, 1))
    ranks = metrics.read(text).ranks
    assert set(ranks) == {"dp0/pp0/tp0", "dp0/pp0/tp1"}
    assert {rank.group for rank in ranks.values()} == {"0"}


def test_priorities_do_not_replace_the_total():
    text = "".join(
        f'sglang:num_running_reqs{{priority="{p}"}} {v}\n' for p, v in (("", 3), ("1", 2), ("2", 1))
    )
    assert metrics.read(text).ranks["dp0"].num_running_reqs == 3


def test_requests_of_several_models_add_up():
    text = "".join(f'sglang:num_requests_total{{model_name="{m}"}} 2\n' for m in "ab")
    assert metrics.read(text).num_requests_total == 4


@pytest.mark.parametrize(
    "line", ['sglang:fwd_occupancy{tp_rank="0"} high', 'sglang:num_running_reqs{tp_rank="0} 1']
)
def test_a_line_that_matters_and_cannot_be_read_is_named(line):
    with pytest.raises(metrics.MalformedMetrics) as caught:
        metrics.read(TEXT + line + "\n")
    assert line.split("{")[0] in str(caught.value)


def test_a_line_that_does_not_matter_is_not_read():
    assert metrics.read(TEXT + "sglang:other{ broken\n").num_requests_total == 2026.0


@pytest.mark.parametrize(
    "sample",
    [
        *("fwd_occupancy 101.5", "fwd_occupancy -1", "fwd_occupancy +Inf", "fwd_occupancy 1e308"),
        *("num_running_reqs -1", "num_queue_reqs NaN", "gen_throughput 1e308"),
        *("num_requests_total -Inf", "spec_accept_length 1e16"),
        'forward_execution_seconds_total{category="decode"} -0.5',
        'cuda_graph_passes_total{mode="decode_none"} NaN',
    ],
)
def test_a_value_that_no_server_means_is_named(sample):
    with pytest.raises(metrics.MalformedMetrics, match="which it cannot be") as caught:
        metrics.read(f"sglang:{sample}\n")
    assert sample.split("{")[0].split(" ")[0] in str(caught.value)


def test_ranks_are_bounded_in_number_and_name():
    line = 'sglang:num_running_reqs{{dp_rank="{}"}} 1\n'
    assert len(metrics.read("".join(map(line.format, range(1024)))).ranks) == 1024
    with pytest.raises(metrics.MalformedMetrics, match="over 1024 ranks"):
        metrics.read("".join(map(line.format, range(1025))))
    with pytest.raises(metrics.MalformedMetrics, match="by over 64 characters"):
        metrics.read(line.format("x" * 65))


def test_a_line_ends_with_a_newline_alone():
    found = metrics.read('sglang:num_running_reqs{model_name="a\u2028b\x85"} 3\n')
    assert found.ranks["dp0"].num_running_reqs == 3
