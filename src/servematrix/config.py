"""A server configuration: one TOML file, parsed, checked, and resolved for one cell.

A file says how a server is run (model, arguments, environment), what it needs (GPUs), which suites
it meets and where its gates stand. `[[overrides]]` change any of that for a GPU vendor, a compute
capability, a GPU name, an engine or one value of the axis; `--set` changes it from the command
line. Everything is checked before a server is started, and a message names file, key, what was
found and what is allowed.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from servematrix import own_kits, refusals
from servematrix.changes import parsed, told
from servematrix.redaction import (
    Secrets,
    credentials,
    is_secret,
    is_secret_flag,
    without_credentials,
)
from servematrix.settings import Gates, Kits, Table
from servematrix.terminal import say

T = TypeVar("T", bound=BaseModel)
Scalar = str | int | float | bool
LAUNCHED = ("sglang", "sglang-cpu", "reference")
ENGINES = (*LAUNCHED, "attach")
WAIVERS = "waivers.toml"
"""Lies among the configurations and is none."""
# the wheel has them here, and `suites` beside them; a checkout has neither
_SHIPPED = Path(__file__).resolve().parent / "_shipped" / "configs"
_FLAG = r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$"
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
Flag = Annotated[str, Field(pattern=_FLAG)]
Variable = Annotated[str, Field(pattern=_VARIABLE)]


class ConfigError(Exception):
    """A configuration, or a change to one, is not valid; the message says where and why."""


class Requires(Table):
    """What a configuration needs of the machine; engine `reference` needs none of it.

    No GPU at all (`gpus = 0`) makes it one for engines that serve without. `accelerator` is a name
    of `ray.util.accelerators`, by which Ray chooses a node.
    """

    gpus: int = Field(default=1, ge=0)
    """GPUs that one server uses; 0 for engines that serve without a GPU."""
    memory_gib: float | None = Field(default=None, gt=0)
    """Least memory of each GPU, in GiB."""
    compute_capability: str | None = Field(default=None, pattern=r"^(>=)?\d+\.\d+$")
    """Compute capability: `"12.0"` exactly, `">=8.0"` at least."""
    accelerator: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    """Ray's name of the GPU, such as `"H100"`: on which nodes `--executor ray` runs it."""

    @model_validator(mode="after")
    def _nothing_of_no_gpu(self) -> Requires:
        if self.gpus == 0 and (self.memory_gib or self.compute_capability):
            raise ValueError("gpus = 0 asks for no GPU, and memory or compute capability for one")
        if self.gpus == 0 and self.accelerator:
            raise ValueError("gpus = 0 asks for no GPU, and accelerator for one")
        return self


class Model(Table):
    """What is served: a hub id or a folder, and the draft model where speculation has one."""

    path: str = Field(min_length=1)
    """What is served: a hub id or a folder."""
    draft: str | None = Field(default=None, min_length=1)
    """The draft model, where speculation has one."""


class _ModelPatch(Table):
    path: str | None = Field(default=None, min_length=1)
    draft: str | None = Field(default=None, min_length=1)


class Override(Table):
    """A change that holds where everything under `when` matches."""

    when: dict[str, Scalar] = Field(min_length=1)
    """What must hold: `vendor`, `gpu_name` (a pattern), `compute_capability`, `engine`, or the
    axis."""
    description: str | None = None
    """Takes the place of `description`."""
    estimated_seconds: int | None = Field(default=None, gt=0)
    """Takes the place of `estimated_seconds`."""
    suites: list[str] | None = Field(default=None, min_length=1)
    """Takes the place of `suites`."""
    requires: Requires | None = None
    """Merged into `requires`."""
    model: _ModelPatch | None = None
    """Merged into `model`."""
    arguments: dict[Flag, Scalar] = Field(default={})
    """Merged into `arguments`; `false` takes a flag away."""
    environment: dict[Variable, str] = Field(default={})
    """Merged into `environment`."""
    gates: Gates | None = None
    """Merged into `gates`."""
    kits: Kits | None = None
    """Merged into `kits`."""


class Configuration(Table):
    """One configuration as its file states it."""

    name: str
    """The file's name without `.toml`; it is no key of the file."""
    description: str = Field(min_length=1)
    """One line for people: what this configuration is."""
    stage: str = Field(min_length=1)
    """When it runs, such as `a` for every change; a label for people and plans."""
    estimated_seconds: int = Field(gt=0)
    """About how long a cell takes, where no duration is recorded."""
    suites: list[str] = Field(min_length=1)
    """Suites that it meets: `basic_sanity` is `suites/test_basic_sanity.py`."""
    instead: dict[str, str] = Field(default={})
    """Which configuration runs in its place on an engine, by the engine's name."""
    requires: Requires = Requires()
    """What it needs of the machine."""
    model: Model
    """What is served."""
    arguments: dict[Flag, Scalar] = Field(default={})
    """SGLang's flags without the dashes; `true` is a bare flag, `false` leaves it out."""
    environment: dict[Variable, str] = Field(default={})
    """Variables of the server."""
    axis: dict[str, list[Scalar]] = Field(default={}, max_length=1)
    """One cell for each value; `"{NAME}"` in arguments, environment and suites is filled in."""
    gates: Gates = Gates()
    """Limits by kit: key `K` of `gates.KIT` becomes the kit's attribute `KIT_K`."""
    kits: Kits = Kits()
    """How kits measure: key `K` of `kits.KIT` becomes the kit's attribute `KIT_K`."""
    overrides: list[Override] = Field(default=[])
    """Changes where all of `when` matches."""

    @field_validator("axis")
    @classmethod
    def _values_differ(cls, axis: dict[str, list[Scalar]]) -> dict[str, list[Scalar]]:
        for name, values in axis.items():
            if not values or len({str(value) for value in values}) != len(values):
                raise ValueError(f"axis {name!r} needs at least one value and no value twice")
        return axis

    @field_validator("instead")
    @classmethod
    def _engines_are_known(cls, instead: dict[str, str]) -> dict[str, str]:
        for engine in instead:
            if engine not in ENGINES:
                raise ValueError(
                    f"unknown engine {engine!r}{nearest(engine, ENGINES)}; "
                    f"there are: {', '.join(ENGINES)}"
                )
        return instead

    @model_validator(mode="after")
    def _conditions_are_known(self) -> Configuration:
        known = ["vendor", "compute_capability", "gpu_name", "engine", *self.axis]
        for number, override in enumerate(self.overrides):
            for key in override.when:
                if key not in known:
                    raise ValueError(
                        f"overrides.{number}.when: unknown condition {key!r}{nearest(key, known)}"
                    )
                values = [str(value) for value in self.axis.get(key, [])]
                wanted = str(override.when[key])
                if key in self.axis and wanted not in values:
                    raise ValueError(
                        f"overrides.{number}.when: the axis {key!r} has no value {wanted!r}"
                        f"{nearest(wanted, values)}; it has {', '.join(values)}"
                    )
        return self

    @model_validator(mode="after")
    def _is_not_refused(self) -> Configuration:
        for problem in _refused(self):
            raise ValueError(problem)
        return self


def _tables(config: Configuration) -> list[Configuration | Override]:
    return [config, *config.overrides]


def _refused(config: Configuration) -> Iterator[str]:
    """What a configuration sets and may not, a sentence each."""
    found: list[str | None] = []
    for table in _tables(config):
        found += [refusals.of_argument(*one) for one in table.arguments.items()]
        found += [refusals.of_variable(*one) for one in table.environment.items()]
        for key, path in (table.model or _ModelPatch()).model_dump().items():
            found.append(refusals.of_text(f"model.{key}", path))
    for name, values in config.axis.items():
        found += [refusals.of_text(f"axis.{name}", value) for value in values]
    yield from (problem for problem in found if problem is not None)


@dataclass(frozen=True)
class Place:
    """Where a cell will run, as far as overrides may depend on it."""

    engine: str
    vendor: str | None = None
    gpu_name: str | None = None
    compute_capability: str | None = None

    def matches(self, when: Mapping[str, Scalar], axis: Mapping[str, Scalar]) -> bool:
        """Whether every condition of an override holds here; `gpu_name` is a shell pattern."""
        for key, wanted in when.items():
            if key in axis:
                found: Scalar | None = axis[key]
            else:
                found = getattr(self, key)
            if key == "gpu_name":
                if found is None or not fnmatch(str(found), str(wanted)):
                    return False
            elif found is None or str(found) != str(wanted):
                return False
        return True


def suites_beside(directory: Path) -> Path:
    """Return the folder of suites beside a folder of configurations; ConfigError without one."""
    suites = directory.parent / "suites"
    if not suites.is_dir():
        raise ConfigError(f"{suites}: no such folder; the suites lie beside {directory}")
    return suites


def is_shipped(directory: Path) -> bool:
    """Whether these are the configurations that an installed wheel brought along."""
    return directory.resolve() == _SHIPPED


def shipped() -> Path | None:
    """The configurations that an installed wheel brought along; None in a checkout."""
    return _SHIPPED if _SHIPPED.is_dir() else None


def _packaged(name: str) -> str:
    """A hint at the configuration of that name in the package; empty where it has none."""
    folder = shipped()
    if folder is None or name not in names(folder):
        return ""
    return f"; the installed package has it: --configs {folder}"


def project(directory: Path) -> Path:
    """Where what belongs to a folder of configurations lies, such as baselines: the folder above.

    For the configurations of the installed package, which is nobody's own, the working directory.
    """
    return Path.cwd() if is_shipped(directory) else directory.parent


def find_directory(start: Path, named: str | None = None, *, shipped: bool = False) -> Path:
    """The folder `named`, else the nearest `configs/` at or above `start`.

    With `shipped`, those of the installed package where there is none, which is said on stderr.
    ConfigError when there is none, or no TOML file in it.
    """
    if named is not None:
        if not any(Path(named).glob("*.toml")):
            raise ConfigError(f"--configs {named}: no such folder, or no *.toml file in it")
        return Path(named)
    for folder in (start, *start.resolve().parents):
        candidate = folder / "configs"
        if candidate.is_dir() and any(candidate.glob("*.toml")):
            return candidate
    if shipped and _SHIPPED.is_dir():
        say(
            f"no folder configs/ at or above {start}; configurations and suites are"
            f" those of the installed package: {_SHIPPED.parent}"
        )
        return _SHIPPED
    raise ConfigError(
        f"no folder configs/ with a *.toml file at or above {start}; "
        "run from the repository, or name one with --configs DIR"
    )


def names(directory: Path) -> list[str]:
    """Names of the configurations in a folder, sorted."""
    return sorted(path.stem for path in directory.glob("*.toml") if path.name != WAIVERS)


def load(directory: Path, name: str) -> Configuration:
    """Read and check `<directory>/<name>.toml`; ConfigError names file, key, found and allowed."""
    path = directory / f"{name}.toml"
    if path.name == WAIVERS or not path.is_file():
        known = names(directory)
        raise ConfigError(
            f"no configuration {name!r} in {directory}{nearest(name, known)}; "
            f"there are: {', '.join(known)}{_packaged(name)}"
        )
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    if "name" in raw:
        raise ConfigError(f"{path}: key 'name': leave it out, the file's name is the name")
    config = checked(_table_of(directory), {**raw, "name": name}, str(path))
    for engine, other in config.instead.items():
        known = [one for one in names(directory) if one != name]
        if other not in known:
            raise ConfigError(
                f"{path}: key 'instead.{engine}': no other configuration {other!r} in {directory}"
                f"{nearest(other, known)}; there are: {', '.join(known)}"
            )
    return config


def resolve(
    config: Configuration,
    axis: Mapping[str, Scalar],
    place: Place,
    changes: Sequence[str] = (),
) -> Configuration:
    """The configuration of one cell: overrides that match, then `changes` (`key.path=value`).

    Placeholders `{axis_name}` in arguments, environment and suites are filled in. The result has no
    axis and no overrides; it is checked again as a whole.
    """
    # an axis may have thousands of values, and this is done for each
    others = {"overrides", "axis", "instead"}
    raw = config.model_dump(exclude_none=True, exclude_unset=True, exclude=others)
    for override in config.overrides:
        if place.matches(override.when, axis):
            patch = override.model_dump(exclude_none=True, exclude_unset=True)
            patch.pop("when")
            raw = _merged(raw, patch)
    try:
        for change in changes:
            raw = _merged(raw, parsed(change))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    where = " ".join(f"--set {told(change)}" for change in changes)
    where = where or f"configuration {config.name}"
    # what a change made of the tables is not known before
    whole = checked(type(config), raw, where)
    for table in ("arguments", "environment"):
        raw[table] = {key: _filled(value, axis) for key, value in getattr(whole, table).items()}
    raw["suites"] = [_filled(suite, axis) for suite in whole.suites]
    return checked(type(config), raw, where)


def _table_of(directory: Path) -> type[Configuration]:
    """What a configuration in a folder is: it may set what the kits beside that folder declare."""
    try:
        own = own_kits.read(directory)
        return _with(own) if own else Configuration
    except own_kits.NoKitError as problem:
        raise ConfigError(str(problem)) from problem


@functools.cache
def _with(own: tuple[own_kits.OwnKit, ...]) -> type[Configuration]:
    kits = own_kits.tables(Kits, own)
    optional: Any = kits | None
    override = create_model("Override", __base__=Override, kits=(optional, None))
    overrides: Any = types.GenericAlias(list, (override,))
    return create_model(
        "Configuration", __base__=Configuration, kits=(kits, kits()), overrides=(overrides, [])
    )


def digest(config: Configuration, hidden: Secrets | None = None) -> str:
    """sha256 over a configuration's canonical JSON: runs with one digest asked the same.

    Secrets, those in `hidden` or else the configuration's own, are left out: a digest lets
    everybody try guesses.
    """
    hidden = hidden or Secrets(secrets(config))
    whole = hidden.plain(config.model_dump(exclude_none=True))
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def secrets(config: Configuration) -> list[str]:
    """Secret values that a configuration gives its server's variables."""
    found: list[str] = []
    for table in _tables(config):
        for name, value in table.environment.items():
            found += [value] if is_secret(name) else credentials(value)
    return found


def attributes(config: Configuration) -> dict[str, Any]:
    """Kit attributes that a configuration sets: key `k` of `gates.<kit>` or `kits.<kit>` is
    `<kit>_<k>`."""
    found: dict[str, Any] = {}
    for section in (config.gates, config.kits):
        for kit, values in section.model_dump(exclude_none=True).items():
            for key, value in values.items():
                found[f"{kit}_{key}"] = tuple(value) if isinstance(value, list) else value
    return found


def required(config: Configuration) -> dict[str, bool]:
    """Kit attributes that hold a server to the metrics and the speculation it is started with."""
    asked: list[str] = []
    if config.arguments.get("enable-metrics") is True:
        asked += ["fwd_occupancy_required", "cuda_graph_required"]
    if config.arguments.get("speculative-algorithm"):
        asked += ["fwd_occupancy_speculation_required", "spec_decoding_required"]
    return dict.fromkeys(asked, True)


def _filled(value: Scalar, axis: Mapping[str, Scalar]) -> Scalar:
    if not isinstance(value, str):
        return value
    for name, filling in axis.items():
        if value == f"{{{name}}}":
            return filling
        value = value.replace(f"{{{name}}}", str(filling))
    return value


def _merged(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in patch.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = _merged(result[key], value)
        else:
            result[key] = value
    return result


def checked(table: type[T], raw: Mapping[str, Any], where: str) -> T:
    """What was read, as a table; ConfigError with one line a problem, each begins with `where`."""
    try:
        return table.model_validate(raw)
    except ValidationError as error:
        lines = [f"{where}: {_sentence(dict(problem), table)}" for problem in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from error


def _sentence(problem: Mapping[str, Any], table: type[BaseModel]) -> str:
    location = [part for part in problem["loc"] if part not in ("str", "int", "float", "bool")]
    key = ".".join(str(part) for part in location if part != "[key]")
    if problem["type"] == "extra_forbidden":
        allowed = sorted(_fields_at(table, location[:-1]))
        return (
            f"unknown key {key!r}{nearest(str(location[-1]), allowed)}; "
            f"allowed here: {', '.join(allowed)}"
        )
    if problem["type"] == "missing":
        return f"key {key!r} is missing"
    found = problem["input"]
    secret = any(part == "environment" or is_secret_flag(str(part)) for part in location)
    shown = "" if isinstance(found, dict) or secret else f" (found {found!r})"
    shown = without_credentials(shown)
    text = str(problem["msg"]).removeprefix("Value error, ")
    if location and location[-1] == "[key]":
        text = f"not a valid name ({text})"
    return f"key {key!r}: {text}{shown}" if key else f"{text}"


def _fields_at(model: type[BaseModel], location: Sequence[Any]) -> Iterator[str]:
    """Names of the keys allowed at a place inside a configuration."""
    current: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int) or current is None:
            continue
        current = _table_in(current.model_fields[part].annotation)
    if current is None:
        return
    for name in current.model_fields:
        # a configuration is called as its file is
        if not (issubclass(current, Configuration) and name == "name"):
            yield name


def _table_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, list, Annotated):
        for argument in get_args(annotation):
            table = _table_in(argument)
            if table is not None:
                return table
    return None


def nearest(word: str, known: Sequence[str]) -> str:
    """A hint at the known word that is meant, to follow the wrong one; empty where none is near."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def capability(text: str | None) -> tuple[int, int] | None:
    """`">=8.0"` or `"12.0"` as (major, minor)."""
    if text is None:
        return None
    major, minor = text.removeprefix(">=").split(".")
    return int(major), int(minor)
