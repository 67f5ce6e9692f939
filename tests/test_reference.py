"""The reference has every key, metric, command, option and field, and says what each is."""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docs.generate import TABLES, Undescribed, commands, filled, measured, records, text
from handbook import ROOT, sessions
from servematrix import cli, kits, metrics
from servematrix import records as run_records
from servematrix.config import Configuration, checked, load, names, resolve
from servematrix.exit_codes import Exit
from servematrix.options import OPTIONS

PAGES = sorted((ROOT / "docs" / "reference").glob("*.md"))
WHOLE = "\n".join(filled(page.read_text(encoding="utf-8")) for page in PAGES)
COLUMNS = re.compile(r"(?<!\\)\|")


def rows(table: str) -> Iterator[list[str]]:
    """The cells of each row of the tables of a text, without heads."""
    for line in TABLES[table]().splitlines():
        if line.startswith("|") and not line.startswith("| --- "):
            yield [cell.strip() for cell in COLUMNS.split(line)[1:-1]]


def test_every_table_is_in_a_page_and_no_cell_of_meaning_is_empty() -> None:
    asked = re.findall(r"generated: ([a-z-]+)", "".join(page.read_text() for page in PAGES))
    assert sorted(asked) == sorted(TABLES)
    for table in set(TABLES) - {"rules", "kits"}:
        for row in rows(table):
            assert row[-1], (table, row)


@pytest.mark.parametrize("name", names(ROOT / "configs"))
def test_every_key_of_a_configuration_that_is_used_is_there(name: str) -> None:
    keys = {row[0].strip("`") for row in rows("configuration")}
    for key in _keys(load(ROOT / "configs", name).model_dump(exclude_unset=True)):
        plain = re.sub(r"^overrides\.", "", key)
        assert any(plain == one or plain.startswith(f"{one}.") for one in keys), key


def _keys(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in table.items():
        if isinstance(value, dict) and value and f"{prefix}{name}" not in ("arguments",):
            yield from _keys(value, f"{prefix}{name}.")
        elif f"{prefix}{name}" != "name" and value not in (None, {}):
            yield f"{prefix}{name}"


def test_a_key_of_the_reference_can_be_set() -> None:
    """And a default that it shows is accepted for it."""
    base = {"name": "a", "description": "a", "stage": "a", "estimated_seconds": 1}
    whole = checked(Configuration, {**base, "suites": ["a"], "model": {"path": "m"}}, "a test")
    tried = 0
    for key, _, default, *_ in rows("configuration"):
        if key.startswith(("`gates.", "`kits.")) and default.strip("`") and "…" not in default:
            value = default.strip("`").replace("\\|", "|")
            changed = resolve(whole, {}, _Anywhere, [f"{key.strip('`')}={value}"])
            assert changed != whole, key
            tried += 1
    assert tried > 30


class _Anywhere:
    @staticmethod
    def matches(*_: object) -> bool:
        return False


def test_every_metric_that_is_read_is_there() -> None:
    source = Path(metrics.__file__).read_text(encoding="utf-8")
    found = set(re.findall(r'"(sglang:\w+)"', source))
    assert found == {row[0].strip("`") for row in rows("metrics")} - {"metric"}


def test_every_command_with_every_option_is_there() -> None:
    choices: Any = next(one for one in cli._parser()._actions if one.choices).choices
    sections = re.split(r"(?m)^## `servematrix ", TABLES["commands"]())
    found = {one.partition("`")[0]: one for one in sections[1:]}
    assert found.keys() == choices.keys()
    for name, command in choices.items():
        for option in command._option_string_actions:
            there = re.search(rf"\| `[^`]*(?<![\w-]){option}(?![\w-])", found[name])
            assert there or option in ("-h", "--help"), (name, option)


def test_options_sessions_and_statuses_are_there() -> None:
    assert {row[0].strip("`").split()[0] for row in rows("run-options")} - {"option"} == {
        name for name, _ in OPTIONS
    }
    assert {row[0] for row in rows("sessions")} == {
        "session",
        *(f"`nox -s {name}`" for name in sessions()),
    }
    assert [row[0] for row in rows("statuses")][1:] == [str(int(one)) for one in Exit]


def test_every_kit_with_its_tests_and_attributes_is_there() -> None:
    table = TABLES["kits"]()
    for mixin in kits.MIXINS:
        assert f"## `{mixin.__name__}`" in table
        for name in vars(mixin):
            if name.startswith(("test_", f"{mixin.kit}_")):
                assert f"| `{name}` |" in table, name


def test_every_gate_is_there() -> None:
    """Every public function that returns a verdict."""
    told = TABLES["gates"]()
    for path in (ROOT / "src/servematrix/gates").glob("*.py"):
        for one in ast.parse(path.read_text(encoding="utf-8")).body:
            mine = isinstance(one, ast.FunctionDef) and not one.name.startswith("_")
            if mine and one.returns and "Verdict" in ast.unparse(one.returns):
                assert f"## `{path.stem}`" in told
                assert f"| `{one.name}` |" in told, one.name


def test_rules_have_their_error_rates() -> None:
    found = {row[0].strip("`"): row for row in rows("rules")}
    assert found.keys() >= {"fwd_occupancy", "accuracy_floor", "paired_accuracy", "drift"}
    assert found["accuracy_floor"][2] == "0.1 %"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Records of real servers that are kept, and of every kit as it is today."""
    folder = tmp_path_factory.mktemp("records")
    command = [sys.executable, "-m", "pytest", "suites", "--config=eagle3", "--engine=reference"]
    command += [f"--results={folder}", "-p", "no:cacheprovider"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stdout
    kept = [*(ROOT / "docs/validation").glob("*/*/records.jsonl"), *folder.glob("2*/records.jsonl")]
    return [json.loads(line) for path in kept for line in path.read_text().splitlines()]


def test_every_field_of_a_record_is_there(written: list[dict[str, Any]]) -> None:
    told = records.described()
    for one in written:
        assert one.keys() - {"kind", "time"} <= told[one["kind"]]["fields"].keys()


def test_every_kind_that_is_written_is_there_and_no_other() -> None:
    told = records.described()
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    calls = re.findall(r'(?:\.write|\.begin|_record|_write)\(\s*"(\w+)"', source)
    found = {*calls, *run_records._TYPES}
    assert found == told.keys()
    for kind, fields in run_records._TYPES.items():
        assert fields.keys() <= told[kind]["fields"].keys()
    for kind, one in told.items():
        for name in one["fields"]:
            assert re.search(rf"\b{name}\b", source), (kind, name)


def test_every_measurement_is_there_with_its_unit(written: list[dict[str, Any]]) -> None:
    found: dict[str, dict[str, str]] = {}
    for one in written:
        if one["kind"] == "measurement" and "path" not in one:
            name = re.sub(r"(?<=[ _p])\d+(?=$|_ms)", "N", one["name"])
            found.setdefault(one["kit"], {})[name] = one["unit"]
    told = {
        kit: {name: unit for name, (unit, _) in names.items()}
        for kit, names in measured.described().items()
    }
    assert found == told


def test_what_says_nothing_of_itself_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        key: int = 1

    with pytest.raises(Undescribed, match=r"Silent\.key: say under it"):
        text.meaning(Silent, "key")
    with pytest.raises(Undescribed, match="no docstring"):
        text.about(Silent, "Silent")
    parser = argparse.ArgumentParser()
    parser.add_argument("--silent")
    with pytest.raises(Undescribed, match="servematrix x: silent has no help"):
        list(commands._rows(parser, "x"))
    monkeypatch.setattr(commands, "OPTIONS", (("--silent", {}),))
    with pytest.raises(Undescribed, match="pytest --silent has no help"):
        TABLES["run-options"]()
    with pytest.raises(Undescribed, match="unheard"):
        filled("<!-- generated: unheard -->")
