"""Commands of the documentation, and a place to type them that is like a reader's.

The place is a copy of the project with a home, a PATH, GPUs and an SGLang that stand in for real
ones: two cards that a made-up driver shows, and a Python whose SGLang is the embedded server.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import gzip
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servematrix import cli
from servematrix.options import OPTIONS

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("configs", "suites", "noxfile.py", "pyproject.toml")
KEPT = ROOT / "docs" / "validation" / "h200-sglang-0.5.16"
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_CARDS = "import sys\nfrom drivers import H100, H100_TOO, Driver\n"
_CARDS += "sys.modules[__name__] = Driver([H100, H100_TOO])\n"
_SGLANG = """#!/bin/sh
case "$*" in
*sglang.launch_server*) shift 2; exec {python} -m servematrix.engines.reference "$@" ;;
*) echo {version} ;;
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
    """Where commands are typed: `project` is the copy."""

    def __init__(self, folder: Path, **variables: str) -> None:
        """`variables` are set for whatever is typed."""
        self.project = folder / "servematrix"
        self._home, self._cards = folder / "home", folder / "cards"
        self._variables = variables
        for name in COPIED:
            source, target = ROOT / name, self.project / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        (self.project / "src").symlink_to(ROOT / "src")
        (self.project / "docs").mkdir()
        for name in ("validation", "faults"):
            (self.project / "docs" / name).symlink_to(ROOT / "docs" / name)
        self._make_harness(self.project / ".nox" / "harness")
        self._make_sglang(self._home / "sglang" / ".venv", "0.5.16")
        for version in ("0.5.16", "0.5.17"):
            made = self._home / ".cache" / "servematrix" / "servers" / f"sglang-{version}"
            self._make_sglang(made, version)
            (made / ".servematrix-whole").touch()
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

    def _make_sglang(self, folder: Path, version: str) -> None:
        python = folder / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(_SGLANG.format(python=sys.executable, version=version))
        python.chmod(0o755)

    def keep_run(self, name: str, server: str) -> None:
        """Have a run of a server of `docs/validation` among the results, and as the latest."""
        folder = self.project / "results" / name
        shutil.copytree(KEPT / server, folder)
        latest = folder.parent / "latest"
        latest.unlink(missing_ok=True)
        latest.symlink_to(name)
        records = folder / "records.jsonl"
        if records.is_file():
            # repeats of a run differ in speed and in time
            factor = 1 + int(hashlib.sha256(name.encode()).hexdigest()[:2], 16) / 20_000
            found = [json.loads(line) for line in records.read_text().splitlines()]
            for one in found:
                day, hour = f"{name[:4]}-{name[4:6]}-{name[6:8]}", f"{name[9:11]}:{name[11:13]}"
                one["time"] = f"{day}T{hour}:{one['time'][17:]}"
                if one.get("unit") == "tokens/s":
                    one["value"] *= factor
                for number in {"decode_tokens_per_s"} & one.get("numbers", {}).keys():
                    one["numbers"][number] *= factor
            records.write_text("".join(json.dumps(one) + "\n" for one in found))

    def cut_short(self) -> None:
        """Let the latest run look as if it was killed before its last verdict."""
        records = self.project / "results" / "latest" / "records.jsonl"
        lines = records.read_text().splitlines(keepends=True)
        last = max(number for number, one in enumerate(lines) if '"kind": "verdict"' in one)
        records.write_text("".join(lines[:last]))

    def bring(self, name: str) -> None:
        """Have a file beside the project's that a page names."""
        whole = KEPT / "smollm2" / "files"
        if name == "test_my_server.py":
            page = ROOT / "docs" / "how-to" / "drop-in.md"
            text = next(text for language, text in fences(page) if language == "python")
        elif name == "trace.json.gz":
            shutil.copy(whole / "smollm2-fwd_occupancy-trace.json.gz", self.project / name)
            return
        elif name.endswith(".jsonl"):
            server = "smollm2-fp8-kv-cache" if name == "new.jsonl" else "smollm2"
            packed = (KEPT / server / "files" / "smollm2-hellaswag-items.json.gz").read_bytes()
            items = json.loads(gzip.decompress(packed))
            text = "".join(json.dumps(one) + "\n" for one in items)
        else:
            scored = whole / "smollm2-decode_consistency-decode_matches_prefill.json.gz"
            text = gzip.decompress(scored.read_bytes()).decode()
        (self.project / name).write_text(text)

    def move_port(self, port: int) -> None:
        """Let the test of the page ask another port than the page's."""
        page = self.project / "test_my_server.py"
        if page.exists():
            page.write_text(page.read_text().replace("30000", str(port)))

    def typed(
        self, text: str, *, gpus: bool = False, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Type a command in the copy; with `gpus` there are two cards."""
        path = [os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]  # noqa: PTH120
        found = [str(self._cards), str(ROOT / "tests")] if gpus else []
        kept = {name: os.environ[name] for name in ("LANG", "LC_ALL") if name in os.environ}
        environment: Mapping[str, str] = {
            **kept,
            "HOME": str(self._home),
            "PATH": os.pathsep.join(path),
            "PYTHONPATH": os.pathsep.join(found),
            "TMPDIR": str(self._home),
            "COLUMNS": "150",
            **self._variables,
            **variables,
        }
        return subprocess.run(
            ["bash", "-c", text],
            cwd=self.project,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
        )


@contextlib.contextmanager
def serving() -> Iterator[int]:
    """An embedded server that runs already; its port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "servematrix.engines.reference", "--model-path", "m"]
    command += ["--port", str(port), "--enable-metrics"]
    server = subprocess.Popen(
        command,
        env={**os.environ, "SGLANG_ENABLE_METRICS_DEVICE_TIMER": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            time.sleep(0.05)
        yield port
    finally:
        server.kill()
        server.wait()


PYTESTS = {"-k", "-n", "-x", "--junitxml", "--strict"}
"""Pytest's own options that pages name."""
OTHERS = {"lint", "typecheck", "tests", "bench", "mutants", "docs", "harness"}
"""Sessions whose words go to other programs."""


def wordings(page: Path) -> Iterator[str]:
    """Commands of ours within sentences and tables, without what stands for something else."""
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text(encoding="utf-8"))
    for found in re.findall(r"`((?:nox -|servematrix |pytest suites)[^`]*)`", text):
        yield re.sub(r"\s+", " ", found).replace("…", "").replace("\\|", "|")


def unknown(text: str) -> list[str]:
    """What a command names of ours and is not there: sessions, commands, options."""
    words = shlex.split(text)
    if words[0] == "servematrix" and len(words) > 1:
        return _unknown_to(words[1], words[2:])
    if words[0] == "pytest":
        return _options_but(words[1:], _options_of_runs())
    if words[0] != "nox":
        return []
    split = words.index("--") if "--" in words else len(words)
    ours, theirs = words[1:split], words[split + 1 :]
    named = [one.partition("(")[0] for one in ours[ours.index("-s") + 1 :]] if "-s" in ours else []
    placeholders = {"NAME", "SESSION"}
    found = [one for one in named if one not in sessions() and one not in placeholders]
    for one in set(named) & sessions() - OTHERS:
        found += _unknown_to(one if one in _commands() else "run", theirs)
    return found


def _unknown_to(command: str, words: list[str]) -> list[str]:
    if command == "COMMAND":
        return []
    if command == "run":
        return _options_but(words, _options_of_runs())
    if command not in _commands():
        return [command]
    return _options_but(words, set(_commands()[command]._option_string_actions))


def _options_but(words: list[str], known: set[str]) -> list[str]:
    given = [one.partition("=")[0] for one in words if re.match(r"--?[a-z]", one)]
    return [one for one in given if one not in known]


def _options_of_runs() -> set[str]:
    return {name for name, _ in OPTIONS} | PYTESTS


@functools.cache
def _commands() -> dict[str, argparse.ArgumentParser]:
    choices: Any = next(one for one in cli._parser()._actions if one.choices).choices
    return dict(choices)


@functools.cache
def sessions() -> set[str]:
    """Names of the sessions of the noxfile."""
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    found = [one for one in tree.body if isinstance(one, ast.FunctionDef)]
    return {one.name for one in found if one.decorator_list}
