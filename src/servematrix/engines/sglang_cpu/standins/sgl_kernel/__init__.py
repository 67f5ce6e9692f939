"""Stands in for SGLang's compiled kernels where there is no GPU.

Serving without speculation calls none of them: SGLang's own PyTorch code does the work. Some
functions for speculation are imported when SGLang is loaded, so each exists here and refuses.

The stopwatch lives here because SGLang imports this package in every process that runs a model,
before that process makes a timer.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

__version__ = "0.0.0"


class Stopwatch:
    """A `torch.cuda.Event` by the wall clock, in milliseconds where it tells a time.

    Work on a CPU is done when its call returns, so an event is over as soon as it is recorded. In
    PyTorch without CUDA the real class raises, and `torch.cpu.Event` tells no time; either ends
    SGLang's scheduler at its first forward pass when the device timer is on.
    """

    def __init__(self, *_: object, **__: object) -> None:
        self._seconds: float | None = None

    def record(self, stream: object = None) -> None:
        """Take the time."""
        self._seconds = time.perf_counter()

    def query(self) -> bool:
        """Say that the work before it is done."""
        return True

    def synchronize(self) -> None:
        """Wait for nothing."""

    def wait(self, stream: object = None) -> None:
        """Make a stream wait for nothing."""

    def elapsed_time(self, end: "Stopwatch") -> float:
        """Return the milliseconds from this event to a later one."""
        if self._seconds is None or end._seconds is None:
            raise RuntimeError("both events must be recorded before a time can be told")
        return (end._seconds - self._seconds) * 1000.0


def __getattr__(name: str) -> Callable[..., Any]:
    """Give every kernel for the CPU, as a function that refuses."""
    if not name.endswith("_cpu"):
        raise AttributeError(name)

    def refuse(*_: object, **__: object) -> Any:
        raise NotImplementedError(
            f"sgl_kernel.{name} is not there: the CPU server has no compiled kernels, "
            "and speculation needs them"
        )

    return refuse


if torch.version.cuda is None:
    torch.cuda.Event = torch.cpu.Event = Stopwatch
