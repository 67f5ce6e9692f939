"""Who uses a GPU: processes and memory, ours and those of strangers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import psutil

from servematrix.gpus.gpu import GIB
from servematrix.terminal import line

_GUARD: Final = "servematrix.engines.guard"
_LONGEST: Final = 120


@dataclass(frozen=True)
class Process:
    """A process on a GPU; `memory` in bytes, 0 where the driver does not tell."""

    pid: int
    memory: int

    def is_ours(self) -> bool:
        """Whether it came from a server that one of our guards ends, or still runs."""
        try:
            parents = psutil.Process(self.pid).parents()
        except psutil.Error:
            return False
        return any(_is_guard(one) for one in parents)

    def told(self) -> str:
        """The process in words: number, owner, command, memory."""
        held = f", {self.memory / GIB:.1f} GiB" if self.memory else ""
        try:
            process = psutil.Process(self.pid)
            with process.oneshot():
                command = line(" ".join(process.cmdline()) or process.name(), _LONGEST)
                return f"process {self.pid} of {process.username()} ({command}{held})"
        except psutil.Error:
            return f"process {self.pid}, which cannot be seen from here{held}"


@dataclass(frozen=True)
class Use:
    """What a GPU is used for at one moment; `free` memory in bytes."""

    free: int
    processes: tuple[Process, ...] = ()

    def strangers(self) -> list[Process]:
        """The processes that no guard of ours ends."""
        return [one for one in self.processes if not one.is_ours()]


def _is_guard(process: psutil.Process) -> bool:
    try:
        return _GUARD in process.cmdline()
    except psutil.Error:
        return False
