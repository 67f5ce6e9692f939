"""A place to type the commands of the documentation that is like a reader's.

It is a copy of the project with a home, a PATH, GPUs and an SGLang that stand in for real ones: two
cards that a made-up driver shows, and a Python whose SGLang is the embedded server.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from handbook import ROOT, fences

COPIED = ("configs", "suites", "src", "noxfile.py", "pyproject.toml")
KEPT = ROOT / "docs" / "validation" / "h200-sglang-0.5.16"
_CARDS = "import sys\nfrom drivers import H100, H100_TOO, Driver\n"
_CARDS += "sys.modules[__name__] = Driver([H100, H100_TOO])\n"
_SGLANG = """#!/bin/sh
case "$*" in
*sglang.launch_server*) shift 2; exec {python} -m servematrix.engines.reference "$@" ;;
*) echo {version} ;;
esac
"""


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
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
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
