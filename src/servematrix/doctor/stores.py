"""Checks of what is downloaded or installed: SGLang, models, data, and the hub's cache."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from servematrix import config as configs
from servematrix import data, matrix, models
from servematrix.config import ConfigError, Configuration, Place
from servematrix.doctor import accelerators, machine
from servematrix.doctor.finding import Finding
from servematrix.engines import environments
from servematrix.engines.environments import NoSglangError, ServerEnvironment
from servematrix.engines.sglang_cpu.environment import CpuEnvironment
from servematrix.hub import cache
from servematrix.hub.cache import Repository
from servematrix.run import Options, PlannedCell


def sglang() -> Finding:
    """Which versions of SGLang are there, in Pythons and in environments made for one?"""
    found: list[str] = []
    lacking: list[str] = []
    cut: list[str] = []
    for python in environments.default_pythons():
        try:
            found.append(f"{environments.probe(python)} in {python}")
        except NoSglangError as problem:
            lacking.append(str(problem))
    for one in _made():
        named = f"{one.kind} {one.version} in {one.folder}"
        (found if one.exists() else cut).append(named)
    told = "; ".join(found) or f"none found: {'; '.join(lacking)}"
    if cut:
        told += f"; not whole, or just being made: {', '.join(cut)}"
        return Finding("warning", told, "--sglang with that version makes it anew")
    if not found:
        return Finding(
            "warning",
            f"{told}; without it engine reference serves",
            "--sglang VERSION installs one; --server-python PATH names a Python that has it",
        )
    return Finding("ok", told)


def _made() -> Iterator[ServerEnvironment]:
    """The environments of servers in the user's cache, whole or not."""
    root = environments.servers_folder()
    for folder in sorted(root.glob("sglang-*")) if root.is_dir() else ():
        for kind in (CpuEnvironment, ServerEnvironment):
            version = folder.name.removeprefix(f"{kind.kind}-")
            if folder.is_dir() and version[:1].isdecimal():
                yield kind(version)
                break


def hub_cache() -> Finding:
    """Where are models and data kept, can more be written there, and is the hub asked?"""
    folder = cache.folder()
    offline = cache.is_offline(os.environ)
    told = f"{folder}; {'no hub is asked (HF_HUB_OFFLINE)' if offline else 'the hub may be asked'}"
    if not offline and (why := machine.unwritable(folder)) is not None:
        return Finding(
            "problem",
            f"{told}; {why}",
            "name another with HF_HOME, or set HF_HUB_OFFLINE=1 where all is there",
        )
    return Finding("ok", told)


def weights(directory: Path) -> Finding:
    """Are the models of the configurations on disk?"""
    there: list[str] = []
    missing: list[str] = []
    for place, (repository, folder) in _needed(directory).items():
        if repository is None:
            (there if place.exists() else missing).append(str(place))
        elif cache.lacks(repository, folder) is None:
            there.append(repository.name)
        elif cache.looks_whole(repository, folder):
            there.append(f"{repository.name} (looks whole)")
        else:
            missing.append(repository.name)
    told = f"there: {', '.join(there) or 'none'}"
    if not missing:
        return Finding("ok", told)
    fetch = "; ".join(shlex.join(["hf", "download", one]) for one in missing if "/" in one)
    return _absent(f"{told}; not there: {', '.join(missing)}", fetch)


def hellaswag() -> Finding:
    """Are the HellaSwag items on disk?"""
    wanted = Repository("dataset", data.HUB_NAME, data.HUB_REVISION, only=data.HUB_FILES)
    folder = cache.folder()
    if cache.lacks(wanted, folder) is None:
        return Finding("ok", f"{wanted} is there")
    if cache.looks_whole(wanted, folder):
        return Finding("ok", f"{wanted} is there, and looks whole")
    command = ["hf", "download", data.HUB_NAME, "--revision", data.HUB_REVISION]
    fetch = shlex.join([*command, "--repo-type", "dataset"])
    return _absent(f"{wanted} is not there", f"{fetch}; or --hellaswag PATH")


def _absent(told: str, fetch: str) -> Finding:
    """What is missing is downloaded in time, unless no hub is asked and a GPU would need it."""
    if not cache.is_offline(os.environ):
        return Finding("warning", told, f"downloaded before a server starts; sooner with {fetch}")
    remedy = f"HF_HUB_OFFLINE is set: unset it, or bring it from elsewhere ({fetch})"
    return Finding("problem" if accelerators.is_real() else "warning", told, remedy)


def _needed(directory: Path) -> dict[Path, tuple[Repository | None, Path]]:
    """What the configurations serve on SGLang: hub repositories with their caches, and folders."""
    found: dict[Path, tuple[Repository | None, Path]] = {}
    for name in configs.names(directory):
        config = configs.load(directory, name)
        for cell in matrix.expand(config):
            resolved = configs.resolve(cell.config, cell.axis, Place("sglang"))
            options = Options([name], directory)
            planned = PlannedCell(cell, resolved, ())
            launch = planned.launch(options, log=Path("server.log"), deadline=0.0)
            folder = cache.folder({**os.environ, **launch.environment})
            for one in models.needed(launch):
                found[folder / one.key] = (one, folder)
            for path in _folders(resolved):
                found[path] = (None, folder)
    return found


def _folders(config: Configuration) -> Iterator[Path]:
    for path in (config.model.path, config.model.draft):
        if path is not None and path.startswith(("/", "./", "../", "~")):
            yield Path(path).expanduser()


def configurations(directory: Path) -> Finding:
    """Are all configurations valid?"""
    names = configs.names(directory)
    problems = []
    for name in names:
        try:
            configs.load(directory, name)
        except ConfigError as problem:
            problems.append(str(problem))
    if problems:
        return Finding("problem", "; ".join(problems), "mend the key that is named")
    return Finding("ok", f"{len(names)} in {directory}")
