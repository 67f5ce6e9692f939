"""A ledger that keeps wrong books: gauges that freeze, vanish or flatter."""

from __future__ import annotations

import itertools
import math
from typing import Any

from servematrix.engines.reference.faults.catalogue import Faults
from servematrix.engines.reference.ledger import Ledger
from servematrix.engines.reference.telemetry import RankMetrics

_FLATTERING = (99.31, 99.33, 99.30, 99.34, 99.32)
"""Percent: what an 8B model reads on an H100 when it is healthy."""


class FaultyLedger(Ledger):
    """Publishes an occupancy that is not the measured one."""

    def __init__(self, faults: Faults, metrics: RankMetrics | None, **options: Any) -> None:
        self._faults = faults
        self._shown = False
        self._flattering = itertools.cycle(_FLATTERING)
        super().__init__(metrics, **options)

    def _publish_occupancy(self) -> None:
        if "gauge-frozen" in self._faults:
            if self._shown:
                return
            self._shown = not math.isnan(self._occupancy)
        elif "gauge-nan" in self._faults:
            self._occupancy = math.nan
        elif "gauge-flattering" in self._faults and not math.isnan(self._occupancy):
            self._occupancy = next(self._flattering)
        super()._publish_occupancy()
