"""Kits of a project's own: `kits/*.py` beside `configs/`, and what configurations can set of them.

They are read here and not imported: a configuration is checked before any code of a project runs.
A class that sets `kit` is a kit, and each attribute `KIT_KEY` that it declares as `int`, `float`,
`str` or `bool` is the key `kits.KIT.KEY`.
"""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, create_model

T = TypeVar("T", bound=BaseModel)
FOLDER: Final = "kits"
_TYPES: Final[Mapping[str, type]] = {"int": int, "float": float, "str": str, "bool": bool}
_NAME: Final = re.compile(r"(?!model_)[a-z][a-z0-9_]*")
"""Names of kits and keys; those that begin with `model_` are pydantic's."""


class NoKitError(ValueError):
    """A file of kits cannot be read; the message says which, where and why."""


@dataclass(frozen=True)
class OwnKit:
    """One kit: where it is, its settings by key, and the tests that it defines itself."""

    name: str
    where: str
    keys: tuple[tuple[str, type], ...]
    tests: tuple[str, ...]


def read(configurations: Path) -> tuple[OwnKit, ...]:
    """The kits beside a folder of configurations; NoKitError where one cannot be read."""
    found: dict[str, OwnKit] = {}
    for path in sorted((configurations.parent / FOLDER).glob("*.py")):
        for kit in _kits(path):
            other = found.setdefault(kit.name, kit)
            if other is not kit:
                raise NoKitError(f"{kit.where}: {other.where} is kit {kit.name!r} already")
    return tuple(found.values())


def tables(known: type[T], own: Sequence[OwnKit]) -> type[T]:
    """The table of all kits, with one for each of a project's own; NoKitError for a known name."""
    fields: dict[str, Any] = {}
    with warnings.catch_warnings():
        # a key may be called as what pydantic itself no longer uses, such as `json`
        warnings.simplefilter("ignore", UserWarning)
        for kit in own:
            if kit.name in known.model_fields:
                raise NoKitError(
                    f"{kit.where}: there is a kit {kit.name!r} in servematrix; name yours otherwise"
                )
            keys: dict[str, Any] = {key: (kind | None, None) for key, kind in kit.keys}
            table = create_model(kit.name, __config__=known.model_config, **keys)
            fields[kit.name] = (table, table())
        return create_model(known.__name__, __base__=known, **fields)


def make_importable(configurations: Path) -> None:
    """Let suites import `kits.NAME` and `gates.NAME` wherever the run was started from."""
    root = configurations.parent.resolve()
    if (root / FOLDER).is_dir() and str(root) not in sys.path:
        sys.path.insert(0, str(root))


def _kits(path: Path) -> Iterator[OwnKit]:
    try:
        body = ast.parse(path.read_bytes(), str(path)).body
    except SyntaxError as error:
        raise NoKitError(f"{path}:{error.lineno}: no valid Python: {error.msg}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise NoKitError(f"{path}: cannot be read: {error}") from error
    # a kit may be named by a constant of its module
    constants = dict(_texts(body, {}))
    for one in body:
        if isinstance(one, ast.ClassDef):
            name = dict(_texts(one.body, constants)).get("kit")
            if name is None:
                continue
            where = f"{path}:{one.lineno}"
            if not _NAME.fullmatch(name):
                raise NoKitError(
                    f"{where}: kit {name!r}: not a name for a kit; take lower-case letters, digits"
                    " and underscores, and not model_ at its beginning"
                )
            yield OwnKit(name, where, _keys(one, name), _tests(one))


def _texts(body: list[ast.stmt], constants: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names that are given a text, and the text."""
    for one in body:
        targets: Sequence[ast.expr]
        if isinstance(one, ast.AnnAssign):
            targets, value = [one.target], one.value
        elif isinstance(one, ast.Assign):
            targets, value = one.targets, one.value
        else:
            continue
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            found = value.value
        elif isinstance(value, ast.Name) and value.id in constants:
            found = constants[value.id]
        else:
            continue
        yield from ((target.id, found) for target in targets if isinstance(target, ast.Name))


def _keys(kit: ast.ClassDef, name: str) -> tuple[tuple[str, type], ...]:
    found: dict[str, type] = {}
    for one in kit.body:
        if not (isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)):
            continue
        begins, key = f"{name}_", one.target.id
        kind = _TYPES.get(ast.unparse(one.annotation).removesuffix(" | None"))
        rest = key.removeprefix(begins)
        if key.startswith(begins) and _NAME.fullmatch(rest) and kind is not None:
            found[rest] = kind
    return tuple(found.items())


def _tests(kit: ast.ClassDef) -> tuple[str, ...]:
    functions = (one.name for one in kit.body if isinstance(one, ast.FunctionDef))
    return tuple(name for name in functions if name.startswith("test_"))
