"""Files that somebody else may have written lead nowhere else and fill no memory."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from servematrix import baselines, cli, data, outside, records
from servematrix.records import RecordsError, Run, file_name

KEPT = Path(__file__).resolve().parent.parent / "docs/validation/h200-sglang-0.5.16"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run, and beside it a file that is none of its own."""
    (tmp_path / "private.json").write_text('["private"]')
    found = Run.create(tmp_path / "results", "mine")
    found.write("run", engine="sglang", simulated=False, gpus=[])
    return found


def link(at: Path, to: str | Path) -> str:
    at.parent.mkdir(exist_ok=True)
    at.symlink_to(to)
    return at.name


WAYS_OUT: dict[str, Callable[[Path], str]] = {
    "upwards": lambda folder: "../../private.json",
    "upwards, later": lambda folder: "files/../../../private.json",
    "absolute": lambda folder: str(folder.parents[1] / "private.json"),
    "a link": lambda folder: link(folder / "link.json", folder.parents[1] / "private.json"),
    "a link of a folder": lambda folder: link(folder / "up", "../..") + "/private.json",
    "a folder": lambda folder: ".",
    "a zero byte": lambda folder: "a\0b",
}


@pytest.mark.parametrize("way", WAYS_OUT)
def test_a_record_names_no_file_outside_its_run(run: Run, way: str) -> None:
    with pytest.raises(RecordsError, match="cannot read"):
        records.attached(run.folder, WAYS_OUT[way](run.folder))


def test_a_record_names_files_of_its_run(run: Run) -> None:
    run.begin("run")
    path = run.attach("items", ["mine"])
    assert records.attached(run.folder, path) == ["mine"]
    assert records.attached(run.folder.parent / "latest", path) == ["mine"]
    link(run.folder / "files" / "again.json", "mine.json")
    (run.folder / "files" / "mine.json").write_text('["linked"]')
    assert records.attached(run.folder, "files/again.json") == ["linked"]


@pytest.mark.parametrize("way", WAYS_OUT)
def test_compare_reads_no_file_outside_a_run(
    run: Run, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    path = WAYS_OUT[way](run.folder)
    run.write("cell", cell="mine", startup_seconds=1.0, versions={"sglang": "1"}, gpus=[])
    run.write("measurement", cell="mine", kit="hellaswag", name="items", path=path, unit="file")
    verdict = {"verdict": "pass", "rule": "", "numbers": {}, "reason": ""}
    run.write("verdict", cell="mine", kit="hellaswag", test="test_accuracy_floor", **verdict)
    run.write("end", exit_code=0)
    assert cli.main(["compare", str(run.folder), str(run.folder)]) == 4
    told = capsys.readouterr()
    assert "cannot read" in told.err
    assert '"private"' not in told.out + told.err


def test_a_baseline_is_made_of_nothing_outside_its_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs from elsewhere: their files, and cells whose names are paths."""
    folders = []
    for number in range(3):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        lines = [json.loads(line) for line in (KEPT / "smollm2" / records.FILE).open()]
        for record in lines:
            record["time"] = record["time"].replace("2026-11-22", f"2026-11-1{number}")
            if record.get("cell"):
                record["cell"] = "../../smollm2"
            if record.get("name") == "items":
                record["path"] = "../items.json.gz"
        (folder / records.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
        folders.append(str(folder))
    files = KEPT / "smollm2" / "files"
    (items,) = (one for one in files.iterdir() if one.name.endswith("hellaswag-items.json.gz"))
    (tmp_path / "items.json.gz").write_bytes(items.read_bytes())
    out = ["--out", str(tmp_path / "a" / "b"), "--configs", str(KEPT.parents[2] / "configs")]
    command = ["calibrate", "../../smollm2", *out, "--from", *folders]
    assert cli.main(command) == 4
    assert "it lies outside" in capsys.readouterr().err
    for folder in folders:
        path = Path(folder, "items.json.gz")
        path.write_bytes(items.read_bytes())
        text = Path(folder, records.FILE).read_text().replace("../items.json.gz", path.name)
        Path(folder, records.FILE).write_text(text)
    assert cli.main(command) == 0
    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("nvidia*")}
    assert {path.parent for path in written} == {Path("a/b/smollm2")}
    assert baselines.find(tmp_path / "a/b", "../../smollm2", "nvidia-h200", {"model": {}})


@pytest.mark.parametrize("file", [records.FILE, "server.json"])
def test_a_validation_is_not_read_through_links(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    folder = tmp_path / "kept" / "smollm2"
    folder.mkdir(parents=True)
    for name in (records.FILE, "server.json"):
        (folder / name).write_bytes((KEPT / "smollm2" / name).read_bytes())
    assert cli.main(["validate", "--from", str(tmp_path / "kept")]) == 0
    (folder / file).rename(tmp_path / file)
    (folder / file).symlink_to(tmp_path / file)
    assert cli.main(["validate", "--from", str(tmp_path / "kept")]) == 4
    assert "it lies outside" in capsys.readouterr().err


@pytest.mark.parametrize("packed", [False, True])
def test_a_bomb_is_not_unpacked(run: Run, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    monkeypatch.setattr(outside, "MOST_BYTES", 1_000_000)
    content = json.dumps(["x" * 2_000_000]).encode()
    file = run.folder / "bomb.json.gz"
    file.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(RecordsError, match="more than 1 MB"):
        records.attached(run.folder, file.name)
    with pytest.raises(data.DataError, match="more than 1 MB"):
        data.load(str(file))
    with pytest.raises(baselines.BaselineError, match="cannot read"):
        baselines.load(file)


def test_a_line_without_an_end_is_not_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "MOST_BYTES", 1_000_000)
    with (run.folder / records.FILE).open("a") as file:
        file.write('{"kind": "x", "text": "' + "x" * 2_000_000 + '"}\n')
    with pytest.raises(RecordsError, match="more than 1 MB"):
        list(records.read(run.folder))


def test_nesting_without_an_end_is_an_error(run: Run) -> None:
    (run.folder / "deep.json").write_text("[" * 200_000)
    with pytest.raises(RecordsError, match="cannot read"):
        records.attached(run.folder, "deep.json")
    with (run.folder / records.FILE).open("a") as file:
        file.write("[" * 200_000 + "\n")
    with pytest.raises(RecordsError, match="line 2: not JSON"):
        list(records.read(run.folder))


def test_what_is_no_file_is_not_waited_for(run: Run) -> None:
    os.mkfifo(run.folder / "pipe.json")
    with pytest.raises(RecordsError, match="no regular file"):
        records.attached(run.folder, "pipe.json")


@pytest.mark.parametrize(
    "text", ["../../x", "/etc/passwd", "..", ".", "", "a/../../b", "a\0b", "-rf", "x" * 500, "é/ü"]
)
def test_a_name_stays_in_its_folder(run: Run, text: str) -> None:
    name = file_name(text)
    assert "/" not in name
    assert not name.startswith((".", "-"))
    assert 0 < len(name) <= 80
    path = run.attach(text, {})
    assert (run.folder / path).resolve().parent == run.folder.resolve() / "files"


def test_long_names_stay_apart(run: Run) -> None:
    cell = "a_configuration_of_many_words(and_its_axis=with_a_long_value)-decode_consistency"
    one, other = (run.attach(f"{cell}-{name}", name) for name in ("rows", "more"))
    assert records.attached(run.folder, one) == "rows"
    assert records.attached(run.folder, other) == "more"


def test_latest_is_replaced_and_never_followed(tmp_path: Path) -> None:
    results, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    results.mkdir()
    elsewhere.mkdir()
    (results / "latest").symlink_to(elsewhere)
    run = Run.create(results, "mine")
    run.begin("run")
    run.attach("x", {})
    assert list(elsewhere.iterdir()) == []
    assert (results / "latest").resolve() == run.folder.resolve()


def test_nothing_is_cleaned_up_through_a_link(tmp_path: Path) -> None:
    """A run folder from elsewhere may lie among ours; the next run cleans what killed ones left."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.part").write_text("")
    run = Run.create(tmp_path / "results", "x")
    run.write("run")
    link(run.folder / "files", elsewhere)
    link(tmp_path / "results" / "20261122-140010-mine-5e4a", elsewhere)
    del run  # which holds its folder
    Run.create(tmp_path / "results", "mine")
    assert (elsewhere / "mine.part").exists()


def test_a_label_is_no_path(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "results", "../../../elsewhere")
    assert run.folder.parent == tmp_path / "results"
