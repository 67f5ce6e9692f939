"""Taking up a run where it broke: which run, whether this command may, and what stands.

A verdict is on disk before the next test starts, so what a broken run had reached is known. Its
tests are not run again where their verdict is finished:

- `pass`, `fail`, `inconclusive` and `not_applicable` always are. So a failed gate is never tried
  again until it passes, not even where its server may have been killed together with the run; who
  wants that starts a new run.
- `error` is where the run is known to have gone on after it: the same server passed a test later,
  or the server of another cell was started later and became ready. Any other error may be the
  interruption itself, for whoever killed the run may have killed its server first. Those tests are
  run again, and that is said; the old verdict stays in the records. What a server left at its end
  is no test's, and always stands.

Tests without a verdict are run. What was measured before counts as if it was measured now.
"""

from __future__ import annotations

import datetime
import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from servematrix import records
from servematrix.engines.base import EnvironmentProblem
from servematrix.exit_codes import Exit
from servematrix.folders import LATEST
from servematrix.records import Run
from servematrix.redaction import Secrets
from servematrix.served import answers
from servematrix.verdicts import SHUTDOWN
from servematrix.waivers import clause

Record = Mapping[str, Any]

_CUT_SHORT: Final = (Exit.INTERRUPTED, Exit.INTERNAL, Exit.USAGE)
"""Statuses of a run that ended before all its tests were run."""
_SAME: Final[Mapping[str, str]] = {
    "engine": "engine",
    "server": "server",
    "base_url": "--base-url",
    "selection": "tests",
    "baselines": "baselines",
    "hellaswag": "--hellaswag",
    "hellaswag_sha256": "content of the --hellaswag file (sha256)",
    "gpus": "visible GPUs",
    "versions": "versions",
    "git_commit": "git commit",
    "git_changes": "changes that are not committed (sha256)",
}
"""What both parts of a run share besides the configurations, and how it is called."""


@dataclass(frozen=True)
class Earlier:
    """A finished verdict of an earlier part of the run, as a report of a test has it."""

    nodeid: str
    verdict: str
    reason: str
    server: str
    """`failed`, `real` or `simulated`."""
    answered: str
    cell: str
    kit: str
    test: str
    waived: str
    """Why the failure did not count, as a clause; empty for any other verdict."""


@dataclass(frozen=True)
class Kept:
    """What stands of a run's earlier parts.

    `nodeids` are the tests that are not run again, `again` those whose error is not finished;
    `answered` says for each cell what answered in it. An xdist worker has no `verdicts`: only its
    controller counts them.
    """

    nodeids: Sequence[str] = ()
    verdicts: Sequence[Earlier] = ()
    again: Sequence[str] = ()
    answered: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path()
    torn: bool = False
    """Whether the last line of the records was cut off."""

    def another(self, cell: str, answers: str) -> str | None:
        """Say that what answers in a cell is not what answered before; None where it is."""
        before = self.answered.get(cell, answers)
        if before == answers:
            return None
        return (
            f"--resume: {cell} was measured on {before}, and now {answers} answers; bring that "
            "server back, or start a new run, without --resume"
        )

    def told(self) -> str:
        """One line for people: what is kept from where, and what is run again."""
        counts = Counter("waived" if one.waived else one.verdict for one in self.verdicts)
        shown = ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
        line = f"{len(self.verdicts)} verdicts kept from {self.folder}"
        line += f" ({shown})" if shown else ""
        if self.again:
            line += (
                f"; {len(self.again)} tests that ended in an error when the run broke are run "
                f"again, {self.again[0]} first"
            )
        return line + ("; its last record was cut off and is left out" if self.torn else "")


def find(root: Path, named: str) -> Path:
    """The folder of the run that `--resume` names: a path, a name under `root`, or `latest`.

    EnvironmentProblem where there is none, or nothing was recorded in it.
    """
    folders = [Path(named), root / named]
    folder = next((one for one in folders if (one / records.FILE).is_file()), None)
    if folder is None:
        there = next((one for one in folders if one.is_dir()), None)
        if there is not None:
            raise EnvironmentProblem(
                f"--resume {named}: nothing was recorded in {there}; start the run anew, "
                "without --resume"
            )
        made = sorted(path.parent.name for path in root.glob(f"*/{records.FILE}"))
        newest = [name for name in made if name != LATEST][-3:]
        raise EnvironmentProblem(
            f"--resume {named}: no such run; the newest in {root}: {', '.join(newest) or 'none'}"
        )
    return folder.parent / folder.readlink() if folder.is_symlink() else folder


def take_up(folder: Path, header: Record, hidden: Secrets) -> tuple[Run, Kept]:
    """Hold a broken run, and say in its records that it goes on; `header` is what this would be.

    EnvironmentProblem where the run is complete, or another one than this command asks for;
    RecordsError where it still runs or cannot be read.
    """
    run = Run.take_up(folder, hidden)
    kept = read(folder, header, hidden)
    again = list(kept.again)
    run.begin(
        "resume", command=header["command"], pid=header["pid"], kept=len(kept.verdicts), again=again
    )
    return run, kept


def read(folder: Path, header: Record, hidden: Secrets | None = None) -> Kept:
    """What stands of a broken run, without touching it; raises as `take_up`."""
    with records.as_written(folder):
        return _read(folder, header, hidden)


def _read(folder: Path, header: Record, hidden: Secrets | None) -> Kept:
    torn = records.is_torn(folder)
    every = list(records.read(folder))
    found = records.standing(every)
    _check_broken(folder, found)
    _check_same(folder, every[0], (hidden or Secrets()).plain(header))
    verdicts = {one["nodeid"]: one for one in found if one["kind"] == "verdict"}
    again = [nodeid for nodeid, one in verdicts.items() if not _is_finished(one, found)]
    served = {one["cell"]: one for one in found if one["kind"] == "cell"}
    deaths = [one for one in found if one["kind"] == "death"]
    finished = {nodeid: one for nodeid, one in verdicts.items() if nodeid not in again}
    return Kept(
        nodeids=list(finished),
        verdicts=[earlier(one, served.get(one["cell"]), deaths) for one in finished.values()],
        again=again,
        answered={cell: answers(one["versions"], one["model"]) for cell, one in served.items()},
        folder=folder,
        torn=torn,
    )


def _check_broken(folder: Path, found: Sequence[Record]) -> None:
    """Refuse a run that came to its end, in its last part, and one that is several."""
    if found[0].get("merged"):
        raise EnvironmentProblem(
            f"--resume {folder}: that run is merged from {', '.join(map(str, found[0]['merged']))};"
            " take up the one that was cut short, and merge again"
        )
    begun = max(n for n, one in enumerate(found) if one["kind"] in ("run", "resume"))
    for end in (one for one in found[begun:] if one["kind"] == "end"):
        status = Exit(end["exit_code"])
        if status not in _CUT_SHORT:
            raise EnvironmentProblem(
                f"--resume {folder}: that run is complete, it ended with status {int(status)} "
                f"({status.meaning}); start a new run, without --resume"
            )


def _check_same(folder: Path, then: Record, now: Any) -> None:
    """Refuse a run whose other part would be of something else."""
    differs = _cells_that_differ(then.get("configurations", {}), now["configurations"])
    for key, name in _SAME.items():
        if key not in then:
            differs.append(f"{name}: not in its records, which an older version wrote")
        elif then[key] != now[key]:
            differs.append(f"{name}: {then[key]} then, {now[key]} now")
    if differs:
        command = shlex.join(then.get("command", ()))
        raise EnvironmentProblem(
            f"--resume {folder}: this command asks for another run: {'; '.join(differs)}. Take it "
            f"up with what it was started with ({command}), or start a new run, without --resume"
        )


def _cells_that_differ(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    told = []
    for what, cells in (
        ("only that run has", then.keys() - now.keys()),
        ("only this command has", now.keys() - then.keys()),
        (
            "configured otherwise (the file, --set, --model)",
            {cell for cell in then.keys() & now.keys() if then[cell] != now[cell]},
        ),
    ):
        if cells:
            told.append(f"cells: {what}: {', '.join(sorted(cells))}")
    return told


def _is_finished(verdict: Record, found: Sequence[Record]) -> bool:
    """Whether a verdict stands; the rule is at the head of this module."""
    if verdict["verdict"] != "error" or verdict["kit"] == SHUTDOWN:
        return True
    same_server = True
    for one in found[found.index(verdict) + 1 :]:
        if one["kind"] == "cell" and one["cell"] == verdict["cell"]:
            same_server = False
        elif one["kind"] == "cell":
            began = _at(one) - datetime.timedelta(seconds=one["startup_seconds"])
            if began > _at(verdict):
                return True
        elif same_server and _passed(one) and one["cell"] == verdict["cell"]:
            return True
    return False


def _passed(record: Record) -> bool:
    return bool(record["kind"] == "verdict" and record["verdict"] == "pass")


def _at(record: Record) -> datetime.datetime:
    return datetime.datetime.fromisoformat(record["time"])


def earlier(verdict: Record, served: Record | None, deaths: Sequence[Record]) -> Earlier:
    """A recorded verdict; `served` is the record of its cell's server, if there was one."""
    died = any(
        one["cell"] == verdict["cell"]
        and verdict["kit"] != SHUTDOWN
        and (verdict["verdict"] == "error" or one["nodeid"] == verdict["nodeid"])
        for one in deaths
    )
    simulated = served is not None and served["simulated"]
    return Earlier(
        verdict["nodeid"],
        verdict["verdict"],
        verdict["reason"],
        "failed" if died else "simulated" if simulated else "real",
        answers(served["versions"], served["model"]) if served else "",
        verdict["cell"],
        verdict["kit"],
        verdict["test"],
        clause(verdict["waived"]) if verdict.get("waived") else "",
    )


class KeptTests:
    """Hooks that leave out the tests of a run whose verdict stands."""

    def __init__(self, nodeids: Collection[str]) -> None:
        self._nodeids = frozenset(nodeids)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Deselect them; a cell that has no test left launches no server."""
        kept = [item for item in items if item.nodeid in self._nodeids]
        if kept:
            items[:] = [item for item in items if item.nodeid not in self._nodeids]
            config.hook.pytest_deselected(items=kept)
