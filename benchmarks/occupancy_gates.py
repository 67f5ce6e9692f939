"""How often the occupancy gate cries wolf, what it sees, and how soon: counted, not asserted.

Recorded traces are resampled, never single windows, which depend on each other:

- *blocks*: the start-up of a recorded request as it was, then runs of `RUN` windows each, cut
  anywhere from what recorded requests of the same kind showed after theirs;
- *blocks, slow starts anywhere*: the same, but runs are cut from whole requests, so that a slow
  start may come back at any time. Harsher than anything that was recorded;
- *whole traces*: recorded requests one after the other, begun up to `RUN` windows late.

So the rates hold for those runs; launches differ by more, as far as the recordings do. Beside it
the published rule: 2,048 tokens, a scrape each 0.5 s at a random phase, the median of the scrapes
above the threshold. It is spared the stale scrapes that it meets at the start of a real request.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from servematrix.gates import occupancy, sequential, trace
from servematrix.gates.sequential import LEAD, Rule
from servematrix.gates.windows import Windows, fresh_windows

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "recordings" / "traces"
PACKAGED = ROOT / "tests" / "data" / "traces"

SMOLLM2 = Rule(94.0, occupancy.STARTUP_SECONDS, occupancy.BLOCK_WINDOWS)
LLAMA8B = Rule(97.0, 1.0, 2)
"""As `configs/smollm2.toml` and `configs/baseline.toml` state them."""

RUN = 24
"""Windows of a run: four blocks of `SMOLLM2`, longer than any dependence after the start-up."""

PUBLISHED_WINDOWS = 51
PUBLISHED_INTERVAL = 0.5
CHUNK = 10_000
_ANYWHERE = "blocks, slow starts anywhere"
ALARMS = 0.1
"""Percent of false alarms that a gate may have."""

Row = tuple[str, list[float], str, float | None, bool]
"""Name, values, unit, aim, and whether more is better."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Kind:
    """Recorded requests of servers of one kind, and how they are judged."""

    name: str
    rule: Rule
    healthy: bool
    files: tuple[str, ...]
    windows: int
    aim_seconds: float | None = None


KINDS = (
    Kind(
        "SmolLM2",
        SMOLLM2,
        True,
        ("base", "smollm2", "smollm2-slow-start", "smollm2-fp8-kv-cache"),
        150,
    ),
    Kind("8B", LLAMA8B, True, ("l8b", "llama8b", "llama8b-again"), 51, 4.0),
    Kind("SmolLM2, no overlap", SMOLLM2, False, ("nooverlap", "smollm2-no-overlap"), 150),
    Kind("SmolLM2, no CUDA graph", SMOLLM2, False, ("nograph", "smollm2-no-cuda-graph"), 51),
    Kind("8B, no overlap", LLAMA8B, False, ("llama8b-no-overlap",), 51, 4.0),
)


@dataclass(frozen=True)
class Outcomes:
    """Of many series of windows: what was decided, and after how many seconds (NaN: never)."""

    passed: NDArray[np.bool_]
    failed: NDArray[np.bool_]
    seconds: Matrix


def figures(repeats: int = 100_000) -> Iterator[Row]:
    """Count false alarms, detections and seconds until a decision; see `Row`."""
    rng = np.random.default_rng(20_240_102)
    for kind in KINDS:
        recorded = _recorded(kind)
        if recorded:
            _check(rng, kind, recorded)
            for name, values, unit, aim, more in _all(rng, kind, recorded, repeats):
                yield f"occupancy, {kind.name}: {name}", values, unit, aim, more


def _all(
    rng: np.random.Generator, kind: Kind, recorded: Sequence[Windows], repeats: int
) -> Iterator[Row]:
    yield from _replays(kind, recorded)
    if kind.healthy:
        yield from _assumption(kind, recorded)
    yield from _resampled(rng, kind, recorded, repeats)
    if kind.healthy:
        fall = _smallest_fall(rng, kind, recorded, min(repeats, CHUNK))
        yield "smallest fall that 99 % fail", [fall], "points", None, False
    if kind.healthy and kind.rule is SMOLLM2:
        hasty = replace(kind, rule=replace(LLAMA8B, threshold=SMOLLM2.threshold))
        drawn = _blocks(rng, hasty, recorded, min(repeats, CHUNK), anywhere=True)
        share = 100.0 * float(np.mean(decide_all(*drawn, hasty.rule).failed))
        yield "false alarms with the start-up and blocks of 8B", [share], "%", None, False


def _check(rng: np.random.Generator, kind: Kind, recorded: Sequence[Windows]) -> None:
    """Hold `decide_all` against the gate, on healthy windows lowered and degraded ones raised."""
    for points in (0.0, 2.0, 4.0, 6.0):
        values, shown = _blocks(rng, kind, recorded, 50, anywhere=True)
        values += points * (-1 if kind.healthy else 1)
        found = decide_all(values, shown, kind.rule)
        for row in range(len(values)):
            decision = sequential.decide(values[row].tolist(), shown[row].tolist(), kind.rule)
            outcome = "pass" if found.passed[row] else "fail" if found.failed[row] else None
            if decision.outcome != outcome:
                raise SystemExit(f"decide_all says {outcome}, the gate {decision}: {kind.name}")


def _replays(kind: Kind, recorded: Sequence[Windows]) -> Iterator[Row]:
    """Every recording from its start, by the gate itself."""
    decisions = [sequential.decide(w.values, w.shown, kind.rule) for w in recorded]
    wanted = "pass" if kind.healthy else "fail"
    right = [100.0 * (decision.outcome == wanted) for decision in decisions]
    yield f"recordings that {wanted}", [float(np.mean(right))], "%", 100.0, True
    seconds = [decision.seconds for decision in decisions]
    yield "recordings, until clear", seconds, "s", kind.aim_seconds, False
    whole = [windows.shown[-1] for windows in recorded]
    yield "recordings, whole request", whole, "s", None, False


def _assumption(kind: Kind, recorded: Sequence[Windows]) -> Iterator[Row]:
    """What the bound on false alarms assumes: after the start-up low blocks are rare."""
    low = blocks = 0
    runs: list[float] = []
    for windows in recorded:
        after = windows.values[_startup(windows, kind.rule) :]
        size = kind.rule.block_windows
        medians = [np.median(after[i : i + size]) for i in range(0, len(after) - size + 1, size)]
        blocks += len(medians)
        low += sum(median <= kind.rule.threshold for median in medians)
        signs = "".join("-" if value <= kind.rule.threshold else "+" for value in after)
        runs.append(float(max(map(len, signs.split("+")))))
    bound = 100.0 * float(beta.ppf(0.95, low + 1, blocks - low))
    most = 100.0 * (1.0 - sequential.HEALTHY)
    name = f"{low} of {blocks} blocks low after the start-up, 95 % bound"
    yield name, [bound], "%", most, False
    yield "longest run of low windows after it", runs, "windows", None, False


def _resampled(
    rng: np.random.Generator, kind: Kind, recorded: Sequence[Windows], repeats: int
) -> Iterator[Row]:
    ways: dict[str, Callable[[int], tuple[Matrix, Matrix]]] = {
        "blocks": lambda count: _blocks(rng, kind, recorded, count, anywhere=False),
        "whole traces": lambda count: _whole(rng, kind, recorded, count),
    }
    if kind.healthy:
        ways[_ANYWHERE] = lambda count: _blocks(rng, kind, recorded, count, anywhere=True)
    for way, draw in ways.items():
        ours: list[Outcomes] = []
        published: list[NDArray[np.bool_]] = []
        for begin in range(0, repeats, CHUNK):
            values, shown = draw(min(CHUNK, repeats - begin))
            ours.append(decide_all(values, shown, kind.rule))
            published.append(_published_fails(rng, values, shown, kind.rule.threshold))
        failed = 100.0 * float(np.mean(np.concatenate([one.failed for one in ours])))
        passed = 100.0 * float(np.mean(np.concatenate([one.passed for one in ours])))
        theirs = 100.0 * float(np.mean(np.concatenate(published)))
        seconds = np.concatenate([one.seconds for one in ours])
        if kind.healthy:
            aim = None if way == _ANYWHERE else ALARMS
            yield f"{way}: false alarms", [failed], "%", aim, False
            yield f"{way}: undecided", [100.0 - failed - passed], "%", None, False
            yield f"{way}: false alarms, published rule", [theirs], "%", None, False
        else:
            yield f"{way}: detected", [failed], "%", 100.0, True
            yield f"{way}: detected, published rule", [theirs], "%", None, True
        if way == "blocks":
            yield f"{way}: until clear, half", [float(np.nanmedian(seconds))], "s", None, False
            late = float(np.nanpercentile(seconds, 95))
            yield f"{way}: until clear, 95 %", [late], "s", None, False


def decide_all(values: Matrix, shown: Matrix, rule: Rule) -> Outcomes:
    """Decide on each row of windows as `sequential.decide` does on one."""
    rows = np.arange(len(values))
    startup = (shown <= rule.startup_seconds).sum(axis=1)
    whole = _leads(values, np.zeros_like(startup), rule)
    steady = _leads(values, startup, rule)
    early, late = _first(whole == LEAD), _first(steady == LEAD)
    fails = _first(steady == -LEAD)
    size = rule.block_windows
    never = np.iinfo(np.int64).max
    passes_at = np.minimum(
        np.where(early < 0, never, (early + 1) * size),
        np.where((late < 0) | ((fails >= 0) & (fails < late)), never, startup + (late + 1) * size),
    )
    fails_at = np.where(
        (fails < 0) | ((late >= 0) & (late < fails)), never, startup + (fails + 1) * size
    )
    at = np.minimum(passes_at, fails_at)
    seconds = np.where(at == never, np.nan, shown[rows, np.where(at == never, 1, at) - 1])
    return Outcomes((passes_at <= fails_at) & (at < never), fails_at < passes_at, seconds)


def _leads(values: Matrix, first: NDArray[np.int64], rule: Rule) -> NDArray[np.int64]:
    """By row and block from window `first` on, by how much good blocks lead; incomplete ones 0."""
    size = rule.block_windows
    count = values.shape[1] // size
    at = first[:, None] + np.arange(count * size)
    there = at < values.shape[1]
    taken = np.where(there, np.take_along_axis(values, np.where(there, at, 0), axis=1), 0.0)
    blocks = taken.reshape(len(values), count, size)
    good = np.median(blocks, axis=2) > rule.threshold
    complete = there.reshape(len(values), count, size).all(axis=2)
    leads: NDArray[np.int64] = np.cumsum(np.where(good, 1, -1), axis=1)
    return np.where(complete, leads, 0)


def _first(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.where(flags.any(axis=1), flags.argmax(axis=1), -1)


def _published_fails(
    rng: np.random.Generator, values: Matrix, shown: Matrix, threshold: float
) -> NDArray[np.bool_]:
    """Whether the published rule fails: the gauge holds a window from when it is shown."""
    last = shown[:, min(PUBLISHED_WINDOWS, values.shape[1]) - 1]
    most = int(last.max() / PUBLISHED_INTERVAL) + 1
    phase = rng.uniform(0, PUBLISHED_INTERVAL, (len(values), 1))
    times = phase + PUBLISHED_INTERVAL * np.arange(most)
    seen = np.full(times.shape, np.nan)
    for row in range(len(values)):
        at = np.searchsorted(shown[row], times[row], side="right") - 1
        fresh = (at >= 0) & (times[row] <= last[row])
        seen[row, fresh] = values[row, at[fresh]]
    fails: NDArray[np.bool_] = ~(np.nanmedian(seen, axis=1) > threshold)
    return fails


# -- drawing series of windows ------------------------------------------------------------------


def _blocks(
    rng: np.random.Generator,
    kind: Kind,
    recorded: Sequence[Windows],
    count: int,
    *,
    anywhere: bool,
) -> tuple[Matrix, Matrix]:
    starts = [_startup(windows, kind.rule) for windows in recorded]
    pools = [
        (np.array(w.values[0 if anywhere else n :]), _durations(w)[0 if anywhere else n :])
        for w, n in zip(recorded, starts, strict=True)
    ]
    long = [i for i, (pool, _) in enumerate(pools) if len(pool) >= RUN]
    values, durations = np.empty((2, count, kind.windows))
    for row in range(count):
        which = int(rng.integers(len(recorded)))
        filled = 0 if anywhere else min(starts[which], kind.windows)
        values[row, :filled] = recorded[which].values[:filled]
        durations[row, :filled] = _durations(recorded[which])[:filled]
        while filled < kind.windows:
            pool, spans = pools[long[int(rng.integers(len(long)))]]
            begin = int(rng.integers(len(pool) - RUN + 1))
            end = min(filled + RUN, kind.windows)
            values[row, filled:end] = pool[begin : begin + end - filled]
            durations[row, filled:end] = spans[begin : begin + end - filled]
            filled = end
    return values, np.cumsum(durations, axis=1)


def _whole(
    rng: np.random.Generator, kind: Kind, recorded: Sequence[Windows], count: int
) -> tuple[Matrix, Matrix]:
    values, durations = np.empty((2, count, kind.windows))
    for row in range(count):
        begin, filled = int(rng.integers(RUN)), 0
        while filled < kind.windows:
            windows = recorded[int(rng.integers(len(recorded)))]
            end = min(filled + len(windows.values) - begin, kind.windows)
            values[row, filled:end] = windows.values[begin : begin + end - filled]
            durations[row, filled:end] = _durations(windows)[begin : begin + end - filled]
            begin, filled = 0, end
    return values, np.cumsum(durations, axis=1)


def _smallest_fall(
    rng: np.random.Generator, kind: Kind, recorded: Sequence[Windows], repeats: int
) -> float:
    """Points by which all windows must fall for 99 % of the resamplings to fail; 0.1 exactly."""
    values, shown = _blocks(rng, kind, recorded, repeats, anywhere=False)
    for tenths in range(1, 1000):
        if decide_all(values - tenths / 10, shown, kind.rule).failed.mean() >= 0.99:
            return tenths / 10
    return 100.0


def _startup(windows: Windows, rule: Rule) -> int:
    return sum(shown <= rule.startup_seconds for shown in windows.shown)


def _durations(windows: Windows) -> Matrix:
    return np.diff(np.array(windows.shown), prepend=0.0)


def _recorded(kind: Kind) -> list[Windows]:
    found = []
    for name in kind.files:
        packaged, shared = PACKAGED / f"{name}.json.gz", SHARED / f"{name}.trace.json.gz"
        path = packaged if packaged.exists() else shared
        if not path.exists():
            print(f"occupancy: {path} is not there and is left out", file=sys.stderr)
            continue
        kept: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
        for one in kept["traces"]:
            found += fresh_windows(trace.scrapes(one["samples"])).values()
    return found
