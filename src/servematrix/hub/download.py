"""Brings files of a repository to disk: one process a host downloads, the others wait for it."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from servematrix import outside, user
from servematrix.engines.base import EnvironmentProblem, Say
from servematrix.engines.guard import for_server, guarded
from servematrix.engines.log import last_lines
from servematrix.hub import cache as caches
from servematrix.hub.cache import Repository
from servematrix.redaction import Secrets, is_secret
from servematrix.terminal import line

DOWNLOAD_SECONDS: Final = 6 * 3600.0
"""For one download, and for a wait for another's: 1 TB over a line of 400 Mbit/s."""
_LONGEST: Final = 300
_ADVICE: Final[Mapping[str, str]] = {
    "gated": "access to it is restricted: accept its conditions on its page, and give a token "
    "that may read it in HF_TOKEN",
    "missing": "there is none of that name, or it is private: look at its spelling, or give a "
    "token that may read it in HF_TOKEN",
    "revision": "it has no such revision",
    "disk": "the disk does not take it: free some space, or name another cache with HF_HOME",
    "nothing": "it has nothing to download",
    "unreachable": "the hub cannot be reached: look at the network, HF_ENDPOINT and the proxies, "
    "or name a folder instead",
    "cut": "the download was cut; run again: the files that are whole are kept",
    "other": "it cannot be downloaded",
}

_WITHHELD: Final = ("unreachable", "gated", "missing")
"""What the server would meet too, and does not mind where its files are there."""


class DownloadCut(EnvironmentProblem):
    """A download did not come to its end for a reason that may pass; trying again may help."""


def ensure(
    wanted: Repository,
    variables: Mapping[str, str],
    say: Say,
    *,
    seconds: float = DOWNLOAD_SECONDS,
) -> None:
    """Have files of a repository in the cache of a program with these variables.

    No hub is asked where they were seen whole there before. Where HF_HUB_OFFLINE is set, or the hub
    does not give them, what looks whole is taken as it is. `seconds` is for the download, and for
    the wait for another's.

    Raises DownloadCut where another try may help, else EnvironmentProblem.
    """
    cache = caches.folder(variables)
    lacks = caches.lacks(wanted, cache)
    if lacks is None:
        return
    if caches.is_offline(variables):
        if not caches.looks_whole(wanted, cache):
            raise EnvironmentProblem(
                f"HF_HUB_OFFLINE is set, and {wanted} is not complete in {cache} ({lacks}); "
                f"unset it, or run `{_command(wanted)}` on a machine with a network and bring "
                f"{wanted.within(cache).name} here"
            )
        return
    try:
        with _alone(wanted, cache, say, seconds) as work:
            if caches.lacks(wanted, cache) is not None:
                _download(wanted, cache, variables, say, work, seconds)
    except OSError as error:
        why = f"{cache} cannot be written ({error.strerror or error})"
        if not caches.looks_whole(wanted, cache):
            raise EnvironmentProblem(
                f"{wanted}: {why}; name another cache with HF_HOME, or a folder in its place"
            ) from error
        say(f"{why}; {wanted} in it looks whole, and is taken as it is")


def _command(wanted: Repository) -> str:
    """What a person types to have it downloaded."""
    kind = ["--repo-type", "dataset"] if wanted.kind == "dataset" else []
    return shlex.join(["hf", "download", wanted.name, "--revision", wanted.revision, *kind])


@contextmanager
def _alone(wanted: Repository, cache: Path, say: Say, seconds: float) -> Iterator[Path]:
    """Hold the lock of a download; gives a path whose endings are for files of ours beside it.

    OSError where the cache cannot be written.
    """
    work = cache / ".locks" / "servematrix" / wanted.key
    holder = work.with_name(f"{work.name}.holder")
    lock = FileLock(work.with_name(f"{work.name}.lock"))
    try:
        work.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"{_named(holder)} downloads {wanted}; waiting for it")
            lock.acquire(timeout=seconds)
    except Timeout as error:
        raise EnvironmentProblem(
            f"{wanted} is not there after {seconds:.0f} s of waiting: {_named(holder)} still "
            f"downloads it (lock: {lock.lock_file}); see what it does, or end it"
        ) from error
    try:
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with suppress(OSError):
            who = f"process {os.getpid()} of {user.name()} on {socket.gethostname()}"
            holder.write_text(f"{who} since {since}")
        yield work
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def _named(holder: Path) -> str:
    """Who holds the lock, as that process said."""
    with suppress(OSError, ValueError):
        return line(holder.read_text(), _LONGEST) or "another process"
    return "another process"


def _download(
    wanted: Repository,
    cache: Path,
    variables: Mapping[str, str],
    say: Say,
    work: Path,
    seconds: float,
) -> None:
    log = work.with_name(f"{work.name}.log")
    say(f"downloading {wanted} into {cache}, once (log: {log})")
    began, before = time.monotonic(), _bytes_of(wanted, cache)
    answer = _asked(wanted, variables, work.with_name(f"{work.name}.json"), log, seconds)
    problem = answer.get("problem")
    if problem in _WITHHELD and caches.looks_whole(wanted, cache):
        say(f"{wanted}: {_ADVICE[problem]}; what is in {cache} looks whole, and is taken as it is")
        return
    if problem is not None:
        told = Secrets.inherited(variables).redact(str(answer.get("told")))
        kind = DownloadCut if problem in ("unreachable", "cut") else EnvironmentProblem
        advice = _ADVICE.get(problem, _ADVICE["other"])
        raise kind(f"{wanted}: {advice} ({line(told, _LONGEST)}; log: {log})")
    listed: dict[str, int] = answer["files"]
    with suppress(OSError):  # without the list the hub is asked again the next time
        caches.keep_list(wanted, cache, answer["commit"], listed)
    lacks = caches.lacks(wanted, cache)
    if lacks is not None:
        raise DownloadCut(f"{wanted}: {_ADVICE['cut']} ({lacks} in {cache})")
    say(
        f"{wanted} is there: {len(listed)} files of {_size(sum(listed.values()))}, "
        f"{_size(max(0, _bytes_of(wanted, cache) - before))} of it downloaded in "
        f"{time.monotonic() - began:.1f} s"
    )


def _asked(
    wanted: Repository, variables: Mapping[str, str], answer: Path, log: Path, seconds: float
) -> dict[str, Any]:
    """What `fetch` answered in a process that ends with us."""
    answer.unlink(missing_ok=True)
    request = json.dumps(asdict(wanted))
    command = [sys.executable, "-P", "-m", "servematrix.hub.fetch", request, str(answer)]
    # a bar of progress is no line of a log
    given = {**variables, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    own = {name: value for name, value in given.items() if os.environ.get(name) != value}
    with subprocess.Popen(
        guarded(command, log, secrets=[name for name in own if is_secret(name)]),
        env={**os.environ, **for_server(own)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as guard:
        try:
            guard.wait(seconds)
        except subprocess.TimeoutExpired:
            guard.terminate()
            return {"problem": "cut", "told": f"it was not done after {seconds:.0f} s"}
        except BaseException:
            guard.terminate()
            raise
        told = guard.stdout.read().strip() if guard.stdout else ""
    try:
        found: dict[str, Any] = json.loads(outside.raw(answer))
    except (OSError, ValueError):
        # a bug of ours ends with a traceback, and is tried again in vain
        problem = "other" if told.startswith("exit") else "cut"
        return {"problem": problem, "told": f"the download ended ({told}): {last_lines(log, 3)}"}
    return found


def _bytes_of(wanted: Repository, cache: Path) -> int:
    """Bytes of the files that are there at this revision."""
    snapshot = wanted.snapshot(cache)
    found = snapshot.rglob("*") if snapshot else ()
    return sum(path.stat().st_size for path in found if path.is_file())


def _size(count: int) -> str:
    """A number of bytes for people, in powers of ten.

    >>> _size(16_060_000_000), _size(512)
    ('16.1 GB', '512 B')
    """
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if count >= 1000**power:
            return f"{count / 1000**power:.1f} {unit}"
    return f"{count} B"
