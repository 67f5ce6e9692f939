"""What a check found, and checks that break without taking the others along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["ok", "warning", "problem"]
"""`warning`: a run works, and not as one may think; `problem`: some run will not."""


@dataclass(frozen=True)
class Finding:
    """What one check found, and what to do about it; `remedy` is empty where that is nothing."""

    kind: Kind
    told: str
    remedy: str = ""


Check = Callable[[], Finding]


def examine(checks: Mapping[str, Check]) -> dict[str, Finding]:
    """What each check found, by its name; one that breaks found a problem."""
    return {name: _found(check) for name, check in checks.items()}


def _found(check: Check) -> Finding:
    try:
        return check()
    except PermissionError as error:
        return Finding(
            "problem",
            f"{error.filename or 'something'} cannot be read: {error.strerror}",
            "make it readable for this user, or name another place: HF_HOME for models and data,"
            " XDG_CACHE_HOME for servers, --results DIR for runs",
        )
    except Exception as error:  # whatever it is, the other checks are worth having
        told = str(error) or "no reason given"
        return Finding(
            "problem",
            f"this could not be checked: {type(error).__name__}: {told}",
            "see to what it says; where that is no fault of the machine, report it as ours",
        )
