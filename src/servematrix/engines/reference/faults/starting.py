"""Servers that start late or not at all, and one whose memory outlives it."""

from __future__ import annotations

import mmap
import os
import time

from servematrix.engines.reference.arguments import StartError
from servematrix.engines.reference.faults.catalogue import Faults

SHARED_MEMORY = "/dev/shm"
_MIB = 2**20


def before_listening(faults: Faults) -> mmap.mmap | None:
    """What happens before the port answers; returns memory that is to be held, if any.

    Raises StartError where the server is to end.
    """
    if "start-slow" in faults:
        time.sleep(faults["start-slow"])
    if "dies-at-start" in faults:
        raise StartError("out of memory: the weights do not fit (fault dies-at-start)")
    if "memory-kept" in faults:
        return _hold(int(faults["memory-kept"] * _MIB))
    return None


def _hold(size: int) -> mmap.mmap:
    """Takes shared memory under a name, which nobody gives back."""
    path = f"{SHARED_MEMORY}/servematrix_reference_{os.getpid()}"
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)
