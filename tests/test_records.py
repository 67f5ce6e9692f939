"""Records: on disk at once, readable after anything, and without secrets."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from servematrix.records import FILE, SCHEMA, RecordsError, Run, is_torn, read, standing
from servematrix.redaction import Secrets


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create(tmp_path, "baseline", Secrets(['pass"word\u00e9']))
    run.write("run", engine="reference")
    return run


def test_a_line_is_on_disk_when_write_returns(run: Run) -> None:
    run.write("verdict", cell="baseline", verdict="pass", numbers={"median": 99.3})
    header, verdict = read(run.folder)
    assert header["kind"] == "run"
    assert header["schema"] == SCHEMA
    assert verdict["numbers"] == {"median": 99.3}
    assert verdict["time"].endswith("+00:00")


def test_latest_points_to_the_run_started_last(tmp_path: Path) -> None:
    first = Run.create(tmp_path, "a")
    second = Run.create(tmp_path, "b(c=1)")
    assert first.folder != second.folder
    first.begin("run")
    assert (tmp_path / "latest").resolve() == first.folder.resolve()
    second.begin("run")
    assert (tmp_path / "latest").resolve() == second.folder.resolve()


def test_numbers_that_json_lacks_are_text(run: Run) -> None:
    run.write("measurement", value=math.nan, more=[math.inf])
    line = (run.folder / FILE).read_text().splitlines()[-1]
    assert json.loads(line, parse_constant=pytest.fail)["value"] == "nan"


def test_a_secret_is_nowhere(run: Run) -> None:
    run.write("verdict", reason='the key pass"word\u00e9 was refused')
    run.attach("trace", {"header": 'Bearer pass"word\u00e9'})
    text = "".join(path.read_text() for path in run.folder.rglob("*.json*"))
    assert "word" not in text
    assert text.count("***") == 2


@pytest.mark.parametrize("secret", ["{", "kind", '"'])
def test_a_secret_never_makes_a_record_unreadable(tmp_path: Path, secret: str) -> None:
    run = Run.create(tmp_path, "x", Secrets([secret]))
    run.write("run", text=f"before {secret} after")
    (record,) = read(run.folder)
    assert record["text"] == "before *** after"


def test_a_name_cannot_leave_the_run_folder(run: Run) -> None:
    path = run.attach("../../etc/passwd", {})
    assert (run.folder / path).resolve().is_relative_to(run.folder.resolve())


def test_a_full_disk_is_an_error_that_names_the_file_and_keeps_what_was_there(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 10:
            return write(descriptor, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RecordsError, match="No space left on device") as caught:
        run.write("verdict", verdict="pass", reason="x" * 15)
    assert str(run.folder / FILE) in str(caught.value)
    monkeypatch.undo()
    assert [record["kind"] for record in read(run.folder)] == ["run"]


def test_a_results_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordsError, match="--results DIR"):
        Run.create(tmp_path / "file" / "results", "x")


def test_several_processes_write_whole_lines(run: Run) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_many, args=(run, name)) for name in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=30)
    assert sum(record["kind"] == "measurement" for record in read(run.folder)) == 200


def _write_many(run: Run, name: str) -> None:
    for _ in range(100):
        run.write("measurement", name=name, value="x" * 500)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"kind": "run", "schema": 99}\n', "newer servematrix"),
        ('{"kind": "verdict"}\n', "not the start of a run"),
        ('{"kind": "run", "schema": 1}\n{"kind"\n', "line 2: not JSON"),
        ("[]\n", "not a record"),
    ],
)
def test_what_is_not_a_run_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(RecordsError, match=message):
        list(read(tmp_path))


@pytest.mark.parametrize("cut", [1, 2, 8, 30])
def test_a_line_that_was_cut_off_is_no_record_and_others_follow(run: Run, cut: int) -> None:
    run.write("verdict", verdict="pass")
    run.write("verdict", verdict="fail", reason="ä" * 40)
    path = run.folder / FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert is_torn(run.folder)
    assert [record.get("verdict") for record in read(run.folder)] == [None, "pass"]
    run.write("end", exit_code=0)
    assert not is_torn(run.folder)
    assert [record["kind"] for record in read(run.folder)] == ["run", "verdict", "end"]


def test_a_long_line_that_was_cut_off_is_taken_away_whole(run: Run) -> None:
    path = run.folder / FILE
    before = path.read_bytes()
    path.write_bytes(before + b'{"kind": "' + b"x" * 200_000)
    run.write("end")
    assert path.read_bytes().startswith(before + b'{"kind": "end"')


def test_a_run_cut_off_in_its_first_line_has_no_start(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'{"kind": "run", "sch')
    with pytest.raises(RecordsError, match="empty, not the start of a run"):
        list(read(tmp_path))


def test_verdicts_that_were_reached_again_give_way(run: Run) -> None:
    for nodeid, outcome in (("t1", "error"), ("t2", "pass")):
        run.write("verdict", nodeid=nodeid, verdict=outcome)
    run.write("resume", again=["t1"])
    run.write("verdict", nodeid="t1", verdict="pass")
    verdicts = [one for one in standing(read(run.folder)) if one["kind"] == "verdict"]
    assert [(one["nodeid"], one["verdict"]) for one in verdicts] == [("t2", "pass"), ("t1", "pass")]


def test_a_folder_without_records(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match=r"cannot read .*; name the folder of a run, such as"):
        list(read(tmp_path))


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        *(("verdict", "numbers", wrong) for wrong in (5, None, [], "x")),
        ("verdict", "reason", None),
        ("cell", "versions", ["1"]),
        ("run", "simulated", "no"),
        ("end", "exit_code", "0"),
        ("measurement", "path", 7),
    ],
)
def test_a_value_of_another_kind_is_named_with_its_line(tmp_path, kind, key, value):
    lines = [{"kind": "run", "schema": SCHEMA}, {"kind": kind, key: value}]
    (tmp_path / FILE).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with pytest.raises(RecordsError, match=f"line 2: key '{key}' is "):
        list(read(tmp_path))


def test_latest_follows_runs_as_their_records_begin(tmp_path: Path) -> None:
    runs = [Run.create(tmp_path, f"r{number}") for number in range(8)]
    barrier = threading.Barrier(len(runs))

    def start(run: Run) -> None:
        barrier.wait(5)
        run.begin("run")

    threads = [threading.Thread(target=start, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    begun = {next(iter(read(run.folder)))["time"]: run.folder for run in runs}
    assert len(begun) == len(runs)
    assert (tmp_path / "latest").resolve() == begun[max(begun)].resolve()
