"""HTTP exchanges that end by one total deadline and read no more than a bound.

The standard library's HTTP is used because both can be kept exactly with it, however slowly a
server dribbles its answer, and because a call costs little CPU: the client runs on the machine
that it measures.
"""

from __future__ import annotations

import functools
import http.client
import io
import json
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

_CHUNK = 64 * 1024
_REUSE_SECONDS = 2.0
"""How long an idle connection is trusted; uvicorn closes idle ones after 5 s."""
_EXCERPT = 400


class ClientError(Exception):
    """A call that gave no usable answer; the message says what happened, where, and what to do."""


class Unreachable(ClientError):
    """Nobody answers: refused, reset, or cut before the answer was complete."""


class TimedOut(Unreachable):
    """The answer was not complete by the call's deadline."""


class BadStatus(ClientError):
    """The server answered with another status than 200."""

    def __init__(self, message: str, status: int, body: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class MalformedAnswer(ClientError):
    """The server answered 200 with something that cannot be read, or too much of it."""


class Event(NamedTuple):
    """A server-sent event: when its last byte was read (`time.monotonic`), and its raw bytes."""

    t: float
    raw: bytes


class Transport:
    """Exchanges with one server. Safe to share between threads; each keeps one connection.

    The API key is sent as a bearer token and shown in no message. `max_body` is the most bytes of
    one answer, or of one event of a stream.
    """

    def __init__(self, base_url: str, *, api_key: str | None, max_body: int) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ClientError(f"not a server's address: {base_url!r}; give http://HOST:PORT")
        self.base_url = base_url.rstrip("/")
        self._factory = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._host, self._port = parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/")
        self._api_key = api_key
        self._max_body = max_body
        self._local = threading.local()

    def at(self, path: str) -> str:
        """Return the full address of a path, for messages."""
        return self.base_url + path

    def excerpt(self, body: object) -> str:
        """Show an answer for a message: cut, and without the API key."""
        text = body if isinstance(body, str) else json.dumps(body, default=repr)
        if self._api_key:
            text = text.replace(self._api_key, "[api key]")
        return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}… ({len(text)} characters)"

    def call(self, method: str, path: str, body: Mapping[str, Any] | None, ends: float) -> bytes:
        """Return the body of a 200 answer; `ends` is the deadline on `time.monotonic`."""
        connection = self._kept_connection()
        try:
            with self._send(connection, method, path, body, ends) as response:
                data = self._read(response, path)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._told(error, path) from error
        except BaseException:
            connection.close()
            raise
        if response.will_close:
            connection.close()
        self._local.used = time.monotonic()
        self._check(response.status, data, path)
        return data

    def events(self, path: str, body: Mapping[str, Any], ends: float) -> Iterator[Event]:
        """Post, and yield the server-sent events of the answer over a connection of its own."""
        connection = self._factory(self._host, self._port)
        buffer = bytearray()
        try:
            response = self._send(connection, "POST", path, body, ends)
            if response.status != 200:
                self._check(response.status, self._read(response, path), path)
            while data := response.read1(_CHUNK):
                now = time.monotonic()
                seen = max(0, len(buffer) - 1)
                buffer += data
                while (end := buffer.find(b"\n\n", seen)) >= 0:
                    yield Event(now, bytes(buffer[: end + 2]))
                    del buffer[: end + 2]
                    seen = 0
                if len(buffer) > self._max_body:
                    raise MalformedAnswer(f"{self.at(path)}: an event over {self._max_body} bytes")
            if response.length:
                raise Unreachable(f"{self.at(path)} ended before its announced length")
            if buffer:
                yield Event(time.monotonic(), bytes(buffer))
        except (OSError, http.client.HTTPException) as error:
            raise self._told(error, path) from error
        finally:
            connection.close()

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        ends: float,
    ) -> http.client.HTTPResponse:
        headers = {"Accept": "*/*"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        connection.response_class = functools.partial(_Response, ends=ends)  # type: ignore[assignment]
        connection.timeout = _left(ends)
        if connection.sock is not None:
            connection.sock.settimeout(_left(ends))
        connection.request(method, self._prefix + path, body=data, headers=headers)
        return connection.getresponse()

    def _read(self, response: http.client.HTTPResponse, path: str) -> bytes:
        parts: list[bytes] = []
        size = 0
        while part := response.read1(_CHUNK):
            parts.append(part)
            size += len(part)
            if size > self._max_body:
                raise MalformedAnswer(f"{self.at(path)} answered with over {self._max_body} bytes")
        if response.length:
            raise Unreachable(f"{self.at(path)} cut its answer after {size} bytes")
        return b"".join(parts)

    def _check(self, status: int, data: bytes, path: str) -> None:
        if status == 200:
            return
        body = self.excerpt(data[: 4 * _EXCERPT].decode("utf-8", "replace"))
        hint = "; does the server ask for an API key?" if status in (401, 403) else ""
        message = f"{self.at(path)} answered {status}: {body or 'no body'}{hint}"
        raise BadStatus(message, status, body)

    def _told(self, error: Exception, path: str) -> Unreachable:
        """Say where the socket or the protocol failed."""
        if isinstance(error, TimeoutError):
            return TimedOut(f"{self.at(path)} gave no whole answer by its deadline; is it hung?")
        why = str(error) or type(error).__name__
        return Unreachable(f"{self.at(path)} does not answer ({why}); is the server running?")

    def _kept_connection(self) -> http.client.HTTPConnection:
        """Return this thread's connection, closed first where the server may have dropped it."""
        kept: _Kept | None = getattr(self._local, "kept", None)
        if kept is None:
            kept = self._local.kept = _Kept(self._factory(self._host, self._port))
        connection = kept.connection
        if connection.sock is not None and (
            time.monotonic() - self._local.used > _REUSE_SECONDS
            or select.select([connection.sock], [], [], 0)[0]
        ):
            connection.close()
        return connection


class _Kept:
    """A connection that is closed when its thread, or its client, goes."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self.connection = connection

    def __del__(self) -> None:
        self.connection.close()


class _Reads(io.RawIOBase):
    """The raw reads of a socket, all of which end by one deadline."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase, ends: float) -> None:
        self._sock, self._raw, self._ends = sock, raw, ends

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_left(self._ends))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """A response whose header and body end by one deadline."""

    def __init__(self, sock: socket.socket, *args: Any, ends: float, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_Reads(sock, self.fp.detach(), ends), _CHUNK)


def _left(ends: float) -> float:
    left = ends - time.monotonic()
    if left <= 0:
        raise TimeoutError("deadline passed")
    return left
