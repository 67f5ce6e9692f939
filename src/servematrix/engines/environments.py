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
from contextlib import AbstractContextManager
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
    raise SystemExit("no sglang")
try:
    print(importlib.metadata.version("sglang"))
except importlib.metadata.PackageNotFoundError:
    print("unknown")
"""


class NoSglangError(EnvironmentProblem):
    """A Python cannot import SGLang; the message is one clause that names the Python."""


def probe(python: Path) -> str:
    """Return the version of SGLang that a Python would import, without importing it.

    `unknown` for a copy without package metadata, such as a folder on PYTHONPATH. Raises
    NoSglangError.
    """
    try:
        asked = subprocess.run(
            [str(python), "-c", _PROBE],
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
    if told == ["no sglang"]:
        raise NoSglangError(f"{python} has no SGLang")
    raise NoSglangError(f"{python} cannot say whether it has SGLang ({told[0]})")


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

    def __init__(self, version: str, root: Path | None = None) -> None:
        if not _VERSION.fullmatch(version):
            raise EnvironmentProblem(f"--sglang {version}: not a version, such as 0.5.16")
        self.version = version
        self._root = root or servers_folder()
        self.folder = self._root / f"sglang-{version}"
        self.python = self.folder / "bin" / "python"
        # packages know their own path, so a finished environment cannot be moved into place;
        # this file, written last, tells a whole one from one whose making was cut short
        self._whole = self.folder / ".servematrix-whole"

    def exists(self) -> bool:
        """Whether it is there and whole."""
        return self._whole.exists() and self.python.exists()

    def make(self, say: Say) -> None:
        """Make it where it is not there; raises EnvironmentProblem with the end of the log."""
        if self.exists():
            return
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with self._lock(say):
                if not self.exists():
                    self._make(say)
        except OSError as error:
            raise EnvironmentProblem(
                f"the environment of SGLang {self.version} cannot be made in {self.folder}: "
                f"{error.strerror or error}"
            ) from error

    def _lock(self, say: Say) -> AbstractContextManager[object]:
        lock = FileLock(f"{self.folder}.lock")
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            say(f"another run is making the environment of SGLang {self.version}; waiting for it")
        try:
            return lock.acquire(timeout=INSTALL_SECONDS)
        except Timeout as error:
            raise EnvironmentProblem(
                f"another run still makes the environment of SGLang {self.version} after "
                f"{INSTALL_SECONDS / 60:.0f} minutes (lock: {lock.lock_file})"
            ) from error

    def _make(self, say: Say) -> None:
        log = Path(f"{self.folder}.log")
        say(
            f"making the environment of SGLang {self.version} in {self.folder}, once; "
            f"this downloads several GB (log: {log})"
        )
        began = time.monotonic()
        shutil.rmtree(self.folder, ignore_errors=True)
        deadline = began + INSTALL_SECONDS
        for command in self._commands():
            problem = _run(command, log, deadline)
            if problem:
                raise EnvironmentProblem(
                    f"the environment of SGLang {self.version} could not be made: "
                    f"`{' '.join(command)}` {problem} (log: {log})\n{last_lines(log, 20)}"
                )
        self._whole.touch()
        say(f"SGLang {self.version} is installed ({time.monotonic() - began:.0f} s)")

    def _commands(self) -> list[list[str]]:
        package = f"sglang=={self.version}"
        uv = shutil.which("uv")
        if uv is None:
            return [
                [sys.executable, "-m", "venv", str(self.folder)],
                [str(self.python), "-m", "pip", "install", package],
            ]
        # some of SGLang's dependencies are published as pre-releases only
        install = [uv, "pip", "install", "--prerelease=allow", "--python", str(self.python)]
        return [
            [uv, "venv", "--python", PYTHONS_FOR_UV, str(self.folder)],
            [*install, package],
        ]


def servers_folder() -> Path:
    """Return the folder of all server environments."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "servematrix" / "servers"


def _run(command: list[str], log: Path, deadline: float) -> str | None:
    """Run a command that ends with us; returns how it failed, None where it did not."""
    with subprocess.Popen(
        guarded(command, log), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as guard:
        try:
            guard.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            guard.terminate()
            return f"was not done after {INSTALL_SECONDS / 60:.0f} minutes"
        except BaseException:
            guard.terminate()
            raise
        told = guard.stdout.read().strip() if guard.stdout else ""
        return None if guard.returncode == 0 else f"failed ({told})"
