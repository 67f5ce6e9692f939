"""Kinds of records and their fields; a test holds `records.toml` to what is written."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docs.generate.text import table

FILE = Path(__file__).with_name("records.toml")


def described() -> Mapping[str, Mapping[str, Any]]:
    """What each kind of record is (`about`), and what its `fields` are."""
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def kinds() -> str:
    """A table of fields for each kind."""
    parts = []
    for kind, told in described().items():
        parts += [f"\n## `{kind}`\n", f"{told['about']}\n"]
        rows = [(f"`{name}`", words) for name, words in told["fields"].items()]
        parts.append(table(("field", "meaning"), rows))
    return "\n".join(parts)
