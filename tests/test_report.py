"""`servematrix report`: one HTML file from the records, in which nothing from outside is markup."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from made_runs import cell, end, make, verdict
from servematrix import cli
from servematrix.exit_codes import Exit
from servematrix.records import file_name
from servematrix.redaction import Secrets
from servematrix.report import command

REAL = Path(__file__).resolve().parent.parent / "docs/validation/h200-sglang-0.5.16"
PLANTED = "<script>alert(1)</script><img src=x onerror=alert(2)>\" onclick='alert(3)' </pre>"


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def drawn(*runs: Path) -> Page:
    out = runs[0] / command.FILE
    command.write(list(runs), out, Secrets(["hidden-token"]))
    return Page(out.read_text())


def test_a_real_run_shows_its_numbers_and_its_trace(tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    assert cli.main(["report", str(REAL / "smollm2-standalone"), "--out", str(out)]) == Exit.PASSED
    page = Page(out.read_text())
    assert "82 of 200 right, accuracy 0.410" in page.text
    assert "NVIDIA H200" in page.text
    assert "stale and" in page.text
    assert [tag for tag, _ in page.tags].count("svg") >= 1
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert out.stat().st_size < 2_000_000


def test_a_report_of_fifty_cells_is_small(tmp_path: Path) -> None:
    source = REAL / "smollm2-standalone"
    header, *lines = (source / "records.jsonl").read_text().splitlines()
    shutil.copytree(source / "files", tmp_path / "files")
    with (tmp_path / "records.jsonl").open("w") as file:
        file.write(header + "\n")
        for number in range(50):
            for line in lines:
                record = json.loads(line)
                if "cell" in record:
                    record["cell"] = f"smollm2(number={number})"
                    file.write(json.dumps(record) + "\n")
    for number in range(50):
        path = tmp_path / f"{file_name(f'smollm2(number={number})')}.log"
        path.write_text("a line of a server's log\n" * 10_000)
    page = drawn(tmp_path)
    assert [tag for tag, _ in page.tags].count("svg") == 50
    assert page.text.count("a line of a server's log") > 50 * 100
    assert (tmp_path / command.FILE).stat().st_size < 2_000_000


def test_what_was_written_by_others_is_no_markup(tmp_path: Path) -> None:
    bad = verdict(PLANTED, 3, "fail") | {
        "reason": PLANTED,
        "kit": PLANTED,
        "numbers": {"n": PLANTED},
    }
    found = [cell(PLANTED, 1, 1, command=[PLANTED], environment={"A": PLANTED}), bad, end(9, 1)]
    run = make(tmp_path / "run", ["a"], found, command=[PLANTED])
    page = drawn(run)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert not [name for _, attributes in page.tags for name in attributes if name[:2] == "on"]
    assert PLANTED in page.text


def test_the_end_of_a_log_is_shown_without_secrets(tmp_path: Path) -> None:
    run = make(tmp_path / "run", ["a"], [cell("a", 1, 1), verdict("a", 2), end(3)])
    (run / "a.log").write_text(f"first\nkey hidden-token\n{PLANTED}\n")
    page = drawn(run)
    assert PLANTED in page.text
    assert "hidden-token" not in page.text


def test_a_log_outside_of_the_run_is_not_read(tmp_path: Path) -> None:
    run = make(tmp_path / "run", ["a"], [cell("a", 1, 1), verdict("a", 2), end(3)])
    (tmp_path / "other").write_text("private\n")
    (run / "a.log").symlink_to(tmp_path / "other")
    assert "private" not in drawn(run).text


def test_a_run_cut_short_has_a_report(tmp_path: Path) -> None:
    run = make(tmp_path / "run", ["a"], [cell("a", 1, 1), verdict("a", 2)], simulated=True)
    page = drawn(run)
    assert "Cut short" in page.text
    assert "simulated: no GPU was measured" in page.text


def test_the_worst_verdict_of_a_kit_is_in_the_grid(tmp_path: Path) -> None:
    found = [verdict("a", 1), verdict("a", 2, "fail", "test_b"), verdict("b", 3), end(4, 1)]
    page = drawn(make(tmp_path / "run", ["a", "b"], found))
    rows = [
        attributes["data-verdicts"] for tag, attributes in page.tags if tag == "tr" and attributes
    ]
    assert rows == ["fail", "pass"]


def test_a_trace_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    lost = json.loads('{"kind": "measurement", "cell": "a", "kit": "k", "name": "trace"}')
    found = [cell("a", 1, 1), lost | {"path": "../../secret.json"}, verdict("a", 2), end(3)]
    assert "it lies outside of" in drawn(make(tmp_path / "run", ["a"], found)).text


def test_several_runs_are_in_one_file(tmp_path: Path) -> None:
    one = make(tmp_path / "one", ["a"], [verdict("a", 1), end(2)])
    two = make(tmp_path / "two", ["a"], [verdict("a", 1, "fail"), end(2, 1)])
    page = drawn(one, two)
    assert "Exit 0" in page.text
    assert "Exit 1" in page.text
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_no_records_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path)]) == Exit.USAGE
    assert "cannot read" in capsys.readouterr().err
