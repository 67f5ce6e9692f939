"""Known failures: which failed verdicts are waived, why, and until when.

`configs/waivers.toml` has an entry for each. A waived failure is recorded as the failure that it
is, shown and counted; only the exit status does not hang on it. After its date an entry waives
nothing. Of the outcomes only `fail` is waived: an `error` says that nothing was measured, and an
inconclusive verdict is no failure.
"""

from __future__ import annotations

import datetime
import tomllib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from servematrix import matrix, own_kits
from servematrix.config import WAIVERS, ConfigError, checked, nearest
from servematrix.terminal import line

Outcomes = Mapping[tuple[str, str, str], Collection[str]]
"""The outcomes that a run reached, by cell, kit and test."""


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("say why, in a few words")
    return text


def _url(text: str) -> str:
    parts = urlsplit(text)
    if "@" in parts.netloc:
        raise ValueError("a link is shown to everybody; leave user and password out")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("a link is an http:// or https:// URL, such as that of an issue")
    return text


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _File(_Table):
    waivers: list[dict[str, Any]] = []


class _Entry(_Table):
    cell: str = Field(min_length=1)
    kit: str
    test: str | None = None
    reason: Annotated[str, AfterValidator(_not_blank)]
    link: Annotated[str, AfterValidator(_url)]
    expires: datetime.date


@dataclass(frozen=True)
class Waiver:
    """One entry of a file. `cells` and `tests` are those that it stands for, one or more each."""

    file: Path
    number: int
    kit: str
    cell: str
    cells: tuple[str, ...]
    test: str | None
    tests: tuple[str, ...]
    reason: str
    link: str
    expires: datetime.date
    expired: bool

    @property
    def where(self) -> str:
        """File and number of the entry, the first is 1."""
        return f"{self.file}, entry {self.number}"

    @property
    def what(self) -> str:
        """What it waives: cell and kit, and the test where it names one."""
        return f"{self.cell} {self.kit}{f'.{self.test}' if self.test else ''}"

    def record(self) -> dict[str, str]:
        """What stands beside a verdict that is waived."""
        return {"reason": self.reason, "link": self.link, "expires": self.expires.isoformat()}

    def expiry(self) -> str:
        """Why a failure that was waived no longer is, as a clause."""
        return line(
            f"its waiver expired on {self.expires.isoformat()} ({self.where}; {self.reason}; "
            f"{self.link}): mend it, or wait longer with a later date"
        )

    def described(self) -> str:
        """One line for a plan."""
        when = "expired, it waived until" if self.expired else "waived until"
        test = f".{self.test}" if self.test else ""
        told = f"{self.kit}{test}: {when} {self.expires.isoformat()}: {self.reason} ({self.link})"
        return line(told)

    def is_needless(self, outcomes: Outcomes) -> bool:
        """Whether all that it stands for ran and passed; what is not applicable counts for nothing.

        One cell of a pattern, or one test of a kit, does not tell: the failure may be another's.
        """
        for cell in self.cells:
            reached = [outcomes.get((cell, self.kit, test), ()) for test in self.tests]
            told = {outcome for found in reached for outcome in found}
            if not all(reached) or "pass" not in told or told - {"pass", "not_applicable"}:
                return False
        return True


class Waivers:
    """The entries of one file, or none."""

    def __init__(self, found: Iterable[Waiver] = ()) -> None:
        self._found = tuple(found)
        self._by_cell: dict[str, list[Waiver]] = defaultdict(list)
        for waiver in self._found:
            for cell in waiver.cells:
                self._by_cell[cell].append(waiver)

    def about(self, cell: str) -> Sequence[Waiver]:
        """The entries that match a cell, in the order of the file."""
        return self._by_cell.get(cell, ())

    def of(self, cell: str, kit: str, test: str) -> Waiver | None:
        """The entry for a test of a kit in a cell, expired or not; there is one at most."""
        own = (one for one in self.about(cell) if one.kit == kit and test in one.tests)
        return next(own, None)

    def summary(self, cells: Collection[str]) -> list[str]:
        """What is known of a run's cells: a line, or none."""
        met = [one for one in self._found if not set(cells).isdisjoint(one.cells)]
        if not met:
            return []
        expired = [one.where for one in met if one.expired]
        told = f"known failures: {len(met)} in {met[0].file}"
        return [f"{told}; expired: {', '.join(expired)}" if expired else told]

    def needless(self, outcomes: Outcomes) -> list[Waiver]:
        """The entries to be removed: what they waive passes."""
        return [waiver for waiver in self._found if waiver.is_needless(outcomes)]


def clause(record: Mapping[str, str]) -> str:
    """What stands beside a waived verdict, as a clause; KeyError where that is not whole."""
    return line(f"waived until {record['expires']}: {record['reason']} ({record['link']})")


def find(directory: Path, named: str | None = None, *, ignored: bool = False) -> Waivers:
    """The waivers of a run: of the file `named`, else of that beside the configurations, if any.

    ConfigError names file, entry, key, what was found and what is allowed.
    """
    if ignored and named is not None:
        raise ConfigError("--waivers and --no-waivers exclude one another; leave one out")
    file = Path(named) if named is not None else directory / WAIVERS
    if ignored or (named is None and not file.exists()):
        return Waivers()
    if not file.is_file():
        raise ConfigError(f"--waivers {file}: no such file")
    return load(file, directory)


def load(file: Path, directory: Path, today: datetime.date | None = None) -> Waivers:
    """Read and check a file of waivers for the configurations of a folder.

    `today` is the date in UTC where it is left out; an entry counts on its last day too.
    """
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from error
    entries = checked(_File, raw, str(file)).waivers
    cells = [cell.id for cell in matrix.select(directory, ["all"])]
    kits = _tests_by_kit() | {kit.name: kit.tests for kit in own_kits.read(directory)}
    today = today or datetime.datetime.now(datetime.UTC).date()
    found: list[Waiver] = []
    for number, entry in enumerate(entries, start=1):
        parsed = checked(_Entry, entry, f"{file}, entry {number}")
        found.append(_waiver(parsed, file, number, cells, kits, today))
    _check_apart(found)
    return Waivers(found)


def _tests_by_kit() -> dict[str, tuple[str, ...]]:
    from servematrix.kits import MIXINS  # which brings the gates along; most runs have no waiver

    return {
        mixin.kit: tuple(name for name in dir(mixin) if name.startswith("test_"))
        for mixin in MIXINS
    }


def _waiver(
    entry: _Entry,
    file: Path,
    number: int,
    cells: Sequence[str],
    kits: Mapping[str, tuple[str, ...]],
    today: datetime.date,
) -> Waiver:
    where = f"{file}, entry {number}"
    matched = tuple(one for one in cells if one == entry.cell or fnmatchcase(one, entry.cell))
    if not matched:
        raise ConfigError(
            f"{where}: key 'cell': no cell {entry.cell!r}{nearest(entry.cell, cells)}; "
            f"there are: {', '.join(cells)}; a pattern such as 'cuda_graph(max_bs=*)' matches some"
        )
    if entry.kit not in kits:
        raise ConfigError(
            f"{where}: key 'kit': no kit {entry.kit!r}{nearest(entry.kit, [*kits])}; "
            f"there are: {', '.join(kits)}"
        )
    tests = kits[entry.kit]
    if entry.test is not None and entry.test not in tests:
        raise ConfigError(
            f"{where}: key 'test': kit {entry.kit!r} has no test {entry.test!r}"
            f"{nearest(entry.test, tests)}; it has: {', '.join(tests)}"
        )
    return Waiver(
        **entry.model_dump(),
        file=file,
        number=number,
        cells=matched,
        tests=tests if entry.test is None else (entry.test,),
        expired=today > entry.expires,
    )


def _check_apart(found: Sequence[Waiver]) -> None:
    """Refuse two entries for one failure: it could not be said which of them counts."""
    for first, second in combinations(found, 2):
        both = [cell for cell in second.cells if cell in first.cells]
        tests = [test for test in second.tests if test in first.tests]
        if first.kit == second.kit and both and tests:
            raise ConfigError(
                f"{second.where}: waives {both[0]} {second.kit}.{tests[0]}, as entry "
                f"{first.number} does ({first.what}); leave one out"
            )
