"""Lines of progress from the workers of pytest-xdist, which have no terminal, to their controller.

Each line is a datagram to a socket in a folder of the controller's own. One that does not arrive,
for the controller is gone or busy, is lost: it was of interest at that moment only.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from servematrix.terminal import line

_LONGEST: Final = 8192
"""Bytes of a line."""
_END_SECONDS: Final = 2.0
"""For the lines that were sent to be written."""


class Receiver:
    """Takes the lines of workers, in a thread; OSError where there can be no socket."""

    def __init__(self, take: Callable[[str], object]) -> None:
        self._take = take
        self._folder = Path(tempfile.mkdtemp(prefix="servematrix-"))
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.bind(self.address)
        except OSError:
            self._remove()
            raise
        self._thread = threading.Thread(target=self._receive, name="relay", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """The path of the socket, for `Sender`."""
        return str(self._folder / "progress")

    def close(self) -> None:
        """Take what was sent until now, and no more; does nothing the second time."""
        if self._thread.is_alive():
            with contextlib.suppress(OSError):
                self._socket.sendto(b"", self.address)
                self._thread.join(_END_SECONDS)
        self._remove()

    def _remove(self) -> None:
        self._socket.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _receive(self) -> None:
        with contextlib.suppress(OSError):
            while told := self._socket.recv(_LONGEST):
                self._take(line(told.decode(errors="replace")))


class Sender:
    """Sends lines as a screen writes them; there is no line of status."""

    live = False

    def __init__(self, address: str) -> None:
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def line(self, told: str) -> None:
        """Send one line."""
        with contextlib.suppress(OSError):
            self._socket.sendto(told.encode(errors="replace")[:_LONGEST], self._address)

    def show(self, told: str) -> None:
        """Nothing to show it on."""

    def hide(self) -> None:
        """Nothing is shown."""
