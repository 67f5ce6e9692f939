"""Kits, gates, client and metrics need nothing of what serves, schedules or runs tests.

Each import has a process of its own, in which the others' libraries are not to be had.
"""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import servematrix.gates
import servematrix.kits

FORBIDDEN = {"sglang", "nox", "ray", "torch", "pynvml", "pytest", "_pytest", "xdist"}
REFUSING = f"""
import importlib, sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(FORBIDDEN)!r}:
            raise ImportError(f"{{name}} is not installed here")

sys.meta_path.insert(0, Refusing())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""
PACKAGES = (servematrix.gates, servematrix.kits)
MODULES = [
    f"{package.__name__}.{found.name}"
    for package in PACKAGES
    for found in pkgutil.iter_modules(package.__path__)
]


def imported(*names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", REFUSING, *names], capture_output=True, text=True, timeout=60
    )


def test_every_module_is_imported_without_them() -> None:
    assert {"servematrix.kits.base", "servematrix.gates.verdict"} < set(MODULES)
    ended = imported("servematrix.client", "servematrix.metrics", "servematrix.records", *MODULES)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", ["servematrix.plugin", "servematrix.fixtures"])
def test_what_needs_them_is_refused(name: str) -> None:
    """So that the test above can fail."""
    ended = imported(name)
    assert ended.returncode == 1
    assert "is not installed here" in ended.stderr
