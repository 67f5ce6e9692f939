"""What became of the mutants, held against the explanations that people have written down.

A mutant is known by its function and by its code before and after, not by a number or a line: so
an explanation outlives changes elsewhere.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

KINDS = {
    "equivalent": "the changed code does the same",
    "speed": "the same, sooner or later",
    "shown": "only what is printed changes",
}
"""Why a mutant may live, and how the page says it."""

ALIVE = ("survived", "no tests")
COLUMNS = ("killed", "caught by type check", "timeout")
"""What mutmut calls a dead mutant. A timeout is one: the tests noticed that it hangs."""


@dataclass(frozen=True, order=True)
class Change:
    """What a mutant changes: `where` is `module.function`, the rest its code before and after."""

    where: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.where}\n  - {self.before}\n  + {self.after}"


@dataclass(frozen=True)
class Mutant:
    """A mutant that was run: what mutmut calls its end, and what it changes if it is alive."""

    module: str
    function: str
    status: str
    change: Change | None = None


@dataclass(frozen=True)
class Judged:
    """Survivors that nobody explains, explanations that no survivor needs, statuses that are none.

    `explained` counts the survivors with an explanation, by kind.
    """

    unexplained: Sequence[Change]
    outlived: Sequence[Change]
    unclear: Sequence[Mutant]
    explained: Mapping[str, int]

    @property
    def good(self) -> bool:
        """Whether every mutant is killed or explained."""
        return not self.unexplained and not self.unclear


def change_of(where: str, diff: str, text: str) -> Change:
    """Read what changed off a unified diff; `text` opens a text in the workspace, shown as `…`."""
    lines = diff.splitlines()[2:]  # without the names of the files
    before, after = (
        " ".join(_code(line[1:], text) for line in lines if line.startswith(sign)) for sign in "-+"
    )
    return Change(where, before, after)


def _code(line: str, text: str) -> str:
    code = line.replace(text, "…").strip()
    return f"…{code[1:]}" if code.startswith(")") else code


def explanations(path: Path) -> dict[Change, str]:
    """Read which changes are explained, and the kind of each explanation.

    Raises `ValueError` for an unknown kind, a missing reason, or a change that is there twice.
    """
    found: dict[Change, str] = {}
    for entry in tomllib.loads(path.read_text()).get("explained", []):
        where, kind = entry["where"], entry["kind"]
        if kind not in KINDS or not entry["why"].strip():
            raise ValueError(f"{path.name}: {where}: give a reason, of the kind {list(KINDS)}")
        for before, after in entry["changes"]:
            change = Change(where, before, after)
            if change in found:
                raise ValueError(f"{path.name}: explained twice: {change}")
            found[change] = kind
    return found


def judge(mutants: Sequence[Mutant], explained: Mapping[Change, str]) -> Judged:
    """Hold what survived against the explanations of the functions that were mutated."""
    alive = [one.change for one in mutants if one.status in ALIVE and one.change is not None]
    ran = {f"{one.module}.{one.function}" for one in mutants}
    return Judged(
        unexplained=[change for change in alive if change not in explained],
        outlived=[one for one in explained if one.where in ran and one not in alive],
        unclear=[one for one in mutants if one.status not in (*ALIVE, *COLUMNS)],
        explained=Counter(explained[change] for change in alive if change in explained),
    )
