"""The parts of `--executor ray` without Ray, and a run over a cluster that does as it is told."""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from servematrix import config as configs
from servematrix import provenance, records
from servematrix.config import ConfigError
from servematrix.engines.base import EnvironmentProblem
from servematrix.executors import attempt, quiet, scratch, usage
from servematrix.executors.cluster import Demand, Node
from servematrix.executors.incoming import Incoming
from servematrix.executors.part import Part, demand
from servematrix.gpus.pretend import NUMBER
from servematrix.matrix import Cell
from servematrix.records import Run
from servematrix.resume import Kept
from servematrix.run import Options, PlannedCell, plan

CONFIG = """
description = "for tests"
stage = "t"
estimated_seconds = 1
suites = ["mine"]
requires = { gpus = 2, accelerator = "H100" }
[model]
path = "org/model"
"""


def asked(**options: Any) -> argparse.Namespace:
    given = {"executor": "ray", "engine": "reference", "ray_address": None, "ray_wait": 0.0}
    return argparse.Namespace(**given | {"servematrix_set": []} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": "0"}, "--gpus with --executor ray: Ray assigns GPUs"),
        ({"port": 30000}, "--port with --executor ray: several servers may share a node"),
        ({"base_url": "http://127.0.0.1:1"}, "--base-url with --executor ray: a server that runs"),
        ({"numprocesses": 2}, "-n with --executor ray: Ray runs the cells side by side"),
        ({"usepdb": True}, "--pdb with --executor ray"),
        ({"engine": "auto"}, "name the engine"),
        ({"ray_wait": -1.0}, "--ray-wait -1: must not be under 0 s"),
        (
            {"servematrix_set": ["environment.HF_TOKEN=hf_abcdefgh"]},
            r"--set environment.HF_TOKEN=\*\*\* with .* give environment.HF_TOKEN@=VARIABLE",
        ),
        ({"executor": "local", "ray_address": "h:1"}, "--ray-address is about --executor ray"),
        ({"executor": "local", "ray_wait": 5.0}, "--ray-wait is about --executor ray"),
    ],
)
def test_what_cannot_be_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvironmentProblem, match=message) as raised:
        usage.check(asked(**options))
    assert "hf_abcdefgh" not in str(raised.value)


def test_what_can_be_together_is_not_refused() -> None:
    usage.check(asked(servematrix_set=["environment.HF_TOKEN@=MINE", "arguments.dtype=half"]))
    usage.check(asked(executor="local", numprocesses=2, engine="auto"))


def test_without_ray_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=r'pip install "servematrix\[ray\]"'):
        usage.check(asked())


def test_which_cluster_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert usage.address(asked()) is None
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert usage.address(asked()) == "head:6379"
    assert usage.address(asked(ray_address="other:1")) == "other:1"
    assert usage.address(asked(ray_address="local")) is None
    with pytest.raises(EnvironmentProblem, match="not streamed through Ray's client"):
        usage.address(asked(ray_address="ray://head:10001"))


def test_a_node_takes_what_it_has() -> None:
    node = Node("10.0.0.1", "a", {"CPU": 8.0, "GPU": 4.0, "accelerator_type:H100": 1.0})
    assert node.takes(Demand(4, "H100"))
    assert node.takes(Demand())
    assert not node.takes(Demand(5))
    assert not node.takes(Demand(1, "A100"))
    assert not Node("10.0.0.2", "b", {"CPU": 8.0}).takes(Demand(1))
    assert node.told() == "a (10.0.0.1): 8 CPU, 4 GPU (H100)"
    assert Demand(4, "H100").told() == "1 CPU and 4 GPUs (H100)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.toml").write_text(CONFIG)
    return tmp_path


def test_gpus_are_asked_for_where_the_engine_has_some(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configs.load(folder, "mine")
    cell = PlannedCell(Cell(config), config, ())
    monkeypatch.delenv(NUMBER, raising=False)
    assert demand(cell, "sglang") == Demand(2, "H100")
    assert demand(cell, "reference") == demand(cell, "sglang-cpu") == Demand(0, None)
    monkeypatch.setenv(NUMBER, "2")
    assert demand(cell, "reference") == Demand(2, "H100")
    assert demand(cell, "sglang-cpu") == Demand(0, None)


def test_an_accelerator_of_no_gpu_is_refused(folder: Path) -> None:
    (folder / "mine.toml").write_text(CONFIG.replace("gpus = 2", "gpus = 0"))
    with pytest.raises(ConfigError, match="gpus = 0 asks for no GPU, and accelerator for one"):
        configs.load(folder, "mine")
    (folder / "mine.toml").write_text(CONFIG.replace("H100", "H 100"))
    with pytest.raises(ConfigError, match=r"requires\.accelerator"):
        configs.load(folder, "mine")


def test_cells_for_other_machines_are_planned_without_a_look_at_this_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> Any:
        raise AssertionError("this machine's GPUs are nobody's business")

    monkeypatch.setattr("servematrix.gpus.visible", look)
    found = plan(Options(["mine"], folder, engine="sglang", executor="ray", sglang="0.5.16"))
    assert found.cells[0].unfit is None
    assert "GPU as Ray assigns them" in found.subject()
    assert "GPU NVIDIA H200" in found.subject(gpus=["NVIDIA H200"])


def verdict(cell: str, nodeid: str, outcome: str = "pass") -> dict[str, Any]:
    return {"kind": "verdict", "cell": cell, "nodeid": nodeid, "verdict": outcome}


def test_ray_prints_nothing_and_others_do(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout

    def printed(by: str) -> str:
        thread = threading.Thread(target=print, args=("told",), name=by)
        thread.start()
        thread.join()
        return capsys.readouterr().out

    assert printed("ray_listen_error_messages") == "told\n"
    quiet.begin()
    quiet.begin()
    assert printed("ray_listen_error_messages") == ""
    assert printed("another") == "told\n"
    print("from here")
    assert capsys.readouterr().out == "from here\n"
    quiet.end()
    assert sys.stdout is before


def test_what_a_lost_node_had_found_does_not_stand() -> None:
    h100, h200 = ({"uuid": f"GPU-{name}", "name": name} for name in ("H100", "H200"))
    found = [
        {"kind": "run", "gpus": []},
        {"kind": "node", "cell": "a", "gpus": [h100], "attempt": 1},
        {"kind": "cell", "cell": "a", "attempt": 1},
        {"kind": "measurement", "cell": "a", "value": 1},
        verdict("a", "t1"),
        verdict("a", "t2", "fail"),
        verdict("b", "t1b"),
        {"kind": "measurement", "cell": "b", "value": 3},
        {"kind": "lost", "cell": "a", "again": ["t1"]},
        {"kind": "node", "cell": "a", "gpus": [h200], "attempt": 2},
        {"kind": "cell", "cell": "a", "attempt": 2},
        {"kind": "measurement", "cell": "a", "value": 2},
        verdict("a", "t1"),
    ]
    whole = [dict(one) for one in found]
    standing = records.standing(found)
    assert found == whole, "the records themselves stay"
    kinds = [one["kind"] for one in standing]
    assert kinds.count("lost") == 1
    assert kinds.count("node") == 2
    assert [one["attempt"] for one in standing if one["kind"] == "cell"] == [2]
    values = [one["value"] for one in standing if one["kind"] == "measurement"]
    assert values == [3, 2]
    verdicts = [one["nodeid"] for one in standing if one["kind"] == "verdict"]
    assert verdicts == ["t2", "t1b", "t1"]
    assert standing[0]["gpus"] == [h100, h200]


def test_a_node_with_another_version_is_told_and_runs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attempt, "whereabouts", lambda: {"node": "10.0.0.1"})
    monkeypatch.setattr(attempt.subprocess, "Popen", None)
    events = list(attempt.run({"source": "0.0.1 (sha256 0)", "arguments": [], "root": None}))
    assert [one["what"] for one in events] == ["began", "another"]
    assert events[1]["source"] == provenance.source()


def test_lines_are_told_once_they_are_whole(tmp_path: Path) -> None:
    lines = attempt._Lines(tmp_path / "lines")
    assert lines.new() == []
    with (tmp_path / "lines").open("a", buffering=1) as file:
        file.write("one\u2028still\ntw")
        file.flush()
        assert lines.new() == ["one\u2028still"]
        file.write("o\n")
        assert lines.new() == ["two"]
    assert lines.new() == []


def test_the_folder_of_a_killed_attempt_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch.tempfile, "gettempdir", lambda: str(tmp_path))
    for name in ("killed", "alive"):
        (tmp_path / f"servematrix-cell-{name}").mkdir()
    with FileLock(tmp_path / "servematrix-cell-alive.lock"), scratch.folder() as made:
        assert made.is_dir()
        found = {path.name for path in tmp_path.iterdir() if path.is_dir()}
        assert found == {made.name, "servematrix-cell-alive"}
    assert not made.exists()


# -- a run over a cluster that does as it is told -------------------------------------------------

SUITE = """
import pytest
from servematrix.kits.base import Kit


@pytest.mark.suite("mine")
class TestMine(Kit):
    kit = "mine"

    def test_first(self): ...

    def test_second(self): ...
"""

CLUSTER = """
import json
from pathlib import Path

from servematrix.executors import dispatch
from servematrix.executors.cluster import News, Node


class Told:
    address, version, sends = "stub", "0", False
    script = json.loads(Path("script.json").read_text())
    orders = []

    def nodes(self):
        looks = self.script["nodes"]
        has = looks.pop(0) if len(looks) > 1 else looks[0]
        return [Node("10.0.0.1", "a", has)] if has else []

    def submit(self, function, order, demand, name):
        self.orders.append(order)
        Path("orders.json").write_text(json.dumps(self.orders))
        return type("Task", (), {"cell": name.removeprefix("servematrix ")})()

    def next(self, tasks, seconds):
        waiting = self.script["news"][tasks[0].cell]
        news = waiting.pop(0) if waiting else {}
        for part in [news.get("event", {})]:
            if "file" in part and part["file"] is not None:
                part["file"] = bytes.fromhex(part["file"])
        return News(tasks[0], **news)

    def cancel(self, task):
        Path("cancelled").touch()

    def close(self): ...


class Elsewhere(dispatch.Elsewhere):
    def __init__(self, config):
        self.root = config.rootpath
        self.cluster = Told()


dispatch.Elsewhere = Elsewhere
"""
WAIVED = {"expires": "2999-01-01", "reason": "known", "link": "https://example.org/1"}
BEGAN = {"what": "began", "host": "a", "node": "10.0.0.1", "node_id": "1", "assigned": ""}


def named(test: str, fate: str = "") -> str:
    cell = f"mine(fate={fate})" if fate else "mine"
    return f"test_mine.py::TestMine::test_{test}[{cell}]"


def event(what: str, **more: Any) -> dict[str, Any]:
    return {"event": BEGAN if what == "began" else {"what": what, **more}}


def record(kind: str, **fields: Any) -> dict[str, Any]:
    line = json.dumps({"kind": kind, "time": "2026-01-01T00:00:00+00:00", **fields})
    return event("record", line=line, file=None)


def concluded(
    test: str, fate: str, outcome: str, reason: str = "because", **more: Any
) -> list[dict[str, Any]]:
    """What a node tells of a test with this verdict."""
    nodeid = named(test, fate)
    cell = nodeid.partition("[")[2][:-1]
    own = {"cell": cell, "kit": "mine", "test": "t", "rule": "r", "reason": reason, "numbers": {}}
    properties = {"cell": cell, "kit": "mine", "test": f"test_{test}", "waived": ""}
    properties |= {"verdict": outcome, "reason": reason, "server": "simulated"}
    report = {
        "$report_type": "TestReport",
        "nodeid": nodeid,
        "location": ["test_mine.py", 1, "x"],
        "keywords": {},
        "outcome": "passed" if outcome == "pass" else "failed",
        "longrepr": None if outcome == "pass" else reason,
        "when": "call",
        "sections": [],
        "duration": 0.1,
        "start": 0,
        "stop": 0,
        "user_properties": [*map(list, properties.items()), ["answered", "it"]],
    }
    return [
        record("verdict", nodeid=nodeid, verdict=outcome, **own, **more),
        event("report", report=report),
    ]


def in_its_course(test: str, fate: str) -> dict[str, Any]:
    """What a node tells of a test that has begun."""
    found: dict[str, Any] = concluded(test, fate, "pass")[1]
    found["event"]["report"] |= {"when": "setup", "user_properties": []}
    return found


@pytest.fixture
def told(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a suite of two tests in one cell over a cluster that tells this."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.delenv(NUMBER, raising=False)
    pytester.makefile(
        ".ini", pytest="[pytest]\naddopts = -p servematrix.plugin --import-mode=importlib\n"
    )
    Path("configs").mkdir()
    Path("configs/mine.toml").write_text(CONFIG)
    pytester.makepyfile(test_mine=SUITE)

    def run(
        *news: Any,
        cells: dict[str, list[Any]] | None = None,
        nodes: Any = ({"CPU": 1.0},),
        options: tuple[str, ...] = (),
    ) -> Any:
        """`news` are of the one cell `mine`, `cells` those of `mine(fate=KEY)` each."""
        if cells:
            fates = f"suites = ['mine']\naxis.fate = {list(cells)}"
            Path("configs/mine.toml").write_text(CONFIG.replace('suites = ["mine"]', fates))
        told = {f"mine(fate={fate})": told for fate, told in (cells or {}).items()}
        pytester.makeconftest(CLUSTER)
        script = {"news": told or {"mine": news}, "nodes": nodes}
        Path("script.json").write_text(json.dumps(script))
        given = ("--engine", "reference", "--config", "mine", "--executor", "ray", *options)
        return pytester.runpytest_subprocess(*given, timeout=60)

    return run


def recorded(kind: str) -> list[dict[str, Any]]:
    return [one for one in records.read(Path("results/latest")) if one["kind"] == kind]


def attached() -> dict[str, Any]:
    """A file of a node, under a name that is none of ours."""
    line = {"kind": "measurement", "time": "t", "cell": "mine", "kit": "k", "name": "n"}
    line["path"] = "../../../etc/passwd"
    return event("record", line=json.dumps(line), file=gzip.compress(b"[1, 2]").hex())


def test_each_cell_of_a_run_has_its_own_fate(told) -> None:
    lost = [event("began"), {"lost": "NodeDiedError"}]
    fates = {
        "whole": [
            event("began"),
            attached(),
            *concluded("first", "whole", "pass"),
            *concluded("second", "whole", "fail", "3 < 4"),
            event("log", text="the log"),
            event("ended", how="exit 1", output=""),
        ],
        "gate": [
            event("began"),
            *concluded("second", "gate", "fail"),
            {"lost": "NodeDiedError"},
            event("began"),
            *concluded("first", "gate", "pass"),
        ],
        "cut": [  # its node is lost between what is on disk and what pytest is told
            event("began"),
            in_its_course("first", "cut"),
            concluded("first", "cut", "pass")[0],
            in_its_course("second", "cut"),
            concluded("second", "cut", "fail", "1 < 2")[0],
            {"lost": "NodeDiedError"},
            event("began"),
            *concluded("first", "cut", "pass"),
        ],
        "waived": [
            event("began"),
            concluded("second", "waived", "fail", waived=WAIVED)[0],
            {"lost": "NodeDiedError"},
            event("began"),
            *concluded("first", "waived", "pass"),
        ],
        "late": [  # its node is lost when all is said
            event("began"),
            *concluded("first", "late", "pass"),
            *concluded("second", "late", "pass"),
            {"lost": "NodeDiedError"},
        ],
        "lost": [*lost, *lost, *lost],
        "task": [{"failed": "RuntimeEnvSetupError: no space left"}],
        "silent": [
            event("began"),
            *concluded("first", "silent", "pass"),
            event("ended", how="exit 4", output="no such option"),
        ],
    }
    result = told(cells=fates)
    assert result.ret == 6
    verdicts: dict[str, list[Any]] = {fate: [] for fate in fates}
    for one in records.standing(records.read(Path("results/latest"))):
        if one["kind"] == "verdict":
            verdicts[one["cell"][10:-1]].append(one)
    found = {fate: [one["verdict"] for one in ones] for fate, ones in verdicts.items()}
    assert found == {
        "whole": ["pass", "fail"],
        # a failed gate is not tried again, on no node
        "gate": ["fail", "pass"],
        "cut": ["fail", "pass"],
        "waived": ["fail", "pass"],
        "late": ["pass", "pass"],
        "lost": ["error", "error"],
        "task": ["error", "error"],
        "silent": ["pass", "error"],
    }
    assert "5 error, 3 fail, 7 pass, 1 waived" in result.outlines[-1]
    assert all(one["node"] == "a (10.0.0.1)" for one in verdicts["whole"])
    assert verdicts["whole"][0]["time"] > "2026-01-02", "this machine's clock"
    assert Path("results/latest/mine-fate=whole.log").read_text() == "the log"
    assert "fail: test_second[mine(fate=whole)]: 3 < 4" in result.outlines
    (measured,) = recorded("measurement")
    assert measured["path"] == "files/passwd.json"
    assert records.attached(Path("results/latest"), "files/passwd.json") == [1, 2]
    # what was run again
    lost_ones = [(one["cell"][10:-1], one["attempt"]) for one in recorded("lost")]
    counted = {"cut": 1, "gate": 1, "lost": 3, "waived": 1}
    assert sorted(lost_ones) == [(one, n + 1) for one, many in counted.items() for n in range(many)]
    (gate,) = (one for one in recorded("lost") if one["cell"] == "mine(fate=gate)")
    assert gate["again"] == [named("first", "gate"), "shutdown[mine(fate=gate)]"]
    orders = [one["arguments"] for one in json.loads(Path("orders.json").read_text())]
    assert sum(named("second", "gate") in one for one in orders) == 1
    assert sum(named("first", "gate") in one for one in orders) == 2
    assert sum(named("second", "cut") in one for one in orders) == 1
    assert "fail: test_second[mine(fate=cut)]: 1 < 2" in result.outlines
    (cut,) = (one for one in recorded("lost") if one["cell"] == "mine(fate=cut)")
    assert cut["verdicts"] == {"fail": 1, "pass": 1}
    assert sum(named("first", "task") in one for one in orders) == 1
    text = str(result.stdout)
    assert "waived: test_second[mine(fate=waived)]: because" in text
    for others in (0, 1):
        told_again = f"do not count: {others}, that failed and stand: 1; the cell runs again"
        assert told_again in text
    # why there is no verdict
    again = "its node was lost 3 times, the last time a (10.0.0.1): NodeDiedError"
    assert again in verdicts["lost"][0]["reason"]
    assert "RuntimeEnvSetupError: no space left" in verdicts["task"][0]["reason"]
    assert "it ended (exit 4)" in verdicts["silent"][1]["reason"]
    assert "no such option" in text


def test_a_cell_that_no_node_takes_does_not_apply(told) -> None:
    result = told(nodes=({"CPU": 0.0},))
    assert result.ret == 7
    assert {one["verdict"] for one in recorded("verdict")} == {"not_applicable"}
    assert "a (10.0.0.1): 0 CPU, 0 GPU" in recorded("verdict")[0]["reason"]
    assert Path("cancelled").exists()


def test_a_node_that_is_added_in_time_takes_the_cell(told) -> None:
    nodes = ({"CPU": 0.0}, {"CPU": 0.0}, {}, {"CPU": 1.0})
    news = (event("began"), *concluded("first", "", "pass"), *concluded("second", "", "pass"))
    result = told(*news, nodes=nodes, options=("--ray-wait", "60"))
    assert result.ret == 0
    assert not Path("cancelled").exists()


@pytest.mark.parametrize(
    ("news", "message"),
    [
        (event("another", source="9.9 (sha256 1)"), "a (10.0.0.1) has servematrix 9.9"),
        (event("report", report={"$report_type": "TestReport"}), "not understood: KeyError"),
    ],
)
def test_a_node_that_is_not_understood_ends_the_run(told, news: Any, message: str) -> None:
    result = told(event("began"), news)
    assert result.ret == 4
    assert message in str(result.stdout)


@pytest.mark.parametrize(
    ("news", "message"),
    [
        (event("nothing"), "KeyError: 'nothing'"),
        (event("record", line="no json", file=None), "not JSON"),
        (record("measurement", cell=7), "key 'cell' is 7"),
        (event("record", line='{"kind": "verdict"}', file=None), "KeyError: 'time'"),
        (event("log", text=None), "TypeError|AttributeError"),
    ],
)
def test_what_a_node_tells_is_checked(
    folder: Path, tmp_path: Path, news: Any, message: str
) -> None:
    config = configs.load(folder, "mine")
    part = Part(PlannedCell(Cell(config), config, ()), [], Demand(), host="a", node="10.0.0.1")
    pytest_config: Any = None
    incoming = Incoming(pytest_config, Run.create(tmp_path / "results", "r"), Kept())
    with pytest.raises(records.RecordsError, match=message):
        incoming.take(part, news["event"])


def test_a_cell_is_asked_for_as_the_run_was_and_its_failure_may_end_it(told) -> None:
    Path("items.jsonl").write_text("{}\n")
    options = ("--set", "environment.A=b c", "--hellaswag", "items.jsonl", "--no-baseline", "-x")
    Path("known.toml").write_text("")
    result = told(
        event("began"),
        *concluded("first", "", "fail"),
        event("ended", how="exit 1", output=""),
        options=(*options, "--waivers", "known.toml"),
    )
    assert result.ret == 1
    assert "stopping after 1 failures" in str(result.stdout)
    assert len(recorded("verdict")) == 1, "the other test is not looked at"
    (order,) = json.loads(Path("orders.json").read_text())
    line = order["arguments"]
    assert "--executor=local" in line
    assert "--config=mine" in line
    assert "--configs=configs" in line
    assert "--set=environment.A=b c" in line
    assert "--hellaswag=items.jsonl" in line
    assert "--engine=reference" in line
    assert "--no-baseline" in line
    assert "--waivers=known.toml" in line
    assert line[-2:] == [named("first"), named("second")]
    assert order["source"] == provenance.source()
    assert order["root"] == str(Path.cwd())


def test_workers_and_a_cluster_exclude_one_another(told) -> None:
    result = told(options=("-n", "2"))
    assert result.ret == 4
    assert "-n with --executor ray" in str(result.stderr)
    assert not Path("results").exists()


def test_a_run_that_only_collects_needs_no_cluster(told) -> None:
    result = told(options=("--collect-only", "-q"))
    assert result.ret == 0
    assert named("first") in result.outlines
    assert not Path("orders.json").exists()


def test_records_of_a_run_are_read_with_the_nodes_of_it(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "r")
    run.begin("run", engine="sglang", simulated=False, gpus=[])
    run.write("node", cell="a", gpus="none")
    with pytest.raises(records.RecordsError, match="key 'gpus' is 'none'"):
        list(records.read(run.folder))
