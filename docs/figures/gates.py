"""Draws the figures of docs/gates.md, from recorded traces and from the gates themselves.

`python docs/figures/gates.py` in an environment with the project and matplotlib.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import matplotlib.pyplot as plt

from servematrix.gates import trace
from servematrix.gates.proportions import ALPHA, mcnemar_power
from servematrix.gates.sequential import Rule, decide
from servematrix.gates.windows import Windows, fresh_windows

HERE = Path(__file__).parent
TRACES = HERE.parents[1] / "tests" / "data" / "traces"
plt.rcParams.update(
    {"svg.fonttype": "none", "svg.hashsalt": "gates", "font.size": 9, "axes.spines.top": False}
)


def windows(name: str) -> Windows:
    """The fresh windows of a kept trace's first request."""
    kept = json.loads(gzip.decompress((TRACES / f"{name}.json.gz").read_bytes()))
    ranks = fresh_windows(trace.scrapes(kept["traces"][0]["samples"]))
    return next(iter(ranks.values()))


def occupancy() -> None:
    """Windows, start-up, threshold, and where each request was decided."""
    shown = (
        ("llama8b", "8B, healthy", Rule(97.0, 1.0, 2)),
        ("llama8b-no-overlap", "8B, no overlap", Rule(97.0, 1.0, 2)),
        ("smollm2-slow-start", "SmolLM2, healthy, a slow start", Rule(94.0, 5.0, 6)),
        ("smollm2-no-overlap", "SmolLM2, no overlap", Rule(94.0, 5.0, 6)),
    )
    figure, axes = plt.subplots(2, 2, figsize=(8, 4.6), sharex=True, layout="constrained")
    for axis, (name, title, rule) in zip(axes.flat, shown, strict=True):
        found = windows(name)
        decision = decide(found.values, found.shown, rule)
        axis.axvspan(0, rule.startup_seconds, color="0.92", label="start-up")
        axis.axhline(rule.threshold, color="C3", linewidth=1, label="threshold")
        axis.plot(found.shown, found.values, ".", markersize=4, color="C0", label="window")
        axis.axvline(decision.seconds, color="C2", linestyle="--", label="decided")
        axis.set_title(f"{title}: {decision.outcome} after {decision.seconds:.1f} s", fontsize=9)
        axis.set_ylim(45, 101)
    figure.supxlabel("seconds since the request was sent", fontsize=9)
    figure.supylabel("occupancy, %", fontsize=9)
    axes.flat[1].legend(fontsize=7, loc="lower right")
    figure.savefig(HERE / "occupancy.svg", metadata={"Date": None})


def power() -> None:
    """How likely a loss is seen, by its size and by the answers that flip for no reason."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
    for axis, n, most in ((axes[0], 1000, 6.0), (axes[1], 10042, 1.6)):
        losses = [most * i / 60 for i in range(61)]
        for flips in (0.0001, 0.001, 0.01, 0.06):
            seen = [mcnemar_power(n, loss / 100, flips, ALPHA) for loss in losses]
            axis.plot(losses, seen, label=f"{flips:.2%} flip")
        axis.axhline(0.99, color="0.7", linewidth=0.8)
        axis.set_title(f"{n:,} items", fontsize=9)
        axis.set_xlabel("accuracy lost, points")
    axes[0].set_ylabel("chance that it is seen")
    axes[0].legend(fontsize=7)
    figure.savefig(HERE / "power.svg", metadata={"Date": None})


if __name__ == "__main__":
    occupancy()
    power()
