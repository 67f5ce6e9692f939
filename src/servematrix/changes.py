"""Changes of a configuration from the command line, `key.path=value`, and what in them is secret.

A secret given by `--set` stands on the command line that was typed, which nobody can take back. It
is passed on to no other command line, and shown in no message and no record.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from servematrix.redaction import (
    MARK,
    credentials,
    is_secret,
    is_secret_flag,
    without_credentials,
)


def parsed(change: str) -> dict[str, Any]:
    """The nested table that a change sets; ValueError, with no secret in it, where it is none.

    >>> parsed("gates.fwd_occupancy.threshold=96")
    {'gates': {'fwd_occupancy': {'threshold': 96}}}
    """
    key, separator, text = change.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not separator or not all(parts):
        raise ValueError(
            f"--set {told(change)}: expected key=value, such as gates.fwd_occupancy.threshold=96"
        )
    if parts[0] in ("name", "axis", "overrides", "instead"):
        raise ValueError(f"--set {told(change)}: {parts[0]!r} cannot be set from the command line")
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    for part in reversed(parts):
        value = {part: value}
    return dict(value)


def assigned(key: str, value: str) -> str:
    """The change that gives a key this text.

    >>> assigned("model.path", "org/model")
    'model.path="org/model"'
    """
    # JSON writes a string as TOML reads it, but for one control character
    return f"{key}={json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f")


def told(change: str) -> str:
    """A change as messages show it: without its value where that may be secret.

    >>> told("environment.HF_TOKEN=hf_x"), told("arguments.dtype=half")
    ('environment.HF_TOKEN=***', 'arguments.dtype=half')
    """
    key = re.split(r"[=:\s]", change, maxsplit=1)[0]
    named = any(is_secret(part) or is_secret_flag(part) for part in key.split("."))
    if key != change and (named or key == "environment"):
        return f"{key}={MARK}"
    return without_credentials(change)


def secrets(changes: Sequence[str]) -> list[str]:
    """Secret values in changes, also in those that are no changes."""
    found: list[str] = []
    for change in changes:
        if told(change) != change:
            found.append(change.partition("=")[2].strip())
        try:
            found += _leaves("", parsed(change))
        except ValueError:
            continue
    return found


def apart(changes: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Changes that may stand on a command line, and the secret variables left out of them."""
    shown: list[str] = []
    hidden: dict[str, str] = {}
    for change in changes:
        environment = parsed(change).get("environment")
        named = environment if isinstance(environment, Mapping) else {}
        secret = {name: value for name, value in named.items() if is_secret(name)}
        hidden |= secret
        if secret:
            rest = sorted(named.keys() - secret.keys())
            shown += [assigned(f"environment.{name}", named[name]) for name in rest]
        else:
            shown.append(change)
    return shown, hidden


def from_variable(text: str) -> str:
    """The change that `--set-env KEY=NAME` stands for: the key gets the value of that variable.

    So a secret is given without standing on a command line. ArgumentTypeError where the variable is
    not set.
    """
    key, separator, name = text.partition("=")
    value = os.environ.get(name)
    if not separator or value is None:
        raise argparse.ArgumentTypeError(
            f"{told(text)}: expected KEY=NAME, and a variable of that name that is set"
        )
    return assigned(key, value)


def _leaves(key: str, value: object) -> Iterator[str]:
    """Texts under a secret name, and passwords of URLs, in what a change sets."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(name, item)
    elif is_secret(key) or is_secret_flag(key):
        yield str(value)
    elif isinstance(value, str):
        yield from credentials(value)
