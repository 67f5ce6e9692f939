"""A made-up NVIDIA driver, and a folder of leases that is the test's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from drivers import H100, H100_TOO, LIMITS, Driver


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver([H100, H100_TOO])
    monkeypatch.setitem(sys.modules, "pynvml", made)
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture
def leases_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "leases"
    monkeypatch.setenv("SERVEMATRIX_LEASES", str(folder))
    return folder
