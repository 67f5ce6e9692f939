"""Engine `sglang`: the real server, in a Python of its own.

The only place that knows how SGLang is started, and which of its flags have other names in other
versions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from servematrix import models
from servematrix.engines import ports, process
from servematrix.engines.base import EnvironmentProblem, Launch, Say, Server
from servematrix.engines.environments import ServerEnvironment, probe
from servematrix.engines.flags import LAUNCH_WITH_KEY, as_flags

MODULE = "sglang.launch_server"
RENAMED = (
    # since that version, the name before it, the name from it on
    ((0, 5, 14), "cuda-graph-max-bs", "cuda-graph-max-bs-decode"),
    ((0, 5, 14), "cuda-graph-bs", "cuda-graph-bs-decode"),
)
"""The old names stayed as deprecated aliases for some versions and are gone in 0.5.23."""


class SglangEngine:
    """Runs SGLang with the Python that was chosen for it."""

    name = "sglang"
    note = ""

    def __init__(
        self,
        python: Path,
        version: str,
        reason: str,
        environment: ServerEnvironment | None = None,
    ) -> None:
        self.python = python
        self.version = version
        self.reason = reason
        self._environment = environment
        self._prepared = environment is None
        self._told_elsewhere = False

    def prepare(self, launch: Launch, say: Say) -> None:
        """Make the server's environment, and bring its models, where they are not there yet."""
        self._make_environment(say)
        if models.is_elsewhere(launch) and not self._told_elsewhere:
            say(models.ELSEWHERE)
            self._told_elsewhere = True
        models.ensure(launch, say)

    def _make_environment(self, say: Say) -> None:
        if self._environment is None or self._prepared:
            return
        self._environment.make(say)
        found = probe(self.python)
        if found != self.version:
            raise EnvironmentProblem(
                f"{self.python} has SGLang {found} where {self.version} is expected; "
                f"remove {self._environment.folder} to have it made again"
            )
        self._prepared = True

    def command(self, launch: Launch) -> list[str]:
        """Return the command line; port 0 stands for one that is chosen at the start."""
        arguments = spelled_for(self.version, launch.arguments)
        flags = as_flags(replace(launch, arguments=arguments))
        if launch.api_key_env is None:
            return [str(self.python), "-m", MODULE, *flags]
        return [str(self.python), "-c", LAUNCH_WITH_KEY, MODULE, launch.api_key_env, *flags]

    def environment(self, launch: Launch) -> dict[str, str]:
        """Return the configuration's variables, those that pin the server to its GPUs, and PATH.

        A server whose models are all on disk asks no hub (HF_HUB_OFFLINE), unless the configuration
        says otherwise: a hub that does not answer would keep it from starting.

        The Python's own folder is put on PATH where it is not: SGLang compiles kernels when it
        needs them, with programs such as ninja that are installed there.

        SGLang reads the entries of CUDA_VISIBLE_DEVICES as integers when it sets up all-reduce
        over several GPUs (0.5.16: custom_all_reduce and quick_all_reduce), so UUIDs would end it.
        Positions on the whole machine mean the same card to everyone only in PCI bus order.
        """
        # a slice of a GPU has no position
        named = [gpu.uuid if gpu.parent else str(gpu.device) for gpu in launch.gpus]
        devices = ",".join(named)
        pins: dict[str, str] = {}
        if any(gpu.vendor == "amd" for gpu in launch.gpus):
            # both: HIP takes the first, and some of what runs on it only the other
            pins = {"HIP_VISIBLE_DEVICES": devices, "CUDA_VISIBLE_DEVICES": devices}
        elif launch.gpus:
            pins = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": devices}
        path = launch.environment.get("PATH", os.environ.get("PATH", os.defpath))
        programs = str(self.python.parent)
        if self.python.is_absolute() and programs not in path.split(os.pathsep):
            pins["PATH"] = os.pathsep.join((programs, path))
        return {**models.offline(launch), **launch.environment, **pins}

    def start(self, launch: Launch) -> Server:
        """Launch, and wait until it generates; `prepare` comes first."""
        launch = ports.with_port(launch)
        command, variables = self.command(launch), self.environment(launch)
        return process.start(self.name, launch, command, variables)


def spelled_for(
    version: str, arguments: Mapping[str, str | int | float | bool]
) -> dict[str, str | int | float | bool]:
    """Return the arguments under the names that this version of SGLang knows.

    A version that cannot be read, such as that of a source checkout without tags (0.0.0), is taken
    for a new one. Both names of one flag at once are an EnvironmentProblem.
    """
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    number = tuple(int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    names: dict[str, str] = {}
    for since, old, new in RENAMED:
        is_new = number >= since or number == (0, 0, 0)
        names[old], names[new] = (new, new) if is_new else (old, old)
    spelled: dict[str, str | int | float | bool] = {}
    for name, value in arguments.items():
        known = names.get(name, name)
        if known in spelled:
            raise EnvironmentProblem(
                f"the configuration sets --{known} twice, as --{name} too; leave one out"
            )
        spelled[known] = value
    return spelled
