"""How a run is told to end: every way of asking becomes the interrupt of a person's Ctrl-C."""

from __future__ import annotations

import ctypes
import os
import signal
import threading

from servematrix.engines.guard import PR_SET_PDEATHSIG


def end_in_good_order() -> None:
    """Make SIGTERM, and the end of nox, an interrupt: servers stop, and what was found is told."""
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if "NOX_CURRENT_SESSION" in os.environ:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
