"""One line of status, and pytest's own words on the same terminal."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from screens import seen
from servematrix.screen import Screen


class Terminal:
    """A pseudo-terminal, and a screen on it."""

    def __init__(self, live: bool = True, encoding: str = "utf-8") -> None:
        self.controller, descriptor = pty.openpty()
        self.file = os.fdopen(descriptor, "w", encoding=encoding, errors="backslashreplace")
        os.set_blocking(self.controller, False)
        self.broken = 0
        self.screen = Screen(self.file, live=live, broke=self.broke)
        self.pytest = self.screen.shared(self.file)
        self.written = ""

    def broke(self) -> None:
        self.broken += 1

    def read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.written += os.read(self.controller, 65536).decode()

    def look(self) -> list[str]:
        self.read()
        return seen(self.written)

    def close(self) -> None:
        self.file.close()
        os.close(self.controller)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


def test_the_line_stands_below_the_dots_and_leaves_nothing(terminal: Terminal) -> None:
    terminal.pytest.write("suites/test_a.py \x1b[32m..\x1b[0m")
    terminal.screen.show("server starts, 1 s")
    assert terminal.look() == ["suites/test_a.py ..", "server starts, 1 s"]
    terminal.screen.show("server starts, 2 s")
    assert terminal.look() == ["suites/test_a.py ..", "server starts, 2 s"]
    terminal.pytest.write(".")
    assert terminal.look() == ["suites/test_a.py ...", "", ""]
    terminal.screen.show("and more")
    terminal.screen.hide()
    terminal.screen.hide()
    terminal.pytest.write("F [100%]\nthe end\n")
    assert terminal.look()[:2] == ["suites/test_a.py ...F [100%]", "the end"]
    assert not any(terminal.look()[2:])


def test_the_line_at_the_start_of_a_line(terminal: Terminal) -> None:
    terminal.pytest.write("header\n")
    terminal.screen.show("server starts")
    terminal.pytest.write("next\n")
    assert terminal.look()[:2] == ["header", "next"]


def test_the_cursor_is_never_hidden(terminal: Terminal) -> None:
    terminal.screen.show("server starts")
    terminal.screen.hide()
    terminal.look()
    assert "\x1b[?25" not in terminal.written


def test_a_long_line_is_cut_where_the_screen_ends(terminal: Terminal) -> None:
    terminal.screen.show("x" * 200)
    (line,) = terminal.look()
    assert line == "x" * 78 + "…"


def test_a_terminal_that_has_ascii_alone() -> None:
    terminal = Terminal(encoding="ascii")
    terminal.screen.show("ü" * 78)
    assert terminal.look() == [("\\xfc" * 20)[:79]]
    terminal.screen.hide()
    assert not any(terminal.look())
    terminal.close()


def test_markup_is_text(terminal: Terminal) -> None:
    terminal.screen.show("[red]a[/] :warning:")
    assert terminal.look() == ["[red]a[/] :warning:"]


def test_a_plain_line_ends_that_of_pytest(terminal: Terminal) -> None:
    terminal.pytest.write("suites/test_a.py ..")
    terminal.screen.line("one")
    assert terminal.broken == 1
    terminal.screen.line("two")
    assert terminal.broken == 1, "there was nothing to end"
    assert terminal.look() == ["suites/test_a.py ..", "one", "two", ""]


@given(
    st.lists(
        st.one_of(
            st.sampled_from(["show", "hide"]),
            st.text("ab.\n", max_size=30).filter(lambda text: text != "show"),
        ),
        max_size=12,
    )
)
def test_pytests_words_are_what_they_are_without_it(steps: list[str]) -> None:
    terminal = Terminal()
    try:
        for step in steps:
            if step == "show":
                terminal.screen.show("status")
            elif step == "hide":
                terminal.screen.hide()
            else:
                terminal.pytest.write(step)
        terminal.screen.hide()
        words = "".join(step for step in steps if step not in ("show", "hide"))
        expected = seen(words.replace("\n", "\r\n"))
        found = terminal.look()
        assert found[: len(expected)] == expected
        assert not any(found[len(expected) :])
    finally:
        terminal.close()


def test_threads_do_not_write_into_each_other(terminal: Terminal) -> None:
    over = threading.Event()

    def show() -> None:
        while not over.wait(0.001):
            terminal.screen.show("status")

    def write() -> None:
        for _ in range(100):
            terminal.pytest.write(".")
            over.wait(0.001)
        over.set()
        terminal.screen.hide()

    threads = [threading.Thread(target=one, daemon=True) for one in (show, write)]
    for one in threads:
        one.start()
    while any(one.is_alive() for one in threads):
        terminal.read()  # a terminal that nobody reads takes no more
    terminal.screen.hide()
    assert [line for line in terminal.look() if line] == ["." * 80, "." * 20]


def test_what_is_no_terminal_has_no_status(tmp_path) -> None:
    with (tmp_path / "out").open("w") as file:
        Screen(file, live=False, broke=lambda: None).show("status")
    assert (tmp_path / "out").read_text() == ""
    stream = Screen(sys.stdout, live=False, broke=lambda: None).shared(io.StringIO())
    assert stream.write("x") == 1
    assert stream.getvalue() == "x"


def test_a_terminal_that_hung_up_stops_nothing() -> None:
    controller, descriptor = pty.openpty()
    file = os.fdopen(descriptor, "w", encoding="utf-8")
    screen = Screen(file, live=True, broke=lambda: None)
    screen.show("server starts")
    os.close(controller)
    screen.hide()
    screen.show("server starts")
    screen.line("one")
    with contextlib.suppress(OSError):
        file.close()


def test_a_full_disk_stops_nothing() -> None:
    file = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    Screen(file, live=False, broke=lambda: None).line("one")
    with contextlib.suppress(OSError):
        file.close()
