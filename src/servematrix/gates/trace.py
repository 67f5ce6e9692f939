"""The occupancy trace as it is kept beside the records, so that a run can be judged again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from servematrix.gates.windows import RankReading, Scrape

_RANK = "dp0"


def rows(scrapes: Sequence[Scrape]) -> list[dict[str, float | str | bool | None]]:
    """Write scrapes as JSON-able rows, one for each scrape and rank.

    Percent, seconds and tokens a second; `fwd_occupancy` is null where `nan` is true. The scrape
    from before the request has a negative `t`.
    """
    return [
        {
            "t": round(scrape.t, 6),
            "scrape_s": round(scrape.duration, 6),
            "request_running": scrape.request_running,
            "rank": rank,
            "group": reading.group,
            "num_running_reqs": reading.running,
            "num_queue_reqs": reading.queued,
            "gen_throughput": reading.gen_throughput,
            "spec_accept_length": reading.spec_accept_length,
            "fwd_occupancy": None if math.isnan(reading.occupancy) else reading.occupancy,
            "nan": math.isnan(reading.occupancy),
            "forward_seconds": reading.forward_seconds,
        }
        for scrape in scrapes
        for rank, reading in scrape.ranks.items()
    ]


def scrapes(rows: Sequence[Mapping[str, Any]]) -> list[Scrape]:
    """Read the rows of `rows` back, and those of a single-rank trace without rank or counter."""
    joined: dict[float, tuple[Mapping[str, Any], dict[str, RankReading]]] = {}
    for row in rows:
        rank = str(row.get("rank", _RANK))
        _, ranks = joined.setdefault(float(row["t"]), (row, {}))
        occupancy = row["fwd_occupancy"]
        ranks[rank] = RankReading(
            group=str(row.get("group", rank)),
            running=float(row["num_running_reqs"]),
            queued=float(row.get("num_queue_reqs", 0.0)),
            occupancy=math.nan if occupancy is None else float(occupancy),
            forward_seconds=row.get("forward_seconds"),
            gen_throughput=float(row.get("gen_throughput", 0.0)),
            spec_accept_length=float(row.get("spec_accept_length", 0.0)),
        )
    return [
        Scrape(t, float(first["scrape_s"]), bool(first["request_running"]), ranks)
        for t, (first, ranks) in joined.items()
    ]
