"""What makes a test class a suite, and how the parts of the pytest plugin find each other."""

from __future__ import annotations

SESSION = "servematrix-session"
"""Name under which the session of the matrix is registered with pytest."""


def suite_of(obj: object) -> str | None:
    """The name that a class has by `@pytest.mark.suite(name)`; None for anything else."""
    marks = getattr(obj, "pytestmark", ())
    for mark in marks if isinstance(marks, list) else ():
        if mark.name == "suite":
            return str(mark.args[0])
    return None
