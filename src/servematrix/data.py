"""HellaSwag items: where they come from, whether they are whole, and which ones were used.

The data set is never shipped. It comes from the hub, at one revision, once a host, and `datasets`
reads it; or from a local file. Both give the same text and so the same checksum. A small set of
this project's own, in the same format, serves the embedded server.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Final

from servematrix import outside
from servematrix.hub import cache, download
from servematrix.hub.cache import Repository
from servematrix.terminal import say

HUB_NAME: Final = "Rowan/hellaswag"
HUB_REVISION: Final = "218ec52e09a7e7462a5400043bb9a69a41d06b76"
HUB_SPLIT: Final = "validation"
HUB_FILES: Final = ("data/validation-*.parquet",)
PACKAGED: Final = "hellaswag_reference.jsonl"

_ENDINGS = 4
_HOW_TO_GET = (
    f"give a local JSONL or JSONL.GZ file with --hellaswag PATH (attribute hellaswag_path), or run"
    f" once with a network so that the hub's cache holds {HUB_NAME}"
)
_MARKER = re.compile(r"\[(?:header|step|substeps|title)\]")
_SPACES = re.compile(r" {2,}")


class DataError(Exception):
    """Items that are not to be had or not usable; the message says where and what to do."""


@dataclass(frozen=True, slots=True)
class Item:
    """A context and four endings, of which number `label` (0 to 3) is the right one."""

    ind: int
    activity_label: str
    ctx: str
    endings: tuple[str, str, str, str]
    label: int

    @property
    def line(self) -> str:
        """The item as canonical JSON: sorted keys, no blanks."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"), sort_keys=True)

    @property
    def checksum(self) -> str:
        """The first 16 digits of the SHA-256 of the item's line, UTF-8."""
        return hashlib.sha256(self.line.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ItemSet:
    """Items together with where they came from."""

    items: tuple[Item, ...]
    source: str

    @cached_property
    def checksum(self) -> str:
        """SHA-256 over the items, one line of canonical JSON each, UTF-8."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(item.line.encode() + b"\n")
        return digest.hexdigest()

    def split(self, questions: int, shots: int) -> tuple[ItemSet, ItemSet]:
        """Take the first `questions` items to ask, and the `shots` after them as examples.

        So no example is ever asked, whatever the numbers. Raises `DataError` where the set is too
        small for both.
        """
        needed = questions + shots
        if questions < 1 or shots < 0 or needed > len(self.items):
            raise DataError(
                f"{self.source} has {len(self.items)} items, {questions} questions and {shots}"
                " examples are asked for; change hellaswag_num_questions or hellaswag_num_shots"
            )
        return (
            ItemSet(self.items[:questions], self.source),
            ItemSet(self.items[questions:needed], self.source),
        )


def load(path: str | None, *, packaged: bool = False) -> ItemSet:
    """Load items from a local file, the packaged reference set, or the hub, in this order.

    `path` names a `.jsonl` or `.jsonl.gz` file in the data set's format. Without it, `packaged`
    takes the project's own set; else the pinned revision is taken from the hub's cache, and brought
    there where it is not and HF_HUB_OFFLINE is not set. Raises `DataError`.
    """
    if path is not None:
        return _from_file(Path(path))
    if packaged:
        with resources.as_file(resources.files("servematrix") / "resources" / PACKAGED) as file:
            return ItemSet(_from_file(file).items, f"packaged {PACKAGED}")
    return _from_hub()


def clean(text: str) -> str:
    """Remove the markers of the data set's WikiHow part: a title becomes the start of a sentence.

    Text that is clean already stays as it is.
    """
    text = text.strip()
    if "[" in text:
        text = _MARKER.sub("", text.replace(" [title]", ". "))
    return _SPACES.sub(" ", text).strip()


def _from_file(path: Path) -> ItemSet:
    try:
        text = outside.content(path).decode("utf-8")
    except FileNotFoundError:
        raise DataError(f"no file {path}; {_HOW_TO_GET}") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}; {_HOW_TO_GET}") from error
    items = tuple(_items(_rows(text, path), str(path)))
    if not items:
        raise DataError(f"{path} has no items; {_HOW_TO_GET}")
    return ItemSet(items, f"file {path.name}")


def _from_hub() -> ItemSet:
    from datasets import Dataset  # which takes longer than everything else here

    name = f"{HUB_NAME} {HUB_SPLIT} at revision {HUB_REVISION[:8]}"
    wanted = Repository("dataset", HUB_NAME, HUB_REVISION, only=HUB_FILES)
    try:
        download.ensure(wanted, os.environ, say)
        files = cache.files(wanted, cache.folder())
        rows = list(Dataset.from_parquet([str(file) for file in files]))
    except Exception as error:  # it raises its own, pyarrow's and OS errors
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"cannot load {name}: {first}; {_HOW_TO_GET}") from error
    numbered = ((f"row {number}", row) for number, row in enumerate(rows, start=1))
    return ItemSet(tuple(_items(numbered, name)), f"hub {name}")


def _rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    # not splitlines: a JSON string may hold the line separators of Unicode
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})") from None
        yield f"line {number}", row


def _items(rows: Iterable[tuple[str, Any]], source: str) -> Iterator[Item]:
    seen: dict[int, str] = {}
    for where, row in rows:
        problem = _problem(row)
        if problem is not None:
            raise DataError(f"{source}, {where}: {problem}")
        ind = int(row["ind"])
        if ind in seen:
            raise DataError(f"{source}, {where}: item {ind} was already given in {seen[ind]}")
        seen[ind] = where
        first, second, third, fourth = (clean(ending) for ending in row["endings"])
        yield Item(
            ind=ind,
            activity_label=clean(row["activity_label"]),
            ctx=clean(row["ctx"]),
            endings=(first, second, third, fourth),
            label=int(row["label"]),
        )


def _problem(row: Any) -> str | None:
    """Say what is wrong with a row, None where it is a whole item."""
    if not isinstance(row, Mapping):
        return f"an item is an object, found {type(row).__name__}"
    missing = [k for k in ("ind", "activity_label", "ctx", "endings", "label") if k not in row]
    if missing:
        return f"{', '.join(missing)} missing"
    if isinstance(row["ind"], bool) or not isinstance(row["ind"], int):
        return f"ind must be a whole number, found {row['ind']!r}"
    for key in ("activity_label", "ctx"):
        if not isinstance(row[key], str) or not row[key].strip():
            return f"{key} must be text, found {row[key]!r}"
    endings = row["endings"]
    if not isinstance(endings, list | tuple) or len(endings) != _ENDINGS:
        return f"endings must be a list of {_ENDINGS}"
    if not all(isinstance(ending, str) and clean(ending) for ending in endings):
        return "an ending is not text"
    if str(row["label"]) not in ("0", "1", "2", "3"):
        return f"label must be 0 to 3, found {row['label']!r}"
    return None
