"""Lines of progress in a pytest session, for what takes long."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from servematrix.terminal import shown


def tell(config: pytest.Config, told: str) -> None:
    """Show a line on the terminal at once, past pytest's capture."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    capture = config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        reporter.ensure_newline()
        reporter.write_line(f"servematrix: {shown(told)}")
