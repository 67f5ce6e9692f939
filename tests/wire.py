"""A server at the level of its socket: a function that is given each connection."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

PATIENCE = 30.0
"""Seconds after which a server gives up whose client should have done so long before."""
Behaviour = Callable[[socket.socket, "Wire"], None]


class Wire:
    """A server made of a function that is given each connection; it keeps what it was sent."""

    def __init__(self, behave: Behaviour) -> None:
        self._behave = behave
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.released = threading.Event()
        self.requests: list[bytes] = []
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            self._behave(connection, self)

    def read(self, connection: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(65536) or b"\r\n\r\n"
        head, _, body = data.partition(b"\r\n\r\n")
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                while len(body) < int(line.split(b":")[1]):
                    body += connection.recv(65536)
        self.requests.append(head + b"\r\n\r\n" + body)
        return head

    def close(self) -> None:
        self.released.set()
        self._listener.close()


def answering(body: bytes, status: str = "200 OK", *, times: int = 100) -> Behaviour:
    def behave(connection: socket.socket, wire: Wire) -> None:
        for _ in range(times):
            if not wire.read(connection):
                return
            head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            connection.sendall(head + body)

    return behave


def streaming(*pieces: bytes, ends: bool = True) -> Behaviour:
    """Send the pieces as chunks, each in a packet of its own."""

    def behave(connection: socket.socket, wire: Wire) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.read(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        if ends:
            connection.sendall(b"0\r\n\r\n")
        else:
            wire.released.wait(10)

    return behave


def silent(connection: socket.socket, wire: Wire) -> None:
    wire.read(connection)
    wire.released.wait(10)


def dribbled(head: bytes) -> Behaviour:
    def behave(connection: socket.socket, wire: Wire) -> None:
        wire.read(connection)
        connection.sendall(head)
        ends = time.monotonic() + PATIENCE
        while not wire.released.wait(0.02) and time.monotonic() < ends:
            connection.sendall(b"x")

    return behave


def flooding(head: bytes, piece: bytes) -> Behaviour:
    """Send the piece again and again, as fast as the client takes it."""

    def behave(connection: socket.socket, wire: Wire) -> None:
        wire.read(connection)
        connection.sendall(head)
        block = piece * (1 + 65536 // len(piece))
        ends = time.monotonic() + PATIENCE
        while not wire.released.is_set() and time.monotonic() < ends:
            connection.sendall(block)

    return behave
