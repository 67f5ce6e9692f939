"""The terminal of a pytest session, as pytest's own words and a line of status share it.

While a test runs pytest has standard output for itself, so a duplicate of the terminal's descriptor
is written to. Pytest writes through `Shared`, which knows whether its last line has an end: a line
of status stands below it, and is gone before pytest writes on where it was.

The cursor is never hidden: who is killed cannot bring it back.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions
from rich.live import Live
from rich.text import Text

_CONTROL: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
"""What moves or colours and has no width: CSI and OSC sequences."""


class _Steady(Console):
    """A console that leaves the cursor as it is."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


class Screen:
    """One line of status on a terminal, or plain lines where there is none.

    What the terminal does not take, such as one that hung up, is lost: it says nothing of a server.
    """

    def __init__(self, file: TextIO, *, live: bool, broke: Callable[[], object]) -> None:
        """`file` reaches the terminal at any time; `broke` is told that pytest's line was ended."""
        self.live = live
        self._file = file
        self._broke = broke
        self._lock = threading.RLock()
        self._column = 0
        self._back = 0
        """The column where pytest's line goes on, above the line of status."""
        self._shown: Live | None = None
        self._console = _Steady(
            file=file, force_terminal=live, markup=False, emoji=False, highlight=False
        )

    def show(self, told: str) -> None:
        """Show a line of status, in place of the one before; it is cut where the screen ends."""
        with self._lock, suppress(OSError):
            try:
                columns = os.get_terminal_size(self._file.fileno()).columns or 80
            except OSError:
                return
            # one less than there are: a full line leaves some terminals on the next one
            self._console.size = ConsoleDimensions(max(1, columns - 1), 25)
            if self._shown is None:
                if self._column and self._column % columns == 0:
                    return  # terminals differ in where the cursor is now
                self._back = self._column % columns
                if self._column:
                    self._put("\n")
                self._shown = Live(
                    console=self._console,
                    transient=True,
                    auto_refresh=False,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
                self._shown.start()
            # as it will be written, for its width counts
            encoding = self._file.encoding
            told = told.encode(encoding, "backslashreplace").decode(encoding)
            dots = self._console.encoding.startswith("utf")
            line = Text(told, no_wrap=True, overflow="ellipsis" if dots else "crop", end="")
            self._shown.update(line, refresh=True)

    def hide(self) -> None:
        """Take the line of status away, and return to where pytest's line goes on."""
        with self._lock, suppress(OSError):
            if self._shown is None:
                return
            shown, self._shown = self._shown, None
            shown.stop()
            if self._back:
                self._put(f"\x1b[1A\x1b[{self._back}C")

    def line(self, told: str) -> None:
        """Write one plain line, below what pytest has written."""
        with self._lock:
            self.hide()
            start = "\n" if self._column else ""
            with suppress(OSError):
                self._put(f"{start}{told}\n")
            if self._column:
                self._column = 0
                self._broke()

    def shared(self, stream: Any) -> Shared:
        """Return a stream through which pytest writes to the same terminal."""
        return Shared(stream, self)

    def written(self, stream: Any, text: str) -> int:
        """Write for pytest, and note where that leaves the cursor."""
        with self._lock:
            self.hide()
            count: int = stream.write(text)
            stream.flush()
            last = text.replace("\r", "\n").rpartition("\n")
            begun = 0 if last[1] else self._column
            self._column = begun + cell_len(_CONTROL.sub("", last[2]))
            return count

    def _put(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()


class Shared:
    """A text stream that hides the line of status before it writes."""

    def __init__(self, stream: Any, screen: Screen) -> None:
        self._stream = stream
        self._screen = screen

    def write(self, text: str) -> int:
        """Write a text where pytest's last one ended."""
        return self._screen.written(self._stream, text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
