"""The guard as a process of its own: what it tells, and that it imports little."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from servematrix.engines import guard as guard_module
from servematrix.engines.guard import Guard, guarded
from servematrix.engines.log import BoundedLog, Redactor

IMMUNE = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "


def run(
    command: list[str], log: Path, *, secrets: tuple[str, ...] = (), grace: float = 3.0
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        guarded(command, log, secrets=secrets, grace=grace),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ending(guard: subprocess.Popen[str]) -> tuple[str, int]:
    """What the guard tells at its end, without closing its stdin before."""
    assert guard.stdout is not None
    told = guard.stdout.read().strip()
    with guard:
        return told, guard.wait(20)


def wait_for(text: str, log: Path, guard: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 20
    while not log.exists() or text not in log.read_text():
        assert guard.poll() is None
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("script", "told", "status"),
    [
        ("", "exit 0", 0),
        ("raise SystemExit(3)", "exit 3", 3),
        ("import os; os.kill(os.getpid(), 9)", "signal 9", 137),
    ],
)
def test_it_tells_how_the_server_ended(tmp_path: Path, script: str, told: str, status: int) -> None:
    guard = run([sys.executable, "-c", script], tmp_path / "log")
    assert ending(guard) == (told, status)


def test_it_tells_what_cannot_be_started(tmp_path: Path) -> None:
    guard = run([str(tmp_path)], tmp_path / "log")
    assert ending(guard) == (f"cannot start {tmp_path}: Permission denied", 127)


def test_all_output_is_in_the_log_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_TOKEN", "tok-123456")
    script = (
        "import os, sys; t = os.environ['A_TOKEN']; print('out', t, flush=True); "
        "sys.stderr.write('err ' + t + '\\n'); os.write(1, t[:5].encode()); "
        "os.write(2, t[5:].encode()); print(' end')"
    )
    log = tmp_path / "log"
    guard = run([sys.executable, "-u", "-c", script], log, secrets=("A_TOKEN", "NOT_SET"))
    assert ending(guard) == ("exit 0", 0)
    mark = "<A_TOKEN redacted>"
    assert log.read_text() == f"out {mark}\nerr {mark}\n{mark} end\n"


@pytest.mark.parametrize("how", ["stdin", "SIGTERM", "SIGINT", "SIGHUP"])
def test_it_ends_the_server_when_asked(tmp_path: Path, how: str) -> None:
    log = tmp_path / "log"
    guard = run([sys.executable, "-c", "print('up', flush=True); import time; time.sleep(60)"], log)
    wait_for("up", log, guard)
    if how == "stdin":
        assert guard.stdin is not None
        guard.stdin.close()
    else:
        guard.send_signal(signal.Signals[how])
    assert ending(guard) == ("stopped", 0)


def test_a_server_that_ignores_being_asked_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = IMMUNE + "print('up', flush=True); import time; time.sleep(60)"
    guard = run([sys.executable, "-c", script], log, grace=0.1)
    wait_for("up", log, guard)
    guard.terminate()
    assert ending(guard) == ("stopped", 0)


def test_a_server_that_ends_takes_its_children_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = IMMUNE + "import os; os.setsid(); print('child', os.getpid(), flush=True); "
    script = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]], "
        "stdout=subprocess.PIPE, text=True); print(p.stdout.readline(), flush=True); sys.exit(4)"
    )
    guard = run([sys.executable, "-c", script, child + "import time; time.sleep(60)"], log)
    assert ending(guard) == ("exit 4", 4)
    pid = int(log.read_text().split()[1])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_server_that_never_stops_writing_is_stopped(tmp_path: Path) -> None:
    log = tmp_path / "log"
    guard = run(["/bin/sh", "-c", "trap '' TERM; exec yes"], log, grace=0.1)
    wait_for("y\n", log, guard)
    guard.terminate()
    assert ending(guard) == ("stopped", 0)
    assert log.stat().st_size <= 8 * 2**20


def test_processes_that_cannot_be_ended_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung = SimpleNamespace(pid=77, send_signal=lambda number: None)
    monkeypatch.setattr(guard_module, "_descendants", lambda: [hung])
    monkeypatch.setattr(guard_module, "GIVE_UP_SECONDS", 0.0)
    guard = Guard(BoundedLog(tmp_path / "log", 1024), Redactor([]), grace=0.0)
    guard._status = -signal.SIGKILL
    guard._kill_at = time.monotonic()
    assert not guard._over()
    guard._end_tree()
    while not guard._over():
        pass
    assert guard._ending() == "left 77"


def test_it_notices_a_parent_that_died_while_a_fork_holds_its_pipe(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = guarded([sys.executable, "-c", "import time; time.sleep(60)"], log)
    script = (
        "import os, subprocess, sys, time\n"
        "guard = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)\n"
        "if os.fork() == 0:\n"
        "    time.sleep(30); os._exit(0)\n"
        "print(guard.pid, flush=True)\n"
        "while not os.path.exists(sys.argv[5][6:]): pass\n"
        "os._exit(0)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, *command],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert parent.stdout is not None
        int(parent.stdout.readline())
        # the guard holds the other end: it is closed once the guard and the fork are gone
        assert "stopped" in parent.stdout.readline()
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate(timeout=20)


def test_a_server_ends_with_a_guard_that_is_killed(tmp_path: Path) -> None:
    """The system tells it; nobody else would where the run was killed too."""
    log = tmp_path / "log"
    script = "import os, time; print('up', os.getpid(), flush=True); time.sleep(60)"
    guard = run([sys.executable, "-c", script], log)
    wait_for("\n", log, guard)
    server = psutil.Process(int(log.read_text().split()[1]))
    guard.kill()
    with guard:
        guard.wait(20)
    _, alive = psutil.wait_procs([server], timeout=5)
    for process in alive:
        process.kill()
    assert not alive


def test_it_imports_nothing_heavy() -> None:
    script = (
        "import sys, servematrix.engines.guard; "
        "print([m for m in ('pydantic', 'requests', 'pytest', 'mirakuru', 'http.client') "
        "if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert told.stdout == "[]\n"
