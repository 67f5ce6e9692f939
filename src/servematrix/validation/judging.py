"""Expected against found: what the kits had to say of a server, and what they said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from servematrix.validation.servers import KnownServer


@dataclass(frozen=True)
class Finding:
    """One verdict of a run, as its record has it."""

    kit: str
    test: str
    outcome: str
    reason: str

    @property
    def name(self) -> str:
        """`kit.test`."""
        return f"{self.kit}.{self.test}"


@dataclass(frozen=True)
class Defect:
    """A check of ours that told a server's state wrongly: what it said, and what it gave for it."""

    what: str
    reason: str = ""


def defects(server: KnownServer, findings: Sequence[Finding]) -> list[Defect]:
    """Where the findings are not what the server's state demands; empty where all are.

    A broken server that passes, a healthy one that fails, a verdict that could not be reached
    (error, inconclusive), and a run in which nothing applied, are defects alike.
    """
    missed = {entry: defect for entry in server.must_fail if (defect := _missed(entry, findings))}
    found = list(missed.values())
    for finding in findings:
        if any(_covers(entry, finding) for entry in (*server.may, *missed)):
            continue
        expected = any(_covers(entry, finding) for entry in server.must_fail)
        if finding.outcome == "fail" and not expected:
            found.append(Defect(f"{finding.name} failed", finding.reason))
        elif finding.outcome not in ("pass", "fail", "not_applicable"):
            found.append(Defect(f"{finding.name}: {finding.outcome}", finding.reason))
    if not any(finding.outcome in ("pass", "fail") for finding in findings):
        found.append(Defect("no verdict applies", "nothing passed and nothing failed"))
    return found


def _missed(entry: str, findings: Sequence[Finding]) -> Defect | None:
    """The defect of an entry that must fail and has not."""
    own = [finding for finding in findings if _covers(entry, finding)]
    if any(finding.outcome == "fail" for finding in own):
        return None
    if not own:
        return Defect(f"{entry} must fail and was not run")
    outcomes = " and ".join(sorted({finding.outcome.replace("_", " ") for finding in own}))
    reasons = "; ".join(dict.fromkeys(finding.reason for finding in own))
    return Defect(f"{entry} must fail and said {outcomes}", reasons)


def _covers(entry: str, finding: Finding) -> bool:
    return entry in (finding.kit, finding.name)
