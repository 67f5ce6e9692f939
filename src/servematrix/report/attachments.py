"""Files beside the records that a report draws: checked where they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from servematrix import outside, records
from servematrix.records import RecordsError
from servematrix.replay import reading
from servematrix.replay.reading import RecordingError, Traces

_Count = Annotated[int, Field(ge=0, le=10**9)]
_MOST = 1000

T = TypeVar("T")


class _Table(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class Drafts(_Table):
    """One request's account of its drafts, as `gates.accept_length.Drafts`."""

    completion_tokens: _Count
    verify_passes: _Count
    histogram: list[_Count] | None = None


class Flip(_Table):
    """One HellaSwag item whose answer is another than the baseline's.

    `label` is the number of the right ending; `baseline` and `candidate` were chosen.
    """

    ind: int
    activity_label: str
    ctx: str
    endings: list[str]
    label: int
    baseline: int
    candidate: int

    def marks(self, ending: int) -> list[str]:
        """What an ending is: right, the baseline's answer, this run's."""
        named = {"right": self.label, "baseline": self.baseline, "this run": self.candidate}
        return [name for name, number in named.items() if number == ending]


class Flips(_Table):
    """The flips of a run: how many, and the first of them."""

    count: _Count
    items: list[Flip]


def traces(folder: Path, path: str) -> Traces:
    """Read occupancy traces; RecordsError says what is wrong with the file."""
    try:
        recording = reading.read(outside.within(folder, path))
    except (RecordingError, OSError, ValueError) as error:
        raise RecordsError(str(error)) from error
    if not isinstance(recording, Traces):
        raise RecordsError(f"{folder / path}: {recording.form}, where occupancy traces belong")
    return recording


def drafts(folder: Path, path: str) -> list[Drafts]:
    """Read the drafts of a cell's requests; RecordsError."""
    return _checked(TypeAdapter(list[Drafts]), folder, path)[:_MOST]


def flips(folder: Path, path: str) -> Flips:
    """Read the flips of a cell; RecordsError."""
    return _checked(TypeAdapter(Flips), folder, path)


def _checked(kind: TypeAdapter[T], folder: Path, path: str) -> T:
    found: Any = records.attached(folder, path)
    try:
        return kind.validate_python(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RecordsError(f"{folder / path}: {where}: {first['msg']}") from error
