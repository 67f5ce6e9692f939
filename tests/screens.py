"""A terminal that is made up: what a person sees after all that was written to it."""

from __future__ import annotations

import re

_PARTS = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|(.)", re.DOTALL)


def seen(written: str, columns: int = 80) -> list[str]:
    """The lines on the screen; a command that is not known here is refused."""
    rows: list[list[str]] = [[]]
    row = column = 0
    for number, command, letter in (match.groups() for match in _PARTS.finditer(written)):
        count = int(number) if number and number.isdigit() else 1
        if letter == "\n":
            row += 1
            rows += [[] for _ in range(row + 1 - len(rows))]
        elif letter == "\r":
            column = 0
        elif letter is not None:
            if column >= columns:
                row, column = row + 1, 0
                rows += [[] for _ in range(row + 1 - len(rows))]
            rows[row] += [" "] * (column + 1 - len(rows[row]))
            rows[row][column] = letter
            column += 1
        elif command == "A":
            row = max(0, row - count)
        elif command == "C":
            column += count
        elif command == "K":
            rows[row] = [] if number == "2" else rows[row][:column]
        elif command not in ("m", None):
            raise ValueError(f"what would a terminal do with CSI {number}{command}?")
    return ["".join(line).rstrip() for line in rows]
