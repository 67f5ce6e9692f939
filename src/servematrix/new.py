"""`servematrix new-config`: a commented start of a configuration, which plans as it is."""

from __future__ import annotations

import argparse
import re
from importlib import resources
from pathlib import Path
from string import Template

from servematrix import config as configs
from servematrix.config import ConfigError
from servematrix.exit_codes import Exit
from servematrix.running import sessions
from servematrix.terminal import line

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SUITE = "basic_sanity"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The name of what is new, and where its kind is kept."""
    parser.add_argument("name", metavar="NAME", help="lower case, digits and underscores")
    parser.add_argument(
        "--configs", metavar="DIR", help="the nearest configs/, else a new one in this folder"
    )


def config(options: argparse.Namespace) -> Exit:
    """Write `NAME.toml`, and a suite where none fits; ConfigError before anything is written."""
    name: str = options.name
    if not _NAME.fullmatch(name) or name in {"all", "waivers", *sessions()}:
        raise ConfigError(
            f"new-config {line(name)}: not a name for a configuration; take lower-case letters, "
            "digits and underscores, and no name of a session"
        )
    folder = _folder(options.configs)
    suites = folder.parent / "suites"
    texts_there = (
        path.read_text(encoding="utf-8", errors="replace") for path in suites.glob("test_*.py")
    )
    known = any(f'suite("{_SUITE}")' in text for text in texts_there)
    suite = _SUITE if known else name
    texts = {folder / f"{name}.toml": _text("config.toml", name, suite)}
    if not known:
        texts[suites / f"test_{name}.py"] = _text("suite.txt", name, suite)
    for path in texts:
        if path.exists():
            raise ConfigError(f"{path} is there already; nothing was written")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
        print(f"wrote {path}")
    print(f"next: edit it, then `servematrix plan {name}`, then `servematrix run {name}`")
    return Exit.PASSED


def _folder(named: str | None) -> Path:
    if named is not None:
        return Path(named)
    try:
        return configs.find_directory(Path.cwd())
    except ConfigError:
        return Path("configs").absolute()


def _text(template: str, name: str, suite: str) -> str:
    file = resources.files("servematrix") / "resources" / "new" / template
    classname = "Test" + "".join(part.title() for part in name.split("_"))
    values = {"name": name, "suite": suite, "classname": classname}
    return Template(file.read_text(encoding="utf-8")).substitute(values)
