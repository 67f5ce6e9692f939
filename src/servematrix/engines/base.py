"""What every engine has in common, so that the matrix need not know which one serves.

An `Engine` turns a `Launch` (one cell, resolved for its GPUs) into a running `Server`. All the
rest of the project meets the server over HTTP only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from servematrix.gpus.gpu import Gpu

Say = Callable[[str], None]
"""Takes one line of progress for the person who waits."""


class EnvironmentProblem(Exception):
    """The machine or the command line does not fit; nothing was started (exit code 4)."""


class ServerFailed(Exception):
    """A server did not start, could not be reached or died (exit code 6).

    The first line is one sentence; the last lines of the server's log follow where there is one.
    """


class MachineFailed(ServerFailed):
    """A server did not start for a reason that lies in the machine and may pass.

    No GPU became free, a stranger held its memory, a download was cut. Only this may be retried.
    """


@dataclass(frozen=True)
class Launch:
    """One server launch: everything an engine must know, nothing it must look up."""

    cell: str
    """Name of the cell, used in messages."""
    model: str
    """Path or identifier of the model; `package:NAME==VERSION` for `sglang-cpu`."""
    draft_model: str | None
    """Path or identifier of the draft model, None without speculation by a draft."""
    arguments: Mapping[str, str | int | float | bool]
    """SGLang's long flags without the dashes; True is a bare flag, False leaves it out."""
    environment: Mapping[str, str]
    """Variables set for the server on top of the inherited environment."""
    gpus: tuple[Gpu, ...]
    """The GPUs the server may use, in this order; empty where it needs none."""
    host: str
    """The address the server binds; loopback unless the user says otherwise."""
    port: int
    """The port the user named, or 0: the engine takes a free one."""
    api_key_env: str | None
    """NAME of the variable that holds the API key, never the key itself."""
    log: Path
    """Where the server's output goes; written by a supervisor, bounded, secrets redacted."""
    deadline_seconds: float
    """How long the server may take until it generates."""
    secret_variables: Sequence[str] = ()
    """Names of variables in `environment` that are secret, whatever they are called."""


class Server(Protocol):
    """A server that generates."""

    base_url: str
    """Such as `http://127.0.0.1:30000`, without a slash at the end."""
    command: list[str]
    """The command line as it was run, the real port in it; empty for a server not started by us.

    It never holds a secret.
    """
    startup_seconds: float
    """From the launch until it generated; for a server not started by us, until it answered."""

    def died(self) -> str | None:
        """Return None while the server lives, else why not: a sentence and the end of its log."""

    def versions(self) -> dict[str, str]:
        """Return what serves, by name, such as `{"sglang": "0.5.16"}`, as the server reports it."""

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the server's log; empty where there is none."""

    def stop(self) -> str | None:
        """End the server and all it started; does nothing the second time.

        Returns what outlived it and should not have, as a sentence; None where nothing did.
        """


class Engine(Protocol):
    """One way to get a server."""

    @property
    def name(self) -> str:
        """`sglang`, `sglang-cpu`, `reference` or `attach`."""

    @property
    def note(self) -> str:
        """What must be known to read what is measured, as one clause; empty where nothing."""

    @property
    def reason(self) -> str:
        """Why this engine was chosen, as one clause."""

    def prepare(self, launch: Launch, say: Say) -> None:
        """Make what `start` needs and what takes long, once; does nothing the second time.

        Raises EnvironmentProblem.
        """

    def command(self, launch: Launch) -> list[str]:
        """Return the command line that `start` would run; pure."""

    def environment(self, launch: Launch) -> dict[str, str]:
        """Return the variables that `start` would set on top of the inherited ones; pure."""

    def start(self, launch: Launch) -> Server:
        """Launch, and wait until the server generates.

        Raises EnvironmentProblem before anything is started, ServerFailed afterwards; then nothing
        of the server is left.
        """
