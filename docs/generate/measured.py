"""Metrics that are read, numbers that are recorded, and rules as verdicts state them."""

from __future__ import annotations

import contextlib
import io
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docs.generate.text import Undescribed, code, plain, table
from servematrix import cli
from servematrix import metrics as exposed
from servematrix.exit_codes import Exit

_DOCS = Path(__file__).resolve().parent.parent
_KEPT = _DOCS / "validation"
_CONFIGS = ("--configs", str(_DOCS.parent / "configs"))


def metrics() -> str:
    """Every metric of a server that is looked at."""
    rows = [(code(name), unit, told) for name, (unit, told) in exposed.DESCRIBED.items()]
    return table(("metric", "unit", "what it is"), rows)


def measurements() -> str:
    """What the kits record, by kit."""
    rows = [
        (code(kit), code(name), plain(unit), told)
        for kit, names in described().items()
        for name, (unit, told) in names.items()
    ]
    return table(("kit", "measurement", "unit", "what it is"), rows)


def described() -> Mapping[str, Mapping[str, tuple[str, str]]]:
    """Unit and meaning of each number, by kit and name; N stands for a number in a name."""
    text = Path(__file__).with_name("measurements.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def rules() -> str:
    """Rule and error rates of each gate, as it judges what a healthy real server recorded."""
    own = sorted(_KEPT.glob("*/smollm2/files/*"))
    drafting = sorted(_KEPT.glob("*/smollm2-standalone/files/*occupancy*"))
    (items,) = _KEPT.glob("*/smollm2/files/*items.json.gz")
    (again,) = _KEPT.glob("*/smollm2-no-cuda-graph/files/*items.json.gz")
    found: dict[str, tuple[str, ...]] = {}
    for asked in ((*own, *drafting), (again, "--baseline", items)):
        for one in _judged(*map(str, asked)):
            row = (
                code(one["gate"]),
                plain(one["rule"]),
                _share(one["alpha"]),
                _share(one["power"]),
            )
            found.setdefault(one["gate"], row)
    return table(("gate", "rule", "alpha", "power"), found.values())


def _share(chance: float | None) -> str:
    """A chance in percent; nothing where it is not known."""
    return "" if chance is None else f"{100 * chance:.2g} %"


def _judged(*arguments: str) -> list[dict[str, Any]]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()) as told:
        status = cli.main(["replay", *arguments, "--config", "smollm2", "--json", *_CONFIGS])
    if status not in (Exit.PASSED, Exit.INCONCLUSIVE):
        raise Undescribed(f"servematrix replay of the kept recordings: {told.getvalue()}")
    return [json.loads(line) for line in said.getvalue().splitlines()]
