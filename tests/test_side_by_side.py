"""Kits of one cell side by side: which, how they are reported, and what an interrupt leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from servematrix import kits, records
from test_session import CONFIG

SUITE = """
import os, time
from pathlib import Path
import pytest
from servematrix.gates.verdict import Verdict
from servematrix.kits.base import Kit, concludes

GOOD = Verdict("pass", "a rule", "it is good")


def met(mine, other, seconds=10):
    Path(mine).touch()
    until = time.monotonic() + seconds
    while not Path(other).exists() and time.monotonic() < until:
        time.sleep(0.01)
    return Path(other).exists()


class OneMixin(Kit):
    kit = "one"

    @concludes("one", beside_others=True)
    def test_one(self):
        BODY_1


class TwoMixin(Kit):
    kit = "two"

    @concludes("two", beside_others=True)
    def test_two(self):
        BODY_2


class AloneMixin(Kit):
    kit = "alone"

    @concludes("alone")
    def test_alone(self):
        BODY_3


@pytest.mark.suite("mine")
class TestMine(BASES):
    pass
"""
MEET = ("return GOOD if met('1', '2') else Verdict('fail', 'they meet', 'no')",) * 2
MEET = (MEET[0], MEET[1].replace("'1', '2'", "'2', '1'"))


LAST = "AloneMixin, TwoMixin, OneMixin"
BETWEEN = "TwoMixin, AloneMixin, OneMixin"
"""The bases, of which pytest runs the tests of the last one first."""


def write(one: str, two: str, alone: str = "return GOOD", bases: str = LAST) -> None:
    Path("configs").mkdir(exist_ok=True)
    Path("configs/mine.toml").write_text(CONFIG)
    Path("pytest.ini").write_text(
        "[pytest]\naddopts = -p servematrix.plugin --import-mode=importlib\n"
    )
    text = (
        SUITE.replace("BASES", bases)
        .replace("BODY_1", one)
        .replace("BODY_2", two)
        .replace("BODY_3", alone)
    )
    Path("test_mine.py").write_text(text)


COMMAND = ("--engine", "reference", "--config", "mine")


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def run(*tests: str, options: tuple[str, ...] = ()) -> pytest.RunResult:
        write(*tests)
        return pytester.runpytest_subprocess(*COMMAND, *options, timeout=120)

    return run


def verdicts() -> list[tuple[str, str]]:
    found = records.read(Path("results/latest"))
    return [(one["kit"], one["verdict"]) for one in found if one["kind"] == "verdict"]


def test_kits_that_may_meet_do(run) -> None:
    result = run(*MEET, "return Verdict('pass' if met('3', '1') else 'fail', 'r', 'after')")
    result.assert_outcomes(passed=3)
    assert result.ret == 0
    assert sorted(verdicts()) == [("alone", "pass"), ("one", "pass"), ("two", "pass")]
    assert verdicts()[-1][0] == "alone"


@pytest.mark.parametrize("bases", [LAST, BETWEEN])
def test_a_kit_that_needs_the_server_alone_has_it(run, bases: str) -> None:
    slow = "met('2', '1'); time.sleep(1); Path('2 ended').touch(); return GOOD"
    alone = "return GOOD if Path('2 ended').exists() else Verdict('fail', 'alone', 'it was not')"
    result = run(MEET[0], slow, alone, bases)
    result.assert_outcomes(passed=3)
    (row,) = (line.split() for line in result.outlines if " two  " in line)
    assert float(row[-1]) >= 1.0, "what it took, and not how long pytest waited for it"


@pytest.mark.parametrize("options", [("-k", "one or alone"), ("-x",), ("--maxfail", "2")])
def test_one_at_a_time_where_that_is_asked_for(run, options) -> None:
    apart = "return GOOD if not met('1', '2', 1) else Verdict('fail', 'apart', 'it was not')"
    result = run(apart, "met('2', '2'); return GOOD", options=options)
    assert result.ret == 0, result.stdout


def test_each_is_told_at_its_own_turn(run) -> None:
    bad = "met('2', '1'); return Verdict('fail', 'two is good', 'two is not')"
    result = run(MEET[0], bad)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*_ TestMine.test_two?mine? _*",
            "*fail: two is not*",
            "*Captured stdout call*",
            "two.test_two: fail: two is not",
        ]
    )
    assert ("one", "pass") in verdicts()
    assert ("two", "fail") in verdicts()


def test_what_breaks_is_an_error_of_its_own(run) -> None:
    result = run(MEET[0], "met('2', '1'); raise ZeroDivisionError('no number')")
    assert ("two", "error") in verdicts()
    assert ("one", "pass") in verdicts()
    result.stdout.fnmatch_lines(["*no number*"])


def test_a_death_is_told_and_no_verdict_comes_twice(run) -> None:
    kill = (
        "met('2', '1'); import psutil, signal\n"
        "        for one in psutil.process_iter(['cmdline']):\n"
        "            line = one.info['cmdline'] or []\n"
        "            port = self.base_url.rpartition(':')[2]\n"
        "            if port in line and 'servematrix.engines.guard' not in line: one.kill()\n"
        "        time.sleep(0.5)\n"
        "        self.client.model_info()\n"
        "        return GOOD"
    )
    result = run("met('1', '2'); return GOOD", kill)
    assert result.ret == 6
    assert sorted(verdicts()) == [("alone", "error"), ("one", "pass"), ("two", "error")]


def test_a_worker_that_goes_on_for_another_repeats_nothing(run) -> None:
    dies = "met('3', '3'); os._exit(1)"
    result = run(*MEET, dies, BETWEEN, options=("-n", "1"))
    assert result.ret == 1
    kits = [kit for kit, _ in verdicts()]
    assert kits.count("one") == 1
    result.stdout.fnmatch_lines(["*crashed*test_alone*", "*1 failed, 2 passed*"])


def test_an_interrupt_leaves_no_finding(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    waits = "met('1', '2'); time.sleep(1); self.client.model_info(); return GOOD"
    write(waits, "met('2', '1'); time.sleep(60); return GOOD")
    environment = {name: at for name, at in os.environ.items() if name != "PYTEST_ADDOPTS"}
    command = [sys.executable, "-m", "pytest", *COMMAND]
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (Path("1").exists() and Path("2").exists()):
        assert run.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    run.send_signal(signal.SIGTERM)
    told, _ = run.communicate(timeout=60)
    assert run.returncode == 2, told
    assert verdicts() == []


SHARED = {"api_contract": 9, "decode_correctness": 7, "hellaswag": 1}


def test_which_tests_may_meet() -> None:
    found: dict[str, int] = {}
    for mixin in kits.MIXINS:
        for name, one in vars(mixin).items():
            if name.startswith("test_") and one.beside_others:
                found[mixin.kit] = found.get(mixin.kit, 0) + 1
    assert found == SHARED, json.dumps(found)
