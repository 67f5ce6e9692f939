"""The simulated device as the metrics show it: what each flag does, and that figures agree."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PROMPT = "Once upon a time"
SCRAPE_INTERVAL = 0.02
Sample = dict[str, dict[tuple[str, ...], float]]


@dataclass
class Scrape:
    """A scrape, taken some time between ``asked`` and ``answered``."""

    asked: float
    answered: float
    samples: Sample


def observe(server: Any, tokens: int) -> list[Scrape]:
    """Scrapes while one request decodes ``tokens`` tokens."""
    body = {"tokens": tokens, "sampling_params": {"ignore_eos": True}}
    thread = threading.Thread(target=server.generate, args=(PROMPT,), kwargs=body)
    thread.start()
    scrapes = []
    while thread.is_alive():
        asked = time.perf_counter()
        samples = server.metrics()
        if samples["num_running_reqs"][()] > 0:
            scrapes.append(Scrape(asked, time.perf_counter(), samples))
        time.sleep(SCRAPE_INTERVAL)
    thread.join()
    return scrapes


def windows(scrapes: list[Scrape]) -> list[float]:
    """The distinct values of the gauge, in order."""
    values = [scrape.samples["fwd_occupancy"][()] for scrape in scrapes]
    return [new for old, new in zip([math.nan, *values], values, strict=False) if new != old]


def busy(scrape: Sample) -> float:
    return sum(scrape["forward_execution_seconds_total"].values())


def test_a_healthy_server_is_busy_and_gauge_and_counter_agree(server: Any) -> None:
    scrapes = observe(server, 1_500)
    found = windows(scrapes)
    assert 99.0 < statistics.median(found) < 99.7
    assert len(found) > 5
    first, last = scrapes[1], scrapes[-2]
    seconds = busy(last.samples) - busy(first.samples)
    # When a scrape was taken is known only from both sides, so the occupancy is as well.
    least = 100 * seconds / (last.answered - first.asked)
    most = 100 * seconds / (last.asked - first.answered)
    assert least - 1 < statistics.mean(found) < most + 1
    assert last.samples["gen_throughput"][()] > 0
    passes = last.samples["cuda_graph_passes_total"]
    assert passes[("decode_cuda_graph",)] > 1_000
    assert ("decode_none",) not in passes


def test_the_gauge_goes_stale_and_then_shows_no_number(server: Any) -> None:
    server.generate(PROMPT, tokens=120, sampling_params={"ignore_eos": True})
    after = server.metrics()
    assert after["num_running_reqs"][()] == 0
    assert after["gen_throughput"][()] == 0
    stale = after["fwd_occupancy"][()]
    assert stale > 90
    assert server.metrics()["fwd_occupancy"][()] == stale
    server.generate(PROMPT, tokens=0)  # a prefill, and no decode window to publish
    assert math.isnan(server.metrics()["fwd_occupancy"][()])


def test_requests_are_counted(launch: Callable[..., Any]) -> None:
    server = launch("--enable-metrics", timer=False)
    server.get("/health_generate")
    assert "num_requests_total" not in server.metrics()
    answers = server.generate(["1 2", "3 4"], tokens=5, sampling_params={"ignore_eos": True})
    answers.append(server.generate("1 2", tokens=0))
    scrape = server.metrics()
    assert scrape["num_requests_total"][()] == 3
    assert scrape["generation_tokens_total"][()] == 10
    for name in ("prompt_tokens", "cached_tokens"):
        total = sum(answer["meta_info"][name] for answer in answers)
        assert scrape[f"{name}_total"][()] == total > 0
    assert scrape["time_to_first_token_seconds_count"][()] == 3
    assert scrape["inter_token_latency_seconds_count"][()] == 8
    assert scrape["http_responses_total"][("/generate", "200")] == 2
    server.get("/no_such_path")
    assert server.metrics()["http_responses_total"][("unknown", "404")] == 1


def test_without_the_timer_there_is_no_occupancy(launch: Callable[..., Any]) -> None:
    server = launch("--enable-metrics", timer=False)
    server.generate(PROMPT, tokens=100, sampling_params={"ignore_eos": True})
    scrape = server.metrics()
    assert scrape["cuda_graph_passes_total"][("decode_cuda_graph",)] >= 99
    assert "fwd_occupancy" not in scrape
    assert "forward_execution_seconds_total" not in scrape


def test_without_metrics_there_is_no_such_path(launch: Callable[..., Any]) -> None:
    answer = launch().get("/metrics")
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


def test_without_overlap_the_host_shows(launch: Callable[..., Any]) -> None:
    server = launch("--enable-metrics", "--disable-overlap-schedule")
    scrapes = observe(server, 800)
    assert 65 < statistics.median(windows(scrapes)) < 86


def test_without_graphs_steps_are_eight_times_as_long(
    launch: Callable[..., Any], server: Any
) -> None:
    slow = launch("--enable-metrics", "--disable-cuda-graph", "--time-scale", "51.2")
    scrapes = observe(slow, 800)
    assert 88 < statistics.median(windows(scrapes)) < 92
    passes = slow.metrics()["cuda_graph_passes_total"]
    assert passes[("decode_none",)] >= 799
    assert ("decode_cuda_graph",) not in passes


def test_a_batch_above_the_largest_graph_runs_without(server: Any) -> None:
    before = server.metrics()["cuda_graph_passes_total"].get(("decode_none",), 0)
    texts = [f"{PROMPT} {number}" for number in range(5)]
    server.generate(texts[:4], tokens=8, sampling_params={"ignore_eos": True})
    assert server.metrics()["cuda_graph_passes_total"].get(("decode_none",), 0) == before
    server.generate(texts, tokens=8, sampling_params={"ignore_eos": True})
    after = server.metrics()
    assert after["cuda_graph_passes_total"][("decode_none",)] == before + 7
    assert after["is_cuda_graph"][()] == 0
