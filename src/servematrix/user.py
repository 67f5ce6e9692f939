"""Whose process this is, as leases and locks tell it to others."""

from __future__ import annotations

import getpass
import os
from functools import cache


@cache
def name() -> str:
    """The name of this process's user, or its number where the system has none, as in containers.

    >>> bool(name())
    True
    """
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
