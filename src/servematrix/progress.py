"""What takes long in a pytest session, as it goes on: servers that start, kits that measure.

On a terminal it is one line of status, which is gone when it is over. Elsewhere (a file, a
workflow's log, `-s`, TERM=dumb) it is plain lines, and few: none in the first 15 seconds, so that a
run whose servers start quickly has none; then one where the phase has changed, at most each 15
seconds, and one a minute where it has not, for whoever waits for a sign of life. A start of ten
minutes with eight phases is some fifteen lines.

A worker of pytest-xdist has no terminal: its lines are written by its controller, plain ones, for
several cells go on at a time.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, TextIO

import pytest

from servematrix.ci.commands import unobeyed
from servematrix.discreet import DiscreetStream
from servematrix.engines.phases import Phase
from servematrix.redaction import Secrets
from servematrix.relay import Receiver, Sender
from servematrix.screen import Screen
from servematrix.terminal import line, shown

LOOK_SECONDS: Final = 0.25
"""From one look at how far things are to the next."""
APART_SECONDS: Final = 15.0
"""Between two plain lines on one thing, and before the first."""
STILL_SECONDS: Final = 60.0
"""Between two plain lines where the phase is the same."""

PLUGIN: Final = "servematrix-progress"
_RECEIVER: Final = "servematrix_progress"
"""Stands for the controller's socket in what a worker is given."""


def tell(config: pytest.Config, told: str) -> None:
    """Show a line on the terminal at once, past pytest's capture."""
    if hasattr(config, "workerinput"):
        progress: Any = config.pluginmanager.get_plugin(PLUGIN)
        progress.send(told)
        return
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    capture = config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        reporter.ensure_newline()
        reporter.write_line(f"servematrix: {shown(told)}")


@dataclass
class Activity:
    """One thing that takes long; `look` says how far it is, `deadline` how many seconds it has."""

    label: str
    look: Callable[[], Phase]
    deadline: float | None = None
    began: float = field(default_factory=time.monotonic)
    lines: int = 0
    """Plain lines that were written."""
    told_at: float = 0.0
    told_of: str = ""
    """The phase in the last line."""

    def told(self, phase: Phase) -> str:
        """Return a line on it, such as `baseline: server starts, 12 of 900 s: loads weights`."""
        seconds = f"{time.monotonic() - self.began:.0f}"
        of = f" of {self.deadline:g}" if self.deadline is not None else ""
        detail = f", {phase.detail}" if phase.detail else ""
        return line(f"{self.label}, {seconds}{of} s: {phase.name}{detail}")

    def is_due(self, phase: Phase, now: float) -> bool:
        """Whether a plain line is to be written."""
        since = now - (self.told_at or self.began)
        changed = phase.name != self.told_of
        return since >= (APART_SECONDS if changed else STILL_SECONDS)


class Progress:
    """Hooks of a session that show what takes long, and what it is that does."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._screen: Screen | Sender | None = None
        self._receiver: Receiver | None = None
        self._deaf = False
        self._activities: dict[object, Activity] = {}
        self._lock = threading.Lock()
        self._busy = threading.Event()
        self._over = threading.Event()

    @contextmanager
    def during(
        self, label: str, look: Callable[[], Phase], deadline: float | None = None
    ) -> Iterator[Activity]:
        """Show one thing as long as the context lasts."""
        activity = Activity(label, look, deadline)
        key = object()
        self._begin(key, activity)
        try:
            yield activity
        finally:
            self._end(key)

    def of(self, cell: str) -> KitProgress:
        """Return what a kit that measures a cell tells its progress."""
        return KitProgress(self, cell)

    def send(self, told: str) -> None:
        """Have the controller write a line, where this is one of its workers."""
        if isinstance(self._screen, Sender):
            self._screen.line(f"servematrix: {line(told)}")

    def _begin(self, key: object, activity: Activity) -> None:
        with self._lock:
            self._activities[key] = activity
            self._busy.set()

    def _end(self, key: object) -> None:
        with self._lock:
            self._activities.pop(key, None)
            if self._activities:
                return
            self._busy.clear()
        if self._screen is not None:
            self._screen.hide()

    # -- hooks -----------------------------------------------------------------------------------

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Take the terminal, while pytest captures nothing."""
        reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
        worker: dict[str, Any] | None = getattr(session.config, "workerinput", None)
        if worker is not None and _RECEIVER in worker:
            self._start(Sender(worker[_RECEIVER]))
        if worker is not None or reporter is None:
            return  # the reporter of a worker writes to nobody
        try:
            file = os.fdopen(
                os.dup(reporter._tw._file.fileno()),
                "w",
                encoding=getattr(reporter._tw._file, "encoding", None) or "utf-8",
                errors="backslashreplace",
            )
        except (OSError, AttributeError):
            return  # what pytest writes to is no file, so it reaches nobody at once

        def broke() -> None:
            reporter.currentfspath = None

        safe: Any = unobeyed(DiscreetStream(file, self._secrets))
        screen = Screen(safe, live=_is_live(session.config, file), broke=broke)
        # pytest has no other way to reach the stream that its terminal writes to
        reporter._tw._file = screen.shared(reporter._tw._file)
        self._start(screen)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell an xdist worker where its lines go."""
        if self._screen is None or self._deaf:
            return
        if self._receiver is None:
            try:
                self._receiver = Receiver(self._screen.line)
            except OSError as error:
                # a sandbox that allows no socket; the rest goes on
                why = f"no socket ({error.strerror})"
                self._screen.line(f"servematrix: what workers tell meanwhile is not shown: {why}")
                self._deaf = True
                return
        node.workerinput[_RECEIVER] = self._receiver.name

    def _start(self, screen: Screen | Sender) -> None:
        self._screen = screen
        threading.Thread(target=self._watch, name="progress", daemon=True).start()

    def pytest_keyboard_interrupt(self) -> None:
        """Show nothing more: the servers are stopped now."""
        self._close()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Show nothing more, whatever threads still run."""
        self._close()

    def _close(self) -> None:
        with self._lock:
            self._over.set()
            self._busy.set()
            if self._screen is not None:
                self._screen.hide()
        if self._receiver is not None:
            self._receiver.close()

    # -- the thread that shows -------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._over.is_set():
            self._busy.wait()
            self._look()
            self._over.wait(LOOK_SECONDS)

    def _look(self) -> None:
        assert self._screen is not None, "there is a terminal"
        with self._lock:
            now = [(one, one.look()) for one in self._activities.values()]
            if self._over.is_set() or not now:
                return
            if self._screen.live:
                self._screen.show("; ".join(one.told(phase) for one, phase in now))
                return
        for one, phase in now:
            if one.is_due(phase, time.monotonic()):
                one.told_at, one.told_of = time.monotonic(), phase.name
                one.lines += 1
                self._screen.line(f"servematrix: {one.told(phase)}")


class KitProgress:
    """What a kit tells how far its tests are; each has one line."""

    def __init__(self, progress: Progress, cell: str) -> None:
        self._progress = progress
        self._cell = cell
        self._phases: dict[str, Phase] = {}

    def now(self, kit: str, phase: str, detail: str) -> None:
        """Show how far a test of a kit is; the first time it begins."""
        known = kit in self._phases
        self._phases[kit] = Phase(phase, detail)
        if not known:
            activity = Activity(f"{self._cell}: {kit}", lambda: self._phases[kit])
            self._progress._begin((self, kit), activity)

    def over(self, kit: str) -> None:
        """Show it no more."""
        if kit in self._phases:
            self._progress._end((self, kit))
            del self._phases[kit]


def _is_live(config: pytest.Config, file: TextIO) -> bool:
    """Whether a line of status has a terminal for itself: with `-s` tests print to it too."""
    has_workers = bool(getattr(config.option, "numprocesses", None))
    return (
        file.isatty()
        and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
        and getattr(config.option, "capture", "no") in ("fd", "sys")
        and not has_workers
    )
