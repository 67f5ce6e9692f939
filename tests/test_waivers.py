"""Known failures: the file, what it waives, for how long, and what a run makes of it."""

from __future__ import annotations

import datetime
import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli_w

from servematrix import cli, config, records, waivers
from servematrix.calibration import measured
from servematrix.config import ConfigError
from servematrix.kits import MIXINS
from servematrix.outcome import Outcome
from servematrix.verdicts import Verdicts

ROOT = Path(__file__).resolve().parent.parent
TODAY = datetime.date(2026, 11, 22)
LINK = "https://example.org/issues/7"
ENTRY = {
    "cell": "mine(size=1)",
    "kit": "cuda_graph",
    "reason": "graphs are not replayed",
    "link": LINK,
    "expires": datetime.date(2099, 1, 31),
}

CONFIG = """
description = "for tests"
stage = "t"
estimated_seconds = 1
suites = ["mine"]
axis.size = [1, 2]
[model]
path = "org/model"
"""

SUITE = """
import os, signal
import pytest
from servematrix.gates.verdict import Verdict
from servematrix.kits.base import Kit


@pytest.mark.suite("mine")
class TestMine(Kit):
    kit = "cuda_graph"

    def test_cuda_graph_passes(self, cell):
        at = cell.id[-2]
        outcome = os.environ.get(f"AT_{at}", "pass")
        if outcome == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        self.conclude(Verdict(outcome, rule="a rule", reason=f"it is {outcome}"))
"""


class Project:
    """A project whose suite runs in two cells; the environment says how their tests end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configs = folder / "configs"
        self.configs.mkdir()
        (folder / "pytest.ini").write_text(
            "[pytest]\naddopts = -p servematrix.plugin --import-mode=importlib\n"
        )
        (self.configs / "mine.toml").write_text(CONFIG)
        (folder / "test_mine.py").write_text(SUITE)

    def waive(self, *entries: dict[str, Any], name: str = config.WAIVERS) -> Path:
        path = self.configs / name
        path.write_text(tomli_w.dumps({"waivers": list(entries)}))
        return path

    def load(self, *entries: dict[str, Any], today: datetime.date = TODAY) -> waivers.Waivers:
        return waivers.load(self.waive(*entries), self.configs, today)

    def run(self, *options: str, **variables: str) -> tuple[int, str]:
        """Run to the end; returns the status and what was printed."""
        command = [sys.executable, "-m", "pytest", "--engine", "reference", *options]
        inherited = {name: at for name, at in os.environ.items() if name != "PYTEST_ADDOPTS"}
        ended = subprocess.run(
            [*command, "--config", "mine"],
            cwd=self.folder,
            env=inherited | variables,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return ended.returncode, ended.stdout + ended.stderr

    def recorded(self, kind: str) -> list[dict[str, Any]]:
        found = records.read(self.folder / "results" / "latest")
        return [record for record in found if record["kind"] == kind]


@pytest.fixture
def mine(tmp_path: Path) -> Project:
    return Project(tmp_path)


# -- the file ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"cell": "mine(size=3)"}, "key 'cell': no cell 'mine(size=3)' (did you mean 'mine(size="),
        ({"cell": "other(*)"}, "key 'cell': no cell 'other(*)'"),
        ({"kit": "cuda_grahp"}, "key 'kit': no kit 'cuda_grahp' (did you mean 'cuda_graph'?)"),
        ({"test": "test_cuda"}, "kit 'cuda_graph' has no test 'test_cuda'"),
        ({"reason": "  "}, "key 'reason': say why"),
        ({"reason": None}, "key 'reason' is missing"),
        ({"link": "example.org/7"}, "an http:// or https:// URL, such as that of an issue (found"),
        ({"link": "file:///etc/passwd"}, "key 'link'"),
        ({"link": "https://"}, "key 'link'"),
        (
            {"link": "https://me:hunter2@example.org/7"},
            "leave user and password out (found 'https://***@",
        ),
        ({"expires": "2099-01-31"}, "key 'expires'"),
        ({"expires": datetime.datetime(2099, 1, 31, 12)}, "key 'expires'"),
        ({"expires": None}, "key 'expires' is missing"),
        ({"expiry": 1}, "unknown key 'expiry' (did you mean 'expires'?); allowed here: cell, "),
    ],
)
def test_what_is_wrong_with_an_entry_is_told_with_file_and_number(
    mine: Project, change: dict[str, Any], told: str
) -> None:
    entry = {key: value for key, value in (ENTRY | change).items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        mine.load(ENTRY | {"cell": "mine(size=2)"}, entry)
    assert f"{mine.configs / 'waivers.toml'}, entry 2: " in str(caught.value)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("waivers = 3", "key 'waivers'"),
        ("[[waiver]]\ncell = 'x'", "unknown key 'waiver' (did you mean 'waivers'?)"),
        ("[[waivers]\n", "not valid TOML"),
    ],
)
def test_a_file_of_another_form_is_refused(mine: Project, text: str, told: str) -> None:
    (mine.configs / "waivers.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        waivers.find(mine.configs)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {}),
        ({"cell": "mine(*)"}, {}),
        ({"cell": "mine(size=?)"}, {"cell": "mine*"}),
        ({}, {"test": "test_cuda_graph_passes"}),
    ],
)
def test_two_entries_for_one_failure_are_refused(
    mine: Project, first: dict[str, str], second: dict[str, str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        mine.load(ENTRY | first, ENTRY | second)
    told = str(caught.value)
    assert "entry 2: waives mine(size=1) cuda_graph.test_cuda_graph_passes, as entry 1" in told


def test_entries_beside_one_another(mine: Project) -> None:
    consistency = ENTRY | {"kit": "decode_consistency"}
    prefix = consistency | {"test": "test_prefix_cache_isolation"}
    decode = consistency | {"test": "test_decode_matches_prefill"}
    found = mine.load(ENTRY, ENTRY | {"cell": "mine(size=2)"}, prefix, decode)
    one = found.of("mine(size=1)", "decode_consistency", "test_decode_matches_prefill")
    assert one is not None
    assert one.number == 4
    assert found.of("mine(size=2)", "decode_consistency", "test_decode_matches_prefill") is None
    assert found.of("mine(size=1)", "hellaswag", "test_accuracy_floor") is None


def test_an_entry_counts_on_its_last_day(mine: Project) -> None:
    for days, expired in ((-1, False), (0, False), (1, True)):
        today = ENTRY["expires"] + datetime.timedelta(days=days)
        (one,) = mine.load(ENTRY, today=today).about("mine(size=1)")
        assert one.expired is expired, days


def test_every_kit_is_named_as_its_verdicts_are() -> None:
    """The names in a file are those of the classes; verdicts take those of the decorators."""
    for mixin in MIXINS:
        tests = waivers._tests_by_kit()[mixin.kit]
        decorated = [inspect.getclosurevars(getattr(mixin, test)).nonlocals for test in tests]
        assert {one["kit"] for one in decorated} == {mixin.kit}
        assert [one["method"].__name__ for one in decorated] == list(tests)


PASS = {"pass"}


@pytest.mark.parametrize(
    ("outcomes", "needless"),
    [
        ([PASS, PASS, PASS, PASS], True),
        ([PASS, {"not_applicable"}, PASS, PASS], True),
        ([PASS, PASS, PASS, {"pass", "fail"}], False),
        ([PASS, PASS, PASS, {"fail"}], False),
        ([PASS, {"inconclusive"}, PASS, PASS], False),
        ([PASS, {"error"}, PASS, PASS], False),
        ([PASS, PASS, PASS, None], False),
        ([PASS, PASS, None, None], False),
        ([PASS, PASS, {"not_applicable"}, {"not_applicable"}], False),
        ([None, None, None, None], False),
    ],
)
def test_what_is_to_be_removed(
    mine: Project, outcomes: list[set[str] | None], needless: bool
) -> None:
    """A pattern is of all its cells, an entry without a test is of all tests of its kit."""
    found = mine.load(ENTRY | {"cell": "mine(size=*)", "kit": "decode_consistency"})
    (one,) = found.about("mine(size=1)")
    keys = [(cell, one.kit, test) for cell in one.cells for test in one.tests]
    assert len(keys) == 4
    reached = {key: seen for key, seen in zip(keys, outcomes, strict=True) if seen is not None}
    assert (found.needless(reached) == [one]) is needless


def test_which_file(mine: Project) -> None:
    assert not waivers.find(mine.configs).about("mine(size=1)")
    mine.waive(ENTRY)
    other = mine.waive(ENTRY | {"cell": "mine(size=2)"}, name="other.txt")
    assert waivers.find(mine.configs).about("mine(size=1)")
    assert waivers.find(mine.configs, str(other)).about("mine(size=2)")
    assert not waivers.find(mine.configs, ignored=True).about("mine(size=1)")
    with pytest.raises(ConfigError, match="exclude one another"):
        waivers.find(mine.configs, str(other), ignored=True)
    with pytest.raises(ConfigError, match="no such file"):
        waivers.find(mine.configs, "not/there.toml")


def test_the_file_is_no_configuration(mine: Project) -> None:
    mine.waive(ENTRY)
    assert config.names(mine.configs) == ["mine"]
    with pytest.raises(ConfigError, match="no configuration 'waivers'"):
        config.load(mine.configs, "waivers")


def test_a_plan_shows_them(mine: Project, capsys: pytest.CaptureFixture[str]) -> None:
    old = ENTRY | {"cell": "mine(size=2)", "expires": datetime.date(2020, 1, 1)}
    mine.waive(ENTRY | {"reason": "cursor \x1b[2J moves"}, old)
    command = ["plan", "mine", "--engine", "reference", "--configs", str(mine.configs)]
    assert cli.main(command) == 0
    told = capsys.readouterr().out
    assert (
        f"known failure: cuda_graph: waived until 2099-01-31: cursor \\x1b[2J moves ({LINK})"
        in (told)
    )
    assert "known failure: cuda_graph: expired, it waived until 2020-01-01: graphs are" in told
    assert cli.main([*command, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["cells"]
    assert first["waivers"][0]["link"] == LINK
    assert [row["waivers"][0]["expired"] for row in (first, second)] == [False, True]


# -- tests that end with a verdict -----------------------------------------------------------------

JUDGED = """
import os
import pytest
from servematrix.gates.verdict import Verdict
from servematrix.kits.base import Kit


class Cell:
    def __init__(self, name):
        self.id = name


@pytest.mark.suite("mine")
@pytest.mark.parametrize("cell", [Cell("mine(size=1)"), Cell("mine(size=2)")], ids=lambda c: c.id)
class TestMine(Kit):
    kit = "cuda_graph"

    def test_cuda_graph_passes(self, cell, request):
        verdicts = request.config.pluginmanager.get_plugin("verdicts")
        self.reporter = verdicts.reporter(request.node)
        first, _, then = os.environ[f"AT_{cell.id[-2]}"].partition(" and ")
        try:
            self.conclude(Verdict(first, rule="a rule", reason=f"it is {first}"))
        except AssertionError:
            if not then:
                raise
        if then == "raise":
            raise RuntimeError("and this")
        if then:
            self.conclude(Verdict(then, rule="a rule", reason=f"it is {then}"))
"""


class Judged:
    """Both tests of a suite, with the hooks that make verdicts of them and no server."""

    def __init__(self, mine: Project, pytester: pytest.Pytester, patch: pytest.MonkeyPatch) -> None:
        self._mine, self._pytester, self._patch = mine, pytester, patch
        pytester.makepyfile(test_judged=JUDGED)
        patch.delenv("PYTEST_ADDOPTS", raising=False)

    def run(self, known: waivers.Waivers, *outcomes: str, strict: bool = False) -> tuple[int, str]:
        """Run to the end; returns the status and what was printed."""
        for number, outcome in enumerate(outcomes, start=1):
            self._patch.setenv(f"AT_{number}", outcome)
        run = records.Run.create(self._mine.folder / "results", "judged")
        run.begin("run")
        engine = SimpleNamespace(reason="no engine")
        plan: Any = SimpleNamespace(engine=engine, cells=[1], subject=lambda *_, **__: "nothing")

        class Hooks:
            def pytest_configure(self, config: pytest.Config) -> None:
                config.addinivalue_line("markers", "suite(name): a suite")
                config.pluginmanager.register(Verdicts(run, known), "verdicts")
                config.pluginmanager.register(Outcome(run, plan, known, strict=strict))

        found = self._pytester.runpytest_inprocess("-v", "-x", plugins=[Hooks()])
        return int(found.ret), "\n".join([*found.outlines, *found.errlines])


@pytest.fixture
def judged(mine: Project, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Judged:
    return Judged(mine, pytester, monkeypatch)


def test_a_waived_failure_is_shown_counted_and_does_not_fail_the_run(
    mine: Project, judged: Judged
) -> None:
    status, text = judged.run(mine.load(ENTRY), "fail", "pass")
    assert status == 0, text
    assert "test_cuda_graph_passes[mine(size=1)] WAIVED" in text
    last = text.splitlines()[-1]
    assert "exit 0 (nothing failed but what is waived): 1 pass, 1 waived" in last
    (told,) = [line for line in text.splitlines() if line.startswith("waived: ")]
    assert told == (
        "waived: test_cuda_graph_passes[mine(size=1)]: it is fail; waived until 2099-01-31: "
        f"graphs are not replayed ({LINK})"
    )
    first, second = mine.recorded("verdict")
    assert first["verdict"] == "fail"
    assert first["waived"] == {
        "reason": "graphs are not replayed",
        "link": LINK,
        "expires": "2099-01-31",
    }
    assert "waived" not in second
    assert mine.recorded("end")[0]["counts"] == {"waived": 1, "pass": 1}
    assert not mine.recorded("waiver")


@pytest.mark.parametrize(
    ("first", "second", "status", "told"),
    [
        ("fail", "fail", 1, "1 fail, 1 waived"),
        ("fail", "inconclusive", 7, "1 inconclusive, 1 waived"),
        ("error", "pass", 1, "1 error"),
        ("inconclusive", "pass", 7, "1 inconclusive, 1 pass"),
        ("fail", "not_applicable", 0, "1 not_applicable, 1 waived"),
        ("fail and raise", "pass", 1, "1 fail"),
        ("fail and pass", "pass", 0, "2 pass"),
        ("pass and fail", "pass", 0, "1 pass, 1 waived"),
    ],
)
def test_only_a_failure_is_waived_and_only_its_own(
    mine: Project, judged: Judged, first: str, second: str, status: int, told: str
) -> None:
    """The runs end at their first failure (-x), which a waived one is not."""
    reached, text = judged.run(mine.load(ENTRY), first, second)
    assert reached == status, text
    assert f"): {told};" in text.splitlines()[-1]
    others = [one for one in mine.recorded("verdict") if one["verdict"] != "fail"]
    assert not [one for one in others if "waived" in one]


def test_strict_fails_for_what_is_not_applicable_and_not_for_what_is_waived(
    mine: Project, judged: Judged
) -> None:
    known = mine.load(ENTRY)
    assert judged.run(known, "fail", "pass", strict=True)[0] == 0
    status, text = judged.run(known, "fail", "not_applicable", strict=True)
    assert status == 1
    assert "--strict: 1 not applicable" in text.splitlines()[-1]


def test_an_expired_waiver_fails_and_says_so(mine: Project, judged: Judged) -> None:
    known = mine.load(ENTRY, today=datetime.date(2099, 2, 1))
    status, text = judged.run(known, "fail", "pass")
    assert status == 1, text
    (verdict,) = mine.recorded("verdict")
    assert "it is fail; its waiver expired on 2099-01-31 (" in verdict["reason"]
    assert f"waivers.toml, entry 1; graphs are not replayed; {LINK})" in verdict["reason"]
    assert "waived" not in verdict
    assert verdict["reason"] in text
    (head,) = known.summary(["mine(size=1)"])
    assert head.endswith(f"expired: {mine.configs / 'waivers.toml'}, entry 1")
    assert known.summary(["mine(size=2)"]) == []


@pytest.mark.parametrize("today", [TODAY, datetime.date(2099, 2, 1)])
def test_a_waiver_that_is_no_longer_needed_is_reported(
    mine: Project, judged: Judged, today: datetime.date
) -> None:
    known = mine.load(ENTRY | {"cell": "mine(*)"}, today=today)
    status, text = judged.run(known, "pass", "pass")
    assert status == 0, text
    where = mine.configs / "waivers.toml"
    assert f"waiver to be removed: {where}, entry 1: mine(*) cuda_graph: all that it" in text
    (record,) = mine.recorded("waiver")
    assert (record["cell"], record["kit"], record["entry"]) == ("mine(*)", "cuda_graph", 1)


# -- a whole run ---------------------------------------------------------------------------------


def test_workers_judge_and_their_controller_counts(mine: Project) -> None:
    mine.waive(ENTRY, ENTRY | {"cell": "mine(size=2)"})
    status, text = mine.run("-n", "2", AT_1="fail")
    assert status == 0, text
    assert "servematrix: known failures: 2 in " in text
    assert "): 1 pass, 1 waived;" in text.splitlines()[-1]
    assert "waiver to be removed: " in text
    (record,) = mine.recorded("waiver")
    assert (record["cell"], record["entry"]) == ("mine(size=2)", 2)


def test_a_waiver_that_is_wrong_starts_nothing(mine: Project) -> None:
    mine.waive(ENTRY | {"cell": "main"})
    status, text = mine.run()
    assert status == 4, text
    assert "waivers.toml, entry 1: key 'cell': no cell 'main'" in text
    assert not (mine.folder / "results").exists()


def test_what_was_waived_or_passed_before_a_run_broke_counts(mine: Project) -> None:
    path = mine.waive(ENTRY)
    status, text = mine.run(AT_1="fail", AT_2="killed")
    assert status == -signal.SIGKILL, text
    path.unlink()
    pattern = mine.waive(ENTRY | {"cell": "mine(*)"}, name="other.txt")
    status, text = mine.run("--resume", "latest", f"--waivers={pattern}")
    assert status == 0, text
    assert "1 verdicts kept from results/" in text
    assert "(1 waived)" in text
    assert "1 pass, 1 waived (1 of them kept" in text.splitlines()[-1]
    assert "waived: test_cuda_graph_passes[mine(size=1)]: reached before this run" in text
    assert f"waived until 2099-01-31: graphs are not replayed ({LINK})" in text
    assert "to be removed" not in text, "what failed before is not forgotten"


@pytest.mark.parametrize("ignored", [False, True])
def test_a_real_kit_on_a_faulty_server_and_what_a_baseline_makes_of_it(
    tmp_path: Path, ignored: bool
) -> None:
    path = tmp_path / "waivers.toml"
    entry = ENTRY | {"cell": "baseline", "kit": "api_contract", "test": "test_openai_completion"}
    chat = entry | {"test": "test_openai_chat_completion"}
    path.write_text(tomli_w.dumps({"waivers": [entry, chat]}))
    command = [sys.executable, "-m", "pytest", "suites/test_one_kit.py", "--config", "baseline"]
    command += ["--engine", "reference", "--set", 'suites=["only_api_contract"]']
    command += ["--set", "arguments.fault=field-missing", f"--results={tmp_path / 'results'}"]
    waived = "--no-waivers" if ignored else f"--waivers={path}"
    ended = subprocess.run(
        [*command, waived], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == int(ignored), ended.stdout
    counts = "2 fail, 7 pass" if ignored else "7 pass, 2 waived"
    assert counts in ended.stdout.splitlines()[-1]
    found = measured.read(tmp_path / "results" / "latest", "baseline")
    assert len([one for one in found.bad if "test_openai" in one]) == 2, (
        "not healthy, waived or not"
    )
