"""The simulated GPU: how long a forward pass takes, and which share of that time it computes.

A forward is planned (nominal length, share of the time that the device is busy), waited for,
and settled. **Settling measures**: device seconds are the planned share times the wall-clock
time that really passed since the previous forward ended. When the host is busy and the event
loop comes late, the simulated step stretches with it. So the occupancy gauge and the
forward-time counter are in real seconds, agree with each other, and agree with any client's
clock, however slow the machine is; only throughput suffers.

Where the numbers come from (SGLang 0.5.16 on one H100, the recorded traces):

- a decode step of the Llama-3.1-8B shape takes 6.39 ms (``l8b``: 156.5 tok/s) and leaves the
  GPU idle for 0.68 % of that (median 99.32 %);
- without overlap the host's own work is added to every step (``nooverlap``: about 76.5 %);
- without CUDA graphs a step is 8 times as long and 9.5 % of it are launch gaps (``nograph``
  against ``base``: 70 against 560 tok/s, 90.5 %);
- a speculative round leaves 1.35 % (``standalone``: median 98.6 %);
- the spread of the windows around those levels is the recorded one, as quantiles.

Prefill speed (8 ms and 20 us a token) is a plain assumption: no recording measures it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

DECODE_SECONDS = 6.39e-3
NO_GRAPH_FACTOR = 8.0
BATCH_GROWTH = 0.004  # a step grows by this share for each further sequence in the batch
PREFILL_SECONDS = 8e-3
PREFILL_SECONDS_PER_TOKEN = 20e-6
HOST_SECONDS = 1.963e-3  # scheduling and sampling for one step; hidden while overlap is on
GAP_SHARE = 0.00685  # of the device time of a step, left idle although overlap is on
LAUNCH_SHARE = 0.0982  # of the device time of a step without a CUDA graph
SPECULATION_SHARE = 0.0073  # on top of GAP_SHARE, of a round of draft and verification

DRAFT_STEP_SHARE = 0.06  # one draft step, as a share of the target's step
VERIFY_FACTOR = 1.08  # verification of a few tokens against a step of one
DEFAULT_TIME_SCALE = 6.4  # simulated seconds per real second: about 1,000 tok/s at batch 1

QUANTILES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
# Points of occupancy around the trace's median, by QUANTILES; the first window of each request
# and readings capped at 100 left out. Sources: traces/l8b, nooverlap, nograph, standalone.
SPREAD = {
    "healthy": (-0.334, -0.074, -0.055, -0.023, 0.0, 0.021, 0.051, 0.094, 0.315),
    "no_overlap": (-11.3, -6.5, -4.31, -1.91, 0.0, 2.37, 4.57, 5.31, 6.85),
    "no_graph": (-1.22, -0.668, -0.51, -0.219, 0.0, 0.161, 0.349, 0.423, 0.65),
    "speculation": (-2.77, -2.11, -1.53, -0.734, 0.0, 0.297, 0.417, 0.456, 0.489),
}
NOISE_FORWARDS = 40  # the recorded spread is that of windows of 40 forwards
LARGEST_BACKLOG_SECONDS = 0.05  # a step that is later than this stretches instead of catching up


@dataclass(frozen=True, slots=True)
class Setup:
    """What of the server's arguments changes the device's behaviour."""

    overlap: bool = True
    graphs: bool = True
    graph_max_batch: int = 256
    draft_steps: int = 0  # 0: no speculation
    time_scale: float = DEFAULT_TIME_SCALE
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Forward:
    """A planned forward. ``seconds`` is nominal and real, ``categories`` are shares of 1."""

    kind: str  # "prefill" or "decode"
    seconds: float
    share: float  # of the elapsed time in which the device computes
    graph: bool
    categories: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Record:
    """A forward that ended: real seconds since the one before, and how they were spent."""

    forward: Forward
    ended: float
    elapsed: float
    device_seconds: float
    host_seconds: float


class Device:
    """Plans forwards, lets their time pass, and settles them; one forward at a time."""

    def __init__(self, setup: Setup, clock: Callable[[], float] = time.perf_counter) -> None:
        self.setup = setup
        self._clock = clock
        self._random = random.Random(setup.seed)
        self._quantile = 0.5
        self._quantile_left = 0
        self._previous_end = clock()
        self._due = self._previous_end

    def resume(self) -> None:
        """Starts the clock of the next forward now; called when work arrives after idling."""
        self._previous_end = self._due = self._clock()

    def plan_prefill(self, tokens: int) -> Forward:
        """A prefill forward of ``tokens`` new tokens, over all sequences of the batch."""
        device = PREFILL_SECONDS + PREFILL_SECONDS_PER_TOKEN * tokens
        return self._plan("prefill", device, self.setup.graphs, (("extend", 1.0),))

    def plan_decode(self, batch: int) -> Forward:
        """A decode forward, or a round of draft and verification, for ``batch`` sequences."""
        graph = self.setup.graphs and batch <= self.setup.graph_max_batch
        device = DECODE_SECONDS * (1 + BATCH_GROWTH * (batch - 1))
        if not graph:
            device *= NO_GRAPH_FACTOR
        if not self.setup.draft_steps:
            return self._plan("decode", device, graph, (("decode", 1.0),))
        draft = DRAFT_STEP_SHARE * self.setup.draft_steps
        total = VERIFY_FACTOR + draft + DRAFT_STEP_SHARE
        shares = (
            ("target_verify", VERIFY_FACTOR / total),
            ("eagle_draft", draft / total),
            ("eagle_draft_extend", DRAFT_STEP_SHARE / total),
        )
        return self._plan("decode", device * total, graph, shares)

    async def complete(self, forward: Forward) -> Record:
        """Waits until the forward is due (at least one turn of the event loop) and settles it."""
        now = self._clock()
        self._due = max(self._due, now - LARGEST_BACKLOG_SECONDS) + forward.seconds
        await asyncio.sleep(max(0.0, self._due - now))
        ended = self._clock()
        elapsed = ended - self._previous_end
        self._previous_end = ended
        device = elapsed * forward.share
        return Record(forward, ended, elapsed, device, elapsed - device)

    def _plan(
        self, kind: str, device: float, graph: bool, categories: tuple[tuple[str, float], ...]
    ) -> Forward:
        idle = device * GAP_SHARE
        mode = "healthy"
        if kind == "decode" and self.setup.draft_steps:
            idle += device * SPECULATION_SHARE
            mode = "speculation"
        if not graph:
            idle += device * LAUNCH_SHARE
            mode = "no_graph"
        if not self.setup.overlap:
            idle += HOST_SECONDS
            mode = "no_overlap"
        share = device / (device + idle) + self._draw(mode) / 100
        seconds = (device + idle) / self.setup.time_scale
        return Forward(kind, seconds, min(max(share, 0.01), 1.0), graph, categories)

    def _draw(self, mode: str) -> float:
        """The current deviation in points; a new quantile is drawn for every window of forwards."""
        if self._quantile_left == 0:
            self._quantile_left = NOISE_FORWARDS
            self._quantile = self._random.random()
        self._quantile_left -= 1
        return _interpolate(SPREAD[mode], self._quantile)


def _interpolate(spread: tuple[float, ...], position: float) -> float:
    """The value of a piecewise linear quantile function at ``position`` in [0, 1)."""
    upper = next(i for i, quantile in enumerate(QUANTILES) if position < quantile)
    low, high = QUANTILES[upper - 1], QUANTILES[upper]
    weight = (position - low) / (high - low)
    return spread[upper - 1] * (1 - weight) + spread[upper] * weight
