"""Properties of a test in a JUnit file: what was judged, by which rule, and what was measured."""

from __future__ import annotations

from typing import Final

import pytest

from servematrix.gates.verdict import Verdict
from servematrix.reporter import Reporter
from servematrix.terminal import line

Properties = list[tuple[str, str]]
_LONGEST: Final = 4000
_KEPT: Final = pytest.StashKey[Properties]()


def keep(item: pytest.Item, cell: str, reporter: Reporter, verdict: Verdict) -> None:
    """Keep the properties of a test that has its verdict.

    They are `cell`, `kit`, `verdict`, `rule`, `reason`, `waived` where it is, and for each number
    that was measured `KIT.NAME[UNIT]`, or `KIT.NAME` where it has no unit.
    """
    kit, _ = reporter.judged or ("?", "")
    waived = [("waived", reporter.waived.reason)] if reporter.waived else []
    measured = [
        (line(f"{of}.{name}[{unit}]" if unit else f"{of}.{name}"), line(str(value), _LONGEST))
        for of, name, value, unit in reporter.measured
    ]
    item.stash[_KEPT] = [
        ("cell", cell),
        ("kit", kit),
        ("verdict", verdict.outcome),
        ("rule", line(verdict.rule, _LONGEST)),
        ("reason", line(verdict.reason, _LONGEST)),
        *waived,
        *measured,
    ]


def kept(item: pytest.Item) -> Properties:
    """What was kept, for the report of a test's teardown: pytest's JUnit file has that one's."""
    return item.stash.get(_KEPT, [])
