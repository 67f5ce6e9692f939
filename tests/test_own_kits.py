"""Kits of a project's own: their settings are keys of a configuration, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from servematrix import config as configs
from servematrix import own_kits, waivers
from servematrix.ci import annotating
from servematrix.config import ConfigError, Place

KIT = """
from typing import ClassVar

from somewhere_that_is_not_installed import Kit

_KIT = "speed"


class Helper:
    speed_helper: int = 1


class SpeedMixin(Kit):
    kit: ClassVar[str] = _KIT
    speed_requests: int = 8
    speed_limit: float | None = None
    speed_prompt: str = "Once"
    speed_strict: bool = False
    speed_json: int = 1
    speed_table: dict[str, int] = {}
    speed_model_fields: int = 1
    speed_untyped = 3
    slow_requests: int = 1

    def test_speed(self) -> None: ...

    def helper(self) -> None: ...
"""
CONFIGURATION = """
description = "mine"
stage = "b"
estimated_seconds = 1
suites = ["mine"]
model.path = "m"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("configs", "kits"):
        (tmp_path / name).mkdir()
    (tmp_path / "kits" / "__init__.py").write_text("")
    (tmp_path / "kits" / "speed.py").write_text(KIT)
    return tmp_path / "configs"


def load(folder: Path, text: str) -> configs.Configuration:
    (folder / "mine.toml").write_text(CONFIGURATION + text)
    return configs.load(folder, "mine")


def test_what_a_kit_declares_is_read_without_importing_it(folder: Path) -> None:
    (kit,) = own_kits.read(folder)
    assert kit.name == "speed"
    assert dict(kit.keys) == {
        "requests": int,
        "limit": float,
        "prompt": str,
        "strict": bool,
        "json": int,
    }
    assert kit.tests == ("test_speed",)
    assert kit.where == f"{folder.parent / 'kits' / 'speed.py'}:13"


def test_its_keys_become_attributes_of_the_kit(folder: Path) -> None:
    config = load(
        folder,
        "[kits.speed]\nrequests = 3\nlimit = 1\njson = 2\n"
        "[kits.hellaswag]\nnum_questions = 5\n"
        '[[overrides]]\nwhen.engine = "reference"\nkits.speed.requests = 4\n',
    )
    assert configs.attributes(config) == {
        "speed_requests": 3,
        "speed_limit": 1.0,
        "speed_json": 2,
        "hellaswag_num_questions": 5,
    }
    changed = configs.resolve(config, {}, Place("reference"), ['kits.speed.prompt="Twice"'])
    assert configs.attributes(changed)["speed_requests"] == 4
    assert configs.attributes(changed)["speed_prompt"] == "Twice"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kits.speed.request = 3", r"'kits.speed.request' \(did you mean 'requests'\?\)"),
        ("kits.sped.requests = 3", r"'kits.sped' \(did you mean 'speed'\?\)"),
        ("gates.speed.requests = 3", "unknown key 'gates.speed'"),
        ("kits.speed.requests = 3.5", "'kits.speed.requests': .*integer"),
        ("kits.speed.requests = true", "'kits.speed.requests': .*integer"),
        ("kits.speed.table = {}", "unknown key 'kits.speed.table'"),
        ("kits.speed.untyped = 4", "unknown key 'kits.speed.untyped'"),
        ("kits.hellaswag.num_question = 1", "did you mean 'num_questions'"),
        (
            '[[overrides]]\nwhen.engine = "reference"\nkits.speed.request = 4',
            "'overrides.0.kits.speed.request'",
        ),
    ],
)
def test_a_typo_is_refused_as_in_any_table(folder: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(folder, text)


def test_a_typo_in_a_change_is_refused(folder: Path) -> None:
    config = load(folder, "kits.speed.requests = 3")
    with pytest.raises(ConfigError, match="did you mean 'requests'"):
        configs.resolve(config, {}, Place("reference"), ["kits.speed.reqests=1"])


def test_without_such_a_kit_its_table_is_unknown(folder: Path) -> None:
    load(folder, "kits.speed.requests = 3")
    (folder.parent / "kits" / "speed.py").unlink()
    with pytest.raises(ConfigError, match=r"unknown key 'kits\.speed'"):
        configs.load(folder, "mine")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("class Broken(:\n", r"more\.py:1: no valid Python"),
        ("a = '\x00'\n", r"more\.py"),
        ("class A:\n    kit = 'hellaswag'\n", r"more\.py:1: there is a kit 'hellaswag' in"),
        ("class A:\n    kit = 'speed'\n", r"speed\.py:13: .*more\.py:1 is kit 'speed' already"),
        ("class A:\n    kit = 'model_dump'\n", r"more\.py:1: kit 'model_dump': not a name"),
        ("class A:\n    kit = 'No-Name'\n", r"more\.py:1: kit 'No-Name': not a name"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(folder: Path, text: str, told: str) -> None:
    (folder.parent / "kits" / "more.py").write_text(text)
    with pytest.raises(ConfigError, match=told):
        load(folder, "")


def test_a_known_failure_of_such_a_kit_can_be_waived(folder: Path) -> None:
    load(folder, "")
    entry = '[[waivers]]\ncell = "mine"\nkit = "speed"\ntest = "{}"\nreason = "r"\n'
    entry += 'link = "https://example.org/1"\nexpires = 2999-01-01\n'
    (folder / "waivers.toml").write_text(entry.format("test_speed"))
    assert waivers.find(folder).about("mine")
    (folder / "waivers.toml").write_text(entry.format("test_sped"))
    with pytest.raises(ConfigError, match=r"has no test 'test_sped' \(did you mean 'test_speed'"):
        waivers.find(folder)


def test_a_failure_is_annotated_where_its_limit_is_set(folder: Path) -> None:
    config = load(folder, "[kits.speed]\nrequests = 3\nlimit = 9\n")
    limits = config.kits.model_dump(exclude_none=True)["speed"]
    file = folder / "mine.toml"
    lines = file.read_text().splitlines()
    at = annotating.limit_line(file, "speed", limits, "at most 9 s", section="kits")
    assert lines[at - 1] == "limit = 9"
    assert annotating.limit_line(file, "speed", limits, "at most 9 s") == 1
