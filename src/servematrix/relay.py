"""Lines of progress from the workers of pytest-xdist, which have no terminal, to their controller.

Each line is a datagram to a socket of the controller. The socket has a name and no file (Linux's
abstract names), so that a controller that is killed leaves nothing; other users, who could send to
it too, are not heard. A line that does not arrive is lost: it was of interest at that moment only.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import uuid
from collections.abc import Callable
from typing import Final

from servematrix.terminal import line

_LONGEST: Final = 8192
"""Bytes of a line."""
_END_SECONDS: Final = 2.0
"""For the lines that were sent to be written."""
_CREDENTIALS: Final = struct.Struct("3i")
"""Process, user and group of who sent a datagram, as the kernel tells."""


class Receiver:
    """Takes the lines of workers, in a thread; OSError where there can be no socket."""

    def __init__(self, take: Callable[[str], object]) -> None:
        self._take = take
        self.name = f"servematrix-{uuid.uuid4().hex}"
        """For `Sender`."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._socket.bind(f"\0{self.name}")
        except OSError:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self._receive, name="relay", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take what was sent until now, and no more; does nothing the second time."""
        with contextlib.suppress(OSError):
            self._socket.sendto(b"", f"\0{self.name}")
            self._thread.join(_END_SECONDS)
        self._socket.close()

    def _receive(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                told, control, *_ = self._socket.recvmsg(
                    _LONGEST, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
                user = _CREDENTIALS.unpack(control[0][2])[1] if control else None
                if user != os.getuid():
                    continue
                if not told:
                    return
                self._take(line(told.decode(errors="replace")))


class Sender:
    """Sends lines as a screen writes them; there is no line of status."""

    live = False

    def __init__(self, name: str) -> None:
        """`name` is that of the `Receiver`."""
        self._name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def line(self, told: str) -> None:
        """Send one line."""
        with contextlib.suppress(OSError):
            self._socket.sendto(told.encode(errors="replace")[:_LONGEST], f"\0{self._name}")

    def show(self, told: str) -> None:
        """Nothing to show it on."""

    def hide(self) -> None:
        """Nothing is shown."""
