"""Connections on which a timeout is for an exchange as a whole, not for each wait in it.

A socket gives every wait its whole timeout anew, and `http.client` waits as often for a header, or
a line of chunked framing, as the server cares to send one byte more. Here the clock starts when the
timeout is set, and runs on over every wait and every read, those that need no wait included.
"""

from __future__ import annotations

import io
import socket
import time
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


def left(ends: float) -> float:
    """Return the seconds until a deadline on `time.monotonic`; TimeoutError once it has passed."""
    seconds = ends - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("deadline passed")
    return seconds


class Adapter(HTTPAdapter):
    """Makes the connections of a `requests.Session` such ones, plain and TLS alike."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Make the pool manager, as `requests` asks for it."""
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}


class _Socket:
    """A connected socket, plain or TLS, with one deadline for all that is sent and read."""

    def __init__(self, sock: socket.socket, ends: float) -> None:
        self._sock = sock
        self._ends = ends

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def settimeout(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds

    def sendall(self, data: Any) -> None:
        self.wait_no_longer()
        self._sock.sendall(data)  # whose timeout is for all of the data

    def makefile(self, mode: str, *args: Any) -> io.BufferedReader:
        assert mode == "rb", "http.client reads answers only"
        return io.BufferedReader(_Reader(self, self._sock.makefile("rb", buffering=0)))

    def wait_no_longer(self) -> None:
        """Let the next wait end by the deadline; TimeoutError where that has passed."""
        self._sock.settimeout(left(self._ends))


class _Reader(io.RawIOBase):
    """The bytes of a socket as `http.client` reads them."""

    def __init__(self, sock: _Socket, file: socket.SocketIO) -> None:
        self._sock = sock
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.wait_no_longer()
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Connection(HTTPConnection):
    def connect(self) -> None:
        _connect(self, super().connect)


class _TLSConnection(HTTPSConnection):
    def connect(self) -> None:
        _connect(self, super().connect)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


def _connect(connection: Any, connect: Any) -> None:
    """Connect, and let what that took count."""
    ends = time.monotonic() + connection.timeout
    connect()
    connection.sock = _Socket(connection.sock, ends)
