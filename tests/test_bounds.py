"""A server that never stops sending: every call ends, and memory grows by little.

Memory is that of a process of its own, whose peak nothing else has raised before.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

from malforming import CHUNKED, OK
from wire import Behaviour, Wire, answering, flooding

LITTLE = 100
"""MiB by which a call's refusal may raise the peak; the largest body that is read has 16."""

CALL = textwrap.dedent("""
    import json, sys, time
    from servematrix.client import Client, ClientError
    from servematrix.kits import scrapes

    def peak():
        # not getrusage: its peak includes what was there before this program was executed
        status = open("/proc/self/status").read()
        return int(status.partition("VmHWM:")[2].split()[0]) // 1024

    url, call, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    client = Client(url, timeout=seconds)
    calls = {
        "information": lambda: client.server_info(),
        "scrape": lambda: scrapes.read(client),
        "stream": lambda: list(client.generate_stream("a", max_new_tokens=64)),
    }
    before, began, told = peak(), time.monotonic(), "an answer"
    try:
        calls[call]()
    except ClientError as error:
        told = f"{type(error).__name__}: {error}"
    print(json.dumps([told, peak() - before, time.monotonic() - began]))
""")


def large(body: bytes) -> Behaviour:
    def behave(connection, wire: Wire) -> None:
        wire.read(connection)
        connection.sendall(OK + b"Content-Length: %d\r\n\r\n" % (100 * len(body)))
        for _ in range(100):
            connection.sendall(body)

    return behave


MB = 1_000_000
EVENT = b'data: {"text": "a", "meta_info": {"completion_tokens": 1}}\n\n'
LINE = b'sglang:num_running_reqs{tp_rank="0"} 1.0\n'


@pytest.mark.parametrize(
    ("behave", "call", "told"),
    [
        (large(b"0," * (MB // 2)), "information", "over 16777216 bytes"),
        (large(LINE * (MB // len(LINE))), "scrape", "over 16777216 bytes"),
        (flooding(CHUNKED, b"1000\r\n%4096s\r\n" % b""), "information", "over 16777216 bytes"),
        (
            flooding(CHUNKED, b"%x\r\n%s\r\n" % (99 * len(LINE), 99 * LINE)),
            "scrape",
            "over 16777216 bytes",
        ),
        (
            flooding(CHUNKED, b"%x\r\n%s\r\n" % (len(EVENT), EVENT)),
            "stream",
            "more than 192 events",
        ),
        (
            flooding(CHUNKED, b"1000\r\n%s\r\n" % (4096 * b"x")),
            "stream",
            "an event over 1048576 bytes",
        ),
        (flooding(OK, b"X-Header: x\r\n"), "information", "no HTTP"),
        (flooding(OK + b"X-Header: ", b"x"), "scrape", "no HTTP"),
        (flooding(CHUNKED + b"0\r\n", b"Trailer: x\r\n"), "information", "by its deadline"),
        (flooding(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "stream", "by its deadline"),
    ],
    ids=[
        *("100 MB of JSON", "100 MB of metrics", "endless JSON", "endless metrics"),
        *("endless events", "endless event", "endless headers", "endless header"),
        *("endless trailers", "endless hints"),
    ],
)
def test_what_never_ends_is_ended(wire, behave, call, told):
    answer, grown, seconds = measured(wire(behave).url, call, 1.0)
    assert told in answer
    assert grown < LITTLE
    assert seconds < 20


@pytest.mark.parametrize(
    ("piece", "count", "told"),
    [
        (b"[[]],", 3_300_000, "over 1000000 values"),
        (b"[[]],", 330_000, "no JSON object"),
        (b'{"%06d":{}},', 330_000, "no JSON object"),
    ],
)
def test_json_that_is_all_brackets_is_refused_or_small(wire, piece, count, told):
    pieces = piece * count if b"%" not in piece else b"".join(piece % i for i in range(count))
    body = b"[" + pieces + b"0]"
    answer, grown, _ = measured(wire(answering(body)).url, "information", 60.0)
    assert told in answer
    assert grown < 250


def test_a_scrape_of_more_ranks_than_machines_have_is_refused_soon(wire):
    lines = b"".join(b'sglang:num_running_reqs{dp_rank="%d"} 1\n' % i for i in range(200_000))
    answer, grown, seconds = measured(wire(answering(lines)).url, "scrape", 30.0)
    assert "200000 lines that matter" in answer
    assert grown < LITTLE
    assert seconds < 30


def measured(url: str, call: str, seconds: float) -> tuple[str, int, float]:
    """What a call came to, by how many MiB it raised the peak, and how long it took."""
    command = [sys.executable, "-c", CALL, url, call, str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    told, grown, took = json.loads(done.stdout)
    return told, grown, took
