"""The command that runs one cell again, from that of the run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

_WITH_VALUE: Final = {
    *("--config", "--resume", "--shard", "--cell-durations", "--executor", "--junitxml"),
    *("--junit-xml", "-k", "-n", "--numprocesses", "--ray-address", "--deselect"),
}
"""Options of which cells and where, which one cell on one machine needs not; each has a value."""
_ALONE: Final = {"-x", "--exitfirst", "--lf", "--last-failed", "--sw", "--stepwise"}


def command(header: Mapping[str, Any], cell: str) -> str:
    """The command line that runs this cell of a run again, to be copied into a shell.

    `header` is the run's first record. What is secret stands as `***`, as in the records. Empty
    where the run was not one of pytest.
    """
    words = list(map(str, header.get("command") or ()))
    start = next((n for n, word in enumerate(words) if word.rpartition("/")[2] == "pytest"), None)
    if start is None:
        return ""
    rest = _without(words[start + 1 :])
    if header.get("nox_session"):
        suites = [word for word in rest if word != "suites"]
        return shlex.join(["nox", "-s", "cells", "--", "--config", cell, *suites])
    return shlex.join([*words[: start + 1], *rest, "--config", cell])


def _without(words: Sequence[str]) -> list[str]:
    """Words without the options that select cells or spread them."""
    kept: list[str] = []
    left_out = False
    for word in words:
        if left_out:
            left_out = False
        elif word in _WITH_VALUE:
            left_out = True
        elif not _selects(word):
            kept.append(word)
    return kept


def _selects(word: str) -> bool:
    """Whether a word is such an option, alone or with its value in the same word: `-kfast`."""
    short = word[:2] in _WITH_VALUE and not word.startswith("--")
    return short or word.partition("=")[0] in _WITH_VALUE | _ALONE
