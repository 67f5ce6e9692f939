"""Engine `attach`: a server that somebody else runs; asked, never started nor stopped."""

from __future__ import annotations

import os
import socket
import time
from urllib.parse import urlsplit

from servematrix.engines import ready
from servematrix.engines.base import EnvironmentProblem, Launch, Say, Server, ServerFailed
from servematrix.engines.process import reported_versions

ANSWER_SECONDS = 60.0
"""Longest wait for a server that is up; one that is not there is known at once."""
ALIVE_SECONDS = 5.0


class AttachEngine:
    """Uses the server behind `--base-url`."""

    name = "attach"
    note = ""

    def __init__(self, base_url: str, reason: str) -> None:
        if "@" in base_url:
            raise EnvironmentProblem(
                "--base-url holds a user or a password, which would stand in every record; "
                "give a key with --api-key-env NAME"
            )
        if not _is_server(base_url):
            raise EnvironmentProblem(
                f"--base-url {base_url}: not a URL such as http://127.0.0.1:30000"
            )
        self.base_url = base_url.rstrip("/")
        self.reason = reason

    def prepare(self, launch: Launch, say: Say) -> None:
        """Nothing to do: the server runs already."""

    def command(self, launch: Launch) -> list[str]:
        """Return nothing: nothing is started."""
        return []

    def environment(self, launch: Launch) -> dict[str, str]:
        """Return nothing: the server has its own."""
        return {}

    def start(self, launch: Launch) -> Server:
        """Find out whether the server is there and generates."""
        key = os.environ.get(launch.api_key_env) if launch.api_key_env else None
        began = time.monotonic()
        allowed = min(launch.deadline_seconds, ANSWER_SECONDS)
        try:
            lacks = ready.check(self.base_url, key, began + allowed)
        except ready.RefusedError as error:
            raise ServerFailed(f"--base-url {self.base_url}: it answers, but {error}") from error
        if lacks is not None:
            raise ServerFailed(f"--base-url {self.base_url}: {lacks}")
        return AttachedServer(self.base_url, launch.api_key_env, time.monotonic() - began)


class AttachedServer:
    """A server that is not ours."""

    def __init__(self, base_url: str, api_key_env: str | None, startup_seconds: float) -> None:
        self.base_url = base_url
        self.command: list[str] = []
        self.startup_seconds = startup_seconds
        self._api_key_env = api_key_env

    def died(self) -> str | None:
        """Return None while something listens there; asking for its health would take 1 s."""
        parts = urlsplit(self.base_url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((parts.hostname, port), timeout=ALIVE_SECONDS).close()
        except OSError as error:
            why = error.strerror or str(error)
            return f"the server at {self.base_url} can no longer be reached: {why}"
        return None

    def versions(self) -> dict[str, str]:
        """Return what the server reports of itself in `/server_info`."""
        return reported_versions(self.base_url, self._api_key_env)

    def log_tail(self, lines: int = 20) -> str:
        """Return nothing: its log is elsewhere."""
        return ""

    def stop(self) -> str | None:
        """Do nothing: it was not started here."""
        return None


def _is_server(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
