"""What a person sees while servers start and kits measure: on a terminal, in a file, in a log."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from screens import seen
from servematrix import progress, relay
from servematrix.engines.phases import Phase
from servematrix.progress import APART_SECONDS, STILL_SECONDS, Activity
from servematrix.redaction import Secrets
from servematrix.relay import Receiver, Sender

CONFIG = """
description = "for tests"
stage = "t"
estimated_seconds = 1
suites = ["mine"]
axis.size = [1, 2]
[model]
path = "org/model"
[environment]
PYTHONPATH = "."
MINE_TOKEN = "planted-key-1"
"""
SITE = r"""
import os, sys, time
if "servematrix.engines.reference" in sys.orig_argv:
    BAR = "Capturing batches (bs=4 avail_mem=18.72 GB): 33%|xx   | {}/3 [00:03<00:07, 3.93s/it]"
    print("talks of", os.environ["MINE_TOKEN"], flush=True)
    time.sleep(0.3)
    print("[2026-11-22 16:30:14] Load weight begin. avail mem=20.54 GB", flush=True)
    time.sleep(0.4)
    for done in range(3):
        print("\r" + BAR.format(done), end="", flush=True)
        time.sleep(0.2)
"""
SUITE = """
import time
import pytest
from servematrix.gates.verdict import Verdict
from servematrix.kits.base import Kit, concludes


class MineMixin(Kit):
    kit = "mine"

    @concludes("mine")
    def test_first(self):
        for number in range(3):
            self.progressed("items in batches", f"{number} of 3")
            time.sleep(0.2)
        return Verdict("pass", "a rule", "fine")

    @concludes("mine")
    def test_second(self):
        return Verdict("pass", "a rule", "fine")


@pytest.mark.suite("mine")
class TestMine(MineMixin):
    pass
"""
CONFTEST = """
import pytest
from servematrix import progress


@pytest.fixture(autouse=True)
def told(request):
    if request.node.name.startswith("test_second") and hasattr(request.config, "workerinput"):
        progress.tell(request.config, "told meanwhile")


progress.LOOK_SECONDS, progress.APART_SECONDS = 0.05, 0.1
"""
COLOUR = re.compile(r"\x1b\[(?:\d+;)*[349]\d(?:;\d+)*m")
Start = Callable[..., "Person"]


class Person:
    """Somebody at a terminal of 80 columns, with a run before them."""

    def __init__(self, command: list[str], folder: Path, variables: dict[str, str]) -> None:
        self.controller, terminal = pty.openpty()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=variables,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            preexec_fn=_take_the_terminal,
        )
        os.close(terminal)
        self.written = ""

    def wait_for(self, text: str) -> None:
        while text not in self.written:
            assert self.read(), f"{text!r} was never seen in {self.written}"

    def read(self) -> bool:
        """Read what comes next; False at the end."""
        ready, _, _ = select.select([self.controller], [], [], 60)
        assert ready, f"nothing came for a minute after {self.written}"
        chunk = b""
        with contextlib.suppress(OSError):
            chunk = os.read(self.controller, 65536)
        self.written += chunk.decode("utf-8", "replace")
        return bool(chunk)

    def end(self) -> int:
        while self.read():
            pass
        return self.process.wait(timeout=60)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.controller)


def _take_the_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.toml").write_text(CONFIG)
    (tmp_path / "sitecustomize.py").write_text(SITE)
    (tmp_path / "test_mine.py").write_text(SUITE)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    return tmp_path


def command(*options: str, selection: str = "mine(size=1)") -> list[str]:
    python = [sys.executable, "-m", "pytest", "-p", "servematrix.plugin", "--import-mode=importlib"]
    return [
        *python,
        "--engine=reference",
        f"--config={selection}",
        "-p",
        "no:cacheprovider",
        *options,
    ]


def environment(**variables: str) -> dict[str, str]:
    left_out = (
        "PYTEST_ADDOPTS",
        "NO_COLOR",
        "FORCE_COLOR",
        "PY_COLORS",
        "COLUMNS",
        "CI",
        "BUILD_NUMBER",
    )
    inherited = {name: at for name, at in os.environ.items() if name not in left_out}
    return inherited | {"TERM": "xterm-256color", "COLUMNS": "80"} | variables


@pytest.fixture
def person(folder: Path):
    made: list[Person] = []

    def start(*options: str, **variables: str) -> Person:
        made.append(Person(command(*options), folder, environment(**variables)))
        return made[-1]

    yield start
    for one in made:
        one.close()


def in_a_file(folder: Path, *options: str, selection: str = "mine(size=1)") -> str:
    done = subprocess.run(
        command(*options, selection=selection),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
    )
    text = done.stdout.decode()
    assert done.returncode == 0, text
    return text


# -- on a terminal ------------------------------------------------------------------------------


def test_a_line_of_status_that_leaves_nothing(person: Start) -> None:
    run = person()
    assert run.end() == 0, run.written
    for told in (
        "mine(size=1): server starts, ",
        " of 30 s: loads weights",
        "captures graphs, 1 of 3, batch size 4",
        "mine(size=1): mine, 0 s: items in batches, 0 of 3",
        "items in batches, 2 of 3",
    ):
        assert told in run.written, told
    left = seen(run.written)
    assert not any("server starts" in line or "items in batches" in line for line in left), left
    dots = next(line for line in left if line.startswith("test_mine.py"))
    assert re.fullmatch(r"test_mine\.py \.\. +\[100%\]", dots), "pytest's line is whole"
    assert any(re.fullmatch(r" mine\(size=1\)  mine +✓ pass +2 +\d\.\d", line) for line in left)
    assert "servematrix: exit 0 (all verdicts pass): 2 pass; " in "".join(left[-6:])
    assert COLOUR.search(run.written), "a terminal has colours"
    assert "\x1b[?25" not in run.written, "who hides the cursor may die before it is back"


def test_no_colour_where_none_is_wanted(person: Start) -> None:
    run = person(NO_COLOR="1")
    assert run.end() == 0, run.written
    assert not COLOUR.search(run.written), COLOUR.search(run.written)
    assert "server starts" in run.written, "it is a terminal all the same"
    assert "✓ pass" in run.written


def test_after_ctrl_c_the_terminal_is_as_before(person: Start) -> None:
    run = person()
    run.wait_for("loads weights")
    os.write(run.controller, b"\x03")
    assert run.end() == 2, run.written
    left = seen(run.written)
    assert not any("server starts" in line for line in left), left
    assert any("KeyboardInterrupt" in line for line in left)
    assert "\x1b[?25" not in run.written


def test_a_terminal_that_tests_print_to_has_plain_lines(person: Start) -> None:
    run = person("-s")
    assert run.end() == 0, run.written
    told = [line for line in seen(run.written) if "server starts" in line]
    assert told, run.written
    assert all(line.startswith("servematrix: mine(size=1): server starts, ") for line in told)


def test_a_dumb_terminal_has_plain_lines(person: Start) -> None:
    run = person(TERM="dumb")
    assert run.end() == 0, run.written
    assert "\x1b" not in run.written
    assert "servematrix: mine(size=1): server starts, " in run.written


# -- elsewhere ----------------------------------------------------------------------------------


def test_plain_lines_in_a_file(folder: Path) -> None:
    text = in_a_file(folder)
    assert "\x1b" not in text
    assert "\r" not in text
    lines = [line for line in text.splitlines() if "server starts" in line or "items in" in line]
    assert any(re.search(r"server starts, \d of 30 s: loads weights$", line) for line in lines)
    assert any("captures graphs" in line for line in lines)
    assert any(line.endswith("s: talks of <MINE_TOKEN redacted>") for line in lines)
    assert "planted-key-1" not in text
    assert any("mine(size=1): mine, 0 s: items in batches" in line for line in lines)
    phases = [re.sub(r".* s: |,.*", "", line) for line in lines]
    assert len(phases) == len(set(phases)), "one for each phase"
    assert all(line.startswith("servematrix: mine(size=1): ") for line in lines)


def test_a_quick_start_has_no_line(folder: Path) -> None:
    (folder / "conftest.py").unlink()
    text = in_a_file(folder)
    assert "server starts" not in text
    assert "items in batches" not in text


def test_workers_tell_their_controller(folder: Path) -> None:
    text = in_a_file(folder, "-n", "2", selection="mine")
    for cell in ("mine(size=1)", "mine(size=2)"):
        assert re.search(rf"^servematrix: {re.escape(cell)}: server starts, ", text, re.MULTILINE)
        assert re.search(rf"^ {re.escape(cell)}  mine +✓ pass +2 ", text, re.MULTILINE), "the table"
    assert text.splitlines().count("servematrix: told meanwhile") == 2


def test_an_activity_is_told_now_and_then() -> None:
    one = Activity("a", lambda: Phase("loads"), began=100.0)
    assert not one.is_due(Phase("loads"), 100.0 + APART_SECONDS - 0.1)
    assert one.is_due(Phase("loads"), 100.0 + APART_SECONDS)
    one.told_at, one.told_of = 115.0, "loads"
    assert not one.is_due(Phase("loads", "2 of 4"), 115.0 + STILL_SECONDS - 0.1)
    assert one.is_due(Phase("loads", "2 of 4"), 115.0 + STILL_SECONDS)
    assert not one.is_due(Phase("captures"), 115.0 + APART_SECONDS - 0.1)
    assert one.is_due(Phase("captures"), 115.0 + APART_SECONDS)


def test_what_is_told_is_one_line() -> None:
    one = Activity("a", lambda: Phase("x"), deadline=900.0, began=time.monotonic())
    assert one.told(Phase("loads", "1 of\n2")) == "a, 0 of 900 s: loads, 1 of\\n2"


def test_a_receiver_takes_what_was_sent_before_it_closed() -> None:
    taken: list[str] = []
    receiver = Receiver(taken.append)
    sender = Sender(receiver.name)
    for number in range(5):
        sender.line(f"{number}\x1b[31m\n")
    receiver.close()
    assert taken == [f"{number}\\x1b[31m\\n" for number in range(5)]
    sender.line("to nobody")
    receiver.close()
    assert len(taken) == 5


def test_other_users_are_not_heard(monkeypatch) -> None:
    taken: list[str] = []
    receiver = Receiver(taken.append)
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    Sender(receiver.name).line("from somebody else")
    monkeypatch.setattr(relay, "_END_SECONDS", 0.2)
    receiver.close()
    assert taken == []


def test_where_workers_cannot_be_heard_it_is_said_once(monkeypatch) -> None:
    def none(take: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(progress, "Receiver", none)
    told: list[str] = []
    plugin = progress.Progress(Secrets())
    plugin._screen = SimpleNamespace(line=told.append)  # type: ignore[assignment]
    for _ in range(2):
        node = SimpleNamespace(workerinput={})
        plugin.pytest_configure_node(node)
        assert node.workerinput == {}
    assert told == [
        "servematrix: what workers tell meanwhile is not shown: no socket (Operation not permitted)"
    ]
