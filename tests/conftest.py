"""What the project's own tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from fake_hub import FakeHub
from wire import Behaviour, Wire

pytest_plugins = ["pytester"]

# the runs that tests make fail on purpose, which no workflow is to be told
for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(name, None)

# the same examples each time, and no clock: machines are shared; --hypothesis-profile=explore looks
# further
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=2000, deadline=None)
# a few examples, not made smaller: thousands of mutants are run
settings.register_profile(
    "mutants", max_examples=20, derandomize=True, deadline=None, phases=[Phase.generate]
)
settings.load_profile("repeatable")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def configs_directory() -> Path:
    """The configurations that ship with the project."""
    return ROOT / "configs"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The configurations, and one suite that takes a second."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "test_quick.py").write_text(
        "import pytest\n"
        "from servematrix.kits import FwdOccupancyMixin\n\n\n"
        "@pytest.mark.suite('quick')\n"
        "class TestQuick(FwdOccupancyMixin):\n"
        "    pass\n"
    )
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\naddopts = -p servematrix.plugin --import-mode=importlib\n"
    )
    return tmp_path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub on this machine, and an empty cache, for all that this process starts."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    made = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    yield made
    made.close()


@pytest.fixture
def wire() -> Iterator[Callable[[Behaviour], Wire]]:
    """Starts servers that are made of a function."""
    made: list[Wire] = []

    def make(behave: Behaviour) -> Wire:
        made.append(Wire(behave))
        return made[-1]

    yield make
    for one in made:
        one.close()
