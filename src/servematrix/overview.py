"""The table at the end of a session: how each cell fared in each kit.

Up to `MOST_ROWS` rows it has a row for each kit of each cell. Beyond that it has a row for each
cell, with the kits named that are not a pass: of fifty cells a person wants to see which are red,
and in what. Words say what colours and symbols do. Built from what `Outcome` counts, so that it is
the same under pytest-xdist and for a run that was taken up.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rich.box import SIMPLE_HEAD, Box
from rich.table import Table
from rich.text import Text

from servematrix.gates.verdict import SEVERITY
from servematrix.terminal import console, line

MOST_ROWS: Final = 24
"""Of the form with a row for each kit: as many as a small terminal shows."""
WORST: Final = (*SEVERITY[:2], "waived", *SEVERITY[2:])
"""Words for verdicts, the worst last."""
_STYLES: Final[Mapping[str, tuple[str, str, str]]] = {
    # the symbol, the same where the encoding has none, the colour
    "pass": ("✓", "+", "green"),
    "fail": ("✗", "x", "bold red"),
    "error": ("!", "!", "bold red"),
    "inconclusive": ("?", "?", "yellow"),
    "waived": ("~", "~", "yellow"),
    "not_applicable": ("-", "-", ""),
}
_ASCII: Final = Box(str(SIMPLE_HEAD).replace("─", "-"), ascii=True)
_LONGEST: Final = 40
"""Characters of a name that are shown."""


def worst(outcomes: Sequence[str]) -> str:
    """The worst of some words for verdicts; one that is not known is worse than all."""
    return max(outcomes, key=lambda one: WORST.index(one) if one in WORST else len(WORST))


@dataclass
class _Fared:
    """The tests of one kit in one cell."""

    outcomes: list[str] = field(default_factory=list)
    seconds: float | None = None
    """That they took; None where this is not known, as of an earlier part of the run."""


class Overview:
    """Counts verdicts by cell and kit, and draws them."""

    def __init__(self) -> None:
        self._cells: dict[str, dict[str, _Fared]] = {}

    def count(self, cell: str, kit: str, outcome: str, seconds: float | None) -> None:
        """Count a verdict, by its word; `seconds` None where it is not known what it took."""
        fared = self._cells.setdefault(cell, {}).setdefault(kit, _Fared())
        fared.outcomes.append(outcome)
        if seconds is not None:
            fared.seconds = (fared.seconds or 0.0) + seconds

    def drawn(self, *, width: int, colours: bool, encoding: str) -> str:
        """Return the table as text of at most `width` columns; empty where nothing was counted."""
        if not self._cells:
            return ""
        look = _Look(_can(encoding))
        rows = sum(map(len, self._cells.values()))
        table = self._by_kit(look) if rows <= MOST_ROWS else self._by_cell(look)
        drawn = io.StringIO()
        console(file=drawn, width=width, colours=colours).print(table)
        return "\n".join(row.rstrip() for row in drawn.getvalue().splitlines()).strip("\n")

    def _by_kit(self, look: _Look) -> Table:
        table = look.table()
        table.add_column("cell", overflow="fold", min_width=8)
        table.add_column("kit", overflow="fold", min_width=8)
        table.add_column("verdict", no_wrap=True)
        table.add_column("tests", justify="right", no_wrap=True)
        table.add_column("seconds", justify="right", no_wrap=True)
        for cell, kits in self._cells.items():
            named = _name(cell)
            for kit, fared in kits.items():
                word = worst(fared.outcomes)
                number = fared.outcomes.count(word)
                of = "" if number == len(fared.outcomes) else f" of {len(fared.outcomes)}"
                table.add_row(
                    named, _name(kit), look.verdict(word), f"{number}{of}", _seconds([fared])
                )
                named = ""
            if len(kits) > 1:
                table.add_section()
        return table

    def _by_cell(self, look: _Look) -> Table:
        table = look.table()
        table.add_column("cell", overflow="fold", min_width=16)
        table.add_column("seconds", justify="right", no_wrap=True)
        table.add_column("kits", overflow="fold")
        for cell, kits in self._cells.items():
            words = {kit: worst(fared.outcomes) for kit, fared in kits.items()}
            table.add_row(
                _name(cell),
                _seconds(kits.values()),
                look.named(words),
            )
        return table


class _Look:
    """Symbols and frames, of ASCII alone where the encoding has no other."""

    def __init__(self, symbols: bool) -> None:
        self._at = 0 if symbols else 1
        self._box = SIMPLE_HEAD if symbols else _ASCII

    def table(self) -> Table:
        return Table(box=self._box, padding=(0, 1, 0, 0), pad_edge=False)

    def verdict(self, word: str, before: str = "") -> Text:
        symbols = _STYLES.get(word, ("?", "?", "bold red"))
        told = f"{symbols[self._at]} {before}{_name(word).replace('_', ' ')}"
        return Text(told, style=symbols[2])

    def named(self, words: Mapping[str, str]) -> Text:
        """Name the kits that are no pass, the worst first; count the others."""
        told = []
        for word in reversed(WORST[2:]):
            told += [
                self.verdict(word, before=f"{kit} ") for kit, at in words.items() if at == word
            ]
        counts = Counter(at for at in words.values() if at in WORST[:2])
        told += [
            self.verdict(word, before=f"{counts[word]} ")
            for word in ("pass", "not_applicable")
            if counts[word]
        ]
        return Text(", ").join(told)


def _seconds(of: Any) -> str:
    known = [one.seconds for one in of if one.seconds is not None]
    return f"{sum(known):.1f}" if known else "-"


def _name(text: str) -> str:
    return line(text, _LONGEST)


def _can(encoding: str) -> bool:
    """Whether an encoding has the symbols."""
    try:
        "".join(symbols[0] for symbols in _STYLES.values()).encode(encoding)
        "━─".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
