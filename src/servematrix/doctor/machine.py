"""Checks of the machine itself: Python, nox, ports, disks, and what earlier runs left."""

from __future__ import annotations

import ast
import importlib.metadata
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import psutil
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from servematrix.doctor.finding import Finding
from servematrix.engines import ports
from servematrix.engines.shared_memory import ROOT
from servematrix.gpus.gpu import GIB

DEFAULT_PORT: Final = 30000
"""Where SGLang listens unless told otherwise."""
LEAST_RESULTS: Final = 100 * 2**20
"""Bytes: a run of the whole matrix writes some tens of megabytes."""
LITTLE_RESULTS: Final = GIB
LITTLE_CACHE: Final = 20 * GIB
"""Bytes: a model of 8B parameters in 16 bits has 16 GB."""
LITTLE_SHARED: Final = GIB
"""Bytes: NCCL and PyTorch share memory there; a container has 64 MiB unless told otherwise."""
_NOX_SECONDS: Final = 30.0
_GUARD: Final = "servematrix.engines.guard"
_ENDING_SECONDS: Final = 6.0
"""A guard that has lost its run needs some seconds to end its server."""


def python() -> Finding:
    """Is this Python new enough for the package?"""
    wanted = importlib.metadata.metadata("servematrix")["Requires-Python"]
    told = f"Python {platform.python_version()} in {sys.executable}"
    if Version(platform.python_version()) in SpecifierSet(wanted, prereleases=True):
        return Finding("ok", told)
    return Finding(
        "problem", f"{told}, and {wanted} is needed", f"make an environment with Python {wanted}"
    )


def nox(start: Path) -> Finding:
    """Is nox there, as new as the noxfile at or above `start` asks for?"""
    folders = [start.resolve(), *start.resolve().parents]
    noxfile = next((one / "noxfile.py" for one in folders if (one / "noxfile.py").is_file()), None)
    if noxfile is None:
        return Finding("ok", f"not needed: no noxfile.py at or above {start}")
    wanted = _needed_nox(noxfile)
    install = f"pip install 'nox{wanted}'"
    # that of this environment, where nobody activated it
    found = shutil.which("nox") or shutil.which("nox", path=str(Path(sys.executable).parent))
    if found is None:
        return Finding(
            "warning", f"no nox, and {noxfile} is there; pytest works without it", install
        )
    asked = subprocess.run(
        [found, "--version"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_NOX_SECONDS,
    )
    # it prints its version on stderr
    version = (asked.stdout.strip() or asked.stderr.strip()).partition("\n")[0]
    try:
        fits = Version(version) in SpecifierSet(wanted, prereleases=True)
    except InvalidVersion:
        return Finding("problem", f"{found} does not tell its version: {version}", install)
    if not fits:
        return Finding("problem", f"nox {version} in {found}; {noxfile} needs {wanted}", install)
    return Finding("ok", f"nox {version} in {found}" + (f" ({wanted})" if wanted else ""))


def _needed_nox(noxfile: Path) -> str:
    """What a noxfile assigns to `nox.needs_version`; empty where it does not."""
    for node in ast.walk(ast.parse(noxfile.read_text(encoding="utf-8"))):
        named = [ast.unparse(one) for one in node.targets] if isinstance(node, ast.Assign) else []
        if "nox.needs_version" in named:
            return str(ast.literal_eval(node.value))  # type: ignore[attr-defined]
    return ""


def loopback() -> Finding:
    """Can a server listen on loopback, and who has SGLang's own port?"""
    with socket.socket() as trial:
        try:
            trial.bind(("127.0.0.1", 0))
        except OSError as error:
            return Finding(
                "problem",
                f"no port of 127.0.0.1 can be had: {error.strerror}",
                "every server listens there: see `ip address show lo`, and the sandbox or firewall",
            )
    holders = ports.owners(DEFAULT_PORT)
    if not holders:
        return Finding("ok", f"loopback ports can be had; {DEFAULT_PORT} is free")
    by = ports.named(holders) or " by a process that cannot be seen from here"
    return Finding(
        "warning",
        f"loopback ports can be had; {DEFAULT_PORT}, SGLang's own, is in use{by}",
        "runs take another port; only --port with this one would be refused",
    )


def unwritable(folder: Path) -> str | None:
    """Why nothing can be written into a folder, or where it would be made; None where it can.

    A file without a name is made and is gone: rights alone do not tell it, of a read-only mount.
    """
    place = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return f"{place} cannot be written: {error.strerror}"


def results(folder: Path) -> Finding:
    """Is there room for the records of runs?"""
    place = _existing(folder)
    free = shutil.disk_usage(place).free
    told = f"{_gib(free)} free for results in {folder}"
    remedy = "free some space, or name another place with --results DIR"
    if (why := unwritable(folder)) is not None:
        return Finding("problem", f"{told}; {why}", "name another place with --results DIR")
    if free < LITTLE_RESULTS:
        return Finding("problem" if free < LEAST_RESULTS else "warning", told, remedy)
    return Finding("ok", told)


def cache_space(folder: Path) -> Finding:
    """Is there room for another model?"""
    free = shutil.disk_usage(_existing(folder)).free
    told = f"{_gib(free)} free for models and data in {folder}"
    if free < LITTLE_CACHE:
        remedy = "a model of 8B parameters has 16 GB: free some space, or set HF_HOME"
        return Finding("warning", told, remedy)
    return Finding("ok", told)


def shared_memory(folder: Path = ROOT) -> Finding:
    """Is there room for what the processes of a server share?"""
    if not folder.is_dir():
        return Finding(
            "warning", f"there is no {folder}", "servers on several GPUs share memory there"
        )
    free = shutil.disk_usage(folder).free
    told = f"{_gib(free)} free in {folder}"
    if free < LITTLE_SHARED:
        return Finding(
            "warning",
            told,
            f"see what `ls -l {folder}` shows of ended servers; in a container: --shm-size or "
            "--ipc=host",
        )
    return Finding("ok", told)


def leftovers(seconds: float = _ENDING_SECONDS) -> Finding:
    """Did a guard outlive its run? One that is just ending its server gets so many seconds."""
    orphans = [one for one in psutil.process_iter(["cmdline"]) if _is_orphan(one)]
    _, left = psutil.wait_procs(orphans, timeout=seconds)
    if not left:
        return Finding("ok", "no process of a run that has ended")
    pids = " ".join(str(one.pid) for one in left)
    return Finding(
        "problem",
        f"guards of runs that have ended, with their servers: {pids}",
        f"kill {pids} (each ends its server); where one stays, kill -9",
    )


def _is_orphan(process: psutil.Process) -> bool:
    """Whether a process is a guard whose run has ended: what is above it is no Python any more."""
    try:
        if _GUARD not in (process.info["cmdline"] or ()):
            return False
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        parent = process.parent()
        return parent is None or "python" not in Path((parent.cmdline() or [""])[0]).name
    except psutil.Error:
        return False  # it ended meanwhile, or is another user's


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    here = folder.absolute()
    return next(one for one in (here, *here.parents) if one.exists())


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
