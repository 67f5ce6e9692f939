"""Ports: a free one for a server, and who holds one that is taken."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from servematrix.engines.base import EnvironmentProblem, Launch

TRIES = 20
"""Ports that are tried before the system is asked for any."""


def with_port(launch: Launch) -> Launch:
    """Return the launch with a port that is free now; raises EnvironmentProblem where it is not.

    Port 0 stands for any, outside the range from which the system takes ports for connections: a
    server binds it up to a minute later, and by then a connection of anybody's may hold one of
    those. Another server that was faster may still be met.
    """
    if launch.port == 0:
        for port in random.sample(_quiet_ports(), TRIES):
            with contextlib.suppress(EnvironmentProblem):
                return with_port(replace(launch, port=port))
    family = socket.AF_INET6 if ":" in launch.host else socket.AF_INET
    with socket.socket(family) as trial:
        # as servers do: a port whose connections only linger in TIME_WAIT counts as free
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((launch.host, launch.port))
        except OSError as error:
            where = f"port {launch.port} on {launch.host}"
            if error.errno != errno.EADDRINUSE:
                raise EnvironmentProblem(f"{where} is not to be had: {error.strerror}") from error
            raise EnvironmentProblem(
                f"{where} is in use{named(owners(launch.port))}; "
                "end that process or name another port"
            ) from error
        return replace(launch, port=trial.getsockname()[1])


def _quiet_ports() -> range:
    """Return the ports that servers may use and that the system gives to no connection."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = 32768
    # above the services that have ports of their own; a system may leave no room there
    return range(10240, first) if first > 10240 + TRIES else range(1024, 65536)


def owners(port: int) -> list[int | None]:
    """Return the processes that listen on a TCP port, None for one that we may not see.

    Empty where nobody listens, and where the system tells nothing.
    """
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return []
    return [
        connection.pid
        for connection in connections
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,)
    ]


def named(pids: Sequence[int | None]) -> str:
    """Return ` by NAME (pid N)` for the first process that has a name, else nothing."""
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            if pid is not None:
                return f" by {psutil.Process(pid).name()} (pid {pid})"
    return ""


def url_host(host: str) -> str:
    """Return the host as a URL writes it, where a client finds a server that is bound to it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host
