"""Where SGLang is installed: Pythons that have it, and environments made for one version.

SGLang pins about a hundred packages and weighs 8 GB, so it never shares an environment with the
test matrix. One environment a version is made once, under a lock, and used by every later run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from servematrix.engines.base import EnvironmentProblem, Say
from servematrix.engines.guard import guarded
from servematrix.engines.log import last_lines

PROBE_SECONDS = 30.0
INSTALL_SECONDS = 3600.0
PYTHONS_FOR_UV = ">=3.11,<3.13"
"""SGLang publishes no wheels for the newest Python; uv takes one of these, or fetches it."""
UNKNOWN = "unknown"
_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*[a-z0-9.+]*")
_PROBE = """
import importlib.metadata, importlib.util
spec = importlib.util.find_spec("sglang")
if spec is None or spec.origin is None:
    raise SystemExit("no SGLang")
try:
    print(importlib.metadata.version("sglang"))
except importlib.metadata.PackageNotFoundError:
    print("unknown")
"""


class NoSglangError(EnvironmentProblem):
    """A Python cannot serve with SGLang; the message is one clause that names the Python."""


def probe(python: Path) -> str:
    """Return the version of SGLang that a Python would import, without importing it.

    `unknown` for a copy without package metadata, such as a folder on PYTHONPATH. Raises
    NoSglangError.
    """
    return ask(python, _PROBE, "SGLang")


def ask(python: Path, program: str, package: str) -> str:
    """Return what a Python prints when it runs a short program about a package it may have.

    The program ends with `no <package>` where it has none. Raises NoSglangError.
    """
    try:
        asked = subprocess.run(
            [str(python), "-c", program],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise NoSglangError(f"{python} did not answer within {PROBE_SECONDS:.0f} s") from error
    except OSError as error:
        raise NoSglangError(f"{python} cannot be run ({error.strerror})") from error
    if asked.returncode == 0:
        return asked.stdout.strip()
    told = asked.stderr.strip().splitlines()[-1:] or [f"exit status {asked.returncode}"]
    if told == [f"no {package}"]:
        raise NoSglangError(f"{python} has no {package}")
    raise NoSglangError(f"{python} cannot say whether it has {package} ({told[0]})")


def named_python(path: str) -> Path:
    """Return the Python that `--server-python` names: a path, or a program on PATH."""
    found = shutil.which(Path(path).expanduser())
    if found is None:
        raise EnvironmentProblem(f"--server-python {path}: there is no such program")
    return Path(found).absolute()


def default_pythons() -> list[Path]:
    """Return the Pythons to look at where none is named: `python3` on PATH, then our own."""
    pythons = [Path(sys.executable)]
    found = shutil.which("python3")
    if found is not None and Path(found).absolute() not in pythons:
        pythons.insert(0, Path(found).absolute())
    return pythons


class ServerEnvironment:
    """The environment of one version of SGLang, in the user's cache."""

    kind = "sglang"
    """How its folder's name begins."""
    size = "several GB"
    """What is downloaded."""

    def __init__(self, version: str, root: Path | None = None) -> None:
        if not _VERSION.fullmatch(version):
            raise EnvironmentProblem(f"--sglang {version}: not a version, such as 0.5.16")
        self.version = version
        self.folder = (root or servers_folder()) / f"{self.kind}-{version}"
        self.python = self.folder / "bin" / "python"
        # packages know their own path, so a finished environment cannot be moved into place;
        # this file, written last, tells a whole one from one whose making was cut short
        self._whole = self.folder / ".servematrix-whole"
        self.log = Path(f"{self.folder}.log")
        """What the installer that ran last has written."""

    def exists(self) -> bool:
        """Whether it is there and whole."""
        return self._whole.exists() and self.python.exists()

    def make(self, say: Say) -> None:
        """Make it where it is not there; raises EnvironmentProblem with the end of the log."""
        what = f"the environment of SGLang {self.version}"
        with making(what, self.folder, say, self.exists) as needed:
            if needed:
                self._make(what, say)

    def _make(self, what: str, say: Say) -> None:
        say(f"making {what} in {self.folder}, once; this downloads {self.size} (log: {self.log})")
        began = time.monotonic()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._install(Steps(what, self.log, began + INSTALL_SECONDS), say)
        self._whole.touch()
        say(f"SGLang {self.version} is installed ({time.monotonic() - began:.0f} s)")

    def _install(self, steps: Steps, say: Say) -> None:
        package = f"sglang=={self.version}"
        tool = installer(self.python)
        steps.run(tool.venv(self.folder))
        # some of SGLang's dependencies are published as pre-releases only
        steps.run(tool.install(*(["--prerelease=allow"] if tool.uv else []), package))


@dataclass(frozen=True)
class Installer:
    """uv where it is found, else pip: how an environment is made and filled."""

    python: Path
    """The environment's Python."""
    uv: str | None

    def venv(self, folder: Path, *, pip: bool = False) -> list[str]:
        """Return the command that makes the environment; `pip` asks for pip in it."""
        if self.uv is None:
            return [sys.executable, "-m", "venv", str(folder)]
        seed = ["--seed"] if pip else []
        return [self.uv, "venv", "--python", PYTHONS_FOR_UV, str(folder), *seed]

    def install(self, *arguments: str) -> list[str]:
        """Return the command that installs; pip and uv share the options that are used here."""
        if self.uv is None:
            return [str(self.python), "-m", "pip", "install", *arguments]
        compiled = ["--compile-bytecode", "--python", str(self.python)]
        return [self.uv, "pip", "install", *compiled, *arguments]


def installer(python: Path) -> Installer:
    """Return the installer for an environment's Python."""
    return Installer(python, shutil.which("uv"))


@dataclass(frozen=True)
class Steps:
    """Commands that make something in a given time; the log is that of the one that ran last."""

    what: str
    """Such as `the environment of SGLang 0.5.16`."""
    log: Path
    deadline: float
    """In `time.monotonic()` seconds."""

    def run(self, command: list[str]) -> None:
        """Run a command that ends with us; EnvironmentProblem with the log's end if it fails."""
        problem = self.attempt(command)
        if problem:
            raise EnvironmentProblem(
                f"{self.what} could not be made: `{' '.join(command)}` {problem} "
                f"(log: {self.log})\n{last_lines(self.log, 20)}"
            )

    def attempt(self, command: list[str]) -> str | None:
        """Run a command that ends with us; returns how it failed, None where it did not."""
        with subprocess.Popen(
            guarded(command, self.log), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as guard:
            try:
                guard.wait(max(0.0, self.deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                guard.terminate()
                return f"was not done after {INSTALL_SECONDS / 60:.0f} minutes"
            except BaseException:
                guard.terminate()
                raise
            told = guard.stdout.read().strip() if guard.stdout else ""
            return None if guard.returncode == 0 else f"failed ({told})"


@contextmanager
def making(what: str, folder: Path, say: Say, exists: Callable[[], bool]) -> Iterator[bool]:
    """Hold the lock of something that is made once; True where it is still to be made.

    Other runs wait for the one that makes it. EnvironmentProblem where that takes too long, where
    the folder cannot be written, and where it is somebody else's.
    """
    _check_owner(folder)
    if exists():
        yield False
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(what, folder, say):
            yield not exists()
    except OSError as error:
        raise EnvironmentProblem(
            f"{what} cannot be made in {folder}: {error.strerror or error}"
        ) from error


def _check_owner(folder: Path) -> None:
    """Refuse what another user may have put into a shared folder, for its programs are run.

    What belongs to root is as good as the system, and root runs what it is given, as containers do.
    """
    # the project's folder in the cache, that of all servers or models, and the one to be made
    for place in (*folder.parents[1::-1], folder):
        owner = place.stat().st_uid if place.exists() else 0
        if owner not in (0, os.geteuid()) and os.geteuid() != 0:
            raise EnvironmentProblem(
                f"{place} belongs to another user (uid {owner}), and what lies in it would be run; "
                "name a cache of your own with XDG_CACHE_HOME"
            )


def _lock(what: str, folder: Path, say: Say) -> AbstractContextManager[object]:
    lock = FileLock(f"{folder}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        say(f"another run is making {what}; waiting for it")
    try:
        return lock.acquire(timeout=INSTALL_SECONDS)
    except Timeout as error:
        raise EnvironmentProblem(
            f"another run still makes {what} after {INSTALL_SECONDS / 60:.0f} minutes "
            f"(lock: {lock.lock_file})"
        ) from error


def cache_folder() -> Path:
    """Return the user's cache of this project: server environments, model folders."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "servematrix"


def servers_folder() -> Path:
    """Return the folder of all server environments."""
    return cache_folder() / "servers"
