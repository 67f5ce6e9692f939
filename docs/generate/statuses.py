"""What a run's exit status means."""

from __future__ import annotations

from docs.generate.text import plain, table
from servematrix.exit_codes import Exit


def statuses() -> str:
    """Each status and its meaning."""
    return table(("status", "meaning"), [(int(one), plain(one.meaning)) for one in Exit])
