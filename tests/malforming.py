"""A proxy before a healthy server that spoils one of its routes, and the ways to spoil an answer.

The first part of a request's path names the run that it belongs to, so that runs of many kinds
share one proxy. A run is called `TEST-NUMBER`, and answers are kept: what a test asks for the nth
time was answered so before. The server behind computes it once; a test called `live` each time.
"""

from __future__ import annotations

import gzip
import http.client
import itertools
import json
import select
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
STALL = b""
"""A piece that stands for a moment of silence."""
LOUD = "\x1b[31m\x1b]52;c;eA==\x07\x9b2J\u202e[red]|<b>"
"""What a terminal, Rich, Markdown and HTML would obey."""

Spoil = Callable[[bytes], Iterable[bytes]]
"""What is sent, byte by byte as it stands on the wire, in place of an answer with this body."""


def whole(body: bytes, status: str = "200 OK") -> list[bytes]:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n"
    return [head.encode("latin-1") + body]


def _large(body: bytes) -> Iterator[bytes]:
    yield OK + b"Content-Length: 100000000\r\n\r\n["
    for _ in range(100):
        yield b"0," * 500_000


UNREADABLE: dict[str, Spoil] = {
    "nothing": lambda body: [],
    "no HTTP": lambda body: [b"SSH-2.0-OpenSSH\r\n\r\n"],
    "long header": lambda body: itertools.chain([OK, b"X: "], itertools.repeat(b"x" * 9999)),
    "many headers": lambda body: itertools.chain([OK], itertools.repeat(b"X: y\r\n" * 999)),
    "stalled header": lambda body: itertools.chain([OK + b"Content-"], itertools.repeat(STALL)),
    "stalled body": lambda body: itertools.chain([CHUNKED], itertools.repeat(STALL)),
    "dribbled": lambda body: itertools.chain([OK + b"X: "], itertools.cycle([b"x", STALL])),
    "continued": lambda body: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 999),
    "cut": lambda body: [OK + b"Content-Length: 999999\r\n\r\n" + body[: len(body) // 2]],
    "cut chunk": lambda body: [CHUNKED + b"fff\r\n" + body[:100]],
    "100 MB": _large,
    "endless": lambda body: itertools.chain([CHUNKED], itertools.repeat(b"4\r\n    \r\n" * 999)),
    "compressed": lambda body: whole(gzip.compress(body), "200 OK\r\nContent-Encoding: gzip"),
    "redirect": lambda body: whole(b"", "302 Found\r\nLocation: http://127.0.0.1:1/"),
    "no content": lambda body: [b"HTTP/1.1 204 No Content\r\n\r\n"],
    "loud status": lambda body: whole(LOUD.encode(), "500 Oh\x1b[31m"),
}
"""Answers that nobody can read: no test may pass on one, whatever it asks for."""

UNUSABLE: dict[str, Spoil] = {
    name: lambda _, body=body: whole(body)
    for name, body in {
        "empty": b"",
        "html": b"<html><body>502</body></html>",
        "invalid UTF-8": b'{"text": "\xff\xfe\x80"}',
        "UTF-16": '{"text": "a"}'.encode("utf-16"),
        "null": b"null",
        "number": b"1e999",
        "string": json.dumps(LOUD).encode(),
        "list": b"[]",
        "list of nulls": b"[null, null]",
        "object": b"{}",
        "deep": b'{"a":' * 100_000,
        "deep and whole": b"[" * 500 + b"]" * 500,
        "digits": b'{"meta_info": ' + b"9" * 5000 + b"}",
        "NaN": b"NaN",
        "two": b"{} {}",
        "deep event": b'data: {"completion_tokens": 1, "a": ' + b"[" * 100_000 + b"\n\n",
        "events": b'data: {"text": "a", "meta_info": {"completion_tokens": 1}}\n\n' * 9999,
        "a leap": b'data: {"meta_info": {"completion_tokens": 1}}\n\n'
        b'data: {"meta_info": {"completion_tokens": 999999999}}\n\ndata: [DONE]\n\n',
    }.items()
}
"""Answers that can be read and are of no use."""

WRONG_VALUES: tuple[Any, ...] = (
    *(None, True, "", LOUD, "7", "\ud800", [], [None], {}, {"a": []}),
    *(-1, 0, 1.5, 2**63, 10**400, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
)
WRONG_SAMPLES: tuple[str, ...] = (
    *("NaN", "+Inf", "-Inf", "1e308", "-1e308", "-1", "0", "101.5", "1e15", "9" * 400),
    *("", "x", "0x10", "1_0", "\x1b[31m", "1 2 3"),
)
"""Values of a sample in `/metrics`."""


class Asked(NamedTuple):
    method: str
    path: str
    body: bytes


class Proxy:
    """Serves `<url>/<run>/<path>` as the server behind does, but for what `spoil` says of a run."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.routes: dict[str, list[str]] = {}
        """What each test asks for, once that is known."""
        self.asked: dict[str, list[Asked]] = defaultdict(list)
        self._spoiled: dict[tuple[str, str], tuple[Spoil, int, bool]] = {}
        self._kept: dict[tuple[str, Asked, int], tuple[int, bytes]] = {}
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def spoil(
        self, run: str, path: str, spoil: Spoil, after: int = 0, *, framed: bool = False
    ) -> str:
        """Spoil a route of a run from its request number `after` on; returns the run's address.

        What is sent is `framed` where a connection is still of use after it.
        """
        self._spoiled[run, path] = (spoil, after, framed)
        return f"{self.url}/{run}"

    def paths(self, run: str) -> list[str]:
        """What a run has asked for so far."""
        return [asked.path for asked in self.asked[run]]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, run: str, asked: Asked) -> tuple[Iterable[bytes], bool]:
        """What is sent, and whether the connection is still of use after it."""
        path = asked.path
        number = self.paths(run).count(path)
        test, _, _ = run.partition("-")
        key = (test, asked, self.asked[run].count(asked))
        self.asked[run].append(asked)
        if test == "live" or key not in self._kept:
            self._kept[key] = self._forward(asked)
        status, body = self._kept[key]
        spoil, after, framed = self._spoiled.get((run, path), (whole, 0, True))
        if spoil is whole or number < after:
            return whole(body, f"{status} Told"), True
        return spoil(body), framed

    def _forward(self, asked: Asked) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.upstream.hostname or "", self.upstream.port)
        try:
            headers = {"Content-Type": "application/json"} if asked.body else {}
            connection.request(asked.method, asked.path, asked.body or None, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 64 * 1024
    proxy: Proxy

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"] or 0)))

    def _answer(self, body: bytes) -> None:
        _, run, path = self.path.split("/", 2)
        pieces, usable = self.proxy.answer(run, Asked(self.command, f"/{path}", body))
        try:
            for piece in pieces:
                self.wfile.write(piece)
                if piece == STALL:
                    self.wfile.flush()
                    if self._gone():
                        break
            self.wfile.flush()
        except OSError:
            pass  # the client has had enough
        self.close_connection = not usable

    def _gone(self) -> bool:
        """Wait a moment; whether the client has given up meanwhile."""
        readable, _, _ = select.select([self.connection], [], [], 0.02)
        return bool(readable) and self.connection.recv(1) == b""
