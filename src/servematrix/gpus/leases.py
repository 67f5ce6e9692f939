"""The right to use GPUs, kept in files that all processes of a machine share.

A lease is a lock on a file that is named after the GPU's UUID. The system frees it however its
holder ends, so a killed run leaves no GPU behind. Who holds it, and how much memory was free
before, stands in a file beside it.

Who finds no GPU takes a ticket, which is a lock of the same sort, and is served in the order of the
tickets: as long as an earlier one waits for a GPU, no later one takes it. All that are needed are
taken at once or none, under one lock for the whole folder, so nobody holds one GPU while waiting
for another, and there is no deadlock.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from servematrix import user
from servematrix.engines.base import EnvironmentProblem, MachineFailed, Say
from servematrix.gpus import freedom
from servematrix.gpus import lease_files as files
from servematrix.gpus.gpu import Gpu

POLL_SECONDS: Final = 0.02
"""A lock that is freed is not announced."""
LOOK_SECONDS: Final = 0.5
"""From one question to the driver to the next while waiting."""


@dataclass(frozen=True)
class Lease:
    """GPUs that nobody else uses until `release`; `waited` in seconds."""

    gpus: tuple[Gpu, ...]
    levels: dict[str, int]
    """Free memory in bytes by UUID, when the lease was taken."""
    waited: float
    _locks: tuple[FileLock, ...]
    _folder: Path

    def release(self, *, clean: bool = True) -> None:
        """Give the GPUs back; does nothing the second time.

        `clean` where they were seen free; else the next one waits until their memory is back.
        """
        for gpu, lock in zip(self.gpus, self._locks, strict=True):
            if lock.is_locked:
                account = {"free": self.levels[gpu.uuid], "clean": clean, "boot": files.boot()}
                # an account that cannot be written says what was: the next one waits for memory
                with suppress(EnvironmentProblem):
                    files.write(files.account_path(self._folder, gpu), account)
                lock.release()


def take(
    candidates: Sequence[Gpu],
    number: int,
    *,
    holder: str,
    seconds: float,
    say: Say = lambda _: None,
) -> Lease:
    """Take `number` of the GPUs, all at once, the first of `candidates` that are free.

    `holder` says who has them, for others that wait. Waits up to `seconds`, in the order in which
    takers came; `say` is told whom for. MachineFailed where the time is over, with the same;
    EnvironmentProblem where the folder of the leases cannot be used.
    """
    return _Taking(files.folder_of_leases(), candidates, number, holder, say).take(seconds)


def held(folder: Path | None = None) -> dict[str, str]:
    """Who holds a lease now, by the GPU's UUID, for people; in the machine's folder of leases."""
    folder = folder or files.folder_of_leases()
    found = {}
    with files.queue(folder):
        for path in sorted(folder.glob("gpu-*.lock")):
            lock = files.lock_at(path)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                told = files.read(path.with_suffix(".json"))
                found[str(told.get("uuid", path.stem))] = files.told(told)
            else:
                lock.release()
    return found


@dataclass
class _Taking:
    """One attempt to take GPUs, from the first look to the lease."""

    folder: Path
    candidates: Sequence[Gpu]
    number: int
    holder: str
    say: Say
    _ticket: int | None = None
    _ticket_lock: FileLock | None = None
    _uses: dict[str, Any] = field(default_factory=dict)
    _looked: float = float("-inf")
    _behind: Path | None = None

    def take(self, seconds: float) -> Lease:
        began = time.monotonic()
        try:
            while True:
                looked = self._look()
                with files.queue(self.folder):
                    lease = self._try(began, fresh=looked)
                    if lease is not None:
                        return lease
                    late = time.monotonic() - began >= seconds
                    why = self._why() if late or self._ticket is None else ""
                    if self._ticket is None and not late:
                        self._draw()
                if late:
                    raise MachineFailed(
                        f"no GPU after {seconds:g} s: {self._needs()}; {why}. Wait longer with "
                        "--gpu-deadline SECONDS, end what is not needed, or choose others with "
                        "--gpus"
                    )
                if why:
                    self.say(f"waits for {self._needs()}; {why}")
                self._rest()
        except OSError as error:
            raise EnvironmentProblem(files.unusable(self.folder, error)) from error
        finally:
            self._leave()

    def _rest(self) -> None:
        """Wait a little; behind a ticket that wants all the same GPUs, until that is gone.

        Else everybody in a long queue would look through all of it all the time. Now and then they
        do: the holder of that ticket may have been killed.
        """
        time.sleep(POLL_SECONDS)
        until = time.monotonic() + LOOK_SECONDS
        while self._behind is not None and self._behind.exists() and time.monotonic() < until:
            time.sleep(POLL_SECONDS)

    def _look(self) -> bool:
        """Ask the driver who uses the GPUs, now and then; returns whether it was asked."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return False
        self._uses, self._looked = freedom.uses(self.candidates), now
        return True

    def _try(self, began: float, *, fresh: bool) -> Lease | None:
        """Take them, or none; only while the queue is held.

        `fresh`: the driver was just asked. Else it is asked again of those that would be taken, for
        the last holder's server may have been there at the last look.
        """
        barred = self._barred()
        locks: dict[Gpu, FileLock] = {}
        for gpu in self.candidates:
            if len(locks) == self.number:
                break
            if gpu.uuid in barred or (fresh and self._occupied(gpu)):
                continue
            lock = files.lock_at(files.lock_path(self.folder, gpu))
            with suppress(Timeout):
                lock.acquire(blocking=False)
                locks[gpu] = lock
        if not fresh:
            self._uses |= freedom.uses(list(locks))
        if len(locks) == self.number and not any(map(self._occupied, locks)):
            return self._leased(locks, began)
        for lock in locks.values():
            lock.release()
        return None

    def _leased(self, locks: dict[Gpu, FileLock], began: float) -> Lease:
        levels = {gpu.uuid: self._uses[gpu.uuid].free for gpu in locks}
        for gpu in locks:
            account = {
                "uuid": gpu.uuid,
                "holder": self.holder,
                "pid": os.getpid(),
                "user": user.name(),
                "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
                "free": levels[gpu.uuid],
                "clean": False,
                "boot": files.boot(),
            }
            files.write(files.account_path(self.folder, gpu), account)
        waited = time.monotonic() - began
        return Lease(tuple(locks), levels, waited, tuple(locks.values()), self.folder)

    def _occupied(self, gpu: Gpu) -> str | None:
        return freedom.occupied(self._uses.get(gpu.uuid), files.level(self.folder, gpu))

    def _barred(self) -> set[str]:
        """The GPUs that takers who came before wait for."""
        barred: set[str] = set()
        wanted = {gpu.uuid for gpu in self.candidates}
        self._behind = None
        for number in files.tickets(self.folder):
            if number == self._ticket:
                break
            path = files.ticket_path(self.folder, number)
            lock = files.lock_at(path)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                wants = set(map(str, files.read(path.with_suffix(".json")).get("wants", ())))
                self._behind = path if wants >= wanted else self._behind
                barred |= wants
            else:
                files.forget(path)  # its holder is dead
                lock.release()
        return barred

    def _draw(self) -> None:
        """Take a ticket; only while the queue is held."""
        self._ticket = max(files.tickets(self.folder), default=0) + 1
        path = files.ticket_path(self.folder, self._ticket)
        files.write(path.with_suffix(".json"), {"wants": [gpu.uuid for gpu in self.candidates]})
        self._ticket_lock = files.lock_at(path)
        self._ticket_lock.acquire(blocking=False)

    def _leave(self) -> None:
        if self._ticket_lock is not None and self._ticket is not None:
            files.forget(files.ticket_path(self.folder, self._ticket))
            self._ticket_lock.release()

    def _needs(self) -> str:
        of = ", ".join(str(gpu.index) for gpu in self.candidates)
        return f"{self.number} of GPU {of}" if len(self.candidates) > 1 else f"GPU {of}"

    def _why(self) -> str:
        """Who has each of the GPUs."""
        return "; ".join(f"GPU {gpu.index}: {self._whose(gpu)}" for gpu in self.candidates)

    def _whose(self, gpu: Gpu) -> str:
        lock = files.lock_at(files.lock_path(self.folder, gpu))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return f"leased by {files.told(files.read(files.account_path(self.folder, gpu)))}"
        lock.release()
        return self._occupied(gpu) or "somebody waits for it who came before"
