"""Cells: configurations with their parameters filled in, in the order in which they run."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from servematrix import config as configs
from servematrix.config import ConfigError, Configuration, Scalar

_SELECTION = re.compile(r"^(?P<name>[\w-]+)(\((?P<axis>\w+)=(?P<value>[^()]*)\))?$")


@dataclass(frozen=True)
class Cell:
    """One server launch: a configuration and one value of its axis, if it has an axis.

    >>> Cell(load(folder, "cuda_graph"), {"max_bs": 8}).id
    'cuda_graph(max_bs=8)'
    """

    config: Configuration
    axis: Mapping[str, Scalar] = field(default_factory=dict)
    in_place_of: tuple[str, ...] = ()
    """Cells that were asked for and that the engine is given this one instead of."""

    @property
    def label(self) -> str:
        """The name, and what it takes the place of."""
        replaced = f" in place of {', '.join(self.in_place_of)}" if self.in_place_of else ""
        return f"{self.id}{replaced}"

    @property
    def id(self) -> str:
        """The name that nox sessions, test ids, records and `--config` share."""
        inside = ", ".join(f"{name}={value}" for name, value in self.axis.items())
        return f"{self.config.name}({inside})" if inside else self.config.name


def select(directory: Path, selections: Sequence[str]) -> list[Cell]:
    """The cells that `--config` values name, in the order named, none twice.

    A value is `NAME`, `NAME(axis=value)`, `all`, or several with commas between them.
    ConfigError when one is unknown.
    """
    cells: dict[str, Cell] = {}
    for selection in selections:
        for part in (piece.strip() for piece in selection.split(",")):
            for cell in _cells_of(directory, part):
                cells.setdefault(cell.id, cell)
    return list(cells.values())


def for_engine(directory: Path, cells: Sequence[Cell], engine: str) -> list[Cell]:
    """The cells that an engine is given for these: what a configuration names in `instead`, if so.

    A cell that takes the place of several, or was asked for as well, comes once.
    """
    found: dict[str, Cell] = {}
    for cell in cells:
        other = cell.config.instead.get(engine)
        replaced = () if other is None else (cell.id,)
        for one in [cell] if other is None else expand(configs.load(directory, other)):
            known = found.get(one.id, one)
            found[one.id] = replace(known, in_place_of=(*known.in_place_of, *replaced))
    return list(found.values())


def expand(config: Configuration) -> Iterator[Cell]:
    """Every cell of a configuration: one for each value of its axis, or just one."""
    if not config.axis:
        yield Cell(config)
    for name, values in config.axis.items():
        for value in values:
            yield Cell(config, {name: value})


def _cells_of(directory: Path, selection: str) -> list[Cell]:
    if selection == "all":
        found = [configs.load(directory, name) for name in configs.names(directory)]
        return [cell for config in found for cell in expand(config)]
    match = _SELECTION.match(selection)
    if match is None:
        raise ConfigError(
            f"--config {selection!r}: expected NAME, NAME(axis=value) or all; "
            f"there are: {', '.join(configs.names(directory))}"
        )
    cells = list(expand(configs.load(directory, match["name"])))
    if match["axis"] is None:
        return cells
    chosen = [cell for cell in cells if cell.id == selection]
    if not chosen:
        ids = [cell.id for cell in cells]
        close = difflib.get_close_matches(selection, ids, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ConfigError(f"--config {selection}: no such cell{hint}; there are: {', '.join(ids)}")
    return chosen
