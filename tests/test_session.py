"""A whole run, as a person starts it: exit statuses, records, and what the last line says."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servematrix import records
from servematrix.engines import ready

CONFIG = """
description = "for tests"
stage = "t"
estimated_seconds = 1
suites = ["mine"]
[model]
path = "org/model"
[arguments]
enable-metrics = true
"""

SUITE = """
import contextlib, os, signal
import psutil
import pytest
from servematrix.gates.verdict import Verdict
from servematrix.kits.base import Kit


class MineMixin(Kit):
    kit = "mine"

    def end(self, outcome):
        self.measure("answer", 42, "1")
        self.conclude(Verdict(outcome, rule="a rule", reason=f"it is {outcome}", numbers={"n": 1}))

    def kill_the_server(self, wait=True):
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):  # it may end while it is looked at
                line = process.cmdline()
                if "servematrix.engines.reference" in line and self.base_url.split(":")[-1] in line:
                    if "servematrix.engines.guard" not in line:
                        os.kill(process.pid, signal.SIGKILL)
                        while wait and process.is_running() and process.status() != "zombie":
                            psutil.wait_procs([process], timeout=0.1)


@pytest.mark.suite("mine")
class TestMine(MineMixin):
    TESTS
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Run a suite made of the given tests; the configuration is `mine`."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makefile(
        ".ini", pytest="[pytest]\naddopts = -p servematrix.plugin --import-mode=importlib\n"
    )
    Path("configs").mkdir()
    Path("configs/mine.toml").write_text(CONFIG)

    def run(*tests: str, options: tuple[str, ...] = ("--config", "mine")) -> pytest.RunResult:
        bodies = "\n\n    ".join(
            f"def test_{number}(self):\n        {body}" for number, body in enumerate(tests)
        )
        pytester.makepyfile(test_mine=SUITE.replace("TESTS", bodies))
        return pytester.runpytest_subprocess("--engine", "reference", *options, timeout=120)

    return run


def recorded(kind: str) -> list[dict[str, Any]]:
    found = list(records.read(Path("results/latest")))
    return [record for record in found if record["kind"] == kind]


def last_line(result: pytest.RunResult) -> str:
    return result.outlines[-1]


@pytest.mark.parametrize(
    ("outcomes", "status", "meaning"),
    [
        (["pass"], 0, "all verdicts pass"),
        (["pass", "fail"], 1, "a verdict failed"),
        (["pass", "error"], 1, "could not be made"),
        (["pass", "inconclusive"], 7, "inconclusive"),
        (["fail", "inconclusive"], 1, "a verdict failed"),
        (["not_applicable"], 7, "not applicable"),
        (["pass", "not_applicable"], 0, "1 not_applicable, 1 pass"),
    ],
)
def test_outcomes_become_a_status_and_records(
    run, outcomes: list[str], status: int, meaning: str
) -> None:
    result = run(*(f"self.end({outcome!r})" for outcome in outcomes))
    assert result.ret == status, result.stdout
    assert f"servematrix: exit {status} (" in last_line(result)
    assert meaning in last_line(result)
    verdicts = recorded("verdict")
    assert [verdict["verdict"] for verdict in verdicts] == outcomes
    assert verdicts[0].items() >= {"cell": "mine", "kit": "mine", "rule": "a rule"}.items()
    assert recorded("end")[0]["exit_code"] == status


@pytest.mark.parametrize(
    ("outcomes", "status", "meaning"),
    [
        (["pass"], 0, "all verdicts pass"),
        (["pass", "not_applicable"], 1, "--strict: 1 not applicable, which is no pass"),
        (["fail", "not_applicable"], 1, "a verdict failed"),
    ],
)
def test_strict_makes_what_does_not_apply_fail(
    run, outcomes: list[str], status: int, meaning: str
) -> None:
    tests = (f"self.end({outcome!r})" for outcome in outcomes)
    result = run(*tests, options=("--config", "mine", "--strict"))
    assert result.ret == status, result.stdout
    assert f"servematrix: exit {status} ({meaning}" in last_line(result)


def test_first_and_last_the_engine_is_named_and_labelled(run) -> None:
    result = run("self.end('pass')")
    first = next(line for line in result.outlines if line.startswith("servematrix:"))
    for line in (first, last_line(result)):
        assert "engine reference (simulated: says that the matrix works, never that" in line
    header, cell = recorded("run")[0], recorded("cell")[0]
    assert header["engine"] == "reference"
    assert header["simulated"] is True
    assert header["configurations"].keys() == {"mine"}
    assert "servematrix.engines.reference" in cell["command"]
    assert 0 < cell["startup_seconds"] < 60
    assert recorded("measurement")[0]["value"] == 42


def test_a_stand_in_is_what_runs_and_what_is_recorded(run) -> None:
    Path("configs/other.toml").write_text('instead.reference = "mine"\n' + CONFIG)
    result = run("self.end('pass')", options=("--config", "other"))
    assert result.ret == 0
    assert "servematrix: cells mine in place of other;" in "\n".join(result.outlines)
    (cell,) = recorded("cell")
    assert (cell["cell"], cell["in_place_of"]) == ("mine", ["other"])
    assert cell["note"].startswith("simulated: ")
    assert recorded("run")[0]["configurations"].keys() == {"mine"}


def test_the_items_that_a_configuration_chooses_are_said(run) -> None:
    Path("configs/own.toml").write_text(CONFIG + "[kits.hellaswag]\npackaged = false\n")
    result = run("self.end('pass')", options=("--config", "mine,own"))
    told = "HellaSwag data: packaged reference items, Rowan/hellaswag;"
    assert told in "\n".join(result.outlines)


def test_a_test_without_a_verdict_is_an_error(run) -> None:
    result = run("pass", "1 / 0")
    assert result.ret == 1
    assert [verdict["verdict"] for verdict in recorded("verdict")] == ["error", "error"]
    assert "ZeroDivisionError" in recorded("verdict")[1]["reason"]


def test_a_server_that_dies_ends_its_cell_at_once(run) -> None:
    result = run("self.end('pass')", "self.kill_the_server(); self.end('fail')", "self.end('pass')")
    assert result.ret == 6
    assert "a server did not start, could not be reached or died" in last_line(result)
    verdicts = recorded("verdict")
    assert [verdict["verdict"] for verdict in verdicts] == ["pass", "fail", "error"]
    assert "SIGKILL" in verdicts[2]["reason"]
    assert "SIGKILL" in recorded("death")[0]["reason"]


def test_a_server_that_dies_in_its_last_test_is_told(run) -> None:
    """Its process is gone before its guard has told how it ended."""
    result = run("self.kill_the_server(wait=False); self.end('error')")
    assert result.ret == 6
    assert "the server died" in "\n".join(result.outlines)


def test_a_terminated_run_stops_its_server_and_says_so(run) -> None:
    result = run("self.end('pass')", "os.kill(os.getpid(), signal.SIGTERM); self.end('pass')")
    assert result.ret == 2
    assert "servematrix: exit 2 (interrupted)" in last_line(result)
    folder = Path("results/latest").resolve()
    assert last_line(result).endswith(f"; go on with the same command and --resume {folder.name}")
    assert [verdict["verdict"] for verdict in recorded("verdict")] == ["pass"]
    assert recorded("end")[0]["exit_code"] == 2


def test_a_server_that_does_not_start_is_told_once_with_its_log(run) -> None:
    options = ("--config", "mine", "--model", "/no/such/model")
    result = run("self.end('pass')", "self.end('pass')", options=options)
    assert result.ret == 6
    assert [verdict["verdict"] for verdict in recorded("verdict")] == ["error", "error"]
    assert "/no/such/model" in recorded("verdict")[0]["reason"]
    assert sum("Cannot start: --model-path" in line for line in result.outlines) == 1
    assert "2 error" in last_line(result)


def test_an_unreachable_base_url(run) -> None:
    result = run(
        "self.end('pass')", options=("--config", "mine", "--base-url", "http://127.0.0.1:9")
    )
    assert result.ret == 6
    assert "127.0.0.1:9" in recorded("verdict")[0]["reason"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "say which server to test: --config NAME, one of mine"),
        (("--set", "model.path=x"), "say which server to test"),
        (("--config", "mien"), "did you mean 'mine'?"),
        (("--config", "mine", "--set", "gates.x=1"), "unknown key 'gates.x'"),
        (("--config", "mine", "--engine", "sglang"), "SGLang|GPU"),
        (("--config", "mine", "--api-key-env", "NOT_THERE"), "NOT_THERE"),
        (("--config", "mine", "--results", "pytest.ini"), "--results DIR"),
        (("--config", "mine", "--engine", "vllm"), "invalid choice"),
        (("--config", "mine", "--engine", "sglang-cpu"), "engine sglang-cpu has none"),
        (("--config", "mine", "--gpus", "0"), "--engine reference uses none"),
        (("--config", "mine", "--port", "99999"), "ports are 1 to 65535"),
        (("--config", "mine", "--start-deadline", "-5"), "must be over 0 s"),
        (("--config", "mine", "--hellaswag", "not/there.jsonl"), "no such file"),
        (("--config", "mine", "--base-url", "http://127.0.0.1:9", "--model", "x"), "leave one out"),
        (
            ("--config", "mine", "--base-url", "http://127.0.0.1:9", "--set", "model.path=x"),
            "one ou",
        ),
        (("--config", "mine", "--base-url", "http://127.0.0.1:9", "-n", "2"), "run without -n"),
        (("--config", "mine", "--port", "34567", "-n", "2"), "run without -n"),
        (("--config", "mine", "--set", "arguments.api-key=x"), "--api-key-env"),
    ],
)
def test_bad_usage_starts_nothing(run, options: tuple[str, ...], message: str) -> None:
    result = run("self.end('pass')", options=options)
    assert result.ret == 4
    text = "\n".join([*result.outlines, *result.errlines])
    assert any(part in text for part in message.split("|")), text
    assert not Path("results").exists() or not recorded("verdict")


def test_a_port_in_use_is_told_before_anything_starts(run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = run("self.end('pass')", options=("--config", "mine", "--port", port))
    assert result.ret == 4
    assert f"port {port}" in "\n".join([*result.outlines, *result.errlines])


def test_a_full_disk_ends_the_run_and_keeps_what_was_measured(run, pytester) -> None:
    pytester.makeconftest(
        """
        import errno, os

        real = os.write

        def write(descriptor, data):
            if b'"verdict"' in data and b"test_1" in data:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(descriptor, data)

        os.write = write
        """
    )
    result = run("self.end('pass')", "self.end('pass')", "self.end('pass')")
    assert result.ret == 4
    assert [verdict["test"] for verdict in recorded("verdict")] == ["test_0"]
    assert "No space left on device" in "\n".join([*result.outlines, *result.errlines])


def test_pytest_options_work_as_ever(run) -> None:
    result = run(
        "self.end('pass')", "self.end('fail')", options=("--config", "mine", "-k", "test_0")
    )
    assert result.ret == 0
    assert run("self.end('pass')", options=("--config", "mine", "-k", "nothing")).ret == 5


def test_collecting_alone_leaves_no_run_behind(run) -> None:
    result = run("self.end('pass')", options=("--config", "mine", "--collect-only"))
    assert result.ret == 0
    assert not Path("results").exists()


def test_a_suite_that_no_cell_names_is_left_out(run) -> None:
    result = run("self.end('pass')")
    assert result.ret == 0
    Path("configs/other.toml").write_text(CONFIG.replace('"mine"', '"other"'))
    Path("test_other.py").write_text(
        "import pytest\n\n\n@pytest.mark.suite('other')\nclass TestOther:\n"
        "    def test_it(self):\n        self.reporter = None\n"
    )
    assert run("self.end('pass')", options=("--config", "other")).ret == 1
    assert [verdict["cell"] for verdict in recorded("verdict")] == ["other"]


def test_a_suite_that_does_not_exist_is_told_and_never_green(run) -> None:
    Path("configs/other.toml").write_text(CONFIG.replace('"mine"', '"mien"'))
    result = run("self.end('pass')", options=("--config", "mine,other"))
    assert result.ret == 4
    assert "other: no suite is called mien; suites collected: mine" in "\n".join(result.errlines)


def test_workers_write_into_one_run(run) -> None:
    Path("configs/mine.toml").write_text("axis.size = [1, 2]\n" + CONFIG)
    result = run("self.end('pass')", options=("--config", "mine", "-n", "2"))
    assert result.ret == 0
    assert {verdict["cell"] for verdict in recorded("verdict")} == {"mine(size=1)", "mine(size=2)"}
    runs = [path for path in Path("results").iterdir() if path.is_dir() and not path.is_symlink()]
    assert len(runs) == 1


def test_a_cell_stays_on_one_worker(run) -> None:
    result = run(*["self.end('pass')"] * 6, options=("--config", "mine", "-n", "2"))
    assert result.ret == 0
    assert len(recorded("cell")) == 1


def test_a_key_reaches_the_server_and_nothing_else(run, monkeypatch) -> None:
    monkeypatch.setenv("MY_KEY", "a-planted-key")
    result = run(
        "self.client.model_info(); self.end('pass')",
        "self.measure('key', os.environ['MY_KEY'], ''); self.end('pass')",
        options=("--config", "mine", "--api-key-env", "MY_KEY"),
    )
    assert result.ret == 0, result.stdout
    for path in Path("results").rglob("*"):
        if path.is_file():
            assert "a-planted-key" not in path.read_text(errors="replace"), path


@pytest.mark.parametrize("key", ["with a line break\n", "a b"])
def test_a_key_that_no_header_carries_is_refused(run, monkeypatch, key: str) -> None:
    monkeypatch.setenv("MY_KEY", key)
    result = run("self.end('pass')", options=("--config", "mine", "--api-key-env", "MY_KEY"))
    assert result.ret == 4
    assert key not in "\n".join([*result.outlines, *result.errlines])


def test_secrets_of_a_configuration_are_nowhere(run) -> None:
    result = run(
        "self.end('pass')",
        options=("--config", "mine", "--set", 'environment.HF_TOKEN="a-planted-token"'),
    )
    assert result.ret == 0
    for path in Path("results").rglob("*"):
        if path.is_file():
            assert "a-planted-token" not in path.read_text(errors="replace"), path


def test_an_axis_cell_is_not_judged_on_a_server_of_another_size(run) -> None:
    text = CONFIG.replace("[arguments]", '[arguments]\ncuda-graph-max-bs = "{size}"')
    Path("configs/mine.toml").write_text("axis.size = [4, 8]\n" + text)
    with running_server("--cuda-graph-max-bs", "4", "--enable-metrics") as url:
        result = run("self.end('pass')", options=("--config", "mine", "--base-url", url))
    verdicts = {verdict["cell"]: verdict for verdict in recorded("verdict")}
    assert verdicts["mine(size=4)"]["verdict"] == "pass"
    assert verdicts["mine(size=8)"]["verdict"] == "not_applicable"
    assert "cuda-graph-max-bs-decode is 4, not 8" in verdicts["mine(size=8)"]["reason"]
    assert result.ret == 0


def test_an_attached_server_of_ours_is_labelled_too(run) -> None:
    with running_server("--enable-metrics") as url:
        result = run("self.end('pass')", options=("--config", "mine", "--base-url", url))
    assert "simulated: says that the matrix works" in last_line(result)
    assert "serving demo" in last_line(result)


@contextlib.contextmanager
def running_server(*flags: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "servematrix.engines.reference", "--model-path", "demo"]
    process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", port, *flags])
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 30
        while ready.check(url, None, deadline) is not None:
            assert time.monotonic() < deadline
        yield url
    finally:
        process.terminate()
        process.wait(timeout=10)


def test_nothing_is_left_running(run) -> None:
    import psutil

    run("self.end('pass')")
    mine = str(Path.cwd())
    left = [
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        if process.info["cwd"] == mine and process.pid != os.getpid()
    ]
    assert left == []


@pytest.mark.parametrize("workers", [(), ("-n", "1")])
def test_what_a_server_keeps_is_told_of_its_own_cell(run, workers) -> None:
    text = CONFIG + 'fault = "memory-kept={mib}"\n'
    Path("configs/mine.toml").write_text("axis.mib = [2, 0.5]\n" + text)
    result = run("self.end('pass')", options=("--config", "mine", *workers))
    verdicts = [(one["cell"], one["kit"], one["verdict"]) for one in recorded("verdict")]
    assert verdicts == [
        ("mine(mib=2)", "mine", "pass"),
        ("mine(mib=2)", "shutdown", "error"),
        ("mine(mib=0.5)", "mine", "pass"),
    ]
    assert result.ret == 1
    assert "1 error, 2 pass" in last_line(result)
    result.stdout.fnmatch_lines(["error: shutdown: the reference server of mine(mib=2) kept 2.0 *"])
    assert not list(Path("/dev/shm").glob("servematrix_reference_*"))


def test_a_server_is_held_to_what_it_was_started_with(run) -> None:
    checks = "self.end('pass' if getattr(self, 'fwd_occupancy_required', False) else 'fail')"
    assert run(checks).ret == 0
    with running_server() as url:
        result = run(checks, options=("--config", "mine", "--base-url", url))
    assert result.ret == 1


# -- the report of a run ------------------------------------------------------------------------


def test_a_run_leaves_a_report_of_its_end(run) -> None:
    result = run("self.end('pass')", "self.end('fail')")
    assert re.fullmatch(r"servematrix: report in results/[^/]+/report.html", result.outlines[-2])
    page = Path("results/latest/report.html").read_text()
    assert "Exit 1: a verdict failed" in page
    assert "it is fail" in page
    assert "End of the server's log" in page


def test_a_report_that_cannot_be_written_changes_nothing_else(run) -> None:
    result = run(
        "from pathlib import Path; "
        "(Path('results/latest').resolve() / 'report.html').mkdir(); self.end('pass')"
    )
    assert result.ret == 0
    assert "servematrix: no report was written (RecordsError: cannot write" in result.outlines[-2]
    assert "servematrix report results/" in result.outlines[-2]
    assert recorded("end")[0]["exit_code"] == 0


def test_a_run_without_a_report(run) -> None:
    result = run("self.end('pass')", options=("--config", "mine", "--no-report"))
    assert result.ret == 0
    assert not Path("results/latest/report.html").exists()
    assert "servematrix: report in" not in result.stdout.str()
