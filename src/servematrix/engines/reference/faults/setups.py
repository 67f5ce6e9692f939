"""Devices that behave otherwise than the server's arguments say."""

from __future__ import annotations

from dataclasses import replace

from servematrix.engines.reference.device import Setup
from servematrix.engines.reference.faults.catalogue import Faults


def put_into(setup: Setup, faults: Faults, rank: int) -> Setup:
    """The setup of one data-parallel rank's device, with the faults that concern it."""
    slow = faults.get("rank-slow") == rank
    if slow or "overlap-lost" in faults or "gauge-flattering" in faults:
        setup = replace(setup, overlap=False)
    if "graphs-lost" in faults:
        setup = replace(setup, graphs=False)
    if "graphs-lost-above" in faults:
        setup = replace(setup, graph_max_batch=int(faults["graphs-lost-above"]))
    return setup
