"""What the project's own tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def configs_directory() -> Path:
    """The configurations that ship with the project."""
    return ROOT / "configs"
