"""The servers of known state: how each is started, and which kits must fail on it.

They stand in `resources/known_servers.toml`. A server names its models by role, because a path
differs from machine to machine: `--path ROLE=PATH` says where one lies.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from servematrix import config as configs
from servematrix.config import ConfigError, nearest
from servematrix.kits import MIXINS

FILE: Final = "known_servers.toml"
_WORD = r"^[a-z0-9]+(-[a-z0-9]+)*$"
Role = Annotated[str, Field(pattern=_WORD)]
Text = Annotated[str, Field(min_length=1)]


class NoPathError(Exception):
    """A server cannot be started here, because nobody said where one of its models lies."""


class KnownServer(BaseModel):
    """A server whose state is known: what it is, and what the kits must say of it.

    An entry of `must_fail` and `may` is a kit, or `kit.test`. Each of `must_fail` fails in at least
    one test. What an entry of `may` says counts for nothing, for the reason given. Everything else
    passes, or does not apply.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str = Field(pattern=_WORD)
    description: Text
    config: Text
    """Name of the configuration that it is started from."""
    set: list[str] = []
    """Changes of that configuration, as `--set` takes them."""
    model: Role
    draft: Role | None = None
    must_fail: list[str] = []
    may: dict[str, Text] = {}
    engines: list[str] | None = Field(default=None, min_length=1)
    """Engines that can show this state; None where all can."""
    engines_reason: Text | None = None

    @model_validator(mode="after")
    def _entries_are_known(self) -> KnownServer:
        for entry in (*self.must_fail, *self.may):
            _check_entry(entry)
        for entry in self.must_fail:
            if entry in self.may or entry.split(".")[0] in self.may:
                raise ValueError(f"{entry!r} stands in must_fail and in may; leave one out")
        return self

    @model_validator(mode="after")
    def _engines_are_known(self) -> KnownServer:
        if (self.engines is None) != (self.engines_reason is None):
            raise ValueError("'engines' and 'engines_reason' belong together; one is missing")
        for engine in self.engines or ():
            if engine not in configs.LAUNCHED:
                raise ValueError(
                    f"engines: unknown engine {engine!r}{nearest(engine, configs.LAUNCHED)}; "
                    f"there are: {', '.join(configs.LAUNCHED)}"
                )
        return self

    @property
    def start(self) -> tuple[str, tuple[str, ...], str, str | None]:
        """All that decides how it is started: configuration, changes, models."""
        return self.config, tuple(self.set), self.model, self.draft

    @property
    def roles(self) -> Sequence[str]:
        """The roles of its models."""
        return [self.model] if self.draft is None else [self.model, self.draft]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    server: list[KnownServer] = Field(min_length=1)

    @model_validator(mode="after")
    def _no_name_twice(self) -> _File:
        names = [server.name for server in self.server]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"server: the name {name!r} stands twice")
        return self


@dataclass(frozen=True)
class Models:
    """Where the models of one server lie, as far as its configuration does not say so itself."""

    model: str | None
    draft: str | None


def load(path: Path | None = None) -> list[KnownServer]:
    """The servers of a file, the packaged one by default, in its order.

    ConfigError names file, key, what was found and what is allowed.
    """
    file = path or resources.files("servematrix") / "resources" / FILE
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: cannot be read as TOML: {error}") from error
    return configs.checked(_File, raw, str(path or FILE)).server


def select(servers: Sequence[KnownServer], names: Sequence[str]) -> list[KnownServer]:
    """The named servers, in the order of the file; all where no name is given."""
    known = [server.name for server in servers]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"no server of known state {name!r}{nearest(name, known)}; "
                f"there are: {', '.join(known)}"
            )
    return [server for server in servers if not names or server.name in names]


def paths(given: Sequence[str], servers: Sequence[KnownServer]) -> dict[str, str]:
    """Roles and paths of `--path ROLE=PATH`; a path is a hub id or a folder that is there."""
    roles = sorted({role for server in servers for role in server.roles})
    found: dict[str, str] = {}
    for text in given:
        role, separator, path = text.partition("=")
        if not separator or not path:
            raise ConfigError(f"--path {text}: expected ROLE=PATH, such as {roles[0]}=/models/it")
        if role not in roles:
            raise ConfigError(
                f"--path {text}: unknown role {role!r}{nearest(role, roles)}; "
                f"there are: {', '.join(roles)}"
            )
        if path.startswith(("/", "./", "../", "~")):
            path = str(Path(path).expanduser())
            if not Path(path).exists():
                raise ConfigError(f"--path {text}: there is no such folder")
        found[role] = path
    return found


def models(server: KnownServer, config: configs.Model, paths: Mapping[str, str]) -> Models:
    """What to serve instead of the configuration's models; NoPathError where nobody says what."""
    model = paths.get(server.model)
    if server.draft is None:
        return Models(model, None)
    draft = paths.get(server.draft)
    if draft is None and server.draft == server.model:
        draft = config.path
    if draft is None and config.draft is None:
        raise NoPathError(f"no path for {server.draft}: name one with --path {server.draft}=PATH")
    return Models(model, draft)


def _check_entry(entry: str) -> None:
    kits = {mixin.kit: mixin for mixin in MIXINS}
    kit, dot, test = entry.partition(".")
    if kit not in kits:
        raise ValueError(f"unknown kit {kit!r}{nearest(kit, list(kits))}; there are: {_all(kits)}")
    tests = [name for name in dir(kits[kit]) if name.startswith("test_")]
    if dot and test not in tests:
        raise ValueError(
            f"kit {kit!r} has no test {test!r}{nearest(test, tests)}; it has: {_all(tests)}"
        )


def _all(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(sorted(names))
