"""Plots as inline SVG, by matplotlib: some 10 KB each, where Plotly and Vega-Altair need a script
of more than 1 MB in each file, and shown without JavaScript. It is imported with the first plot.

Colours are CSS variables of the page, so that a plot follows light and dark.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Final, TypeVar

from servematrix.gates.windows import Scrape, fresh_windows

_COLOURS: Final = {"#010203": "var(--ink)", "#040506": "var(--line)", "#070809": "var(--pass)"}
_INK, _LINE, _GOOD = _COLOURS
POINTS: Final = 150
"""Of a kind in one plot; more than an inch can show of 2,000 samples."""
T = TypeVar("T")


def occupancy(scrapes: Sequence[Scrape], threshold: float | None, name: str) -> str:
    """The occupancy gauge (percent) over seconds since the request: an SVG element.

    Dots are fresh windows, ticks below are NaN. Empty where no rank had the request. `name` keeps
    the plot's identifiers apart from those of others.
    """
    windows = fresh_windows(scrapes)
    if not windows:
        return ""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": name,
            "font.size": 9,
            "text.color": _INK,
            "axes.edgecolor": _LINE,
            "axes.labelcolor": _INK,
            "xtick.color": _INK,
            "ytick.color": _INK,
        }
    ):
        figure = Figure(figsize=(7, 2.2), layout="constrained")
        axes = figure.add_subplot()
        for rank, found in windows.items():
            seen = [(one.t, one.ranks[rank].occupancy) for one in scrapes if rank in one.ranks]
            told = [pair for pair in seen if not math.isnan(pair[1])]
            missing = [t for t, value in seen if math.isnan(value)]
            if told:
                axes.step(*zip(*_thinned(told), strict=True), where="post", color=_LINE)
            axes.plot(_thinned(found.shown), _thinned(found.values), ".", color=_GOOD)
            missing = list(_thinned(missing))
            axes.plot(
                missing,
                [0.02] * len(missing),
                "|",
                color=_INK,
                transform=axes.get_xaxis_transform(),
            )
        if threshold is not None:
            axes.axhline(threshold, color=_INK, linestyle="--", linewidth=1)
        axes.set_xlabel("seconds since the request")
        axes.set_ylabel("occupancy, %")
        axes.spines[["top", "right"]].set_visible(False)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return _inline(drawn.getvalue())


def _thinned(points: Sequence[T]) -> Sequence[T]:
    """At most `POINTS` of some points, each so many apart."""
    return points[:: -(-len(points) // POINTS) or 1]


def _inline(svg: str) -> str:
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    # a tenth of a point is finer than a screen, and nobody reads the indentation
    svg = re.sub(r"\n\s*", "\n", re.sub(r"(\.\d)\d+", r"\1", svg))
    # the page's own font; matplotlib names eleven at each label
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)
