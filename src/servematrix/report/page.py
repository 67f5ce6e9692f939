"""The HTML of a report: a template with all that is filled in escaped, and no request in it."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any, Final

from servematrix.gates.windows import fresh_windows
from servematrix.records import outcome
from servematrix.report import plots
from servematrix.report.cells import WORST_FIRST, Report, Shown, worst
from servematrix.terminal import MOST, shown

SYMBOLS: Final = {
    "pass": "✓",
    "fail": "✗",
    "error": "!",
    "waived": "~",
    "inconclusive": "?",
    "not_applicable": "-",
}
_SCRIPT: Final = """\
document.querySelector('#filter').hidden = false;
document.querySelector('#verdict').addEventListener('change', event => {
  for (const one of document.querySelectorAll('[data-verdicts]'))
    one.hidden = event.target.value !== ''
      && !one.dataset.verdicts.split(' ').includes(event.target.value);
});"""


def render(reports: list[Report]) -> str:
    """Return the whole page of one run or several."""
    from jinja2 import ChainableUndefined, Environment  # a run without a report needs it not
    from markupsafe import Markup

    template = files("servematrix.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters["figure"] = _figure
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()

    def drawn(cell: Shown, run: int) -> list[dict[str, Any]]:
        return [one | {"svg": Markup(one["svg"])} for one in _plots(cell, run)]

    return environment.from_string(template).render(
        reports=reports,
        symbols=SYMBOLS,
        outcome=outcome,
        outcomes=WORST_FIRST,
        drawn=drawn,
        worst=worst,
        script=Markup(_SCRIPT),
        script_hash=Markup(digest),
    )


def _visible(value: object) -> object:
    """What is filled in, with every character visible; what is markup already stays."""
    return shown(value, 4 * MOST) if type(value) is str else value


def _figure(value: object) -> str:
    """A number as read by people."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _plots(cell: Shown, run: int) -> list[dict[str, Any]]:
    gates = cell.server.get("configuration", {}).get("gates", {})
    given = gates.get("fwd_occupancy", {}).get("threshold")
    threshold = float(given) if isinstance(given, int | float) else None
    found: list[dict[str, Any]] = []
    for traces in cell.traces:
        for request in traces.requests:
            name = f"{run}-{cell.name}-{len(found)}"
            svg = plots.occupancy(request.scrapes, threshold, name)
            windows = fresh_windows(request.scrapes)
            if svg:
                found.append({"svg": svg, "windows": windows, "threshold": threshold})
    return found
