"""How a run is told to end: every way of asking becomes the interrupt of a person's Ctrl-C.

And how it ends with what started it: nox, or under `nox -j` both that one and the one above it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import threading
from types import FrameType

import psutil

from servematrix.engines.guard import PR_SET_PDEATHSIG

NOX = "SERVEMATRIX_NOX"
"""The variable in which nox gives its process ids, with commas, to what it runs."""


def end_in_good_order() -> None:
    """Make SIGTERM, and the end of nox, an interrupt: servers stop, and what was found is told."""
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if "NOX_CURRENT_SESSION" in os.environ:
        for nox in os.environ.get(NOX, "").split(","):
            if nox.isdecimal():
                threading.Thread(target=_end_after, args=(int(nox),), daemon=True).start()


def end_workers_too() -> None:
    """Make SIGTERM end the workers of this controller of pytest-xdist, and with them their servers.

    By itself it would wait for their tests, up to 10 seconds. A Ctrl-C reaches them as it is.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        signal.default_int_handler(number, frame)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)


def end_with(controller: int) -> None:
    """Kill this worker of pytest-xdist when its controller is gone, and with it its server.

    By itself it would first wait for its test, some 5 to 15 seconds, and tell nobody of the result.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # it may have gone before that was asked for
    if _is_gone(controller):
        os._exit(1)


def _end_after(pid: int) -> None:
    """Interrupt this process once another one has ended."""
    with contextlib.suppress(ProcessLookupError):
        ended = select.poll()
        ended.register(os.pidfd_open(pid), select.POLLIN)
        ended.poll()
    os.kill(os.getpid(), signal.SIGTERM)


def _is_gone(pid: int) -> bool:
    """Whether a process has ended, also where its own parent has not asked how yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
