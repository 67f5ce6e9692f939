"""What a run leaves where a workflow shows it: a step's summary, annotations, JUnit properties."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SUMMARY: Final = "GITHUB_STEP_SUMMARY"
"""Names the file that GitHub shows below the jobs of a workflow, as Markdown."""
ANNOTATED: Final = "GITHUB_ACTIONS"
"""`true` where lines such as `::error::` become annotations of the change that is tested."""


def without(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of a run that is a part of another, or whose failures are expected.

    It has nothing of its own to tell the workflow.
    """
    return {name: at for name, at in variables.items() if name not in (SUMMARY, ANNOTATED)}
