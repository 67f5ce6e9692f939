"""Reading `/metrics` around a request: before it, while it runs, and once after it.

Only the caller's thread writes samples. A scrape that fails is counted and is no sample.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from servematrix import metrics
from servematrix.client import BadStatus, Client, ClientError, MalformedAnswer, TimedOut
from servematrix.gates.windows import RankReading, Scrape
from servematrix.kits.long_request import LongRequest

TIMEOUT = 10.0
"""Seconds that one scrape may take, and that the server may take to fall idle."""

SILENCE = 30.0
"""Seconds without one answered scrape after which the server counts as hung."""

_SHORTEST_INTERVAL = 0.005
"""Seconds: a bound on the load that scraping puts on the server's HTTP process."""


@dataclass(frozen=True)
class Before:
    """The last scrape before the request: the gauge's old value, and the requests served.

    `older_name` is that of the forward times in a version before the gauge, None in others.
    """

    scrape: Scrape
    gauge_exposed: bool
    older_name: str | None
    served: float | None


@dataclass(frozen=True)
class Watched:
    """The scrapes around a request, that before it included; `failed` ones are not among them.

    `served` is by how much the server's count of finished requests rose, None without a count.
    """

    scrapes: list[Scrape]
    failed: int
    served: float | None


def served(client: Client) -> bool:
    """Whether there is a `/metrics` at all; a key that is refused raises, as any `ClientError`."""
    try:
        client.metrics_text(timeout=TIMEOUT)
    except BadStatus as error:
        if error.status in (401, 403):
            raise
        return False
    return True


def read(client: Client) -> metrics.Metrics:
    """Scrape once. Raises `ClientError`, `MalformedAnswer` where a line cannot be read."""
    text = client.metrics_text(timeout=TIMEOUT)
    try:
        return metrics.read(text)
    except metrics.MalformedMetrics as error:
        raise MalformedAnswer(str(error)) from error


def before(client: Client, interval: float) -> Before:
    """Scrape each `interval` seconds until nothing runs, for ten seconds at most."""
    ends = time.monotonic() + TIMEOUT
    pause = threading.Event()
    while True:
        found = read(client)
        scrape = _scrape(found, t=-interval, duration=0.0, running=False)
        if scrape.requests() == 0 or not found.occupancy_exposed or time.monotonic() > ends:
            older = metrics.OLD_FORWARD if metrics.OLD_FORWARD in found.older_names else None
            return Before(scrape, found.occupancy_exposed, older, found.num_requests_total)
        pause.wait(interval)


def watch(
    client: Client,
    request: LongRequest,
    old: Before,
    *,
    longest_interval: float,
    batches: int,
    clear: Callable[[Sequence[Scrape]], bool] = lambda scrapes: False,
    each: Callable[[Sequence[Scrape]], object] = lambda scrapes: None,
) -> Watched:
    """Send the request and scrape until it has ended; then scrape once more.

    Once `clear` says that the scrapes so far suffice, the request is asked to stop, once. `each` is
    told of the scrapes so far, after each of them, as long as the request runs.
    The interval is at most `longest_interval` seconds, and at most half of what `batches` decoding
    batches take at the rate that the server shows, so that no window is missed on a fast GPU.
    """
    scrapes = [old.scrape]
    failed = 0
    served: float | None = None
    request.start()
    last = asked_to_stop = False
    interval = longest_interval
    answered = time.monotonic()
    while not last:
        last = request.ended.is_set()
        start = time.monotonic()
        try:
            found = read(client)
        except ClientError as error:
            failed += 1
            if time.monotonic() - answered > SILENCE:
                raise TimedOut(f"no scrape answered for {SILENCE:g} s: {error}") from error
        else:
            answered = time.monotonic()
            duration = answered - start
            running = not request.ended.is_set()
            t = start - request.sent
            scrapes.append(_scrape(found, t=t, duration=duration, running=running))
            served = found.num_requests_total
            rate = _batches_per_second(scrapes[-1])
            interval = min(longest_interval, 0.5 * batches / rate) if rate > 0 else longest_interval
            if running and not asked_to_stop and clear(scrapes):
                asked_to_stop = True
                request.stop(TIMEOUT)
            if running:
                each(scrapes)
        left = start + max(interval, _SHORTEST_INTERVAL) - time.monotonic()
        if not last and left > 0:
            request.ended.wait(left)
    rose = None if served is None or old.served is None else served - old.served
    return Watched(scrapes, failed, rose)


def _batches_per_second(scrape: Scrape) -> float:
    """Return the fastest rank's decoding rate; a batch of one gives its accept length in tokens."""
    return max(
        (rank.gen_throughput / max(1.0, rank.spec_accept_length) for rank in scrape.ranks.values()),
        default=0.0,
    )


def _scrape(found: metrics.Metrics, *, t: float, duration: float, running: bool) -> Scrape:
    return Scrape(
        t=t,
        duration=duration,
        request_running=running,
        ranks={
            name: RankReading(
                group=rank.group,
                running=rank.num_running_reqs or 0.0,
                queued=rank.num_queue_reqs or 0.0,
                occupancy=math.nan if rank.fwd_occupancy is None else rank.fwd_occupancy,
                forward_seconds=rank.forward_seconds_total,
                gen_throughput=rank.gen_throughput or 0.0,
                spec_accept_length=rank.spec_accept_length or 0.0,
            )
            for name, rank in found.ranks.items()
        },
    )
