"""One long request in the background, and the times of a streamed one."""

from __future__ import annotations

import time
from typing import Any

import pytest

from servematrix.client import ClientError, MalformedAnswer
from servematrix.kits import long_request
from servematrix.kits.long_request import Ended, Latency, LongRequest, latency
from servematrix.transport import Event

DONE = b"data: [DONE]\n\n"


def event(t: float, tokens: int, text: str = "") -> Event:
    meta = b'{"text": "%s", "meta_info": {"completion_tokens": %d}}' % (text.encode(), tokens)
    return Event(t, b"data: " + meta + b"\n\n")


class Streaming:
    """Gives these events, with times from when it is asked on."""

    def __init__(self, *events: Event) -> None:
        self.events = events
        self.asked: tuple[Any, dict[str, Any]] | None = None

    def generate_stream(self, prompt: str, **more: Any) -> Any:
        self.asked = (prompt, more)
        start = time.monotonic()
        for one in self.events:
            yield Event(start + one.t, one.raw)


def streamed(*events: Event) -> Latency:
    return latency(Streaming(*events), "prompt", 500, 7.0)


def test_a_stream_is_asked_for_every_token_within_its_time():
    client = Streaming(event(0.0, 1), Event(0.0, DONE))
    latency(client, "prompt", 5, 7.0)
    asked = {"max_new_tokens": 5, "ignore_eos": True, "timeout": 7.0}
    assert client.asked == ("prompt", asked)


def test_times_between_tokens_are_those_of_their_events():
    """Gaps of 0.25 and 0.5 s, and two tokens that share 0.5 s: 0.25, 0.25, 0.25 and 0.5."""
    found = streamed(event(1, 1), event(1.25, 2), event(1.75, 4), event(2.25, 5), Event(2.25, DONE))
    assert found.ttft_s == pytest.approx(1.0, abs=0.1)
    assert found.decode_tokens_per_s == pytest.approx(4 / 1.25)
    assert found.itl_p50_ms == pytest.approx(250.0)
    assert found.itl_p99_ms == pytest.approx(500.0)
    assert found.gaps_ms == pytest.approx((250.0, 250.0, 250.0, 500.0))


def test_percentiles_are_of_the_sorted_gaps():
    times = [0.0]
    for i in range(200):
        times.append(times[-1] + (200 - i) / 1000)
    found = streamed(*(event(t, i + 1) for i, t in enumerate(times)), Event(times[-1], DONE))
    assert found.itl_p50_ms == pytest.approx(101.0)
    assert found.itl_p99_ms == pytest.approx(199.0)
    assert found.gaps_ms == pytest.approx([200.0 - i for i in range(200)])


def test_one_event_has_a_first_token_and_no_rate():
    found = streamed(event(1.0, 3), Event(1.0, DONE))
    assert found.ttft_s == pytest.approx(1.0, abs=0.1)
    assert (found.decode_tokens_per_s, found.itl_p50_ms, found.itl_p99_ms) == (None, None, None)
    assert streamed(Event(0.0, DONE)) == Latency()


def test_events_of_one_moment_have_no_rate():
    found = streamed(event(1.0, 1), event(1.0, 2), Event(1.0, DONE))
    assert (found.decode_tokens_per_s, found.itl_p50_ms) == (None, 0.0)


def test_an_event_without_a_new_token_takes_no_part():
    found = streamed(event(1, 1), event(1.25, 1), event(1.5, 2), Event(1.5, DONE))
    assert found.itl_p50_ms == pytest.approx(250.0)
    assert found.decode_tokens_per_s == pytest.approx(4.0)


def test_the_count_is_the_last_one_near_the_end_of_an_event():
    long = event(1.0, 2, text='"completion_tokens": 9' + "x" * 4000)
    assert streamed(event(0.5, 1), long, Event(1.0, DONE)).itl_p50_ms == pytest.approx(500.0)
    far = Event(1.0, b'data: {"completion_tokens": 9, "text": "' + b"x" * 4000 + b'"}\n\n')
    with pytest.raises(MalformedAnswer, match="no completion_tokens"):
        streamed(far, Event(1.0, DONE))


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b'data: {"a":5}\n\n', "no completion_tokens: '{\"a\": 5}'"),
        (b"data: \xff\n\n", "no completion_tokens: 'data: \ufffd"),
    ],
)
def test_an_event_without_a_count_is_shown(raw, told):
    with pytest.raises(MalformedAnswer) as raised:
        streamed(Event(0.0, raw), Event(0.0, DONE))
    assert told in str(raised.value)


def test_the_last_pass_may_reach_twice_the_tokens_asked_for_and_no_more():
    """With speculation it does go beyond them."""
    found = streamed(event(0.5, 500), event(1.0, 1000), Event(1.0, DONE))
    assert len(found.gaps_ms) == 500


@pytest.mark.parametrize("digits", ["1001", "01000", "9" * 1000])
def test_a_count_beyond_what_can_be_is_told(digits):
    raw = b'data: {"completion_tokens": %s}\n\n' % digits.encode()
    with pytest.raises(MalformedAnswer, match="tokens, 1000 at most") as raised:
        streamed(Event(0.5, raw), Event(1.0, DONE))
    assert digits[:20] in str(raised.value)
    assert len(str(raised.value)) < 100


def test_a_stream_without_an_end_is_told():
    with pytest.raises(MalformedAnswer, match=r"without \[DONE\], with '{"):
        streamed(event(1.0, 1))
    with pytest.raises(MalformedAnswer, match=r"without \[DONE\], with ''"):
        streamed()


# -- the long request ---------------------------------------------------------------------------


class Server:
    """Answers when it is let, with what it is told."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []
        self.aborts: list[tuple[str, Any]] = []
        self.refuses = False

    def generate(self, prompt: str, **more: Any) -> Any:
        self.asked.append({"prompt": prompt, **more})
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def abort(self, rid: str, *, timeout: Any = None) -> None:
        self.aborts.append((rid, timeout))
        if self.refuses:
            raise ClientError("no such route")


def sent(server: Server, **more: Any) -> LongRequest:
    request = LongRequest(server, "prompt", 100, 7.0, **more)
    request.start()
    assert request.ended.wait(10)
    return request


def test_a_long_request_is_greedy_and_has_a_name_of_its_own():
    server = Server({"meta_info": {}})
    sent(server)
    sent(server, dp_rank=1)
    rids = [one.pop("rid") for one in server.asked]
    assert all(rid.startswith("servematrix-") for rid in rids)
    assert len(set(rids)) == 2
    asked = {"prompt": "prompt", "max_new_tokens": 100, "ignore_eos": True, "timeout": 7.0}
    assert server.asked == [{**asked, "dp_rank": None}, {**asked, "dp_rank": 1}]


def test_how_it_ended_is_told():
    meta = {"completion_tokens": 100}
    request = sent(Server({"meta_info": meta}))
    ended = request.result()
    assert (ended.meta, ended.problem, ended.stopped) == (meta, None, False)
    assert 0 < ended.elapsed_s < 10
    assert request.sent <= time.monotonic()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (ClientError("cut"), "cut"),
        ({"error": "gone"}, "its answer has no meta_info: \"{'error': 'gone'}\""),
        ({"meta_info": None}, "no meta_info"),
    ],
)
def test_what_went_wrong_is_told_with_the_time_it_took(answer, told):
    ended = sent(Server(answer)).result()
    assert ended.meta == {}
    assert told in ended.problem
    assert 0 < ended.elapsed_s < 10


def test_a_request_that_was_stopped_says_so_and_one_that_could_not_be_does_not():
    server = Server({"meta_info": {}})
    request = sent(server)
    request.stop(3.0)
    assert server.aborts == [(server.asked[0]["rid"], 3.0)]
    assert request.result().stopped
    server.refuses = True
    request = sent(server)
    request.stop(3.0)
    assert not request.result().stopped


@pytest.mark.parametrize(
    ("meta", "elapsed", "rate"),
    [
        ({"completion_tokens": 100}, 4.0, 25.0),
        ({"completion_tokens": 100}, 0.5, 200.0),
        ({"completion_tokens": 100}, 0.0, None),
        ({"completion_tokens": None}, 4.0, None),
        ({}, 4.0, None),
    ],
)
def test_the_rate_is_over_the_whole_request(meta, elapsed, rate):
    assert Ended(meta, None, elapsed).decode_tokens_per_s == rate


def test_what_is_shown_of_an_event_is_short():
    shown = long_request._shown(b'data: {"text": "' + b"x" * 500 + b'"}\n\n')
    assert shown.startswith('\'{"text": "xxx')
    assert len(shown) < 160
    assert len(long_request._shown(b"x" * 500)) < 160
