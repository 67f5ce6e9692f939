"""Engine `reference`: our embedded server, for a matrix without a GPU and without weights."""

from __future__ import annotations

import sys

from servematrix.engines import ports, process
from servematrix.engines.base import Launch, Say, Server
from servematrix.engines.flags import LAUNCH_WITH_KEY, as_flags

MODULE = "servematrix.engines.reference"
SIMULATED = "simulated: says that the matrix works, never that a server is good"


class EmbeddedEngine:
    """Runs `servematrix.engines.reference` in a process of its own, with SGLang's flags."""

    name = "reference"
    note = SIMULATED

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def prepare(self, launch: Launch, say: Say) -> None:
        """Nothing to do: it ships with the package."""

    def command(self, launch: Launch) -> list[str]:
        """Return the command line; port 0 stands for one that is chosen at the start."""
        flags = as_flags(launch)
        if launch.api_key_env is None:
            return [sys.executable, "-m", MODULE, *flags]
        return [sys.executable, "-c", LAUNCH_WITH_KEY, MODULE, launch.api_key_env, *flags]

    def environment(self, launch: Launch) -> dict[str, str]:
        """Return the variables of the configuration."""
        return dict(launch.environment)

    def start(self, launch: Launch) -> Server:
        """Launch, and wait until it generates."""
        launch = ports.with_port(launch)
        command, variables = self.command(launch), self.environment(launch)
        return process.start(self.name, launch, command, variables)
