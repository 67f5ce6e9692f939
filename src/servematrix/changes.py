"""Changes of a configuration from the command line, `key.path=value`, and what in them is secret.

A secret given so stands on the command line that was typed, which nobody can take back. It is
passed on to no other command line, and shown in no message and no record. So that it need not be
typed, `environment.NAME@=VARIABLE` takes it from a variable of ours; it is secret by that, whatever
it is called.
"""

from __future__ import annotations

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
    within_json,
    without_credentials,
)

FROM_VARIABLE = "@"
"""Ends the key of a change whose value is that of a variable of ours."""


def parsed(change: str) -> dict[str, Any]:
    """The nested table that a change sets; ValueError, with no secret in it, where it is none.

    >>> parsed("gates.fwd_occupancy.threshold=96")
    {'gates': {'fwd_occupancy': {'threshold': 96}}}
    """
    key, separator, text = change.partition("=")
    parts = [part.strip() for part in key.removesuffix(FROM_VARIABLE).split(".")]
    if not separator or not all(parts):
        raise ValueError(
            f"--set {told(change)}: expected key=value, such as gates.fwd_occupancy.threshold=96"
        )
    if parts[0] in ("name", "axis", "overrides", "instead"):
        raise ValueError(f"--set {told(change)}: {parts[0]!r} cannot be set from the command line")
    value: Any = _variable(change, parts, text) if _is_from_variable(change) else _value(text)
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
    if key.endswith(FROM_VARIABLE):
        return change
    parts = key.split(".")
    named = any(is_secret(part) or is_secret_flag(part) for part in parts)
    inner = _leaves(parts[-1], _value(change.partition("=")[2]))
    if key != change and (named or key == "environment" or any(inner)):
        return f"{key}={MARK}"
    return without_credentials(change)


def secrets(changes: Sequence[str]) -> list[str]:
    """Secret values in changes, also in those that are no changes."""
    found: list[str] = []
    for change in changes:
        if told(change) != change:
            found.append(change.partition("=")[2].strip())
        try:
            found += _leaves("", parsed(change), _is_from_variable(change))
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
        every = _is_from_variable(change)
        secret = {name: value for name, value in named.items() if every or is_secret(name)}
        hidden |= secret
        if secret:
            rest = sorted(named.keys() - secret.keys())
            shown += [assigned(f"environment.{name}", named[name]) for name in rest]
        else:
            shown.append(change)
    return shown, hidden


def secret_variables(changes: Sequence[str]) -> list[str]:
    """Names of the server's variables that changes take from variables of ours."""
    return [
        name for one in changes if _is_from_variable(one) for name in parsed(one)["environment"]
    ]


def _is_from_variable(change: str) -> bool:
    return change.partition("=")[0].endswith(FROM_VARIABLE)


def _variable(change: str, key: Sequence[str], name: str) -> str:
    if len(key) != 2 or key[0] != "environment":
        raise ValueError(
            f"--set {change}: only a variable of the server is set from one of ours, as"
            " environment.NAME@=VARIABLE; other values stand on command lines and in records"
        )
    value = os.environ.get(name)
    if value is None:
        raise ValueError(f"--set {change}: the variable {name!r} is not set; export {name} first")
    return value


def _value(text: str) -> Any:
    """What stands behind the `=`: TOML, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text  # also what TOML reads and Python cannot hold


def _leaves(key: str, value: object, every: bool = False) -> Iterator[str]:
    """Texts under a secret name, or every text, and secrets within texts, in what a change sets."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(name, item, every)
    elif every or is_secret(key) or is_secret_flag(key):
        yield str(value)
    elif isinstance(value, str):
        yield from credentials(value)
        yield from within_json(value)
