"""Standard output without what Ray prints there from a thread of its own.

A lost node is told by us, and by Ray in some thirty lines, at any moment while it is connected.
"""

from __future__ import annotations

import sys
import threading
from typing import Any, TextIO

_OF_RAY = "ray_"
"""With this begin the names of Ray's threads."""


class WithoutRay:
    """A stream that passes on what others than Ray's threads write."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write, or drop what a thread of Ray's writes; returns the number of characters."""
        if threading.current_thread().name.startswith(_OF_RAY):
            return len(text)
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def begin() -> None:
    """Drop from now on what Ray's threads print; does nothing where that is so."""
    if not isinstance(sys.stdout, WithoutRay):
        sys.stdout = WithoutRay(sys.stdout)


def end() -> None:
    """Undo it."""
    if isinstance(sys.stdout, WithoutRay):
        sys.stdout = sys.stdout.stream
