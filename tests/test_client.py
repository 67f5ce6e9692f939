from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servematrix import transport
from servematrix.client import (
    BadStatus,
    Client,
    ClientError,
    MalformedAnswer,
    TimedOut,
    Unreachable,
)
from wire import Wire, answering, dribbled, silent, streaming


def stream(url: str, **options) -> list[bytes]:
    client = Client(url, **options)
    return [event.raw for event in client.generate_stream("hi", max_new_tokens=4)]


# -- nobody answers -----------------------------------------------------------------------------


def test_refused():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unreachable, match="is the server running") as caught:
        Client(f"http://127.0.0.1:{port}").health()
    assert not isinstance(caught.value, TimedOut)


@pytest.mark.parametrize("url", ["127.0.0.1:30000", "ftp://host", "http://", "http://u:p@host"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ClientError, match="not a server's address"):
        Client(url)


@pytest.mark.parametrize(
    "behave",
    [
        silent,
        dribbled(b"HTTP/1.1 200 OK\r\n\r\n"),
        dribbled(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"),
    ],
    ids=["silent", "body", "counted"],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_ends_by_its_deadline_however_the_server_dribbles(wire, behave, streamed):
    url = wire(behave).url
    start = time.monotonic()
    ask = stream if streamed else lambda url, **options: Client(url, **options).metrics_text()
    with pytest.raises(TimedOut, match="by its deadline"):
        ask(url, timeout=0.2)
    assert time.monotonic() - start < 5


def test_a_call_may_name_its_own_deadline(wire):
    with pytest.raises(TimedOut):
        Client(wire(silent).url, timeout=60).health(timeout=0.1)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
        b"SSH-2.0-nonsense\r\n\r\n",
        b"",
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_cut_answer_is_never_taken_for_a_whole_one(wire, answer, streamed):
    def behave(connection, wire):
        wire.read(connection)
        connection.sendall(answer)

    url = wire(behave).url
    with pytest.raises(Unreachable):
        stream(url) if streamed else Client(url).server_info()


# -- answers ------------------------------------------------------------------------------------


def test_a_bad_status_carries_its_body(wire):
    with pytest.raises(BadStatus, match=r"answered 400.*too long") as caught:
        Client(wire(answering(b'{"error": "too long"}', "400 Bad Request")).url).models()
    assert (caught.value.status, caught.value.body) == (400, '{"error": "too long"}')


def test_a_bad_status_of_a_stream_carries_its_body(wire):
    with pytest.raises(BadStatus, match="no such model"):
        stream(wire(answering(b"no such model", "404 Not Found")).url)


def test_the_key_is_sent_and_never_shown(wire):
    server = wire(answering(b"bad key s3cret", "401 Unauthorized"))
    with pytest.raises(BadStatus) as caught:
        Client(server.url, api_key="s3cret").models()
    assert b"Authorization: Bearer s3cret" in server.requests[0]
    assert "s3cret" not in str(caught.value) + caught.value.body
    assert "API key" in str(caught.value)
    assert "s3cret" not in Client(server.url, api_key="s3cret").excerpt({"api_key": "s3cret"})


@pytest.mark.parametrize("key", ["s3cret\n", "s3crét"])
def test_a_key_that_no_header_carries_is_refused(key):
    with pytest.raises(ClientError, match="API key has a character") as caught:
        Client("http://127.0.0.1:1", api_key=key)
    assert "s3cr" not in str(caught.value)


def test_a_redirect_is_a_bad_status_with_a_bounded_body(wire):
    server = wire(answering(b"x" * 50, "302 Found\r\nLocation: /elsewhere"))
    with pytest.raises(BadStatus, match=r"answered 302: x"):
        Client(server.url).models()
    with pytest.raises(MalformedAnswer, match="over 20 bytes"):
        Client(server.url, max_body=20).models()
    assert b"/elsewhere" not in b"".join(server.requests)


@pytest.mark.parametrize("body", [b"<html>", b"", b"{", b"[]", b"5"])
def test_what_is_no_object_is_malformed(wire, body):
    with pytest.raises(MalformedAnswer):
        Client(wire(answering(body)).url).server_info()


@pytest.mark.parametrize("streamed", [False, True])
def test_bodies_are_bounded(wire, streamed):
    server = wire(streaming(b"x" * 3000) if streamed else answering(b"x" * 3000))
    with pytest.raises(MalformedAnswer, match="over 2000 bytes"):
        stream(server.url, max_body=2000) if streamed else Client(
            server.url, max_body=2000
        ).metrics_text()


def test_a_large_body_is_read_whole(wire):
    body = json.dumps({"x": "y" * 3_000_000}).encode()
    assert len(Client(wire(answering(body)).url).server_info()["x"]) == 3_000_000


def test_scores_come_in_order_and_number(wire):
    server = wire(answering(b'[{"a": 1}, {"a": 2}]'))
    client = Client(server.url)
    assert client.score(["x", "y"], [3, 4]) == [{"a": 1}, {"a": 2}]
    sent = json.loads(server.requests[0].partition(b"\r\n\r\n")[2])
    assert sent == {
        "text": ["x", "y"],
        "sampling_params": {"temperature": 0.0, "max_new_tokens": 0},
        "return_logprob": True,
        "logprob_start_len": [3, 4],
    }
    with pytest.raises(MalformedAnswer, match="2 answers to 1 prompts"):
        client.score(["x"])


def test_one_answer_to_a_list_is_malformed(wire):
    with pytest.raises(MalformedAnswer, match="no list"):
        Client(wire(answering(b'{"a": 1}')).url).score(["x"])


def test_tokenize_counts(wire):
    assert Client(wire(answering(b'{"count": 7}')).url).tokenize("a b") == 7
    with pytest.raises(MalformedAnswer, match="count"):
        Client(wire(answering(b'{"tokens": []}')).url).tokenize("a b")


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda c: c.health(), b"GET /v/health "),
        (lambda c: c.health_generate(), b"GET /v/health_generate "),
        (lambda c: c.server_info(), b"GET /v/server_info "),
        (lambda c: c.server_info(old_path=True), b"GET /v/get_server_info "),
        (lambda c: c.model_info(), b"GET /v/model_info "),
        (lambda c: c.model_info(old_path=True), b"GET /v/get_model_info "),
        (lambda c: c.models(), b"GET /v/v1/models "),
        (lambda c: c.chat({}), b"POST /v/v1/chat/completions "),
        (lambda c: c.completion({}), b"POST /v/v1/completions "),
        (lambda c: c.generate("x", max_new_tokens=1), b"POST /v/generate "),
        (lambda c: c.metrics_text(), b"GET /v/metrics "),
        (lambda c: c.flush_cache(), b"POST /v/flush_cache "),
        (lambda c: c.abort("r"), b"POST /v/abort_request "),
    ],
)
def test_every_call_asks_its_path_below_the_address(wire, call, line):
    server = wire(answering(b"{}"))
    call(Client(server.url + "/v/"))
    assert server.requests[0].startswith(line)


def test_a_request_is_aborted_by_its_name(wire):
    server = wire(answering(b"{}"))
    client = Client(server.url)
    client.generate("a", max_new_tokens=1, rid="mine")
    client.abort("mine")
    client.generate("a", max_new_tokens=1)
    named, aborted, nameless = server.requests
    assert b'"rid": "mine"' in named
    assert aborted.endswith(b'{"rid": "mine"}')
    assert b"rid" not in nameless


# -- connections --------------------------------------------------------------------------------


def test_a_thread_keeps_its_connection(wire):
    server = wire(answering(b"{}"))
    client = Client(server.url)
    for _ in range(5):
        client.server_info()
    assert server.connections == 1
    thread = threading.Thread(target=client.server_info)
    thread.start()
    thread.join()
    assert server.connections == 2


def test_a_connection_that_the_server_closed_is_made_anew(wire):
    gone = threading.Event()

    def behave(connection, wire):
        answering(b"{}", times=1)(connection, wire)
        connection.shutdown(socket.SHUT_RDWR)
        gone.set()

    server = wire(behave)
    client = Client(server.url)
    for _ in range(3):
        gone.clear()
        client.server_info()
        assert gone.wait(5)
    assert server.connections == 3


def test_an_idle_connection_is_not_trusted(wire, monkeypatch):
    monkeypatch.setattr(transport, "_REUSE_SECONDS", 0.0)
    server = wire(answering(b"{}"))
    client = Client(server.url)
    for _ in range(3):
        client.server_info()
    assert server.connections == 3


def test_a_proxy_of_the_environment_is_not_asked(wire, monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert Client(wire(answering(b"{}")).url).server_info() == {}


def test_a_call_after_a_failed_one_works(wire):
    server = wire(answering(b"x" * 3000))
    client = Client(server.url, max_body=2000)
    for _ in range(2):
        with pytest.raises(MalformedAnswer, match="over 2000"):
            client.metrics_text()


# -- streams ------------------------------------------------------------------------------------

A, B, DONE = b'data: {"text": "a"}\n\n', b'data: {"text": "ab"}\n\n', b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "pieces",
    [
        (A, B, DONE),
        (A + B + DONE,),
        (A[:-1], A[-1:] + B[:5], B[5:] + DONE),
        tuple(bytes([c]) for c in A + B + DONE),
    ],
    ids=["apart", "together", "split", "bytes"],
)
def test_events_are_the_same_however_they_are_cut(wire, pieces):
    assert stream(wire(streaming(*pieces)).url) == [A, B, DONE]


def test_what_follows_the_last_blank_line_is_not_lost(wire):
    assert stream(wire(streaming(A, DONE, b"data: more")).url) == [A, DONE, b"data: more"]


def test_events_come_as_they_arrive(wire):
    server = wire(streaming(A, B, ends=False))
    events = Client(server.url, timeout=10).generate_stream("hi", max_new_tokens=2)
    first, second = next(events), next(events)
    assert (first.raw, second.raw) == (A, B)
    assert first.t <= second.t <= time.monotonic()
    events.close()


def test_a_stream_that_stalls_ends_by_its_deadline(wire):
    server = wire(streaming(A, ends=False))
    events = Client(server.url).generate_stream("hi", max_new_tokens=2, timeout=0.2)
    assert next(events).raw == A
    with pytest.raises(TimedOut):
        next(events)


@pytest.mark.parametrize("url", ["http://me:s3cret@host", "http://:s3cret@host", "ftp://:s3cret@h"])
def test_an_address_with_a_password_is_refused_and_not_shown(url):
    with pytest.raises(ClientError, match="not a server's address") as error:
        Client(url)
    assert "s3cret" not in str(error.value)


def test_no_spelling_of_the_key_is_in_an_excerpt():
    key = 'a/key+"of&ours"'
    client = Client("http://127.0.0.1:1", api_key=key)
    basic = base64.b64encode(f"me:{key}".encode()).decode()
    for one in (key, json.dumps(key), quote(key), basic):
        # the excerpt ends within it
        told = client.excerpt(f"{'x' * 390} {one} after")
        assert not [at for at in range(len(one) - 8) if one[at : at + 8] in told], told


@pytest.fixture(scope="module")
def chunks() -> Iterator[tuple[str, list[bytes]]]:
    """A server that streams the pieces of a list, which examples fill anew."""
    pieces: list[bytes] = []
    server = Wire(lambda connection, wire: streaming(*pieces)(connection, wire))
    yield server.url, pieces
    server.close()


@given(
    data=st.data(),
    content=st.one_of(
        st.lists(st.sampled_from((A, B, DONE, b"\n", b"\r\n\r\n", b"data: ")), max_size=8),
        st.lists(st.binary(max_size=30), max_size=8),
    ).map(b"".join),
)
def test_no_byte_of_a_stream_is_lost_however_it_is_cut(chunks, data, content):
    url, pieces = chunks
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=6)))
    ends = zip([0, *cuts], [*cuts, len(content)], strict=True)
    # an empty chunk would be the last one
    pieces[:] = [content[start:end] for start, end in ends if start < end]
    events = stream(url)
    assert b"".join(events) == content
    assert all(event.endswith(b"\n\n") for event in events[:-1])
    assert all(event.find(b"\n\n") in (-1, len(event) - 2) for event in events)


@given(data=st.data(), content=st.binary(max_size=60))
def test_any_bytes_in_place_of_an_answer_are_an_answer_or_a_clear_error(data, content):
    head = data.draw(st.sampled_from((b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n")))

    def behave(connection: socket.socket, wire: Wire) -> None:
        wire.read(connection)
        connection.sendall(head + content)

    server = Wire(behave)
    for ask in (lambda: stream(server.url), lambda: Client(server.url).server_info()):
        with contextlib.suppress(ClientError):
            ask()
    server.close()
