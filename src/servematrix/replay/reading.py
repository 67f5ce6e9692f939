"""Recordings in the forms that kits attach, and older ones beside them, recognised by content.

Nothing here is judged, and nothing that a gate could say of a measurement is refused: a file is
refused where it cannot be read, where it is no recording, or where a number in it is none.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from servematrix import outside
from servematrix.gates import consistency, pairs, trace
from servematrix.gates.consistency import Summary
from servematrix.gates.windows import Scrape
from servematrix.outside import TooLargeError

EXPECTED: Final = (
    "expected an object with 'traces' (occupancy), an object with 'concurrency' (decode"
    " consistency), or HellaSwag items, as JSON lines or one list, with ind, label, lp and nt"
)
_MOST_DIGITS = 18

T = TypeVar("T", bound=BaseModel)


class RecordingError(Exception):
    """A file is no recording that can be replayed; the message names it and what was expected."""


class _Table(BaseModel):
    # a server's own fields come along and are not ours to check
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


# far from where sums of numbers overflow
_Finite = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
_Positive = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
_Logprob = Annotated[float, Field(ge=-1e9, le=0.1, allow_inf_nan=False)]  # above 0: rounding
_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=0, le=10**9)]
_NotEmpty = Field(min_length=1)


class Server(_Table):
    """What a recording says of its server, None where it does not."""

    dtype: str | None = None
    kv_cache_dtype: str | None = None
    speculative_algorithm: str | None = None


class Finish(_Table):
    """Why a request ended; `length` is how many tokens were asked for."""

    type: str
    length: _Count | None = None


class Meta(_Table):
    """What the server said of a request."""

    finish_reason: Finish | str | None = None
    completion_tokens: _Count | None = None
    spec_verify_ct: _Count | None = None
    spec_accept_length: _Positive | None = None


class _Sample(_Table):
    t: _Finite
    scrape_s: _Positive
    request_running: bool
    num_running_reqs: _Positive
    fwd_occupancy: _Positive | None
    rank: str = "dp0"
    group: str = "0"
    num_queue_reqs: _Positive = 0.0
    gen_throughput: _Positive = 0.0
    spec_accept_length: _Positive = 0.0
    forward_seconds: _Positive | None = None


class _Trace(_Table):
    meta_info: Meta
    stopped_early: bool = False
    failed_scrapes: _Count = 0
    gaps_ms: list[_Positive] = []
    samples: Annotated[list[_Sample], _NotEmpty]


class _TraceFile(_Table):
    server: Server | str | None = None
    decode_log_interval: Annotated[int, Field(ge=1, le=10**6)] | None = None
    traces: Annotated[list[_Trace], _NotEmpty]


class _Told(_Table):
    """The summary that stands beside raw rows; recordings name the two numbers otherwise."""

    top1: _Share | None = None
    argmax_agree: _Share | None = None
    largest_gap: _Finite | None = None
    gap_max: _Finite | None = None


class _Part(_Table):
    summary: _Told = _Told()
    delta_logprob: Annotated[list[Annotated[list[_Finite], _NotEmpty]], _NotEmpty]
    logprob: list[list[_Logprob]] | None = None
    gap: list[list[_Finite]] | None = None


class _ConsistencyFile(_Table):
    server: Server | str | None = None
    concurrency: Annotated[dict[str, _Part], _NotEmpty]


@dataclass(frozen=True)
class RecordedRequest:
    """One long request, and the scrapes made around it.

    `gaps_ms` are the milliseconds between the tokens of the stream that followed it.
    """

    scrapes: Sequence[Scrape]
    meta: Meta
    stopped_early: bool
    failed_scrapes: int
    gaps_ms: Sequence[float] = ()


@dataclass(frozen=True)
class Traces:
    """Occupancy traces of one server. `decode_log_interval`, in batches, is None where not told."""

    server: Server
    decode_log_interval: int | None
    requests: Sequence[RecordedRequest]
    form = "occupancy traces"


@dataclass(frozen=True)
class Items:
    """A HellaSwag run: one whole row an item, as `gates.pairs` has them, and none twice."""

    rows: Sequence[pairs.Row]
    form = "HellaSwag items"


@dataclass(frozen=True)
class Consistency:
    """Decode against prefill: what the raw rows of each part, such as a concurrency, come to."""

    server: Server
    parts: Mapping[str, Summary]
    form = "decode-consistency rows"


Recording = Traces | Items | Consistency


def read(path: Path) -> Recording:
    """Read a file, compressed by gzip or not. Raises `RecordingError`."""
    return recognise(_content(path), path)


def recognise(content: bytes, path: Path) -> Recording:
    """Turn the content of a file into the recording that it is. `path` is for messages."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordingError(f"{path}: not UTF-8 (byte {error.start}); {EXPECTED}") from error
    found = _parsed(text, path)
    if isinstance(found, dict) and "traces" in found:
        return _traces(_checked(_TraceFile, found, path), found, path)
    if isinstance(found, dict) and "concurrency" in found:
        return _consistency(_checked(_ConsistencyFile, found, path), path)
    first = found[0] if isinstance(found, list) and found else None
    if isinstance(found, list) and isinstance(first, dict) and first.keys() & {"ind", "lp", "nt"}:
        return _items(found, path)
    raise RecordingError(f"{path}: no recording ({_shown(found)}); {EXPECTED}")


def _content(path: Path) -> bytes:
    try:
        return outside.content(path)
    except TooLargeError as error:
        raise RecordingError(f"{path}: {error}; split it") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RecordingError(
            f"{path}: broken gzip ({error}): copy it again, or record it again"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        told = getattr(error, "strerror", None) or error
        raise RecordingError(f"{path}: cannot be read: {told}; name a recording") from error


def _parsed(text: str, path: Path) -> Any:
    """Parse JSON, or JSON lines as a list; a single line that is an item is a list of one."""
    if not text.strip():
        raise RecordingError(f"{path}: empty; {EXPECTED}")
    try:
        found = _json(text)
    except json.JSONDecodeError as whole:
        try:
            return list(_lines(text, path))
        except json.JSONDecodeError:
            raise RecordingError(f"{path}: not JSON ({whole}); {EXPECTED}") from whole
    except (ValueError, RecursionError) as error:
        raise RecordingError(f"{path}: not usable JSON ({error})") from error
    return [found] if isinstance(found, dict) and "ind" in found else found


def _lines(text: str, path: Path) -> Iterator[Any]:
    """Yield the objects of JSON lines. Raises `JSONDecodeError` where the first line is none."""
    # not splitlines(), which also breaks at characters that JSON allows within strings
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield _json(line)
        except json.JSONDecodeError as error:
            if number == 1:
                raise
            raise RecordingError(f"{path}, line {number}: not JSON ({error})") from error
        except (ValueError, RecursionError) as error:
            raise RecordingError(f"{path}, line {number}: not usable JSON ({error})") from error


def _json(text: str) -> Any:
    return json.loads(text, parse_constant=_no_number, parse_int=_whole)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number that can be judged")


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _checked(table: type[T], found: Mapping[str, Any], path: Path) -> T:
    try:
        return table.model_validate(found)
    except ValidationError as error:
        # one fault may be repeated in every row, and a union names it once for each member
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        shown = "" if first["type"] == "missing" else f" (found {first['input']!r:.60})"
        raise RecordingError(f"{path}: {where}: {first['msg']}{shown}; {EXPECTED}") from error


def _server(told: Server | str | None) -> Server:
    return told if isinstance(told, Server) else Server()


def _traces(file: _TraceFile, found: Mapping[str, Any], path: Path) -> Traces:
    requests = []
    for number, one in enumerate(file.traces):
        places = Counter((sample.t, sample.rank) for sample in one.samples)
        if len(places) < len(one.samples):
            t, rank = places.most_common(1)[0][0]
            raise RecordingError(f"{path}: traces.{number}: rank {rank} has two samples at t {t:g}")
        # as they were found: what a row leaves out is for the gate's own reader to fill in
        scrapes = trace.scrapes(found["traces"][number]["samples"])
        middles = [scrape.t + scrape.duration / 2 for scrape in scrapes]
        if any(later <= before for before, later in pairwise(middles)):
            raise RecordingError(f"{path}: traces.{number}: samples are not in the order of t")
        requests.append(
            RecordedRequest(
                scrapes, one.meta_info, one.stopped_early, one.failed_scrapes, one.gaps_ms
            )
        )
    return Traces(_server(file.server), file.decode_log_interval, requests)


def _items(rows: list[Any], path: Path) -> Items:
    for number, row in enumerate(rows):
        problem = pairs.problem_of(row)
        if problem is not None:
            raise RecordingError(f"{path}: row {number}: {problem}; score the items again")
    ind, times = Counter(row["ind"] for row in rows).most_common(1)[0]
    if times > 1:
        raise RecordingError(f"{path}: item {ind} is there {times} times; keep one row each")
    return Items(rows)


def _consistency(file: _ConsistencyFile, path: Path) -> Consistency:
    parts = {}
    for key, part in file.concurrency.items():
        name = f"concurrency {key}" if key.isdigit() else key
        parts[name] = _summary(part, f"{path}: {name}")
    return Consistency(_server(file.server), parts)


def _summary(part: _Part, where: str) -> Summary:
    """Reduce the raw rows; only what they leave open is taken from the summary beside them."""
    lengths = [len(row) for row in part.delta_logprob]
    for key, rows in (("logprob", part.logprob), ("gap", part.gap)):
        if rows is not None and [len(row) for row in rows] != lengths:
            raise RecordingError(f"{where}: {key} has other lengths than delta_logprob")
    told = part.summary
    top1 = told.argmax_agree if told.top1 is None else told.top1
    largest_gap = told.gap_max if told.largest_gap is None else told.largest_gap
    if part.gap is not None:
        gaps = [value for row in part.gap for value in row]
        top1, largest_gap = consistency.share_likeliest(gaps), max(gaps)
    if top1 is None or largest_gap is None:
        raise RecordingError(
            f"{where}: no row gap, and no argmax_agree and gap_max (top1 and largest_gap) in its"
            " summary"
        )
    return consistency.reduced(
        [(f"sequence {number}", row) for number, row in enumerate(part.delta_logprob)],
        top1=top1,
        largest_gap=largest_gap,
        scored=None if part.logprob is None else [p for row in part.logprob for p in row],
    )


def _shown(found: Any) -> str:
    """Say in a few words what a file holds instead of a recording."""
    if isinstance(found, dict):
        return f"an object with the keys {', '.join(list(found)[:6]) or 'none'}"[:120]
    if isinstance(found, list):
        return f"a list of {len(found)}, first {found[0]!r:.60}" if found else "an empty list"
    return f"{found!r:.60}"
