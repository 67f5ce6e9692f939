"""A server as a process of ours: started under the guard, waited for, stopped for certain.

mirakuru tells how to start a process and to know that it is ready; added here are the guard
between us and the server, a sentence for each way to fail, and a log that is kept.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Self

import psutil
from mirakuru import Executor, TimeoutExpired

from servematrix.client import Client, ClientError
from servematrix.engines import ports, ready, shared_memory
from servematrix.engines.base import EnvironmentProblem, Launch, ServerFailed
from servematrix.engines.guard import for_server, guarded
from servematrix.engines.log import last_lines
from servematrix.redaction import is_secret
from servematrix.terminal import line

POLL_SECONDS = 0.05
STOP_GRACE_SECONDS = 3.0
"""From SIGTERM to SIGKILL for the server."""
STOP_SECONDS = 8.0
"""For the guard to end the server and itself; it needs at most the grace and two seconds."""
INFO_SECONDS = 10.0
LONGEST_VERSION = 80
WORTH_TELLING = 2**20
"""Bytes of kept shared memory from which a server is told of; SGLang 0.5.16 keeps 16 KiB."""

_LETTERS_FOR_DIGITS = str.maketrans("0123456789", "ghijklmnop")


class ServerDiedError(Exception):
    """The server ended while it was waited for."""


class ForeignServerError(Exception):
    """What answers on the server's port is not the server that was started."""


class GuardedExecutor(Executor):
    """The server's guard, and through it the server; started means that it generates."""

    def __init__(self, launch: Launch, command: Sequence[str], variables: Mapping[str, str]):
        self.base_url = f"http://{ports.url_host(launch.host)}:{launch.port}"
        self.lacks = "it was not asked yet"
        self._port = launch.port
        self._api_key = os.environ.get(launch.api_key_env) if launch.api_key_env else None
        self.kept: dict[str, int] = {}
        self._ending: str | None = None
        secrets = [launch.api_key_env] if launch.api_key_env else []
        secrets += [*launch.secret_variables, *(name for name in variables if is_secret(name))]
        super().__init__(
            guarded(command, launch.log, grace=STOP_GRACE_SECONDS, secrets=secrets),
            timeout=launch.deadline_seconds,
            sleep=POLL_SECONDS,
            envvars=for_server(variables),
            expected_returncode=0,
        )
        # mirakuru marks what it starts with "PID:UUID", and at exit kills all on the machine whose
        # mark contains its own PID, as a part of another number too; without a digit none does
        self._uuid = "servematrix-" + uuid.uuid4().hex.translate(_LETTERS_FOR_DIGITS)

    def pre_start_check(self) -> bool:
        """Nothing to find out: the port was looked at before."""
        return False

    def check_subprocess(self) -> bool:
        """Say whether the server is ready; raises where it never will be."""
        ending = self.ending()
        if ending is not None:
            raise ServerDiedError(ending)
        return self.after_start_check()

    def after_start_check(self) -> bool:
        """Ask the server whether it is ready."""
        deadline = time.monotonic() + self._remaining_timeout
        lacks = ready.check(self.base_url, self._api_key, deadline)
        if lacks is None:
            lacks = self._doubt()
        self.lacks = lacks or ""
        return lacks is None

    def _doubt(self) -> str | None:
        """Return why it may not be our server that answered; raises where it is another one.

        The port was free when it was chosen; a server that loads for a minute may find it taken.
        """
        ours = {process.pid for process in _tree(self.process)}
        owners = ports.owners(self._port)
        if not owners or ours.intersection(owners):
            return None
        if owners == [None]:
            return f"port {self._port} is held by a process that cannot be seen"
        raise ForeignServerError(
            f"another process took port {self._port}{ports.named(owners)} and answers in its "
            "place; start again, or name a port"
        )

    def ending(self) -> str | None:
        """Return how the server ended, such as `exit status 3`; None while it runs."""
        if self._ending is None and self.process is not None and self.process.poll() is not None:
            told = self.process.stdout.read() if self.process.stdout else ""
            ending, *kept = told.splitlines() or [""]
            self.kept = dict(map(_kept, kept))
            self._ending = _in_words(ending.strip(), self.process.returncode)
        return self._ending

    def kill(self, wait: bool = True, sig: int | None = None) -> Self:
        """End the server in good order if the guard still can, else by force."""
        if sig is None and self.process is not None and self.running():
            os.killpg(self.process.pid, signal.SIGTERM)
            self._wait_for_the_guard()
            self.ending()
        return super().kill(wait, sig)

    def stop(self, stop_signal: int | None = None, expected_returncode: int | None = None) -> Self:
        """End the server and everything it started; any exit status is fine."""
        self.ending()
        return self.kill()

    def _wait_for_the_guard(self) -> None:
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)


class ProcessServer:
    """A server that we started and that generates."""

    def __init__(
        self,
        executor: GuardedExecutor,
        launch: Launch,
        engine: str,
        command: Sequence[str],
        startup_seconds: float,
    ) -> None:
        self.base_url = executor.base_url
        self.command = list(command)
        self.startup_seconds = startup_seconds
        self._executor = executor
        self._launch = launch
        self._engine = engine
        self._stopped = False

    def died(self) -> str | None:
        """Return None while the server lives or after `stop`, else why not, with its log's end."""
        ending = None if self._stopped else self._executor.ending()
        if ending is None:
            return None
        return _failure(self._engine, self._launch, f"died: {ending}")

    def versions(self) -> dict[str, str]:
        """Return what the server reports of itself in `/server_info`."""
        return reported_versions(self.base_url, self._launch.api_key_env)

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the server's log."""
        return last_lines(self._launch.log, lines)

    def stop(self) -> str | None:
        """End the server and all it started; does nothing the second time.

        Returns what it kept where that is shared memory worth the name; it is removed by then.
        """
        if self._stopped:
            return None
        self._stopped = True
        self._executor.stop()
        kept = self._executor.kept
        if sum(kept.values()) < WORTH_TELLING:
            return None
        size = sum(kept.values()) / 2**20
        return (
            f"the {self._engine} server of {self._launch.cell} kept {size:.1f} MiB of shared memory"
            f" when it was gone ({', '.join(sorted(kept))} in {shared_memory.ROOT}); it is removed"
            " now, but a server that runs without us would fill the machine"
        )


def start(
    engine: str, launch: Launch, command: Sequence[str], variables: Mapping[str, str]
) -> ProcessServer:
    """Start a server and wait until it generates; `launch.port` is the real one.

    Raises EnvironmentProblem where its log cannot be written, ServerFailed where the server dies,
    refuses, or is not ready in time; then nothing of it is left running.
    """
    try:
        launch.log.parent.mkdir(parents=True, exist_ok=True)
        launch.log.touch()
    except OSError as error:
        raise EnvironmentProblem(
            f"the server's log {launch.log} cannot be written: {error.strerror}"
        ) from error
    executor = GuardedExecutor(launch, command, variables)
    began = time.monotonic()
    try:
        executor.start()
    except BaseException as error:
        seconds = time.monotonic() - began
        executor.stop()
        what = _what_went_wrong(error, executor, launch, seconds)
        if what is None:
            raise
        raise ServerFailed(_failure(engine, launch, what)) from error
    return ProcessServer(executor, launch, engine, command, time.monotonic() - began)


def reported_versions(base_url: str, api_key_env: str | None) -> dict[str, str]:
    """Return what serves there and its version, as `/server_info` tells; empty where it does not.

    The embedded server says of itself that its device is simulated; all others count as SGLang.
    """
    key = os.environ.get(api_key_env) if api_key_env else None
    try:
        info = Client(base_url, api_key=key, timeout=INFO_SECONDS).server_info()
    except ClientError:
        return {}
    version = info.get("version")
    name = "reference" if info.get("device") == "simulated" else "sglang"
    return {name: line(version, LONGEST_VERSION)} if isinstance(version, str) else {}


def _what_went_wrong(
    error: BaseException, executor: GuardedExecutor, launch: Launch, seconds: float
) -> str | None:
    if isinstance(error, ServerDiedError):
        return f"died after {seconds:.1f} s: {error}"
    if isinstance(error, ready.RefusedError | ForeignServerError):
        return f"was of no use after {seconds:.1f} s: {error}"
    if isinstance(error, TimeoutExpired):
        return f"was not ready within {launch.deadline_seconds:g} s: {executor.lacks}"
    return None


def _failure(engine: str, launch: Launch, what: str) -> str:
    sentence = f"the {engine} server of {launch.cell} {what} (log: {launch.log})"
    tail = last_lines(launch.log, 20)
    return f"{sentence}\n{tail}" if tail else f"{sentence}; the log is empty"


def _in_words(told: str, returncode: int) -> str:
    word, _, number = told.partition(" ")
    if word == "exit":
        return f"exit status {number}"
    if word == "signal":
        return f"killed by {_signal_name(int(number))}"
    if word == "left":
        return f"its processes {number} could not be ended"
    if returncode < 0:
        return f"its guard was killed by {_signal_name(-returncode)}"
    return told or f"its guard failed with exit status {returncode}"


def _kept(line: str) -> tuple[str, int]:
    _, size, name = line.split(" ", 2)
    return name, int(size)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _tree(process: subprocess.Popen[str] | None) -> list[psutil.Process]:
    """Return all that came from a process."""
    try:
        return psutil.Process(process.pid).children(recursive=True) if process else []
    except psutil.NoSuchProcess:
        return []
