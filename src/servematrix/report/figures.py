"""Which plots a cell has, and what each shows in words."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from servematrix.gates.windows import fresh_windows
from servematrix.replay.reading import RecordedRequest
from servematrix.report import plots
from servematrix.report.attachments import Drafts
from servematrix.report.cells import Shown

_OCCUPANCY: Final = "fwd_occupancy.test_fwd_occupancy"
_ACCURACY: Final = "hellaswag.test_accuracy_floor"
_LENGTH: Final = "spec_decoding.test_accept_length"


@dataclass(frozen=True)
class Figure:
    """A plot: what it is of, an SVG element, and what there is to see."""

    title: str
    svg: str
    caption: str


def of(cell: Shown, name: str) -> list[Figure]:
    """The plots of a cell; `name` keeps their identifiers apart from those of other cells."""
    numbered = (f"{name}-{number}" for number in itertools.count())
    found = [
        *_requests(cell, numbered),
        *_accuracy(cell.numbers(_ACCURACY), next(numbered)),
        *_drafts(cell, next(numbered)),
    ]
    return [one for one in found if one.svg]


def _requests(cell: Shown, names: Iterator[str]) -> Iterator[Figure]:
    numbers = cell.numbers(_OCCUPANCY)
    for request in cell.traces.requests if cell.traces else ():
        yield _occupancy(request, numbers, next(names))
        yield _gaps(request.gaps_ms, next(names))


def _occupancy(request: RecordedRequest, numbers: Mapping[str, Any], name: str) -> Figure:
    threshold, startup = _number(numbers, "threshold"), _number(numbers, "startup_s")
    told = [
        f"rank {rank}: {len(one.values)} fresh windows, median {one.median() or 0:.4g} %, "
        f"{one.stale} stale and {one.nan} NaN samples"
        for rank, one in fresh_windows(request.scrapes).items()
    ]
    if threshold is not None:
        told.append(f"dashed: the threshold, {threshold:g} %")
    if startup:
        told.append(f"grey: the start-up, {startup:g} s")
    return Figure(
        "Forward occupancy",
        plots.occupancy(request.scrapes, threshold, startup, name),
        f"{'; '.join(told)}. Dots are fresh windows, crosses stale samples, ticks at the foot NaN.",
    )


def _gaps(milliseconds: Sequence[float], name: str) -> Figure:
    ranked = sorted(milliseconds)
    told = ""
    if ranked:
        middle, late = (plots.percentile(ranked, share) for share in (50, 99))
        told = (
            f"{len(ranked)} tokens of a stream by itself; dashed: median {middle:.4g} ms, 99th "
            f"percentile {late:.4g} ms; longest {ranked[-1]:.4g} ms."
        )
    return Figure("Inter-token latency", plots.gaps(milliseconds, name), told)


def _accuracy(numbers: Mapping[str, Any], name: str) -> Iterator[Figure]:
    value, low, high = (
        _number(numbers, key) for key in ("accuracy", "accuracy_low", "accuracy_high")
    )
    if value is None or low is None or high is None:
        return
    threshold, items = _number(numbers, "accuracy_threshold"), _number(numbers, "n")
    right = _number(numbers, "correct_baseline")
    baseline = right / items if right is not None and items else None
    told = f"{value:.4g}, between {low:.4g} and {high:.4g}, over {items or 0:g} items"
    if threshold is not None:
        told += f"; dashed: the floor, {threshold:g}"
    if baseline is not None:
        told += f"; diamond: the baseline, {baseline:.4g}"
    plot = plots.accuracy(value, (low, high), threshold, baseline, name)
    yield Figure("HellaSwag accuracy", plot, f"{told}.")


def _drafts(cell: Shown, name: str) -> Iterator[Figure]:
    if not cell.drafts:
        return
    passes = sum(one.verify_passes for one in cell.drafts)
    length = sum(one.completion_tokens for one in cell.drafts) / passes if passes else 0.0
    threshold = _number(cell.numbers(_LENGTH), "accept_length_threshold")
    told = f"{len(cell.drafts)} requests, {passes} verifying passes, accept length {length:.4g}"
    if threshold is not None:
        told += f" (threshold {threshold:g})"
    histogram = _pooled(cell.drafts)
    if not histogram:
        told += "; this server tells no histogram"
    yield Figure("Accept length", plots.accept_lengths(histogram, name) or " ", f"{told}.")


def _pooled(drafts: Sequence[Drafts]) -> list[int]:
    """The histograms of all requests in one."""
    found = [one.histogram or [] for one in drafts]
    return [sum(passes) for passes in itertools.zip_longest(*found, fillvalue=0)]


def _number(numbers: Mapping[str, Any], key: str) -> float | None:
    value = numbers.get(key)
    return float(value) if isinstance(value, int | float) else None
