"""Plots as inline SVG, by matplotlib: some 5 KB each, where Plotly and Vega-Altair need a script
of more than 1 MB in each file, and shown without JavaScript. It is imported with the first plot.

Each takes the `name` that keeps its identifiers apart from those of other plots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from servematrix.gates.windows import Scrape, fresh_windows
from servematrix.report.svg import COLOURS, Sheet, inline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _LINE, _GOOD, _BAD, _BAND = COLOURS
POINTS: Final = 120
"""Of a kind in one plot; more than an inch can show of 2,000 samples."""
_BINS: Final = 40
T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """One run's value in a trend: the run's label, and whether its verdict was a pass.

    `alike` says that it was configured as the newest one.
    """

    label: str
    value: float
    good: bool
    alike: bool = True


@dataclass(frozen=True)
class Band:
    """What a baseline's runs measured: the least and greatest value, and the bound, if any."""

    low: float
    high: float
    bound: float | None


def occupancy(
    scrapes: Sequence[Scrape], threshold: float | None, startup: float | None, name: str
) -> str:
    """The occupancy gauge (percent) over seconds since the request; empty without a window.

    Dots are fresh windows, crosses stale scrapes, ticks at the foot NaN; a dashed line is the
    threshold, and what lies in the grey part is the start-up, in seconds.
    """
    ranks = fresh_windows(scrapes)
    if not any(windows.values for windows in ranks.values()):
        return ""
    with _axes(name, 2.2) as (axes, sheet):
        last = max(scrape.t for scrape in scrapes)
        if startup:
            axes.axvspan(0, min(startup, last), color=_BAND, linewidth=0)
        for windows in ranks.values():
            shown = _thinned(list(zip(windows.shown, windows.values, strict=True)))
            axes.plot(*zip(*shown, strict=True), color=_LINE, linewidth=0.8)
            stale = _thinned(windows.stale_scrapes)
            axes.plot([t for t, _ in stale], [v for _, v in stale], "x", color=_INK, markersize=4)
            missing = _thinned(windows.nan_scrapes)
            foot = axes.get_xaxis_transform()
            axes.plot(missing, [0.02] * len(missing), "|", color=_INK, transform=foot)
            for colour, beyond in ((_GOOD, False), (_BAD, True)):
                dots = [one for one in shown if (one[1] <= (threshold or 0.0)) is beyond]
                axes.plot([t for t, _ in dots], [v for _, v in dots], ".", color=colour)
        if threshold is not None:
            axes.axhline(threshold, color=_INK, linestyle="--", linewidth=1)
        axes.set(xlabel="seconds since the request", ylabel="occupancy, %")
    return inline(sheet)


def gaps(milliseconds: Sequence[float], name: str) -> str:
    """A histogram of the times between tokens, their number on a logarithmic scale.

    Dashed are the median and the 99th percentile. Empty without any.
    """
    if not milliseconds:
        return ""
    ranked = sorted(milliseconds)
    with _axes(name, 1.8) as (axes, sheet):
        numbers, edges = np.histogram(ranked, bins=_BINS)
        some = numbers > 0
        width = edges[1] - edges[0]
        axes.bar(edges[:-1][some], numbers[some], width, align="edge", color=_GOOD, log=True)
        for share in (50, 99):
            axes.axvline(percentile(ranked, share), color=_INK, linestyle="--", linewidth=1)
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="milliseconds between tokens", ylabel="tokens")
    return inline(sheet)


def percentile(ranked: Sequence[float], share: int) -> float:
    """The value of sorted ones that `share` percent are below, as the kit that measured takes it.

    >>> percentile([1.0, 2.0, 9.0], 50)
    2.0
    """
    return ranked[len(ranked) * share // 100]


def accuracy(
    value: float,
    interval: tuple[float, float],
    threshold: float | None,
    baseline: float | None,
    name: str,
) -> str:
    """An accuracy with its interval (fractions); dashed the floor, a diamond the baseline.

    It has the colour of a pass or a failure where the whole interval is on one side of the floor.
    """
    with _axes(name, 1.0) as (axes, sheet):
        low, high = interval
        if threshold is None or low > threshold:
            colour = _GOOD
        else:
            colour = _BAD if high < threshold else _INK
        axes.plot(interval, (0, 0), color=colour, linewidth=2)
        axes.plot(value, 0, "o", color=colour)
        if threshold is not None:
            axes.axvline(threshold, color=_INK, linestyle="--", linewidth=1)
        if baseline is not None:
            axes.plot(baseline, 0.4, "D", color=_INK, markersize=4)
        axes.set(xlabel="accuracy", yticks=[], ylim=(-1, 1))
        axes.spines.left.set_visible(False)
    return inline(sheet)


def accept_lengths(histogram: Sequence[int], name: str) -> str:
    """How many verifying passes let 0, 1, … drafted tokens through; empty without a pass."""
    if not sum(histogram):
        return ""
    with _axes(name, 1.8) as (axes, sheet):
        places = range(len(histogram))
        axes.bar(places, histogram, color=_GOOD)
        axes.set_xticks(places[:: -(-len(histogram) // 16)])
        axes.set(xlabel="drafted tokens accepted in a pass", ylabel="passes")
    return inline(sheet)


def trend(points: Sequence[Point], band: Band | None, label: str, name: str) -> str:
    """One quantity from run to run; the band is what the baseline's runs measured.

    A dot is a run whose verdict was a pass, a cross one whose was not; hollow are those that were
    configured otherwise than the newest. Dashed is the baseline's bound.
    """
    with _axes(name, 1.8) as (axes, sheet):
        if band is not None:
            axes.axhspan(band.low, band.high, color=_BAND, linewidth=0)
            if band.bound is not None:
                axes.axhline(band.bound, color=_INK, linestyle="--", linewidth=1)
        axes.plot([one.value for one in points], color=_LINE, linewidth=0.8)
        for place, one in enumerate(points):
            colour, mark = (_GOOD, "o") if one.good else (_BAD, "X")
            filling = colour if one.alike else "none"
            axes.plot(place, one.value, mark, color=colour, markersize=5, markerfacecolor=filling)
        ticks = range(0, len(points), -(-len(points) // 6))
        axes.set_xticks(ticks, [points[n].label for n in ticks])
        axes.margins(y=0.2)
        axes.set(ylabel=label)
    return inline(sheet)


@contextmanager
def _axes(name: str, height: float) -> Iterator[tuple[Axes, Sheet]]:
    """Axes to draw on, so many inches high; the sheet is filled in when the context ends."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    sheet = Sheet(name)
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 9,
        "text.color": _INK,
        "axes.edgecolor": _LINE,
        "axes.labelcolor": _INK,
        "axes.formatter.useoffset": False,
        "xtick.color": _INK,
        "ytick.color": _INK,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(7, height), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        yield axes, sheet
        figure.savefig(sheet.file, format="svg", transparent=True, metadata={"Date": None})


def _thinned(points: Sequence[T]) -> Sequence[T]:
    """At most `POINTS` of some points, each so many apart."""
    return points[:: -(-len(points) // POINTS) or 1]
