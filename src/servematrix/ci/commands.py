"""Foreign text that GitHub Actions would obey, and how it is kept from that.

GitHub's runner obeys lines of a step's output: those that begin with `::`, blanks before it or
not, and any that holds `##[`. A server's log, a model's answer or a test's name may have such lines
(`::add-mask::`, `::error::`). GitHub has a way to switch this off, `::stop-commands::TOKEN`. It is
not used, for it is a state of the whole step: of two runs at a time (`nox -j`) each would silence
the other's annotations, and one that is killed those of all that come later. So in each such line
the last mark that makes a command of it is escaped, as JSON would, whoever prints it: a kit, an
assertion, what pytest had captured. Only `ours` are written as they are.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from typing import Any, Final

from servematrix.ci import ANNOTATED

_OURS: Final = ContextVar("ours", default=False)
_LINES: Final = re.compile(r"[^\r\n]*[\r\n]|[^\r\n]+")
# GitHub takes a colour for no blank, but it may be removed on the way there
_BLANK: Final = r"(?:\s|\ufeff|\x1b\[[0-9;]*m)*"
_COMMAND: Final = re.compile(rf"\A{_BLANK}::|##\[")
_MAY_BEGIN: Final = re.compile(rf"{_BLANK}(:?)")


@contextmanager
def ours() -> Iterator[None]:
    """Let GitHub obey what is written as long as the context lasts."""
    token = _OURS.set(True)
    try:
        yield
    finally:
        _OURS.reset(token)


class Unobeyed:
    """A text stream of whose lines GitHub obeys only `ours`.

    A line may be written in pieces, which begin and end anywhere.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._before = ""
        """What matters of the present line as it stands: see `_kept`."""

    def write(self, text: str) -> int:
        """Write a text, its commands escaped."""
        if _OURS.get():
            self._before = ""
            self._stream.write(text)
        else:
            self._stream.write("".join(map(self._escaped, _LINES.findall(text))))
        return len(text)

    def _escaped(self, part: str) -> str:
        """Return a part of a line; what makes a command of it is its last mark."""
        whole, new = self._before + part, len(self._before)
        found = {match.end() - 1 for match in _COMMAND.finditer(whole) if match.end() > new}
        # somebody else may have ended the line meanwhile
        if first := _COMMAND.match(part):
            found.add(new + first.end() - 1)
        self._before = "" if part.endswith(("\r", "\n")) else _kept(whole)
        for at in sorted(found, reverse=True):
            whole = f"{whole[:at]}\\u{ord(whole[at]):04x}{whole[at + 1 :]}"
        return whole[new:]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _kept(line: str) -> str:
    """Return of an unended line what may be the beginning of a command, and no more than that."""
    begun = _MAY_BEGIN.fullmatch(line)
    return begun[1] if begun else f"x{line[-2:]}"


@contextmanager
def kept_from_output() -> Iterator[None]:
    """Let GitHub obey nothing that is printed as long as the context lasts."""
    if not obeys():
        yield
        return
    out, errors = sys.stdout, sys.stderr
    with redirect_stdout(Unobeyed(out)), redirect_stderr(Unobeyed(errors)):
        yield


def obeys() -> bool:
    """Whether this is a step of a workflow."""
    return os.environ.get(ANNOTATED) == "true"


def unobeyed(stream: Any) -> Any:
    """Return a stream of whose lines GitHub obeys none of a stranger; itself elsewhere."""
    return Unobeyed(stream) if obeys() else stream


def original(stream: Any) -> Any:
    """Return the stream that `unobeyed` was given."""
    return stream._stream if isinstance(stream, Unobeyed) else stream
