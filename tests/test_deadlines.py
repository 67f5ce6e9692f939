"""Servers that drag out, flood or blow up their answers: each call ends in time, with few bytes."""

from __future__ import annotations

import gzip
import itertools
import socket
import ssl
import time
from pathlib import Path

import pytest
import requests
from urllib3 import Timeout

from servematrix.client import (
    BadStatus,
    Client,
    ClientError,
    MalformedAnswer,
    TimedOut,
    Unreachable,
)
from servematrix.deadlines import Adapter
from servematrix.gates import stream as gate
from servematrix.kits.long_request import latency
from wire import Behaviour, Wire, answering, dribbled, flooding, streaming

CERTIFICATE = Path(__file__).parent / "data" / "tls_server.pem"
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def sending(answer: bytes) -> Behaviour:
    def behave(connection: socket.socket, wire: Wire) -> None:
        wire.read(connection)
        connection.sendall(answer)

    return behave


def ask(url: str, streamed: bool, **options) -> object:
    client = Client(url, **options)
    if streamed:
        return list(client.generate_stream("hi", max_new_tokens=4))
    return client.server_info()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "behave",
    [
        dribbled(b"HTTP/1."),
        dribbled(OK + b"X-Header: "),
        dribbled(CHUNKED),
        dribbled(CHUNKED + b"5;"),
        dribbled(CHUNKED + b"2\r\n{}\r\n0\r\nTrailer: "),
        flooding(CHUNKED + b"0\r\n", b"Trailer: x\r\n"),
        flooding(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["status", "header", "chunk", "extension", "trailer", "trailers", "continues"],
)
def test_headers_and_framing_end_by_the_deadline(wire, behave, streamed):
    url = wire(behave).url
    start = time.monotonic()
    with pytest.raises(TimedOut, match="by its deadline"):
        ask(url, streamed, timeout=0.3)
    assert time.monotonic() - start < 5


def test_the_deadline_holds_on_a_connection_that_is_kept(wire):
    def behave(connection, wire):
        answering(b"{}", times=1)(connection, wire)
        dribbled(OK + b"X-Header: ")(connection, wire)

    server = wire(behave)
    client = Client(server.url, timeout=30)
    client.server_info()
    start = time.monotonic()
    with pytest.raises(TimedOut):
        client.health(timeout=0.3)
    assert time.monotonic() - start < 5
    assert server.connections == 1


def test_a_server_that_reads_nothing_ends_by_the_deadline(wire):
    server = wire(lambda connection, wire: wire.released.wait(10))
    start = time.monotonic()
    with pytest.raises(TimedOut):
        Client(server.url, timeout=0.3).generate("x" * 30_000_000, max_new_tokens=1)
    assert time.monotonic() - start < 5


def test_sending_on_a_kept_connection_ends_by_the_deadline_of_its_call(wire):
    def behave(connection, wire):
        answering(b"{}", times=1)(connection, wire)
        wire.released.wait(10)

    client = Client(wire(behave).url, timeout=30)
    client.server_info()
    start = time.monotonic()
    with pytest.raises(TimedOut):
        client.generate("x" * 30_000_000, max_new_tokens=1, timeout=0.3)
    assert time.monotonic() - start < 5


def test_a_tls_connection_ends_by_its_deadline_too(wire):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)

    def behave(connection, wire):
        with context.wrap_socket(connection, server_side=True) as secure:
            answering(b"{}", times=1)(secure, wire)
            dribbled(OK + b"X-Header: ")(secure, wire)

    url = wire(behave).url.replace("http:", "https:")
    session = requests.Session()
    session.mount("https://", Adapter())
    asked = {"verify": CERTIFICATE, "timeout": Timeout(total=5.0)}
    assert session.get(url, **asked).json() == {}
    start = time.monotonic()
    with pytest.raises(requests.ReadTimeout):
        session.get(url, **asked | {"timeout": Timeout(total=0.3)})
    assert time.monotonic() - start < 4


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "behave",
    [
        flooding(OK, b"X-Header: x\r\n"),
        flooding(OK + b"X-Header: ", b"x"),
        sending(OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
        sending(b"HTTP/9.9 200 OK\r\n\r\n{}"),
    ],
    ids=["headers", "long header", "two lengths", "version"],
)
def test_a_head_that_is_no_http_is_malformed(wire, behave, streamed):
    with pytest.raises(MalformedAnswer, match="no HTTP"):
        ask(wire(behave).url, streamed, timeout=20)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "behave",
    [
        flooding(CHUNKED, b"f"),
        sending(CHUNKED + b"-5\r\n{}"),
        sending(CHUNKED + b"zz\r\n{}"),
    ],
    ids=["long chunk line", "negative chunk", "no chunk"],
)
def test_framing_that_is_broken_is_a_clear_error(wire, behave, streamed):
    with pytest.raises(ClientError):
        ask(wire(behave).url, streamed, timeout=20)


@pytest.mark.parametrize(
    ("length", "error"),
    [("-1", None), ("9" * 5000, None), ("1", "no JSON"), ("9", "cut its answer")],
)
def test_a_wrong_content_length(wire, length, error):
    url = wire(sending(OK + f"Content-Length: {length}\r\n\r\n".encode() + b"{}")).url
    if error is None:  # what is no length is none: the body ends by closing
        assert Client(url).server_info() == {}
        return
    with pytest.raises(ClientError, match=error):
        Client(url).server_info()


def test_what_follows_a_whole_answer_is_not_the_next_one(wire):
    def behave(connection, wire):
        while wire.read(connection):
            spoof = OK + b"Content-Length: 5\r\n\r\n[666]"
            connection.sendall(OK + b'Content-Length: 8\r\n\r\n{"a": 1}' + spoof)

    client = Client(wire(behave).url)
    assert [client.server_info() for _ in range(3)] == [{"a": 1}] * 3


@pytest.mark.parametrize("streamed", [False, True])
def test_a_compressed_body_is_refused_unread(wire, streamed):
    bomb = gzip.compress(bytes(30_000_000))
    server = wire(answering(bomb, "200 OK\r\nContent-Encoding: gzip"))
    with pytest.raises(MalformedAnswer, match="Content-Encoding 'gzip'"):
        ask(server.url, streamed)
    assert b"Accept-Encoding: identity\r\n" in server.requests[0]


def test_hints_before_an_answer_are_no_answer(wire):
    with pytest.raises(BadStatus, match="answered 103"):
        Client(wire(sending(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK)).url).server_info()


def test_no_cookie_is_kept(wire):
    server = wire(answering(b"{}", "200 OK\r\nSet-Cookie: a=b"))
    client = Client(server.url)
    client.server_info()
    client.server_info()
    assert b"Cookie" not in server.requests[1]
    assert not list(client._transport._kept.session.cookies)


# -- what JSON may hold -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested over 64 deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b"NaN", "no JSON object"),
        (b'{"a": "\xff\xfe"}', "no JSON"),
        (b"\xff\xfe{", "no JSON"),
        (b'{"a": "\x00"}', "no JSON"),
        (b'{"a": 1}{"a": 2}', "no JSON"),
        (b'{"a": 1', "no JSON"),
        (b"null", "no JSON object"),
        (b'"\\ud800"', "no JSON object"),
        (b"1e999", "no JSON object"),
    ],
    ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else "",
)
def test_json_that_no_kit_could_use_is_malformed(wire, body, told):
    with pytest.raises(MalformedAnswer, match=told):
        Client(wire(answering(body)).url).server_info()


@pytest.mark.parametrize("count", [b"true", b"-1", b"1.5", b'"7"', b"null", b"[]", b"9" * 4000])
def test_a_count_of_tokens_is_one(wire, count):
    with pytest.raises(MalformedAnswer, match="no 'count' of tokens"):
        Client(wire(answering(b'{"count": %s}' % count)).url).tokenize("a b")


# -- streams without an end ---------------------------------------------------------------------

EVENT = b'data: {"text": "a", "meta_info": {"completion_tokens": 1}}\n\n'


def test_more_events_than_tokens_end_a_stream(wire):
    url = wire(flooding(CHUNKED, b"%x\r\n%s\r\n" % (len(EVENT), EVENT))).url
    events = Client(url).generate_stream("hi", max_new_tokens=4)
    with pytest.raises(MalformedAnswer, match="more than 72 events"):
        list(itertools.islice(events, 1000))


@pytest.mark.parametrize("piece", [b"x" * 5000, b"data: \n" * 800, b"x" * 5000 + b"\n\n"])
def test_an_event_is_bounded(wire, piece):
    with pytest.raises(MalformedAnswer, match="an event over 3000 bytes"):
        ask(wire(streaming(piece)).url, True, max_body=3000)


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"meta_info": {"completion_tokens": 999999999}}\n\n',
        b'data: {"meta_info": {"completion_tokens": %s}}\n\n' % (b"9" * 1900),
        b'data: {"a": ' + b"[" * 100_000 + b"\n\n",
        b'data: {"meta_info": {"completion_tokens": -1}}\n\n',
        b"data: \xff\xfe\n\n",
    ],
    ids=["leap", "digits", "deep", "negative", "no UTF-8"],
)
def test_an_event_without_a_plausible_count_gives_no_latency(wire, event):
    url = wire(streaming(EVENT, event, b"data: [DONE]\n\n")).url
    with pytest.raises(MalformedAnswer, match="streamed event"):
        latency(Client(url), "hi", 4, 10.0)


def test_a_deep_event_is_a_fault_of_the_stream():
    deep = b'data: {"text": ' + b"[" * 100_000 + b"\n\n"
    assert "event 2 is not JSON" in (gate.unframe([EVENT, deep]).fault or "")


def test_a_stream_is_whole_or_an_error(wire):
    url = wire(sending(OK + b"Content-Length: 999\r\n\r\n" + EVENT)).url
    events = Client(url).generate_stream("hi", max_new_tokens=4)
    assert next(events).raw == EVENT
    with pytest.raises(Unreachable, match="cut its answer"):
        next(events)
