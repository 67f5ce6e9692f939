"""The faults with the incident that each stands for, and what must catch them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from servematrix import config as configs
from servematrix.config import ConfigError, nearest
from servematrix.engines.reference.faults.catalogue import CATALOGUE
from servematrix.engines.reference.faults.catalogue import Fault as Injected
from servematrix.kits import MIXINS

FILE: Final = "faults.toml"
KITS: Final = tuple(mixin.kit for mixin in MIXINS)
LAUNCH: Final = "launch"
SHUTDOWN: Final = "shutdown"
CATCHERS: Final = (LAUNCH, *KITS, SHUTDOWN)
"""What can catch a fault: the columns of the matrix, stages first and last."""
Text = Annotated[str, Field(min_length=1)]


class Fault(BaseModel):
    """One fault: the incident that it stands for, and how the server with it is started.

    Each of `caught_by` must catch it. With `baseline`, healthy runs come first and it is held to
    them. `timeout` is what one request may take, in seconds.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Text
    incident: Text
    thread: str = Field(pattern=r"^[\w.-]+/[\w.-]+#\d+$")
    """The public thread that tells of the incident: OWNER/REPOSITORY#NUMBER."""
    caught_by: list[str] = Field(min_length=1)
    config: Text = "baseline"
    set: list[str] = []
    timeout: float = Field(default=20.0, gt=0)
    baseline: bool = False

    @model_validator(mode="after")
    def _names_are_known(self) -> Fault:
        if self.name not in CATALOGUE:
            raise ValueError(f"unknown fault {self.name!r}{nearest(self.name, list(CATALOGUE))}")
        for catcher in self.caught_by:
            if catcher not in CATCHERS:
                raise ValueError(
                    f"unknown kit or stage {catcher!r}{nearest(catcher, CATCHERS)}; there are: "
                    f"{', '.join(CATCHERS)}"
                )
        return self

    @property
    def injected(self) -> Injected:
        """What the server does."""
        return CATALOGUE[self.name]

    @property
    def kits(self) -> Sequence[str]:
        """The kits to try: one where none is reached, or none is needed, else all."""
        return KITS[:1] if self.caught_by in ([LAUNCH], [SHUTDOWN]) else KITS


class Known(BaseModel):
    """The content of the file.

    `settings` hold for every server, faulty or healthy; `stays` says of a kit that catches nothing
    alone why it is kept.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    settings: list[str]
    stays: dict[str, Text] = {}
    fault: list[Fault] = Field(min_length=1)

    @model_validator(mode="after")
    def _all_faults_once(self) -> Known:
        names = [fault.name for fault in self.fault]
        for name in CATALOGUE:
            if names.count(name) != 1:
                raise ValueError(f"fault {name!r} stands here {names.count(name)} times, not once")
        return self

    def select(self, names: Sequence[str]) -> list[Fault]:
        """The named faults in the order of the file; all where no name is given."""
        for name in names:
            if name not in CATALOGUE:
                raise ConfigError(
                    f"no fault {name!r}{nearest(name, list(CATALOGUE))}; "
                    f"there are: {', '.join(CATALOGUE)}"
                )
        return [fault for fault in self.fault if not names or fault.name in names]


def load() -> Known:
    """Read the packaged file; ConfigError says what is wrong with it."""
    file = resources.files("servematrix") / "resources" / FILE
    raw: Mapping[str, object] = tomllib.loads(file.read_text(encoding="utf-8"))
    return configs.checked(Known, raw, FILE)
