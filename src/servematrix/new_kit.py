"""`servematrix new-kit`: a commented start of a kit, with its gate, a suite, and tests that fail.

A kit of somebody who has the package alone lies in `kits/` and its gate in `gates/`, both beside
`configs/`; in the repository they are modules of the package.
"""

from __future__ import annotations

import argparse
import keyword
import re
from pathlib import Path
from typing import Final

from servematrix.config import ConfigError
from servematrix.exit_codes import Exit
from servematrix.new import (
    NAME,
    classname,
    folder,
    is_taken,
    takes_the_place,
    text,
    within_reach,
    write,
)
from servematrix.terminal import line

_LONGEST: Final = 30
"""Characters of a name: with more, the lines that hold it would be too long for a linter."""
_PYTEST_INI: Final = "pytest.ini"
_SETTINGS: Final = (
    *(_PYTEST_INI, ".pytest.ini", "pytest.toml", ".pytest.toml"),
    *("pyproject.toml", "tox.ini", "setup.cfg"),
)
_PACKAGES: Final = {
    "gates": '"""What is demanded of what the kits measure: pure functions."""\n',
    "kits": '"""Kits of this project: each measures one aspect of a server."""\n',
}
_IMPORT: Final = re.compile(r"(import|from) (pytest|servematrix|gates|kits)\b")
_KEYS_OF_OURS: Final = "keys of a configuration, once settings.py has them"
_NEXT: Final = (
    "next: `python -m pytest tests/test_kit_{name}.py` tries it without a server, `servematrix run"
    " {name} --engine reference` before the embedded one",
    "then say in gates/{name}.py what you demand and in kits/{name}.py what you measure;"
    " `kits.{name}.KEY` of a configuration sets the kit's {name}_KEY",
)
_NEXT_SETTINGS: Final = (
    'pytest has settings here already: it finds all of this by itself with pythonpath = ["."] and'
    ' addopts = ["-p", "servematrix.plugin", "--import-mode=importlib"] among them',
)
_NEXT_IN_REPOSITORY: Final = (
    "next: `nox -s tests -- tests/kits/test_kit_{name}.py` tries it without a server, `nox -s cells"
    " -- --config baseline --engine reference --set 'suites=[\"only_{name}\"]'` before the embedded"
    " one",
    'then, as CONTRIBUTING.md has it under "A kit": add it to kits.MIXINS and to the suites, its'
    " settings to settings.py, and a fault that it alone catches",
)


def kit(options: argparse.Namespace) -> Exit:
    """Write a kit, its gate, a suite, tests, and outside the repository a configuration.

    ConfigError where something is there already or cannot be written; then no file is.
    """
    name: str = options.name
    _check(name)
    told: tuple[str, ...]
    with within_reach():
        directory = folder(options.configs)
        root = directory.parent
        # what a checkout of this project has, and no project of somebody else
        if (root / "src" / "servematrix" / "kits" / "base.py").is_file():
            texts, told = _in_repository(root, name), _NEXT_IN_REPOSITORY
        else:
            texts, told = _beside(directory, name), _NEXT
            ours, settings = root / _PYTEST_INI, text("pytest.ini", {})
            if not any((root / one).exists() for one in _SETTINGS):
                texts[ours] = settings
            elif not (ours.is_file() and ours.read_bytes() == settings.encode()):
                told += _NEXT_SETTINGS
        replaced = takes_the_place(directory)
        write(texts)
    for one in (*replaced, *(one.format(name=name) for one in told)):
        print(one)
    return Exit.PASSED


def _check(name: str) -> None:
    """ConfigError where a name cannot be that of a new kit."""
    from servematrix.kits import MIXINS  # which brings the gates along; no other command needs it

    if name in [mixin.kit for mixin in MIXINS]:
        raise ConfigError(f"new-kit {name}: there is a kit of that name; take another one")
    if not NAME.fullmatch(name) or len(name) > _LONGEST or keyword.iskeyword(name):
        raise ConfigError(
            f"new-kit {line(name)}: not a name for a kit; take lower-case letters, digits and "
            f"underscores, {_LONGEST} at most, and no keyword of Python"
        )
    # pytest would take the mixin itself for a class of tests, pydantic the table for its own
    if is_taken(name) or name.startswith(("test", "model_")):
        raise ConfigError(
            f"new-kit {name}: not a name for a kit: it is that of a session, or begins with test"
            " or model_"
        )


def _beside(configurations: Path, name: str) -> dict[Path, str]:
    """The files of a kit beside the configurations of somebody who has the package alone."""
    root = configurations.parent
    texts = {
        **_files(name, root, root, root / "tests"),
        configurations / f"{name}.toml": text("kit_config.toml", {"name": name}),
    }
    for package, about in _PACKAGES.items():
        # a whole package, so that none that is installed takes its place
        file = root / package / "__init__.py"
        if not file.exists():
            texts[file] = about
    return texts


def _in_repository(root: Path, name: str) -> dict[Path, str]:
    """The files of a kit that is to become one of the package."""
    return _files(name, root, root / "src" / "servematrix", root / "tests" / "kits")


def _files(name: str, root: Path, package: Path, tests: Path) -> dict[Path, str]:
    """Gate and kit within `package`, the suite, and the tests of all three."""
    ours = package != root
    title = classname(name).removeprefix("Test")
    values = {
        "name": name,
        "title": title,
        "mixin": f"{title}Mixin",
        "ours": "servematrix." if ours else "",
        "keys": _KEYS_OF_OURS if ours else f"a configuration has `kits.{name}.requests = 8`",
    }
    return {
        package / "gates" / f"{name}.py": text("gate.txt", values),
        package / "kits" / f"{name}.py": _sorted(text("kit.txt", values), ours),
        root / "suites" / f"test_only_{name}.py": _sorted(text("kit_suite.txt", values), ours),
        tests / f"test_kit_{name}.py": _sorted(text("kit_test.txt", values), ours),
    }


def _sorted(source: str, ours: bool) -> str:
    """Sort the imports of what Python itself does not bring: that of the project itself last."""
    lines = source.splitlines()
    at = [number for number, one in enumerate(lines) if _IMPORT.match(one)]
    own = ("servematrix",) if ours else ("gates", "kits")
    first: list[str] = []
    last: list[str] = []
    # `import` before `from`, as isort has it
    for one in sorted((lines[number] for number in at), key=lambda one: (one[0] == "f", one)):
        (last if one.split()[1].startswith(own) else first).append(one)
    between = [""] if first and last else []
    lines[at[0] : at[-1] + 1] = [*first, *between, *last]
    return "\n".join(lines) + "\n"
