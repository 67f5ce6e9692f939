"""Cells in order of their duration, and dealt out to shards.

Longest processing time first (Graham, 1969): the longest cell goes to the shard with the least to
do, then the next. The busiest shard then takes at most 4/3 - 1/(3m) times the least possible for m
shards.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from servematrix.durations import Duration
from servematrix.engines.base import EnvironmentProblem

_SHARD = re.compile(r"(?P<number>[0-9]{1,9})/(?P<shards>[0-9]{1,9})")


@dataclass(frozen=True)
class Shard:
    """One of several parts of a run: the first is 1 of `shards`."""

    number: int
    shards: int

    def __str__(self) -> str:
        return f"{self.number}/{self.shards}"


def parse(text: str) -> Shard:
    """The shard that `--shard` names; EnvironmentProblem where it names none.

    >>> parse("2/4")
    Shard(number=2, shards=4)
    """
    match = _SHARD.fullmatch(text)
    if match is None:
        raise EnvironmentProblem(f"--shard {text}: expected NUMBER/SHARDS, such as 2/4")
    found = Shard(int(match["number"]), int(match["shards"]))
    if not 1 <= found.number <= found.shards:
        last = max(1, found.shards)
        raise EnvironmentProblem(
            f"--shard {text}: shards are counted from 1, so the first of {last} is 1/{last} and "
            f"the last {last}/{last}"
        )
    return found


def longest_first(cells: Mapping[str, Duration]) -> list[str]:
    """Names of cells by seconds, the longest first; equal ones stay in their order."""
    return sorted(cells, key=lambda cell: -cells[cell].seconds)


def deal(cells: Mapping[str, Duration], shards: int) -> list[list[str]]:
    """Deal cells out to shards, each to the one with the least seconds so far.

    It does not matter in what order they come: of equal cells that whose name sorts first is dealt
    first. Of shards with equally much the first one gets it, as anybody can follow by hand; the
    order of the cells is fixed, so nothing else would make it more stable. Cells whose duration is
    recorded are dealt before the others. So a new cell, which nobody measured yet, moves none of
    those.
    """
    dealt: list[list[str]] = [[] for _ in range(shards)]
    least = [(0.0, number) for number in range(shards)]
    ordered = longest_first(dict(sorted(cells.items())))
    for cell in sorted(ordered, key=lambda cell: not cells[cell].recorded):
        seconds, number = least[0]
        dealt[number].append(cell)
        heapq.heapreplace(least, (seconds + cells[cell].seconds, number))
    return dealt


@dataclass(frozen=True)
class Dealt:
    """What one shard of a run was dealt, and out of what.

    `durations` are those of the cells of all shards, `source` is the file of the recorded ones, and
    `left_out` says of each cell in no shard why it is in none.
    """

    shard: Shard
    cells: Sequence[str]
    durations: Mapping[str, Duration]
    source: Path
    left_out: Sequence[str] = ()

    def told(self) -> list[str]:
        """Lines for people: which shard this is, its part of the whole, from what durations."""
        own = sum(self.durations[cell].seconds for cell in self.cells)
        whole = sum(one.seconds for one in self.durations.values())
        recorded = sum(one.recorded for one in self.durations.values())
        what = f"{len(self.cells)} of {len(self.durations)} cells"
        if not self.cells:
            what = f"no cell, for there are {len(self.durations)}"
        return [
            f"shard {self.shard}: {what}; about {own:.0f} s of {whole:.0f} s; durations: "
            f"{recorded} recorded in {self.source}, {len(self.durations) - recorded} estimated",
            *(f"in no shard: {one}" for one in self.left_out),
        ]
