"""A cell with its running server, and what that server says of itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from servematrix.client import Client, ClientError, TimedOut, Unreachable
from servematrix.engines.base import Server
from servematrix.engines.sglang import spelled_for
from servematrix.redaction import is_secret_flag
from servematrix.run import PlannedCell
from servematrix.terminal import line

DYING_SECONDS = 3.0
"""From a server's last answer until its guard has told how it ended; half a second is usual."""
_LONGEST_NAME = 200


def answers(versions: Mapping[str, str], model: str) -> str:
    """What answers, in words, from what a server says of itself."""
    told = [f"{name} {version}" for name, version in versions.items()]
    return f"{', '.join(told) or 'a server of unknown version'} serving {model}"


class ServedCell:
    """A cell with its running server."""

    def __init__(self, planned: PlannedCell, server: Server, api_key: str | None) -> None:
        self.planned = planned
        self.server = server
        self.versions = server.versions()
        # the embedded server says so itself, also where --base-url names it
        self.simulated = "reference" in self.versions
        self._client = Client(server.base_url, api_key=api_key, timeout=10)
        self.model = self._served_model()
        self._info = self._told()

    @property
    def answers(self) -> str:
        """What answers, as the server itself says."""
        return answers(self.versions, self.model)

    def differences(self) -> list[str]:
        """Where the server's own account of its arguments differs from the configuration.

        Only arguments that it names are compared; one that somebody else started may differ.
        """
        info = self._info
        arguments = spelled_for("", self.planned.config.arguments)
        found = []
        for name, wanted in arguments.items():
            key = name.replace("-", "_")
            if key not in info or (wanted is False and info[key] is not True):
                continue  # False leaves an argument out
            if str(info[key]) != str(wanted):
                found.append(line(f"{name} is {info[key]!s:.200}, not {wanted}"))
        return found

    def secrets(self) -> list[str]:
        """Keys that the server repeats to whoever asks for its arguments."""
        named = (value for name, value in self._info.items() if is_secret_flag(name))
        return [value for value in named if isinstance(value, str)]

    def death(self) -> str | None:
        """How the server died; None while it lives.

        Waits a little where it does not answer: a process is gone before its end is known.
        """
        death = self.server.died()
        if death is None and not self._answers():
            deadline = time.monotonic() + DYING_SECONDS
            while death is None and time.monotonic() < deadline:
                time.sleep(0.05)
                death = self.server.died()
        return death

    def _answers(self) -> bool:
        try:
            self._client.health()
        except TimedOut:
            return True
        except Unreachable:
            return False
        except ClientError:
            return True
        return True

    def _told(self) -> Mapping[str, Any]:
        try:
            return self._client.server_info()
        except ClientError:
            return {}

    def _served_model(self) -> str:
        try:
            return line(str(self._client.model_info()["model_path"]), _LONGEST_NAME)
        except (ClientError, KeyError):
            return "an unknown model"
