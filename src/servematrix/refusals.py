"""What no configuration may set: what would open the server, show a secret, or reach past argv.

A configuration is trusted with its server's arguments and environment. It is not trusted with what
is ours: the address that the server listens on, the model that records name, and secrets on command
lines, which everybody on the machine can read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from servematrix.redaction import credentials, is_secret_flag, within_json

_ADDRESS: Final = (
    "every server listens on a loopback address and a port that the run gives it (--port); a port"
    " that a configuration sets would be open to others, or met by another cell"
)
_SECRET: Final = "a key here would stand in records and command lines; "
_ELSEWHERE: Final = f"{_SECRET}start such a server yourself and name it with --base-url"
_OURS: Final[Mapping[str, str]] = {
    "host": _ADDRESS,
    "port": _ADDRESS,
    "nccl-port": _ADDRESS,
    "dist-init-addr": _ADDRESS,
    "model": "set model.path instead, which records name",
    "model-path": "set model.path instead, which records name",
    "speculative-draft-model": "set model.draft instead, which records name",
    "speculative-draft-model-path": "set model.draft instead, which records name",
    "config": "arguments in another file would be in no record; write them here",
    "api-key": f"{_SECRET}name the variable that holds it with --api-key-env",
    "admin-api-key": _ELSEWHERE,
    "ssl-keyfile-password": _ELSEWHERE,
}
_BEGINNINGS: Final = ("ssl-keyfile",)
"""Flags of their own that another one in `_OURS` begins with."""
_LISTENS: Final = re.compile(r"(^|-)(host|port|addr|address|ip)$")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def of_argument(name: str, value: object) -> str | None:
    """Why an argument of the server cannot be set so, None where it can.

    The server takes a flag's beginning for the flag, so `hos` is refused as `host` is.
    """
    for flag, why in _OURS.items():
        if flag.startswith(name) and name not in _BEGINNINGS:
            return f"arguments.{name}: {why}"
    if _LISTENS.search(name):
        return f"arguments.{name}: {_ADDRESS}"
    if is_secret_flag(name):
        return f"arguments.{name}: {_ELSEWHERE}"
    return of_text(f"arguments.{name}", value)


def of_text(key: str, value: object) -> str | None:
    """Why a value cannot stand on a command line, None where it can."""
    if not isinstance(value, str):
        return None
    if _CONTROL.search(value):
        return f"{key}: holds a line break or another control character"
    if credentials(value):
        return f"{key}: a URL with a password, which would stand in records and command lines"
    if within_json(value):
        return f"{key}: {_ELSEWHERE}"
    return None


def of_variable(name: str, value: str) -> str | None:
    """Why a variable of the server cannot be set so, None where it can."""
    if "\0" in value:
        return f"environment.{name}: holds a zero byte, which no variable can"
    return None
