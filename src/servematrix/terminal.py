"""Text that a server, a log or a file wrote, as a person's terminal or document may show it.

Such text may hold what a terminal obeys (it moves the cursor, sets the clipboard, hides a line),
what Rich reads as markup, and what Markdown and HTML give a meaning. It is shown as the characters
that it has. Only the standard library is imported: a server's guard, which starts with each server,
imports this too.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

MOST = 4000
"""Characters of one message; a verdict's reason has some hundred."""

_MARKDOWN = re.compile(r"[\\`*|\[\]<>]")


def shown(text: str, most: int | None = None) -> str:
    r"""Return a text with every character visible: lines and tabs stay, the rest is escaped.

    Escaped is all that is not printable: control characters, those that turn the direction of
    writing, lone surrogates. More than `most` characters are cut.

    >>> shown("red: \x1b[31m")
    'red: \\x1b[31m'
    """
    if most is not None and len(text) > most:
        text = f"{text[:most]}… ({len(text)} characters)"
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def line(text: str, most: int | None = MOST) -> str:
    r"""Return a text as one line: as `shown`, and breaks are escaped too."""
    return shown(text, most).replace("\n", "\\n").replace("\t", "\\t")


def say(told: str) -> None:
    """Tell a person on standard error how a command goes on; its output proper is elsewhere."""
    print(f"servematrix: {shown(told)}", file=sys.stderr)


def console(
    *,
    width: int | None = None,
    at_least: int = 0,
    file: TextIO | None = None,
    colours: bool | None = None,
) -> Console:
    """Return a console for tables that takes no text for markup or emoji.

    It writes to `file`, else to standard output. Its columns are `width` where that is given, else
    those of the terminal or `at_least` so many. `colours` None leaves those to what it writes to.
    """
    from rich.console import Console  # which takes longer than a guard may

    plain = Console(
        file=file,
        width=width,
        markup=False,
        emoji=False,
        highlight=False,
        force_terminal=colours,
        color_system="auto" if colours is None else "standard" if colours else None,
    )
    if width is None and plain.width < at_least:
        plain.width = at_least
    return plain


def markdown(text: str) -> str:
    """Return a text as a cell of a Markdown table, or a part of a line, that means only itself."""
    return _MARKDOWN.sub(r"\\\g<0>", line(text).replace("&", "&amp;"))
