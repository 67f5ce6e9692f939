"""The HTML of a report: templates with all that is filled in escaped, and no request in it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Final

from servematrix.records import outcome
from servematrix.report import figures, trends
from servematrix.report.cells import QUIET, WORST_FIRST, Report, Shown, worst
from servematrix.report.figures import Figure
from servematrix.report.trends import Trend
from servematrix.terminal import MOST, shown

SYMBOLS: Final = {
    "pass": "✓",
    "fail": "✗",
    "error": "!",
    "waived": "~",
    "inconclusive": "?",
    "not_applicable": "-",
}


def render(reports: Sequence[Report]) -> str:
    """Return the whole page of one run, or of several in their order."""
    from jinja2 import ChainableUndefined, Environment, PackageLoader  # not needed without a report
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("servematrix.report"),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters |= {
        "figure": _figure,
        "event": _event,
        "rates": _rates,
        "web": _is_web,
        "outcomes": _outcomes,
        "drawn": Markup,
    }
    script, style = _resource("script.js"), _resource("style.css")
    title = f"Servematrix: {len(reports)} runs" if len(reports) > 1 else "Servematrix report"
    return environment.get_template("page.html.j2").render(
        reports=reports,
        trends=trends.of(reports) if len(reports) > 1 else [],
        title=title,
        symbols=SYMBOLS,
        quiet=QUIET,
        outcome=outcome,
        outcomes=WORST_FIRST,
        figures=_figures,
        worst=worst,
        style=Markup(style),
        script=Markup(script),
        script_hash=Markup(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()),
    )


def _resource(name: str) -> str:
    return files("servematrix.report").joinpath("templates", name).read_text(encoding="utf-8")


def _figures(cell: Shown, place: str) -> list[Figure]:
    return figures.of(cell, f"p{place}")


def _visible(value: object) -> object:
    """What is filled in, with every character visible; what is markup already stays."""
    return shown(value, 4 * MOST) if type(value) is str else value


def _figure(value: object) -> str:
    """A number as read by people; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _event(record: Mapping[str, Any]) -> str:
    """What a record says that is neither measured nor judged."""
    for key in ("problem", "reason"):
        if record.get(key):
            return str(record[key])
    told = {key: value for key, value in record.items() if key not in ("kind", "time", "cell")}
    return ", ".join(f"{key} {value}" for key, value in told.items() if not isinstance(value, dict))


def _rates(verdict: Mapping[str, Any]) -> str:
    """The error rates of a verdict, in words."""
    alpha, power = verdict.get("alpha"), verdict.get("power")
    if not isinstance(alpha, int | float):
        return "A fixed limit, for which no error rates are known."
    told = f"Error rates: a healthy server fails with a chance of {alpha:.2g} (alpha)"
    if isinstance(power, int | float):
        told += f", one that is worse by the smallest effect of interest with {power:.4g} (power)"
    return f"{told}."


def _is_web(link: object) -> bool:
    return isinstance(link, str) and link.startswith(("https://", "http://"))


def _outcomes(found: Sequence[Trend]) -> str:
    """The outcomes in some trends, for the filter."""
    return " ".join(sorted({value.outcome for one in found for value in one.values}))
