"""The files in which leases are kept: locks, accounts of who holds what, tickets of who waits.

Every user of the machine writes here. So an account is read and written as what anybody may have
put in its place: links and pipes are not followed, and no more is read than an account has.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from servematrix.engines.base import EnvironmentProblem
from servematrix.gpus.gpu import Gpu

FOLDER: Final = "SERVEMATRIX_LEASES"
"""Names the folder of the leases, where containers that share GPUs share another one."""
DEFAULT_FOLDER: Final = Path("/tmp/servematrix-leases")
"""Not under TMPDIR: two runs with different ones would both hold a GPU."""
_QUEUE: Final = "queue"
_QUEUE_SECONDS: Final = 30.0
"""The queue is held for some milliseconds at a time."""
_EVERYONE: Final = 0o666
_MOST_BYTES: Final = 2**16
"""Of an account; one that wants all of a machine's GPUs has some hundred."""
_TICKET: Final = re.compile(r"ticket-(\d{12})\.lock")


def folder_of_leases() -> Path:
    """The folder, made where it is not there; EnvironmentProblem where it cannot be."""
    folder = Path(os.environ.get(FOLDER) or DEFAULT_FOLDER)
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            # for every user, and nobody removes what is another's
            folder.chmod(0o777 | stat.S_ISVTX)
    except OSError as error:
        raise EnvironmentProblem(unusable(folder, error)) from error
    return folder


def unusable(folder: Path, error: OSError) -> str:
    """Say that leases cannot be kept in a folder, and what to do."""
    return (
        f"{folder}: leases of GPUs cannot be kept there: {error.strerror}; name another folder in "
        f"{FOLDER}, the same one for all that share the GPUs"
    )


@contextmanager
def queue(folder: Path) -> Iterator[None]:
    """Hold the folder alone for a moment; EnvironmentProblem where another does for too long."""
    lock = lock_at(folder / _QUEUE)
    try:
        lock.acquire(timeout=_QUEUE_SECONDS, poll_interval=0.002)
    except Timeout as error:
        raise EnvironmentProblem(
            f"another process has held {folder / _QUEUE} for {_QUEUE_SECONDS:.0f} s; see which "
            "(fuser) and end it"
        ) from error
    except OSError as error:
        raise EnvironmentProblem(unusable(folder, error)) from error
    try:
        yield
    finally:
        lock.release()


def lock_at(path: Path) -> FileLock:
    """A lock that every user can take."""
    return FileLock(path, mode=_EVERYONE, thread_local=False)


def lock_path(folder: Path, gpu: Gpu) -> Path:
    """The lock of a GPU."""
    return folder / f"gpu-{re.sub(r'[^A-Za-z0-9-]', '_', gpu.uuid)}.lock"


def account_path(folder: Path, gpu: Gpu) -> Path:
    """The account of a GPU: who holds it, and its level of free memory."""
    return lock_path(folder, gpu).with_suffix(".json")


def ticket_path(folder: Path, number: int) -> Path:
    """The lock of a ticket; its account, which GPUs it wants, is beside it."""
    return folder / f"ticket-{number:012d}.lock"


def tickets(folder: Path) -> list[int]:
    """The numbers of all tickets, the first one first."""
    with os.scandir(folder) as entries:
        return sorted(int(found[1]) for one in entries if (found := _TICKET.fullmatch(one.name)))


def forget(ticket: Path) -> None:
    """Remove a ticket."""
    for path in (ticket.with_suffix(".json"), ticket):
        with suppress(OSError):  # another user's stays, and bars nobody
            path.unlink()


def level(folder: Path, gpu: Gpu) -> int | None:
    """Free memory in bytes that a GPU must have again; None where its last holder saw to that."""
    account = read(account_path(folder, gpu))
    free = account.get("free")
    if account.get("clean") is not False or account.get("boot") != boot():
        return None
    return free if isinstance(free, int) else None


def told(account: dict[str, Any]) -> str:
    """Who holds a GPU, in words."""
    holder = str(account.get("holder", "somebody"))
    pid, user, since = (account.get(name) for name in ("pid", "user", "since"))
    return f"{holder} (process {pid} of {user}, since {since})"


def read(path: Path) -> dict[str, Any]:
    """An account, empty where there is none, or none of ours, or it is just being written."""
    try:
        # every user may put something in its place, such as a pipe or a link
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(file, "rb") as opened:
            found = json.loads(opened.read(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write(path: Path, account: dict[str, Any]) -> None:
    """Write an account in place: another user's file can be written, and not replaced."""
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        try:
            file = os.open(path, flags | os.O_TRUNC)
        except FileNotFoundError:
            file = os.open(path, flags | os.O_CREAT | os.O_EXCL, _EVERYONE)
            os.fchmod(file, _EVERYONE)
        with os.fdopen(file, "w", encoding="utf-8") as opened:
            json.dump(account, opened)
    except OSError as error:
        raise EnvironmentProblem(unusable(path.parent, error)) from error


@cache
def boot() -> str:
    """This start of the machine: what was true before it is not true now."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
