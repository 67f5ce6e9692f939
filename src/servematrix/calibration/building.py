"""From the runs of one server to a baseline: what is refused, and what is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from servematrix import baselines
from servematrix.baselines import BaselineError
from servematrix.calibration.measured import Measured
from servematrix.gates import paired, throughput
from servematrix.gates.pairs import PairingError, align
from servematrix.gates.throughput import QUANTITIES


class Refused(BaselineError):
    """These runs make no baseline; the message names the run and says why."""


def build(
    runs: Sequence[Measured], known_bad: Sequence[Measured], root: Path, alpha: float
) -> Path:
    """Write the baseline of these runs of one cell under `root`, and return its file.

    Refused where a run is not whole or not healthy, where runs differ in what all must share, where
    nothing was measured, or where a known-bad run would pass what later runs are held to.
    """
    check_health(runs)
    _check_alike(runs)
    if len(runs) < throughput.FEWEST_RUNS:
        raise Refused(
            f"{len(runs)} runs of {runs[0].cell}: {throughput.FEWEST_RUNS} are needed to know"
            " their spread"
        )
    values = {name: [run.values[name] for run in runs] for name in runs[0].values}
    if not values:
        raise Refused(
            f"{runs[0].folder}: nothing to compare was measured: no verdict has"
            f" {', '.join(QUANTITIES)}; take a suite with fwd_occupancy or hellaswag"
        )
    thresholds = {
        name: {
            "unit": QUANTITIES[name].unit,
            "better": QUANTITIES[name].better,
            "bound": throughput.bound(name, found, alpha),
            "alpha": alpha,
            "extrapolated": throughput.extrapolated(len(found), alpha),
        }
        for name, found in values.items()
    }
    content = {
        "provenance": _provenance(runs),
        "serving": runs[0].serving,
        "serving_digest": baselines.digest(runs[0].serving),
        "scoring": runs[0].scoring,
        "distributions": values,
        "assumption": throughput.ASSUMPTION,
        "thresholds": thresholds,
        "known_bad_checked": [_known_bad(bad, runs[0], thresholds) for bad in known_bad],
    }
    path = baselines.place(root, runs[0].cell, runs[0].hardware)
    baselines.write(path, content, items_of(runs[0])[0])
    return path


def items_of(run: Measured) -> tuple[Sequence[Mapping[str, Any]] | None, str | None]:
    """The HellaSwag items that later runs can be compared with, and what is to be said of them.

    None where no later run could be: then they would be an error in each.
    """
    if run.rows is None:
        return None, None
    try:
        again = paired.accuracy(align(run.rows, run.rows))
    except PairingError as error:
        return None, f"its HellaSwag items cannot be compared and are left out: {error}"
    if again.outcome == "error":
        return None, f"its HellaSwag items cannot be compared and are left out: {again.reason}"
    if again.outcome == "pass":
        return run.rows, None
    return run.rows, (
        f"even an exact repeat of its HellaSwag items is {again.outcome}: {again.reason}; raise"
        " kits.hellaswag.num_questions and calibrate again, or allow more loss with"
        " gates.hellaswag.margin"
    )


def check_health(runs: Sequence[Measured]) -> None:
    """Refuse runs of a server that is not healthy, runs that are not whole, and one run twice."""
    for number, run in enumerate(runs):
        if run.bad:
            raise Refused(
                f"{run.folder}: no run of a healthy server, so no part of a baseline:"
                f" {'; '.join(run.bad)}"
            )
        if any(run.times == other.times for other in runs[:number]):
            raise Refused(f"{run.folder}: the same run twice; each counts once")


def _check_alike(runs: Sequence[Measured]) -> None:
    for run in runs[1:]:
        told = baselines.differences(runs[0].same, run.same)
        if told:
            raise Refused(
                f"{run.folder}: another server or another way to measure than"
                f" {runs[0].folder}: {'; '.join(told)}"
            )


def _provenance(runs: Sequence[Measured]) -> dict[str, Any]:
    one = runs[0]
    begun = sorted(run.begun for run in runs)
    return {
        "cell": one.cell,
        "parameters": dict(one.parameters),
        "engine": one.engine,
        "simulated": one.simulated,
        "versions": dict(one.versions),
        "hardware": one.hardware,
        "gpus": list(one.gpus),
        "drivers": list(one.drivers),
        "model": one.model,
        "dtype": one.dtype,
        "commits": sorted({run.commit for run in runs if run.commit is not None}),
        "first": begun[0],
        "last": begun[-1],
        "runs": [run.folder.name for run in runs],
    }


def _known_bad(
    bad: Measured, good: Measured, thresholds: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The numbers of a broken server beyond the thresholds; Refused where there are none.

    One on another GPU or with another model would lie beyond them for that alone.
    """
    for what, one, other in (
        ("hardware", bad.hardware, good.hardware),
        ("model", bad.model, good.model),
    ):
        if one != other:
            raise Refused(
                f"{bad.folder}: known bad with {what} {one}, the baseline with {other}: it says"
                " nothing of these thresholds; take one that differs in its fault alone"
            )
    beyond = {
        name: value
        for name, value in bad.values.items()
        if name in thresholds
        and QUANTITIES[name].judged
        and thresholds[name]["bound"] is not None
        and throughput.beyond(name, value, thresholds[name]["bound"])
    }
    told = paired.judge(good.rows, bad.rows) if good.rows and bad.rows else {}
    failed = [name for name, verdict in told.items() if verdict.outcome == "fail"]
    if not beyond and not failed:
        numbers = [
            f"{name} {value:.4g}, threshold {_shown(name, thresholds.get(name))}"
            for name, value in bad.values.items()
        ]
        numbers += [f"{name} {verdict.outcome}" for name, verdict in told.items()]
        raise Refused(
            f"{bad.folder}: known bad, and it would pass: {'; '.join(numbers) or 'no numbers'};"
            " take more or steadier runs, a larger --alpha, or a fault that is of these numbers"
        )
    return {"run": bad.folder.name, "beyond": beyond, "failed": failed}


def _shown(name: str, threshold: Mapping[str, Any] | None) -> str:
    if threshold is None or threshold["bound"] is None or not QUANTITIES[name].judged:
        return "none"
    return f"{threshold['bound']:.4g} ({threshold['better']} is better)"
