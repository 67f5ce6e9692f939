"""A cell's server, from the lease of its GPUs until they are free again.

A launch that failed for a reason that lies in the machine is retried where `--retry-errors` says
so, and the records say it. Nothing else is ever run again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from servematrix.engines.base import Launch, MachineFailed, Say, Server, ServerFailed
from servematrix.engines.log import last_lines
from servematrix.engines.phases import Phase, StartLog
from servematrix.gpus import freedom, leases
from servematrix.gpus.leases import Lease
from servematrix.hub.download import DownloadCut
from servematrix.records import Run
from servematrix.run import Plan, PlannedCell

FREE_SECONDS: Final = 30.0
"""For a GPU's memory to be free again after its server has ended; a second is usual."""
_NO_MEMORY: Final = re.compile(r"out of memory|OutOfMemoryError|Not enough memory", re.IGNORECASE)
_HUB: Final = re.compile(r"huggingface|hf_hub|snapshot_download", re.IGNORECASE)
_CUT: Final = re.compile(
    r"IncompleteRead|ChunkedEncodingError|RemoteProtocolError|ReadTimeout|Connection ?Error"
    r"|Connection reset|Connection aborted",
    re.IGNORECASE,
)
_LOG_LINES: Final = 400
"""From the end of a log: a traceback through SGLang's processes takes some hundred."""


class During(Protocol):
    """Shows one thing that takes long, for as long as the context lasts."""

    def __call__(
        self, label: str, look: Callable[[], Phase], deadline: float | None = None
    ) -> AbstractContextManager[Any]:
        """`look` says how far it is, `deadline` how many seconds it has."""


@dataclass(frozen=True)
class Launched:
    """A server that generates, for a cell that knows its GPUs; `attempt` counts from 1."""

    cell: PlannedCell
    launch: Launch
    server: Server
    lease: Lease | None
    attempt: int

    @property
    def waited(self) -> float:
        """Seconds that the cell waited for its GPUs."""
        return self.lease.waited if self.lease else 0.0

    def end(self) -> list[str]:
        """End the server and give its GPUs back; returns what it left behind, as sentences."""
        try:
            left = self.server.stop()
        finally:
            kept = _give_back(self.lease)
        return [problem for problem in (left, kept) if problem]


class Launcher:
    """Launches the servers of a run."""

    def __init__(
        self,
        plan: Plan,
        records: Run,
        say: Say,
        during: During = lambda label, look, deadline=None: nullcontext(),
    ) -> None:
        """`during` shows a server that starts to who waits."""
        self._plan = plan
        self._records = records
        self._say = say
        self._during = during

    def launch(self, cell: PlannedCell) -> Launched:
        """Launch a cell's server and wait until it generates; its GPUs are leased first.

        Raises ServerFailed, of which MachineFailed stands after all retries, and EnvironmentProblem
        where nothing could be started. Then nothing is left of it, and no lease.
        """
        retries = self._plan.options.retry_errors
        attempt = 1
        while True:
            try:
                return self._attempt(cell, attempt)
            except (MachineFailed, DownloadCut) as problem:
                if attempt > retries:
                    raise
                first = str(problem).partition("\n")[0]
                self._records.write(
                    "retry", cell=cell.id, attempt=attempt, retries=retries, problem=first
                )
                self._say(f"{cell.id}: retry {attempt} of {retries}, for: {first}")
                attempt += 1

    def _attempt(self, cell: PlannedCell, attempt: int) -> Launched:
        options, deadline = self._plan.options, self._plan.start_deadline
        log = self._records.unused(cell.slug, ".log")
        # before there is a lease: a download takes long, and needs no GPU
        self._plan.engine.prepare(cell.launch(options, log=log, deadline=deadline), self._say)
        lease = self._lease(cell)
        try:
            if lease is not None:
                cell = replace(cell, gpus=lease.gpus)
            launch = cell.launch(options, log=log, deadline=deadline)
            with self._during(*_start(cell, self._plan, log), deadline):
                server = self._plan.engine.start(launch)
            return Launched(cell, launch, server, lease, attempt)
        except ServerFailed as failure:
            cause = machine_cause("\n".join([str(failure), last_lines(log, _LOG_LINES)]), lease)
            self._tell(cell, _give_back(lease))
            if cause is not None:
                raise MachineFailed(f"{cell.id}: {cause}. {failure}") from failure
            raise
        except BaseException:
            self._tell(cell, _give_back(lease))
            raise

    def _lease(self, cell: PlannedCell) -> Lease | None:
        if not cell.candidates:
            return None
        return leases.take(
            cell.candidates,
            len(cell.gpus),
            holder=f"cell {cell.id} of {self._records.folder.absolute()}",
            seconds=self._plan.options.gpu_deadline,
            say=lambda told: self._say(f"{cell.id}: {told}"),
        )

    def _tell(self, cell: PlannedCell, kept: str | None) -> None:
        if kept:
            self._say(f"{cell.id}: {kept}")


def _start(cell: PlannedCell, plan: Plan, log: Path) -> tuple[str, Callable[[], Phase]]:
    """What the start of a server is called, and what says how far it is."""
    url = plan.options.base_url
    if url is not None:
        return f"{cell.id}: {url} is asked", lambda: Phase("waits for a first token")
    return f"{cell.id}: server starts", StartLog(log).phase


def machine_cause(told: str, lease: Lease | None) -> str | None:
    """Why a server that said this failed, where the machine is at fault; None where it is not.

    Memory that did not suffice is the server's own fault, unless a stranger came to its GPU.
    """
    if _HUB.search(told) and _CUT.search(told):
        return "its download was cut"
    if lease is None or not _NO_MEMORY.search(told):
        return None
    used = freedom.uses(lease.gpus)
    strangers = [
        f"GPU {gpu.index}: {process.told()}"
        for gpu in lease.gpus
        for process in (used[gpu.uuid].strangers() if gpu.uuid in used else ())
    ]
    if not strangers:
        return None
    return f"it found too little memory, and a stranger came to its GPU ({'; '.join(strangers)})"


def _give_back(lease: Lease | None) -> str | None:
    """Return a lease once its GPUs are free; what is kept on them after some time is returned."""
    if lease is None:
        return None
    kept: str | None = "it was not seen whether they are free"
    try:
        kept = freedom.wait_until_free(lease.gpus, lease.levels, FREE_SECONDS)
    finally:
        lease.release(clean=kept is None)
    return kept
