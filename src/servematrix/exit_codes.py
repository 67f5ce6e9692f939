"""What an exit status means, for pytest and for the `servematrix` command alike.

0 to 5 are pytest's own meanings; 6 and 7 are ours. Nox turns any of them into 1, which is why the
last line of a run names the code.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit statuses of pytest runs with this plugin and of `servematrix`."""

    PASSED = 0
    FAILED = 1
    INTERRUPTED = 2
    INTERNAL = 3
    USAGE = 4
    NOTHING = 5
    SERVER = 6
    INCONCLUSIVE = 7

    @property
    def meaning(self) -> str:
        """The status in words."""
        return _MEANINGS[self]


_MEANINGS = {
    Exit.PASSED: "all verdicts pass",
    Exit.FAILED: "a verdict failed, or a measurement could not be made",
    Exit.INTERRUPTED: "interrupted",
    Exit.INTERNAL: "internal error",
    Exit.USAGE: "usage or environment",
    Exit.NOTHING: "nothing selected",
    Exit.SERVER: "a server did not start, could not be reached or died",
    Exit.INCONCLUSIVE: "nothing failed, but something is inconclusive or not applicable everywhere",
}
