"""`servematrix report`: one HTML file from the records, in which nothing from outside is markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import rich_run
from made_runs import cell, end, make, verdict
from rich_run import REAL
from servematrix import cli, overview
from servematrix.exit_codes import Exit
from servematrix.gates.windows import RankReading, Scrape
from servematrix.redaction import Secrets
from servematrix.report import again, cells, command, figures, plots, trends
from servematrix.report.plots import Point

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
    run = rich_run.make(tmp_path / "run", [f"smollm2(number={number})" for number in range(50)])
    page = drawn(run)
    # occupancy, gaps, accuracy and accept lengths
    assert [tag for tag, _ in page.tags].count("svg") == 4 * 50
    assert page.text.count("a line of a server's log") > 50 * 20
    assert (run / command.FILE).stat().st_size < 2_000_000


def test_each_plot_says_in_words_what_it_shows(tmp_path: Path) -> None:
    page = drawn(rich_run.make(tmp_path / "run"))
    assert "rank dp0: 38 fresh windows, median 98.8 %" in page.text
    assert "2 stale and 2 NaN samples; dashed: the threshold, 94 %" in page.text
    assert "256 tokens of a stream by itself; dashed: median 2.1 ms, 99th percentile" in page.text
    assert "longest 9 ms" in page.text
    told = "0.41, between 0.33 and 0.49, over 200 items; dashed: the floor, 0.3; "
    assert f"{told}diamond: the baseline, 0.42" in page.text
    assert "6 requests, 300 verifying passes, accept length 3.8 (threshold 1.8)" in page.text


def test_the_lines_of_a_plot_are_where_its_words_say(monkeypatch: pytest.MonkeyPatch) -> None:
    dashed: list[float] = []
    monkeypatch.setattr("matplotlib.axes.Axes.axvline", lambda self, x, **_: dashed.append(x))
    told = figures._gaps([1.0, 100.0], "p").caption
    assert f"dashed: median {dashed[0]:.4g} ms, 99th percentile {dashed[1]:.4g} ms" in told


@pytest.mark.parametrize(
    ("interval", "colours"),
    [((0.31, 0.5), {"pass"}), ((0.2, 0.29), {"fail"}), ((0.28, 0.5), set()), ((0.2, 0.31), set())],
)
def test_an_accuracy_that_is_not_clear_has_no_colour(
    interval: tuple[float, float], colours: set[str]
) -> None:
    drawn = plots.accuracy(sum(interval) / 2, interval, 0.3, None, "p")
    assert {one for one in ("pass", "fail") if f"var(--{one})" in drawn} == colours


def test_stale_and_nan_samples_are_marked() -> None:
    nan = float("nan")
    values = ((-0.1, 30.0), (0.0, 30.0), (0.1, nan), (0.2, 98.0), (0.3, 90.0), (0.4, 98.0))
    scrapes = [Scrape(t, 0.0, t < 0.4, {"dp0": RankReading("0", 1, 0, v)}) for t, v in values]
    svg = plots.occupancy(scrapes, 95.0, 0.2, "p")
    # by the style of their dots: two stale ones, a NaN, and a window above and one below the limit
    groups = re.findall(r'<g style="([^"]*)">((?:<use [^>]*/>)+)', svg)
    marks = [(style, dots.count("<use")) for style, dots in groups]
    assert [dots for style, dots in marks if style == "fill:var(--pass);stroke:var(--pass)"] == [1]
    assert [dots for style, dots in marks if style == "fill:var(--fail);stroke:var(--fail)"] == [1]
    assert [dots for style, dots in marks if style == "fill:var(--ink);stroke:var(--ink)"] == [2, 1]
    assert "var(--band)" in svg
    assert "stroke-dasharray" in svg


def test_numbers_at_an_axis_keep_their_digits() -> None:
    svg = plots.accuracy(0.41, (0.35, 0.47), 0.3, 0.42, "p")
    assert {">0.350<", ">0.425<"} <= set(re.findall(r">0\.\d+<", svg))


def test_flips_are_shown_with_their_items(tmp_path: Path) -> None:
    page = drawn(rich_run.make(tmp_path / "run"))
    assert "2 HellaSwag items have another answer than in the baseline" in page.text
    assert "Item 1: lost" in page.text
    assert "someone begins 1 [right] [baseline]" in page.text
    assert "someone begins 3 [this run]" in page.text


@pytest.mark.parametrize("name", ["flips", "drafts", "trace"])
def test_a_file_that_is_not_what_it_must_be_is_told(tmp_path: Path, name: str) -> None:
    run = rich_run.make(tmp_path / "run")
    (run / "files" / f"smollm2-{name}.json").write_text('[{"count": "many"}]')
    page = drawn(run)
    assert f"smollm2-{name}.json" in page.text
    assert "82 of 200 right" in page.text, "the rest is there"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            {"command": ["python", "-m", "pytest", "suites", "--config=all", "-n", "4", "-x"]},
            "python -m pytest suites --config 'a(b=1)'",
        ),
        (
            {
                "command": [
                    *("python", "-m", "pytest", "suites", "--config", "a", "--shard", "1/2"),
                    *("--engine", "sglang", "--set", "x=a b"),
                ],
                "nox_session": "stage_a",
            },
            "nox -s cells -- --config 'a(b=1)' --engine sglang --set 'x=a b'",
        ),
        (
            {"command": ["pytest", "suites", "-kfast", "-n4", "--sw", "--deselect", "a", "-v"]},
            "pytest suites -v --config 'a(b=1)'",
        ),
        ({"command": ["servematrix", "merge", "a"]}, ""),
        ({}, ""),
    ],
)
def test_the_command_that_runs_a_cell_again(header: dict[str, object], expected: str) -> None:
    assert again.command(header, "a(b=1)") == expected


def test_trends_are_by_cell_and_hardware_with_the_band_of_the_baseline(tmp_path: Path) -> None:
    runs = [
        rich_run.make(tmp_path / f"run{day}", day=day, median=98 - day / 10, outcome=outcome)
        for day, outcome in ((23, "pass"), (21, "pass"), (22, "fail"))
    ]
    elsewhere = rich_run.make(tmp_path / "elsewhere", day=24, gpus=[])
    found = [cells.read(run, Secrets()) for run in (runs[1], runs[2], runs[0], elsewhere)]
    found_trends = trends.of(found)
    assert {one.hardware for one in found_trends} == {"NVIDIA H200"}
    median = next(one for one in found_trends if one.quantity == "settled_median")
    assert [(one.run, one.outcome) for one in median.values] == [
        ("run21", "pass"),
        ("run22", "fail"),
        ("run23", "pass"),
    ]
    assert median.caption == (
        "3 runs, from 95.7 to 95.9, last 95.7; grey: the baseline's 2 runs, 98.1 to 98.6; "
        "dashed: 97.5."
    )
    speed = next(one for one in found_trends if one.quantity == "decode_tokens_per_s")
    assert speed.caption.endswith("no baseline.")
    out = tmp_path / "report.html"
    names = [str(one) for one in (*runs, runs[0])]
    assert cli.main(["report", *names]) == Exit.PASSED, "one that is named twice counts once"
    page = Page(out.read_text())
    assert "Over time" in page.text
    assert page.text.index("run21: Exit 0") < page.text.index("run22: Exit 1")


def test_a_trend_marks_runs_that_were_configured_otherwise(tmp_path: Path) -> None:
    slow, plain = (rich_run.make(tmp_path / f"run{day}", day=day) for day in (21, 22))
    changed = (slow / "records.jsonl").read_text()
    assert '"arguments": {' in changed
    changed = changed.replace('"arguments": {', '"arguments": {"disable-overlap-schedule": true, ')
    (slow / "records.jsonl").write_text(changed)
    found = trends.of([cells.read(run, Secrets()) for run in (slow, plain)])
    assert {one.values[1].otherwise for one in found} == {""}
    assert {one.values[0].otherwise for one in found} == {
        "arguments.disable-overlap-schedule: not set in the newest, True here"
    }
    assert "; hollow: 1 configured otherwise than the newest" in found[0].caption
    assert "hollow" not in trends.of([cells.read(plain, Secrets())] * 2)[0].caption
    out = tmp_path / "report.html"
    assert cli.main(["report", str(slow), str(plain)]) == Exit.PASSED
    assert "disable-overlap-schedule: not set in the newest" in Page(out.read_text()).text


def test_a_point_of_another_configuration_is_hollow() -> None:
    alike, other = Point("a", 1.0, good=True), Point("a", 1.0, good=True, alike=False)
    newest = Point("b", 2.0, good=True)
    drawn = [plots.trend([one, newest], None, "%", "t") for one in (alike, other)]
    assert drawn[0] != drawn[1]


def test_a_number_that_was_not_found_is_a_dash(tmp_path: Path) -> None:
    one = verdict("a", 2) | {"numbers": {"accept_length": None}}
    text = drawn(make(tmp_path / "run", ["a"], [cell("a", 1, 1), one, end(3)])).text
    assert re.search(r"accept_length\s*-", text)


def test_one_run_has_no_trends(tmp_path: Path) -> None:
    assert "Over time" not in drawn(rich_run.make(tmp_path / "run")).text


def test_what_was_written_by_others_is_no_markup(tmp_path: Path) -> None:
    bad = verdict(PLANTED, 3, "fail") | {
        "reason": PLANTED,
        "kit": PLANTED,
        "numbers": {"n": PLANTED},
    }
    found = [cell(PLANTED, 1, 1, command=[PLANTED], environment={"A": PLANTED}), bad, end(9, 1)]
    run = make(tmp_path / "run", ["a"], found, command=[PLANTED])
    page = drawn(run)
    _holds_no_markup(page)


def test_what_a_model_or_a_data_set_wrote_is_no_markup(tmp_path: Path) -> None:
    _holds_no_markup(drawn(rich_run.make(tmp_path / "run", text=PLANTED)))


def _holds_no_markup(page: Page) -> None:
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


def test_the_log_is_that_of_the_last_launch(tmp_path: Path) -> None:
    run = make(tmp_path / "run", ["a"], [cell("a", 1, 1), verdict("a", 2), end(3)])
    for name in ("a", "a.2", "a.10", "a.b", "b"):
        (run / f"{name}.log").write_text(f"this is {name}.log\n")
    assert re.findall("this is .*log", drawn(run).text) == ["this is a.10.log"]


def test_a_merged_run_has_the_logs_of_its_parts(tmp_path: Path) -> None:
    run = make(tmp_path / "run", ["a"], [cell("a", 1, 1), verdict("a", 2), end(3)])
    (run / "parts" / "1").mkdir(parents=True)
    (run / "parts" / "1" / "a.log").write_text("of the part\n")
    assert "of the part" in drawn(run).text


def test_a_log_outside_of_the_run_is_not_read(tmp_path: Path) -> None:
    run = make(tmp_path / "run", ["a"], [cell("a", 1, 1), verdict("a", 2), end(3)])
    (tmp_path / "other").write_text("private\n")
    (run / "a.log").symlink_to(tmp_path / "other")
    assert "private" not in drawn(run).text


def test_a_run_cut_short_has_a_report(tmp_path: Path) -> None:
    run = make(tmp_path / "run", ["a"], [cell("a", 1, 1), verdict("a", 2)], simulated=True)
    page = drawn(run)
    assert "Cut short" in page.text
    assert "Simulated: this says that the matrix works, never that a server is good" in page.text


def test_the_worst_verdict_of_a_kit_is_in_the_grid(tmp_path: Path) -> None:
    found = [verdict("a", 1), verdict("a", 2, "fail", "test_b"), verdict("b", 3), end(4, 1)]
    page = drawn(make(tmp_path / "run", ["a", "b"], found))
    rows = [
        attributes["data-verdicts"] for tag, attributes in page.tags if tag == "tr" and attributes
    ]
    assert rows == ["fail pass", "pass"], "the filter finds each outcome of a cell"
    grid = page.text[page.text.index("Cells and kits") : page.text.index("Verdicts")]
    assert re.findall("[✓✗]", grid)[:2] == ["✗", "✓"]


def test_a_kit_that_failed_is_the_first_of_the_grid(tmp_path: Path) -> None:
    bad = verdict("a", 2, "fail") | {"kit": "z"}
    run = make(tmp_path / "run", ["a"], [verdict("a", 1) | {"kit": "b"}, bad, end(3, 1)])
    assert cells.read(run, Secrets()).kits() == ["z", "b"]


@pytest.mark.parametrize("outcomes", [("fail", "error"), ("inconclusive", "waived")])
def test_the_worst_is_that_of_the_table_on_the_terminal(outcomes: tuple[str, str]) -> None:
    found = overview.worst(outcomes)
    assert cells.worst(outcomes) == found


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


def test_a_cell_that_was_never_reached_is_in_the_grid(tmp_path: Path) -> None:
    page = drawn(make(tmp_path / "run", ["a", "b"], [verdict("a", 1)]))
    rows = [attributes["data-cell"] for tag, attributes in page.tags if tag == "tr" and attributes]
    assert rows == ["a", "b"]
    assert page.text.count("no verdict") == 2, "in the grid and beneath"


def test_of_several_runs_the_odd_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, odd = (make(tmp_path / name, ["a"], [verdict("a", 1), end(2)]) for name in ("g", "odd"))

    def render(found: list[cells.Report]) -> str:
        return "".join({"g": "a page"}[one.folder.name] for one in found)

    monkeypatch.setattr(command.page, "render", render)
    assert cli.main(["report", str(good), str(odd)]) == Exit.USAGE
    told = capsys.readouterr().err
    assert f"{odd / 'records.jsonl'}: not the records of a run" in told


def test_no_records_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path)]) == Exit.USAGE
    assert "cannot read" in capsys.readouterr().err
