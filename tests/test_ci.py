"""What a run tells a workflow: JUnit properties, the step's summary, annotations."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import made_runs
from malforming import LOUD
from servematrix import ci
from servematrix.ci import annotating, summary
from servematrix.records import RecordsError

CONFIG = """\
description = "for tests"
stage = "t"
estimated_seconds = 1
suites = ["mine"]
model.path = "org/model"
axis.size = [1, 2]

[gates.fwd_occupancy]
min_samples = 5
threshold = 97   # percent

[[overrides]]
when = { size = 2 }
gates.fwd_occupancy.threshold = 85
"""
SUITE = r"""
import pytest
from servematrix.gates.verdict import Verdict
from servematrix.kits import FwdOccupancyMixin
from servematrix.kits.base import Kit


class OwnMixin(Kit):
    kit = "own"

    def test_hostile(self):
        self.measure("answer", 42, "tokens")
        self.measure("name\x1b", "text \x1b[31m & <b>", "1")
        reason = "50 %\r\n::error::injected, a|b <img src=x> `c`\x1b[31m"
        self.conclude(Verdict("fail", "a rule, with: 100 %", reason))

    def test_fine(self):
        self.measure("seconds", 0.5, "s")
        self.conclude(Verdict("pass", "it is fine", "fine"))

    def test_broken(self):
        raise ValueError("no measurement")


@pytest.mark.suite("mine")
class TestMine(OwnMixin):
    @property
    def limit(self):
        return self.fwd_occupancy_threshold

    def test_limit(self):
        self._kit_running = ("fwd_occupancy", "test_limit")
        self.conclude(Verdict("fail", f"above {self.limit:g} %", "it is low"))
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Run a suite of four tests in two cells, as a step of a workflow."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setenv(ci.ANNOTATED, "true")
    monkeypatch.setenv(ci.SUMMARY, str(Path("summary.md").absolute()))
    monkeypatch.setenv("GITHUB_WORKSPACE", str(Path.cwd()))
    pytester.makefile(
        ".ini", pytest="[pytest]\naddopts = -p servematrix.plugin --import-mode=importlib\n"
    )
    Path("configs").mkdir()
    Path("configs/mine.toml").write_text(CONFIG)
    pytester.makepyfile(test_mine=SUITE)

    def run(*options: str, selection: str = "mine") -> pytest.RunResult:
        asked = ["--engine", "reference", "--config", selection, "--junitxml=junit.xml", *options]
        return pytester.runpytest_subprocess(*asked, timeout=120)

    return run


def annotated(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if line.startswith("::")]


def properties() -> dict[str, list[tuple[str, str]]]:
    """The properties in the JUnit file by the test's name."""
    cases = ElementTree.parse("junit.xml").iter("testcase")
    return {
        case.attrib["name"]: [
            (one.attrib["name"], one.attrib["value"]) for one in case.iter("property")
        ]
        for case in cases
    }


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_a_red_run(run, workers):
    result = run(*workers)
    assert result.ret == 1
    assert result.outlines[-1].startswith("servematrix: exit 1 (a verdict failed")
    assert "2 error, 4 fail, 2 pass;" in result.outlines[-1]

    # annotations: at the limit that held, once a failure
    found = annotated(result)
    places = sorted(re.match(r"::(\w+) file=([^,]*),line=(\d+),", one).groups() for one in found)
    file = "configs/mine.toml"
    assert places == [("error", file, "1")] * 4 + [("error", file, "10"), ("error", file, "14")]
    (hostile,) = (one for one in found if "test_hostile" in one and "size=1" in one)
    assert hostile == (
        "::error file=configs/mine.toml,line=1,title=mine(size=1)%3A own.test_hostile::"
        "fail: 50 %25\\r\\n::error::injected, a|b <img src=x> `c`\\x1b[31m"
    )

    # the summary: cells by kits, and every failure with its reason
    text = Path("summary.md").read_text()
    assert text.count("### servematrix: exit 1") == 1
    assert "simulated" in text
    assert "| mine(size=1) | ❌ 1 of 3 fail | ❌ 1 fail |" in text or (
        "| mine(size=1) | ❌ 1 fail | ❌ 1 of 3 fail |" in text
    )
    assert r"a\|b \<img src=x\> \`c\`" in text
    assert "mine(size=2): fwd_occupancy.test_limit: it is low" in text
    assert "\x1b" not in text

    # JUnit
    # under pytest-xdist each cell has an end beside its tests
    tests = {name: told for name, told in properties().items() if name.startswith("test_")}
    assert len(tests) == 8
    hostile = dict(tests["test_hostile[mine(size=1)]"])
    assert hostile["cell"] == "mine(size=1)"
    assert hostile["verdict"] == "fail"
    assert hostile["rule"] == "a rule, with: 100 %"
    assert hostile["own.answer[tokens]"] == "42"
    assert hostile["own.name\\x1b[1]"] == "text \\x1b[31m & <b>"
    fine = dict(tests["test_fine[mine(size=2)]"])
    assert (fine["verdict"], fine["own.seconds[s]"], fine["kit"]) == ("pass", "0.5", "own")
    broken = dict(tests["test_broken[mine(size=1)]"])
    assert broken["verdict"] == "error"
    assert "ValueError: no measurement" in broken["reason"]
    names = [name for name, _ in tests["test_fine[mine(size=1)]"]]
    assert len(names) == len(set(names))


def test_waived_failures_are_notices(run, monkeypatch):
    Path("configs/waivers.toml").write_text(
        '[[waivers]]\ncell = "mine(size=*)"\nkit = "fwd_occupancy"\nreason = "known"\n'
        'link = "https://example.org/1"\nexpires = 2999-01-01\n'
    )
    suite = SUITE.replace('("fwd_occupancy", "test_limit")', '("fwd_occupancy", "")')
    Path("test_mine.py").write_text(suite.replace("test_limit", "test_fwd_occupancy"))
    result = run("-k", "test_fwd_occupancy", selection="mine(size=1)")
    (told,) = annotated(result)
    assert told.startswith("::notice file=configs/mine.toml,line=10,")
    assert "waived until 2999-01-01: known" in told
    assert "1 waived" in Path("summary.md").read_text()
    assert dict(properties()["test_fwd_occupancy[mine(size=1)]"])["waived"] == "known"


def test_only_where_a_workflow_asks_and_a_lost_summary_is_told(run, monkeypatch):
    monkeypatch.setenv(ci.ANNOTATED, "false")
    monkeypatch.setenv(ci.SUMMARY, "/no/such/folder/summary.md")
    result = run("-k", "test_limit", selection="mine(size=1)")
    assert result.ret == 1
    assert not annotated(result)
    assert any("no summary of the step was written" in line for line in result.outlines)


def test_runs_that_are_parts_of_another_tell_nothing():
    told = ci.without({ci.SUMMARY: "x", ci.ANNOTATED: "true", "PATH": "p"})
    assert told == {"PATH": "p"}
    root = Path(ci.__file__).parent.parent
    for file in ("validation/running.py", "executors/attempt.py"):
        assert "ci.without(os.environ)" in (root / file).read_text(), file


# -- annotations --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "data", "as_property"),
    [
        ("100 %", "100 %25", "100 %25"),
        ("a: b, c", "a: b, c", "a%3A b%2C c"),
        ("%0A::error::x", "%250A::error::x", "%250A%3A%3Aerror%3A%3Ax"),
        # a break never reaches GitHub as one
        ("a\r\n::error::x", "a\\r\\n::error::x", "a\\r\\n%3A%3Aerror%3A%3Ax"),
    ],
)
def test_what_means_something_to_github_is_escaped(text, data, as_property):
    told = annotating.command("error", text, file="f", at=1, title=text)
    assert told == f"::error file=f,line=1,title={as_property}::{data}"


def test_breaks_are_escaped_by_githubs_rules_too():
    assert annotating._data("%\r\n") == "%25%0D%0A"
    assert annotating._property("%\r\n:,") == "%25%0D%0A%3A%2C"


def test_no_annotation_is_more_than_a_line():
    told = annotating.command("error", LOUD * 100, file=LOUD, at=1, title=LOUD)
    assert told.isprintable()
    assert len(told) < 10_000


@pytest.mark.parametrize(
    ("limits", "rule", "line"),
    [
        ({"threshold": 97, "min_samples": 5}, "median > 97 %", 10),
        ({"threshold": 97, "min_samples": 5}, "at least 5 windows", 9),
        ({"threshold": 97, "min_samples": 5}, "something else", 9),
        ({"threshold": 97.0, "min_samples": 5}, "median > 97 %", 10),
        ({"threshold": 85, "min_samples": 5}, "median > 85 %", 14),
        # by --set
        ({"threshold": 91}, "median > 91 %", 1),
        ({}, "the kit's default", 1),
    ],
)
def test_the_line_that_sets_a_limit(tmp_path, limits, rule, line):
    file = tmp_path / "mine.toml"
    file.write_text(CONFIG)
    assert annotating.limit_line(file, "fwd_occupancy", limits, rule) == line
    assert annotating.limit_line(file, "hellaswag", limits, rule) == 1
    assert annotating.limit_line(tmp_path / "none.toml", "fwd_occupancy", limits, rule) == 1


def test_other_ways_to_write_a_table(tmp_path):
    file = tmp_path / "mine.toml"
    limits = {"threshold": 97}
    for written in (
        "gates.fwd_occupancy = { threshold = 97 }",
        "[gates]\nfwd_occupancy.threshold = 97",
        '[gates . "fwd_occupancy"]\nthreshold = 97',
        "[overrides.gates.fwd_occupancy]\nthreshold = 97",
    ):
        file.write_text(f"suites = [\n  1,\n]\n{written}\n")
        at = annotating.limit_line(file, "fwd_occupancy", limits, "97")
        assert at == 3 + len(written.splitlines())


# -- summary ------------------------------------------------------------------------------------


def test_a_summary_of_many_cells(tmp_path):
    cells = [f"c(x={number})" for number in range(150)]
    found = [made_runs.verdict(cell, 1, "fail") for cell in cells]
    found[0]["reason"] = f"{LOUD} {'x' * 10_000}"
    text = summary.document(made_runs.make(tmp_path / "run", cells, [*found, made_runs.end(2, 1)]))
    assert len(text.encode()) < 2**20
    assert "- 50 more stand in the records" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 152
    assert {re.sub(r"\\.", "", line).count("|") for line in table} == {3}
    assert all(line.isprintable() for line in text.splitlines())


def test_one_reason_of_many_tests_is_told_once(tmp_path):
    found = [made_runs.verdict("c", 1, "error", test) for test in ("test_a", "test_b", "test_c")]
    text = summary.document(made_runs.make(tmp_path / "run", ["c"], found))
    assert "c: k.test\\_a and 2 more" in text or "c: k.test_a and 2 more" in text
    assert text.count("it is error") == 1
    assert "cut short" in text


def test_a_cell_without_a_verdict_has_its_row(tmp_path):
    found = [made_runs.verdict("a", 1), made_runs.verdict("a", 1, "not_applicable", "test_b")]
    text = summary.document(
        made_runs.make(tmp_path / "run", ["a", "b"], [*found, made_runs.end(2)])
    )
    assert "| a | ✅ 1 of 2 pass |" in text
    assert "| b |  |" in text


def test_a_run_without_any_verdict_has_a_table_that_is_one(tmp_path):
    text = summary.document(made_runs.make(tmp_path / "run", ["a", "b"], []))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows == ["| cell |", "| --- |", "| a |", "| b |"]


def test_records_that_are_none(tmp_path):
    with pytest.raises(RecordsError):
        summary.document(tmp_path)
    assert not [*tmp_path.iterdir()]
