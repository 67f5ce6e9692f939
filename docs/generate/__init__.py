"""The tables of the reference, made from the code each time the documentation is built.

A page asks for one with the comment `<!-- generated: NAME -->`. What the code does not describe is
an error, so that nothing can be added without a word on what it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from docs.generate import commands, configuration, kits, measured, records, statuses
from docs.generate.text import Undescribed

__all__ = ["TABLES", "Undescribed", "filled"]

TABLES: Mapping[str, Callable[[], str]] = {
    "configuration": configuration.keys,
    "metrics": measured.metrics,
    "measurements": measured.measurements,
    "commands": commands.commands,
    "run-options": commands.run_options,
    "sessions": commands.sessions,
    "statuses": statuses.statuses,
    "records": records.kinds,
    "kits": kits.kits,
    "gates": kits.gates,
    "rules": measured.rules,
}
_WANTED = re.compile(r"<!-- generated: ([a-z-]+) -->")


def filled(page: str) -> str:
    """A page with its tables in it; Undescribed where there is no such table."""
    return _WANTED.sub(lambda found: _table(found[1]), page)


def _table(name: str) -> str:
    if name not in TABLES:
        raise Undescribed(f"there is no table {name!r} to generate, but {', '.join(TABLES)}")
    return TABLES[name]()
