"""The history of many runs: built, updated and made anew from records; tables and exports."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import made_runs
from malforming import LOUD
from servematrix import cli
from servematrix.history import database, table
from servematrix.records import RecordsError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def number(name: str, value: Any, cell: str = "baseline", kit: str = "k", unit: str = "s") -> Any:
    return made_runs.record("measurement", 2, cell=cell, kit=kit, name=name, value=value, unit=unit)


def add(root: Path, day: int, *found: Any, gpu: str = "H100", **header: Any) -> Path:
    """A run of `baseline` on a day of the month."""
    first = {
        "time": f"2026-11-{day:02d}T12:00:00.000000+00:00",
        "gpus": [{"uuid": "GPU-1", "name": gpu, "driver": "570"}],
    }
    told = [made_runs.cell("baseline", 1, 1.0), *found, made_runs.end(9)]
    name = f"202611{day:02d}-120000-baseline-{day:04x}"
    return made_runs.make(root / name, ["baseline"], told, **(first | header))


def exported(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, list[dict[str, Any]]]:
    assert cli.main(["history", "baseline", "--json", *options]) == 0
    found: dict[str, list[dict[str, Any]]] = json.loads(capsys.readouterr().out)
    return found


def values(capsys: pytest.CaptureFixture[str], *options: str) -> list[float]:
    return [one["value"] for one in exported(capsys, *options)["numbers"]]


def test_built_updated_and_made_anew_are_equal(root, capsys):
    add(root, 3, number("latency", 3.0), made_runs.verdict("baseline", 3))
    second = add(root, 2, number("latency", 2.0))
    (root / "latest").symlink_to(second.name)
    assert database.update(root) == database.Updated(2, 0, {})
    assert database.update(root) == database.Updated(0, 0, {}), "nothing is read twice"
    assert values(capsys) == [2.0, 3.0], "the oldest first"

    add(root, 4, number("latency", 4.0))
    grown = made_runs.record("measurement", 5, cell="baseline", kit="k", name="n", value=1, unit="")
    with (second / "records.jsonl").open("a") as file:
        file.write(json.dumps(grown) + "\n")
    assert database.update(root) == database.Updated(2, 0, {})
    for file in (*(root / "20261103-120000-baseline-0003").iterdir(),):
        file.unlink()
    (root / "20261103-120000-baseline-0003").rmdir()
    assert database.update(root) == database.Updated(0, 1, {})
    assert values(capsys, "--measure", "latency") == [2.0, 4.0]

    updated = database.content(root)
    assert [len(rows) for rows in updated.values()] == [2, 2, 3, 0]
    assert database.update(root, rebuild=True) == database.Updated(2, 0, {})
    assert database.content(root) == updated
    assert not list(root.glob("*.part"))


def test_records_of_the_same_size_that_changed_are_read_again(root, capsys):
    folder = add(root, 1, number("latency", 1.0))
    assert values(capsys) == [1.0]
    file = folder / "records.jsonl"
    before = file.stat()
    file.write_text(file.read_text().replace('"value": 1.0', '"value": 9.0'))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert file.stat().st_size == before.st_size
    assert values(capsys) == [9.0]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("no json\n", "line 1: not JSON"),
        ("", "empty, not the start of a run"),
        ('{"kind": "run", "schema": 99}\n', "written by a newer servematrix"),
        ('{"kind": "run", "schema": 1}\n', "not the records of a run: no key 'time'"),
    ],
)
def test_a_broken_run_is_left_out_and_named(root, capsys, written, told):
    add(root, 1, number("latency", 1.0))
    broken = root / "20261102-120000-broken-0002"
    broken.mkdir()
    (broken / "records.jsonl").write_text(written)
    for _ in range(2):
        assert cli.main(["history", "baseline", "--csv"]) == 0
        captured = capsys.readouterr()
        assert len(captured.out.splitlines()) == 2
        assert f"left out: {broken.name}: " in captured.err
        assert told in captured.err
    updated = database.content(root)
    database.update(root, rebuild=True)
    assert database.content(root) == updated


def test_a_run_of_a_newer_version_is_read_once_that_is_installed(root, capsys, monkeypatch):
    add(root, 1, number("latency", 1.0))
    add(root, 2, number("latency", 2.0), schema=99)
    assert values(capsys) == [1.0]
    monkeypatch.setattr("servematrix.records.SCHEMA", 99)
    assert values(capsys) == [1.0, 2.0]


def test_a_run_that_was_cut_short_counts_as_far_as_it_got(root, capsys):
    folder = add(root, 1, number("latency", 1.0))
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"kind": "measurement", "cell": "base')
    assert values(capsys) == [1.0]


def test_what_is_no_number_is_left_out(root, capsys):
    add(
        root,
        1,
        number("text", "97"),
        number("yes", True),
        number("none", None),
        number("nan", float("nan")),
        number("whole", 7),
    )
    assert values(capsys) == [7.0]


def test_a_number_that_no_float_holds_breaks_the_run_alone(root, capsys):
    add(root, 1, number("latency", 10**400))
    add(root, 2, number("latency", 2.0))
    assert values(capsys) == [2.0]


def test_what_was_measured_again_counts_once(root, capsys):
    again = made_runs.record("resume", 4, again=[])
    add(root, 1, number("latency", 1.0), again, number("latency", 5.0))
    assert values(capsys) == [5.0]


def test_a_merged_run_counts_where_its_parts_are_not_there(root, capsys):
    part = add(root, 1, number("latency", 1.0))
    merged = add(root, 2, number("latency", 1.0), merged=[f"elsewhere/{part.name}"])
    assert values(capsys) == [1.0]
    for file in part.iterdir():
        file.unlink()
    part.rmdir()
    assert [one["run"] for one in exported(capsys)["numbers"]] == [merged.name]


def rows(printed: str, name: str) -> list[str]:
    return [line for line in printed.splitlines() if f" {name} " in line]


def test_each_gpu_and_each_engine_has_its_own_row(root, capsys):
    for day, value in enumerate([1.0, 2.0, 8.0], start=1):
        add(root, day, number("latency", value), made_runs.verdict("baseline", 3))
    add(root, 4, number("latency", 5.0), gpu="H200")
    add(root, 5, number("latency", 0.1), simulated=True, engine="reference")
    assert cli.main(["history", "baseline"]) == 0
    captured = capsys.readouterr()
    found = rows(captured.out, "latency [s]")
    assert len(found) == 3
    assert "H100 " in found[0]
    assert found[0].split()[-5:] == ["3", "1", "8", "8", "▁▂█"]
    assert "H200" in found[1]
    assert found[1].split()[-1] == "▄"
    assert "simulated" in found[2]
    (judged,) = rows(captured.out, "verdict")
    assert judged.split()[-1] == "✓✓✓"
    assert "5 runs of baseline" in captured.err


def test_one_run_is_a_run(root, capsys):
    add(root, 1, number("latency", 1.0))
    assert cli.main(["history", "baseline"]) == 0
    assert "1 run of baseline" in capsys.readouterr().err


def test_verdicts_of_a_kit_are_its_worst_in_each_run(root, capsys):
    known = {"reason": "r", "link": "l", "expires": "2999-01-01"}
    waived = made_runs.verdict("baseline", 3, "fail") | {"waived": known}
    second = made_runs.verdict("baseline", 3, "inconclusive", "test_b")
    for day, found in enumerate(
        [
            [made_runs.verdict("baseline", 3)],
            [made_runs.verdict("baseline", 3, "fail"), second],
            [made_runs.verdict("baseline", 3), second],
            [made_runs.verdict("baseline", 3, "error")],
            [made_runs.verdict("baseline", 3, "not_applicable")],
            [waived, made_runs.verdict("baseline", 3, "pass", "test_b")],
            [waived, made_runs.verdict("baseline", 3, "fail", "test_b")],
            [made_runs.verdict("baseline", 3), made_runs.verdict("baseline", 3, "new", "test_b")],
        ],
        start=1,
    ):
        add(root, day, *found)
    assert cli.main(["history", "baseline"]) == 0
    (judged,) = rows(capsys.readouterr().out, "verdict")
    assert judged.split()[-1] == "✓✗?!·w✗!"


def test_kit_and_measure_leave_others_out(root, capsys):
    add(root, 1, number("a", 1.0), number("b", 2.0), number("a", 3.0, kit="other"))
    assert values(capsys) == [1.0, 2.0, 3.0]
    assert values(capsys, "--kit", "k") == [1.0, 2.0]
    assert values(capsys, "--measure", "a") == [1.0, 3.0]
    assert values(capsys, "--kit", "other", "--measure", "a") == [3.0]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["basline"], "no run of 'basline' (did you mean 'baseline'?); there are: baseline"),
        (["baseline", "--kit", "x"], "--kit x: none; there are: k"),
        (["baseline", "--measure", "latencie"], "(did you mean 'latency'?)"),
        (["baseline", "--csv", "--json"], "leave one out"),
        (["baseline", "--results", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_bad_usage(root, capsys, asked, told):
    add(root, 1, number("latency", 1.0))
    assert cli.main(["history", *asked]) == 4
    captured = capsys.readouterr()
    assert told in captured.err
    assert not captured.out


def test_csv(root, capsys):
    add(root, 1, number("a, b", 0.1), number("c", 2))
    assert cli.main(["history", "baseline", "--csv"]) == 0
    first, second = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (first["name"], first["value"], second["value"]) == ("a, b", "0.1", "2.0")
    assert first.items() >= {"gpu": "H100", "engine": "sglang", "unit": "s"}.items()
    assert first["server"] == '{"sglang": "0.5.16"}'


def test_one_cell_of_a_configuration(root, capsys):
    found = [made_runs.cell("graph(bs=1)", 1, 1.0), made_runs.cell("graph(bs=2)", 1, 1.0)]
    add(root, 1, *found, number("n", 1.0, "graph(bs=1)"), number("n", 2.0, "graph(bs=2)"))
    for asked, expected in (("graph", [1.0, 2.0]), ("graph(bs=2)", [2.0])):
        assert cli.main(["history", asked, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)["numbers"]
        assert [one["value"] for one in told] == expected


def test_a_loud_run_is_shown_as_it_stands(root, capsys):
    add(root, 1, number(f"{LOUD}\ud800", 1.0, unit=LOUD), gpu=LOUD)
    assert cli.main(["history", "baseline"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\\x1b[31m" in printed.replace("\n", "")


# -- the file -----------------------------------------------------------------------------------


def test_an_older_file_is_made_anew_and_a_newer_one_refused(root, capsys):
    add(root, 1, number("latency", 1.0))
    for version, status in ((0, 0), (database.SCHEMA + 1, 4)):
        with closing(sqlite3.connect(root / database.FILE)) as connection, connection:
            connection.execute(f"PRAGMA user_version = {version}")
            connection.execute("DROP TABLE IF EXISTS numbers")
        assert cli.main(["history", "baseline"]) == status
    assert "written by a newer servematrix (schema 2" in capsys.readouterr().err
    assert values(capsys, "--rebuild") == [1.0]


def test_a_damaged_file_is_told_and_made_anew(root, capsys):
    add(root, 1, number("latency", 1.0))
    (root / database.FILE).write_text("this is no database, and long enough to be looked at" * 9)
    assert cli.main(["history", "baseline"]) == 4
    assert "make it anew with --rebuild" in capsys.readouterr().err
    assert values(capsys, "--rebuild") == [1.0]


def test_an_update_that_breaks_leaves_the_file_as_it_was(root, monkeypatch):
    add(root, 1, number("latency", 1.0))
    database.update(root)
    before = database.content(root)
    add(root, 2, number("latency", 2.0))

    def breaks(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    for rebuild in (False, True):
        with monkeypatch.context() as patched:
            patched.setattr(database, "_insert", breaks)
            with pytest.raises(RecordsError, match="disk is full"):
                database.update(root, rebuild=rebuild)
        assert database.content(root) == before
    assert not list(root.glob("*.part"))


def test_one_process_at_a_time(root, monkeypatch):
    add(root, 1, number("latency", 1.0))
    monkeypatch.setattr(database, "_LOCK_SECONDS", 0.05)
    with FileLock(root / ".history.lock"), pytest.raises(RecordsError, match="has held"):
        database.update(root)
    assert database.update(root).read == 1


@pytest.mark.parametrize(
    ("numbers", "bars"),
    [
        ([5.0], "▄"),
        ([0.0, 7.0], "▁█"),
        ([-1.0, 0.0, 1.0], "▁▅█"),
        ([1.7e308, -1.7e308], "█▁"),
        ([1.0, 1.0 + 2**-52], "▁█"),
    ],
)
def test_sparklines(numbers, bars):
    assert table.sparkline(numbers) == bars


def test_only_the_newest_runs_are_drawn(root, capsys, monkeypatch):
    monkeypatch.setattr(table, "MOST", 2)
    for day, value in enumerate([100.0, 1.0, 2.0], start=1):
        add(root, day, number("latency", value))
    assert cli.main(["history", "baseline"]) == 0
    (found,) = rows(capsys.readouterr().out, "latency [s]")
    assert found.split()[-5:] == ["3", "1", "100", "2", "▁█"]
