"""The process between us and a server, so that no server outlives its run.

A test run can end in ways that no code of its own survives (SIGKILL, out of memory). This small
supervisor starts the server, writes its log and waits for one of: the server ends, its own stdin
closes or its parent changes (the run died), it is asked to stop by a signal. Then it ends all
processes that came from the server, those that left its process group included, and tells on
stdout how the server ended.

It is run as `python -m servematrix.engines.guard --log FILE ... -- COMMAND ...` and imports little,
because each cell waits for it to start. Variables that are for the command alone come with
`FOR_SERVER` before their names: `LD_PRELOAD` or `PYTHONPATH` of a configuration would change the
guard itself, and on its command line everybody could read them.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from servematrix.engines import shared_memory
from servematrix.engines.log import BoundedLog, Redactor
from servematrix.redaction import of_variables

FOR_SERVER = "SERVEMATRIX_FOR_SERVER_"
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CANNOT_START = 127
ORPHAN_GRACE_SECONDS = 0.5
"""What children get for themselves once the server's main process is gone."""
GIVE_UP_SECONDS = 1.5
"""After SIGKILL: a process that is still there hangs in the kernel and is only reported."""
PARENT_CHECK_SECONDS = 1.0
"""stdin tells at once that the parent died, unless a fork of the parent holds the pipe open."""
LOOK_SECONDS = (1.0, 60.0)
"""From one look at the server's shared memory to the next: at first, and at most; each doubles."""


def guarded(
    command: Sequence[str], log: Path, *, grace: float = 3.0, secrets: Sequence[str] = ()
) -> list[str]:
    """Return the command line that runs a command under a guard.

    `secrets` are names of the command's variables whose values must not reach the log, beside those
    that `redaction` knows by their names. The guard's stdin must be a pipe that the caller holds
    open for as long as the command may live.
    """
    redact = [f"--redact={name}" for name in secrets]
    guard = [sys.executable, "-P", "-m", "servematrix.engines.guard"]
    return [*guard, f"--log={log}", f"--grace={grace}", *redact, "--", *command]


def for_server(variables: Mapping[str, str]) -> dict[str, str]:
    """Return variables as the guard's environment must have them to reach the command alone."""
    return {f"{FOR_SERVER}{name}": value for name, value in variables.items()}


def server_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the command's environment, from that of the guard."""
    own = {name: value for name, value in variables.items() if not name.startswith(FOR_SERVER)}
    given = variables.keys() - own.keys()
    return own | {name.removeprefix(FOR_SERVER): variables[name] for name in given}


class CannotStartError(Exception):
    """The command cannot be run at all."""


class Guard:
    """One server under supervision."""

    def __init__(
        self,
        log: BoundedLog,
        redactor: Redactor,
        grace: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`environment` is the server's; None for that of the guard."""
        self._environment = environment
        self._log = log
        self._redactor = redactor
        self._grace = grace
        self._parent = os.getppid()
        self._status: int | None = None
        self._asked = False
        self._by_itself = False
        self._kill_at: float | None = None
        self._killed = False
        self._orphans_asked = False
        self._segments: set[shared_memory.Segment] = set()
        self._look_at, self._look_pause = time.monotonic(), LOOK_SECONDS[0]
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._selector = selectors.PollSelector()
        self._wakeup, self._wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._output, self._output_write = os.pipe()
        os.set_blocking(self._output, False)

    def run(self, command: Sequence[str]) -> str:
        """Start the server and stay until all of it is gone; returns how it ended.

        `exit N`, `signal N`, or `stopped` where it ended because we were told to.
        """
        # orphans of the server become our children: found, ended and waited for like the rest
        self._libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._listen()
        self._start(command)
        while not self._over():
            self._wait()
            self._look()
            self._reap()
            self._end_tree()
        while self._pump():
            pass
        self._log.write(self._redactor.close())
        return self._ending()

    def _listen(self) -> None:
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._selector.register(self._output, selectors.EVENT_READ)
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ)

    def _ask(self, *_: object) -> None:
        self._asked = True

    def _start(self, command: Sequence[str]) -> None:
        guard = os.getpid()

        def die_with_the_guard() -> None:
            self._libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != guard:
                os._exit(CANNOT_START)

        try:
            self._server = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=self._output_write,
                stderr=self._output_write,
                start_new_session=True,
                preexec_fn=die_with_the_guard,
            )
        except OSError as error:
            raise CannotStartError(f"cannot start {command[0]}: {error.strerror}") from error
        os.close(self._output_write)

    def _wait(self) -> None:
        timeout = PARENT_CHECK_SECONDS
        if self._kill_at is not None:
            timeout = min(0.1, max(0.0, self._kill_at - time.monotonic()))
        for key, _ in self._selector.select(timeout):
            if key.fd == self._output:
                self._pump()
            elif not _drain(key.fd):
                self._selector.unregister(key.fd)
                self._asked = True
        if os.getppid() != self._parent:
            self._asked = True

    def _look(self) -> None:
        """Note what shared memory the server uses: now and then, and before it is ended."""
        now = time.monotonic()
        if self._kill_at is None and (self._asked or now >= self._look_at):
            self._segments |= shared_memory.used_by(_descendants())
            self._look_at = now + self._look_pause
            self._look_pause = min(2 * self._look_pause, LOOK_SECONDS[1])

    def kept(self) -> dict[str, int]:
        """Remove the shared memory that outlived the server; returns its names and bytes."""
        return shared_memory.remove(self._segments)

    def _pump(self) -> bool:
        """Move one chunk of what the server has written into the log; False where none is there.

        One at a time: a server that never stops writing must not keep us from stopping it.
        """
        try:
            chunk = os.read(self._output, 65536)
        except BlockingIOError:
            return False
        if not chunk:
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._output)
        self._log.write(self._redactor.feed(chunk))
        return bool(chunk)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._server.pid:
                self._status = os.waitstatus_to_exitcode(status)
                self._server.returncode = self._status
                self._by_itself = not self._asked

    def _end_tree(self) -> None:
        """Take the next step in ending the server, where there is a reason to end it.

        First its main process alone is asked, which may end its own children in good order; what
        is left when that is gone is asked too, and after the grace everything is killed.
        """
        now = time.monotonic()
        if self._asked and self._kill_at is None:
            self._kill_at = now + self._grace
            if self._status is None:
                # not Popen.send_signal, which may reap the process before _reap sees its status
                os.kill(self._server.pid, signal.SIGTERM)
        if self._status is not None and not self._orphans_asked:
            self._orphans_asked = True
            orphan_kill_at = now + ORPHAN_GRACE_SECONDS
            self._kill_at = min(self._kill_at or orphan_kill_at, orphan_kill_at)
            _signal_all(signal.SIGTERM)
        if self._kill_at is not None and now >= self._kill_at:
            # again at each turn: a process that is ended may have started another meanwhile
            self._killed = True
            _signal_all(signal.SIGKILL)

    def _over(self) -> bool:
        if self._kill_at is None:
            return False
        if self._status is not None and not _descendants():
            return True
        return self._killed and time.monotonic() > self._kill_at + GIVE_UP_SECONDS

    def _ending(self) -> str:
        left = [str(process.pid) for process in _descendants()]
        if left:
            return f"left {' '.join(left)}"
        if not self._by_itself or self._status is None:
            return "stopped"
        status = self._status
        return f"exit {status}" if status >= 0 else f"signal {-status}"


def _signal_all(number: signal.Signals) -> None:
    for process in _descendants():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _drain(descriptor: int) -> bool:
    """Read what is there; False at the end of the file."""
    return bool(os.read(descriptor, 4096))


def main(arguments: Sequence[str] | None = None) -> int:
    """Supervise one server; the exit status is 0 where it was stopped, else the server's own.

    Stdout has how it ended, and a line `kept BYTES NAME` for shared memory that it left. A server
    that a signal ended gives 128 and the signal's number, one that cannot be started gives 127 and
    the reason on stdout.
    """
    parser = argparse.ArgumentParser(prog="servematrix.engines.guard")
    parser.add_argument("--log", type=Path, required=True, help="where the output goes")
    parser.add_argument("--log-limit", type=int, default=8 * 2**20, help="bytes")
    parser.add_argument("--grace", type=float, default=3.0, help="seconds from SIGTERM to SIGKILL")
    parser.add_argument("--redact", action="append", default=[], help="variable that is secret")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    log = BoundedLog(options.log, options.log_limit)
    environment = server_environment(os.environ)
    named = [(name, environment.get(name, "")) for name in options.redact]
    redactor = Redactor([*of_variables(environment), *named])
    guard = Guard(log, redactor, options.grace, environment)
    try:
        ending = guard.run(options.command)
    except CannotStartError as error:
        print(error, flush=True)
        return CANNOT_START
    finally:
        log.close()
    print(ending, *(f"kept {size} {name}" for name, size in guard.kept().items()), sep="\n")
    sys.stdout.flush()
    word, _, number = ending.partition(" ")
    if word in ("stopped", "left"):
        return 0 if word == "stopped" else 1
    return int(number) if word == "exit" else 128 + int(number)


if __name__ == "__main__":
    sys.exit(main())
