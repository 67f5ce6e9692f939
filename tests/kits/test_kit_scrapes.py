"""Reading `/metrics` around a request, with a server and a clock that are made up."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest

from servematrix.client import BadStatus, ClientError, MalformedAnswer, TimedOut
from servematrix.gates.windows import RankReading, Scrape
from servematrix.kits import scrapes
from servematrix.kits.scrapes import Before

LABELS = '{dp_rank="0",pp_rank="0",tp_rank="0"}'


def metrics(**values: float) -> str:
    return "".join(f"sglang:{name}{LABELS} {value}\n" for name, value in values.items())


BUSY = metrics(num_running_reqs=1, num_queue_reqs=2, fwd_occupancy=98.5, gen_throughput=400)


class Metrics:
    """Answers with each text in turn, the last one for good; an exception is raised."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.timeouts: list[float | None] = []

    def metrics_text(self, *, timeout: float | None = None) -> str:
        self.timeouts.append(timeout)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Request:
    """A request that ends after so many waits, or when it is stopped."""

    def __init__(self, waits: int) -> None:
        self.sent = 0.0
        self.waits: list[float] = []
        self.stops: list[float] = []
        self.ended = self
        self._left = waits

    def start(self) -> None:
        self.sent = scrapes.time.monotonic()

    def is_set(self) -> bool:
        return self._left <= 0

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        scrapes.time.sleep(seconds)
        self._left -= 1

    def stop(self, timeout: float) -> None:
        self.stops.append(timeout)
        self._left = 0


class Clock:
    """Stands still but for what sleeps; each scrape takes what `scrape` says."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(scrapes, "time", found)
    return found


def old(served: float | None = 5.0) -> Before:
    return Before(Scrape(-0.5, 0.0, False, {}), True, None, served)


def watched(client: Any, request: Any, **more: Any) -> scrapes.Watched:
    more = {"longest_interval": 0.5, "batches": 40, **more}
    return scrapes.watch(client, request, old(), **more)


# -- one scrape ---------------------------------------------------------------------------------


def test_a_scrape_ends_in_ten_seconds():
    client = Metrics(BUSY)
    scrapes.read(client)
    assert scrapes.served(client)
    assert client.timeouts == [10.0, 10.0]


@pytest.mark.parametrize("status", [404, 500, 503])
def test_metrics_that_are_not_served_are_none(status):
    assert not scrapes.served(Metrics(BadStatus("no", status, "")))


@pytest.mark.parametrize("error", [BadStatus("no", 401, ""), BadStatus("no", 403, "")])
def test_a_refused_key_is_no_answer(error):
    with pytest.raises(BadStatus):
        scrapes.served(Metrics(error))


def test_a_line_that_cannot_be_read_is_told():
    with pytest.raises(MalformedAnswer, match="fwd_occupancy"):
        scrapes.read(Metrics("sglang:fwd_occupancy{ 5\n"))


def test_a_reading_has_everything_the_rank_shows(clock):
    text = (
        BUSY
        + metrics(spec_accept_length=1.5)
        + "sglang:forward_execution_seconds_total"
        + ('{category="decode",dp_rank="0",pp_rank="0",tp_rank="0"} 7.5\n')
    )
    (reading,) = scrapes.before(Metrics(text, metrics(fwd_occupancy=1)), 0.5).scrape.ranks.values()
    assert math.isclose(reading.occupancy, 1.0)
    found = watched(Metrics(text), Request(1)).scrapes[1]
    (reading,) = found.ranks.values()
    assert reading == RankReading(reading.group, 1.0, 2.0, 98.5, 7.5, 400.0, 1.5)


def test_what_a_rank_does_not_show_is_nothing(clock):
    (reading,) = watched(Metrics(metrics(num_running_reqs=1)), Request(1)).scrapes[1].ranks.values()
    assert math.isnan(reading.occupancy)
    assert reading.forward_seconds is None
    assert (reading.queued, reading.gen_throughput, reading.spec_accept_length) == (0.0, 0.0, 0.0)
    (reading,) = watched(Metrics(metrics(fwd_occupancy=1)), Request(1)).scrapes[1].ranks.values()
    assert reading.running == 0.0


# -- before the request -------------------------------------------------------------------------

IDLE = metrics(num_running_reqs=0, num_queue_reqs=0, fwd_occupancy=55.5)


class Pause:
    """Stands in for the event that is waited on; time goes on."""

    def wait(self, seconds: float) -> None:
        scrapes.time.sleep(seconds)


@pytest.fixture
def paused(clock, monkeypatch):
    monkeypatch.setattr(threading, "Event", Pause)
    return clock


def test_a_server_that_runs_something_is_waited_for(paused):
    found = scrapes.before(Metrics(BUSY, BUSY, IDLE), 0.25)
    assert paused.now == 100.5
    assert found.scrape.t == -0.25
    assert (found.scrape.duration, found.scrape.request_running) == (0.0, False)
    assert found.scrape.requests() == 0
    assert (found.gauge_exposed, found.older_name) == (True, None)


def test_a_server_that_never_rests_is_waited_for_ten_seconds(paused):
    found = scrapes.before(Metrics(BUSY), 0.25)
    assert 110.0 < paused.now <= 110.5
    assert found.scrape.requests() == 3


def test_a_server_without_a_gauge_is_not_waited_for(paused):
    found = scrapes.before(Metrics(metrics(num_running_reqs=1)), 0.25)
    assert paused.now == 100.0
    assert not found.gauge_exposed


def test_the_requests_served_before_are_kept(paused):
    served = "sglang:num_requests_total{} 7\n"
    assert scrapes.before(Metrics(IDLE + served), 0.25).served == 7
    assert scrapes.before(Metrics(IDLE), 0.25).served is None


def test_the_forward_times_of_an_older_version_are_named(paused):
    text = 'sglang:gpu_execution_seconds_total{category="forward_decode"} 1.5\n'
    assert scrapes.before(Metrics(text), 0.25).older_name == "sglang:gpu_execution_seconds_total"


# -- while it runs ------------------------------------------------------------------------------


def test_it_is_scraped_at_each_interval_and_once_after_the_end(clock):
    request = Request(3)
    found = watched(Metrics(BUSY), request, batches=10_000)
    assert [one.t for one in found.scrapes] == [-0.5, 0.0, 0.5, 1.0, 1.5]
    assert [one.request_running for one in found.scrapes] == [False, True, True, True, False]
    assert request.waits == [0.5, 0.5, 0.5]
    assert (found.failed, found.served) == (0, None)


@pytest.mark.parametrize(
    ("throughput", "accepted", "batches", "interval"),
    [
        (400, 0, 40, 0.05),  # half of the 0.1 s that 40 batches take
        (400, 2, 40, 0.1),  # two tokens a batch
        (400, 0.5, 40, 0.05),
        (1, 0, 40, 0.5),
        (0.5, 0, 1, 0.5),
        (0, 0, 40, 0.5),
        (400_000, 0, 40, 0.005),  # no faster than every 5 ms
    ],
)
def test_the_interval_is_half_of_a_window_within_bounds(
    clock, throughput, accepted, batches, interval
):
    text = metrics(num_running_reqs=1, gen_throughput=throughput, spec_accept_length=accepted)
    request = Request(2)
    watched(Metrics(text), request, batches=batches)
    assert request.waits == [pytest.approx(interval)] * 2


def test_the_interval_follows_the_rate(clock):
    slower, stalls = BUSY.replace("400", "80"), BUSY.replace("400", "0.5")
    request = Request(4)
    watched(Metrics(BUSY, slower, stalls, BUSY), request, longest_interval=30.0, batches=20)
    assert request.waits == pytest.approx([0.025, 0.125, 20.0, 0.025])


def test_the_fastest_rank_sets_the_interval(clock):
    slow = BUSY.replace("400", "100").replace('tp_rank="0"', 'tp_rank="1"')
    request = Request(1)
    watched(Metrics(slow + BUSY), request)
    assert request.waits == [pytest.approx(0.05)]


def test_without_a_rank_the_interval_is_the_longest(clock):
    request = Request(1)
    watched(Metrics("sglang:num_requests_total{} 7\n"), request, longest_interval=30.0)
    assert request.waits == [30.0]


def test_the_time_a_scrape_takes_is_part_of_the_interval(clock):
    class Slow(Metrics):
        def metrics_text(self, **more: Any) -> str:
            clock.sleep(0.03)
            return super().metrics_text(**more)

    request = Request(2)
    found = watched(Slow(BUSY), request)
    assert [one.duration for one in found.scrapes[1:]] == [pytest.approx(0.03)] * 3
    assert request.waits == [pytest.approx(0.02)] * 2
    assert [one.t for one in found.scrapes[1:]] == pytest.approx([0.0, 0.05, 0.1])


def test_a_scrape_that_takes_the_whole_interval_is_followed_at_once(clock):
    calls = []

    class Slower(Metrics):
        def metrics_text(self, **more: Any) -> str:
            clock.sleep(0.05 if len(calls) < 4 else 0.01)
            calls.append(clock.now)
            return super().metrics_text(**more)

    request = Request(1)
    watched(Slower(BUSY), request)
    assert request.waits == [pytest.approx(0.04)]
    assert len(calls) == 6


def test_a_failed_scrape_is_counted_and_is_no_sample(clock):
    error = ClientError("busy")
    found = watched(Metrics(BUSY, error, error, BUSY), Request(4))
    assert (found.failed, len(found.scrapes)) == (2, 4)


@pytest.mark.parametrize(("silence", "ends"), [(1.0, False), (0.9, True)])
def test_a_server_that_answers_no_scrape_is_hung_after_a_while(clock, monkeypatch, silence, ends):
    monkeypatch.setattr(scrapes, "SILENCE", silence)
    answers = [BUSY, *[ClientError("busy")] * 2, BUSY, BUSY]
    client, request = Metrics(*answers), Request(4)
    request_of = {"longest_interval": 0.5, "batches": 10_000}
    if not ends:
        assert scrapes.watch(client, request, old(), **request_of).failed == 2
        return
    with pytest.raises(TimedOut, match=r"no scrape answered for 0\.9 s: busy"):
        scrapes.watch(client, request, old(), **request_of)


@pytest.mark.parametrize(
    ("before", "after", "rose"), [(5.0, 6, 1.0), (5.0, None, None), (None, 6, None)]
)
def test_served_requests_are_those_in_between(clock, before, after, rose):
    text = BUSY if after is None else f"{BUSY}sglang:num_requests_total{{}} {after}\n"
    found = scrapes.watch(Metrics(text), Request(1), old(before), longest_interval=0.5, batches=40)
    assert found.served == rose


def test_a_request_is_stopped_once_when_its_scrapes_suffice(clock):
    class Stubborn(Request):
        def stop(self, timeout: float) -> None:
            self.stops.append(timeout)

    seen = []

    def clear(some: Any) -> bool:
        seen.append(len(some))
        return len(some) >= 3

    request = Stubborn(5)
    watched(Metrics(BUSY), request, clear=clear)
    assert request.stops == [10.0]
    assert seen == [2, 3]


def test_a_request_that_has_ended_is_not_stopped(clock):
    request = Request(0)
    watched(Metrics(BUSY), request, clear=lambda some: True)
    assert request.stops == []


def test_a_request_is_not_stopped_unless_it_is_asked_for(clock):
    request = Request(3)
    watched(Metrics(BUSY), request)
    assert request.stops == []
