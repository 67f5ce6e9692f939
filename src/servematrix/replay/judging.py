"""The gates on recordings, each called as its kit calls it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from servematrix import config as configs
from servematrix import matrix
from servematrix.config import ConfigError, Place
from servematrix.gates import accept_length, accuracy, consistency, occupancy, paired
from servematrix.gates.verdict import Verdict
from servematrix.kits import DecodeConsistencyMixin, FwdOccupancyMixin, HellaswagMixin
from servematrix.kits.base import Kit
from servematrix.kits.decode_consistency import dtype_of, limits_for
from servematrix.kits.fwd_occupancy import DECODE_LOG_INTERVAL
from servematrix.replay.reading import (
    Consistency,
    Finish,
    Items,
    RecordedRequest,
    Recording,
    Traces,
)


@dataclass(frozen=True)
class Judged:
    """One verdict on a file; `request` counts from 1, None where it is on the file as a whole."""

    file: Path
    gate: str
    verdict: Verdict
    request: int | None = None


@dataclass(frozen=True)
class Settings:
    """Where limits come from: what a configuration sets, and the kits' own defaults for the rest.

    `dtype` is the one that the configuration serves in, for recordings that do not tell theirs.
    """

    source: str = "the kits' defaults"
    changes: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None

    @classmethod
    def of(cls, folder: Path, name: str, engine: str, changes: Sequence[str]) -> Settings:
        """Return those of a configuration on an engine, on no GPU in particular.

        Raises `ConfigError` where `name` is unknown, or stands for several cells.
        """
        cells = matrix.for_engine(folder, matrix.select(folder, [name]), engine)
        if len(cells) != 1:
            ids = ", ".join(cell.id for cell in cells)
            raise ConfigError(f"--config {name}: limits are those of one cell; name one of: {ids}")
        cell = cells[0]
        config = configs.resolve(cell.config, cell.axis, Place(engine), changes)
        dtype = config.arguments.get("dtype")
        return cls(cell.label, configs.attributes(config), None if dtype is None else str(dtype))

    def get(self, kit: type[Kit], name: str) -> Any:
        """Return the attribute that a kit would have."""
        return self.changes.get(name, getattr(kit, name))


def judge(file: Path, recording: Recording, settings: Settings) -> Iterator[Judged]:
    """Judge a recording on its own."""
    if isinstance(recording, Traces):
        for number, request in enumerate(recording.requests, start=1):
            for gate, verdict in _request(recording, request, settings).items():
                yield Judged(file, gate, verdict, number)
    elif isinstance(recording, Items):
        yield Judged(file, "accuracy_floor", _floor(recording, settings))
    else:
        yield Judged(file, "decode_consistency", _consistency(recording, settings))


def compare(
    file: Path, baseline: Items, candidate: Items, accepted: str | None
) -> Iterator[Judged]:
    """Judge a HellaSwag run against a baseline; `accepted` names a change that is wanted."""
    verdicts = paired.judge(baseline.rows, candidate.rows, accepted=accepted)
    for gate, verdict in verdicts.items():
        yield Judged(file, gate, verdict)


def _request(file: Traces, one: RecordedRequest, settings: Settings) -> dict[str, Verdict]:
    def setting(name: str) -> Any:
        return settings.get(FwdOccupancyMixin, f"fwd_occupancy_{name}")

    limits = occupancy.Limits(
        threshold=setting("threshold"),
        min_samples=setting("min_samples"),
        decode_log_interval=file.decode_log_interval or DECODE_LOG_INTERVAL,
        counter_tolerance=setting("counter_tolerance"),
        rank_reduction=setting("rank_reduction"),
        startup_seconds=setting("startup_seconds"),
        block_windows=setting("block_windows"),
    )
    request = _ended(one, setting("max_new_tokens"))
    found = {
        "fwd_occupancy": occupancy.judge(
            one.scrapes, request, limits, failed_scrapes=one.failed_scrapes
        )
    }
    pays = accept_length.judge(
        algorithm=file.server.speculative_algorithm or None,
        completion_tokens=one.meta.completion_tokens,
        verify_passes=one.meta.spec_verify_ct,
        reported=one.meta.spec_accept_length,
        threshold=setting("acc_length_threshold"),
    )
    if pays.outcome != "not_applicable":
        found["accept_length"] = pays
    return found


def _ended(one: RecordedRequest, max_new_tokens: int) -> occupancy.Request:
    """Return the request as the kit describes it, with the tokens asked for as far as they show.

    An end by length names them; of a request that was aborted only the setting tells.
    """
    meta = one.meta
    finish = meta.finish_reason
    kind = finish.type if isinstance(finish, Finish) else finish
    length = finish.length if isinstance(finish, Finish) else None
    if length is None and kind == "length":
        length = meta.completion_tokens
    return occupancy.Request(
        asked_tokens=max_new_tokens if length is None else length,
        completion_tokens=meta.completion_tokens,
        finish_reason=kind,
        forward_passes=meta.spec_verify_ct or meta.completion_tokens,
        stopped=one.stopped_early,
    )


def _floor(items: Items, settings: Settings) -> Verdict:
    labels = {row["label"] for row in items.rows}
    if len(labels) < 2:
        reason = f"one class only: {labels.pop()} is the label of all {len(items.rows)} items"
        return Verdict("error", "items have different right endings", reason)
    right = 0
    for row in items.rows:
        means = [lp / nt for lp, nt in zip(row["lp"], row["nt"], strict=True)]
        right += means.index(max(means)) == row["label"]
    threshold = settings.get(HellaswagMixin, "hellaswag_accuracy_threshold")
    return accuracy.floor(right, len(items.rows), threshold=threshold)


def _consistency(recording: Consistency, settings: Settings) -> Verdict:
    server = recording.server
    auto = settings.get(DecodeConsistencyMixin, "decode_consistency_auto_dtype")
    dtype = dtype_of({"dtype": server.dtype or settings.dtype}, auto)
    changes = settings.changes.get(f"decode_consistency_{dtype}", {})
    kv = server.kv_cache_dtype
    verdict = consistency.judge(
        recording.parts,
        limits_for(dtype, changes),
        dtype=dtype,
        context=f"the KV cache is {kv}" if kv not in (None, "auto") else "",
    )
    return replace(verdict, numbers={**verdict.numbers, "dtype": dtype, "dtype_told": server.dtype})
