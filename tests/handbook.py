"""Commands of the documentation, and a place to type them that is like a reader's.

The place is a copy of the project with a home, a PATH, GPUs and an SGLang that stand in for real
ones: two cards that a made-up driver shows, and a Python whose SGLang is the embedded server.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("configs", "suites", "noxfile.py", "pyproject.toml", "docs/validation", "docs/faults")
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_CARDS = "import sys\nfrom drivers import H100, H100_TOO, Driver\n"
_CARDS += "sys.modules[__name__] = Driver([H100, H100_TOO])\n"
_SGLANG = """#!/bin/sh
case "$*" in
*sglang.launch_server*) shift 2; exec {python} -m servematrix.engines.reference "$@" ;;
*) echo 0.5.16 ;;
esac
"""


@dataclass(frozen=True)
class Command:
    """A command as a page shows it, and what the page shows below it."""

    page: str
    text: str
    shown: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def pages() -> list[Path]:
    """Everything that people read, but for the changelog."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def fences(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of each block of code."""
    yield from _FENCE.findall(page.read_text(encoding="utf-8"))


def commands(page: Path) -> Iterator[Command]:
    """Lines that begin with `$ `, without comments, with the lines that a backslash joins."""
    for language, text in fences(page):
        if language != "console":
            continue
        for block in re.split(r"(?m)^ *\$ ", text)[1:]:
            typed, _, shown = block.replace("\\\n", " ").partition("\n")
            words = re.sub(r"\s+#\s.*$", "", re.sub(r"\s+", " ", typed)).strip()
            yield Command(str(page.relative_to(ROOT)), words, shown)


class Place:
    """Where commands are typed: `project` is the copy, `empty` a folder with nothing in it."""

    def __init__(self, folder: Path) -> None:
        self.project, self.empty = folder / "servematrix", folder / "empty"
        self._home, self._cards = folder / "home", folder / "cards"
        for name in COPIED:
            source, target = ROOT / name, self.project / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        (self.project / "src").symlink_to(ROOT / "src")
        self.empty.mkdir()
        self._make_harness(self.project / ".nox" / "harness")
        self._make_sglang(self._home / "sglang" / ".venv" / "bin" / "python")
        (self._home / "models" / "llama-3.1-8b").mkdir(parents=True)
        self._cards.mkdir()
        (self._cards / "pynvml.py").write_text(_CARDS)

    def _make_harness(self, folder: Path) -> None:
        """What the session `harness` would install, taken from the environment of these tests."""
        command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
        subprocess.run(command, check=True, timeout=60)
        site = next(folder.glob("lib/python*/site-packages"))
        ours = sysconfig.get_path("purelib")
        (site / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
        text = (self.project / "pyproject.toml").read_text()
        here = f"{self.project} {sys.version} {text}"
        (folder / "harness.stamp").write_text(hashlib.sha256(here.encode()).hexdigest())

    def _make_sglang(self, python: Path) -> None:
        python.parent.mkdir(parents=True)
        python.write_text(_SGLANG.format(python=sys.executable))
        python.chmod(0o755)

    def typed(
        self, text: str, *, gpus: bool = False, folder: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Type a command in the copy, or in another folder; with `gpus` there are two cards."""
        path = [os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]  # noqa: PTH120
        found = [str(self._cards), str(ROOT / "tests")] if gpus else []
        kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
        environment: Mapping[str, str] = {
            **kept,
            "HOME": str(self._home),
            "PATH": os.pathsep.join(path),
            "PYTHONPATH": os.pathsep.join(found),
            **variables,
        }
        return subprocess.run(
            ["bash", "-c", text],
            cwd=folder or self.project,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
        )
