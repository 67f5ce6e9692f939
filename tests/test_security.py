"""What a run shows and leaves, looked through for every key that it was given.

Each key is planted in another way, and each run does its best to give them away. While it runs, its
processes are watched: their command lines, which everybody can read, and where they listen.
"""

from __future__ import annotations

import base64
import contextlib
import html
import ipaddress
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest

from servematrix import cli

Typed = Callable[..., str]
SECONDS = 120

KEYS = {
    name: f'{name}/plånted+"key"&{number}%'
    for number, name in enumerate(
        ["FILE", "OVERRIDE", "SET", "TABLE", "VARIABLE", "HUB", "SERVICE", "PROXY", "SERVERS_PROXY"]
    )
}
"""One for each way to give one to any run."""
API_KEY = 'API/planted+"key"&%'
"""A header carries no other letters."""
ADMIN_KEY = 'ADMIN/plånted+"key"&%'
"""Known to a server alone, which repeats it."""

CONFIG = f"""
description = "for tests"
stage = "t"
estimated_seconds = 1
suites = ["mine"]
[model]
path = "org/model"
[arguments]
enable-metrics = true
[environment]
FILE_TOKEN = {json.dumps(KEYS["FILE"])}
https_proxy = "http://me:{quote(KEYS["SERVERS_PROXY"], safe="")}@127.0.0.1:1"
PYTHONPATH = "."
[[overrides]]
when = {{ engine = "reference" }}
environment = {{ OVERRIDE_SECRET = {json.dumps(KEYS["OVERRIDE"])} }}
[[overrides]]
when = {{ engine = "attach" }}
environment = {{ OVERRIDE_SECRET = {json.dumps(KEYS["OVERRIDE"])} }}
"""

SUITE = """
import json, logging, os, warnings
from pathlib import Path
import pytest
from servematrix.gates.verdict import Verdict
from servematrix.kits.base import Kit, concludes

KEYS = json.loads(Path("keys.json").read_text())
BAD = Verdict("fail", "a rule with " + KEYS["FILE"], "a reason: " + " ".join(KEYS.values()), KEYS)


class MineMixin(Kit):
    kit = "mine"


@pytest.mark.suite("mine")
class TestMine(MineMixin):
    def test_a_verdict(self):
        for name, key in KEYS.items():
            self.measure(name, key, key)
        self.attach("keys", {"by name": KEYS, "by key": {key: [key] for key in KEYS.values()}})
        print(json.dumps(KEYS), *KEYS.values())
        logging.warning("%s", KEYS)
        warnings.warn(str(KEYS))
        self.conclude(BAD)

    def test_a_crash(self):
        inner = list(KEYS.values())
        try:
            raise KeyError(KEYS["HUB"])
        except KeyError:
            raise RuntimeError(*inner)

    def test_a_skip(self):
        pytest.skip(str(KEYS))

    @concludes("mine")
    def test_an_answer(self):
        "Guards against nothing."
        self.client.generate("x", max_new_tokens=2)
        return BAD

    @concludes("mine")
    def test_a_refusal(self):
        "Guards against nothing."
        self.client.chat({"model": "m", "messages": KEYS["HUB"]})

    @concludes("mine")
    def test_a_failure(self):
        "Guards against nothing."
        self.client.completion({"prompt": 1})
"""

TELLTALE = """
import base64, json, os, sys, urllib.parse
if "servematrix.engines.reference" in sys.orig_argv:
    print(dict(os.environ), sys.orig_argv, file=sys.stderr)
    for value in os.environ.values():
        print(value, json.dumps(value), urllib.parse.quote(value), file=sys.stderr)
        basic = base64.b64encode(b"user:" + value.encode()).decode()
        print("Authorization: Basic", basic, file=sys.stderr, flush=True)
    os._exit(3)
"""


class Watch:
    """Command lines and listening addresses of a process and all that comes from it."""

    def __init__(self) -> None:
        self.lines: set[str] = set()
        self.addresses: set[str] = set()
        self._over = threading.Event()

    @contextlib.contextmanager
    def over(self, pid: int) -> Iterator[None]:
        thread = threading.Thread(target=self._watch, args=(psutil.Process(pid),))
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _watch(self, root: psutil.Process) -> None:
        typed = root.cmdline()
        while not self._over.wait(0.02):
            with contextlib.suppress(psutil.Error):
                for process in root.children(recursive=True):
                    self._look(process, typed)

    def _look(self, process: psutil.Process, typed: list[str]) -> None:
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if line != typed:  # as it is from a fork to the start of a program
                self.lines.add("\n".join(line))
            for connection in process.net_connections("all"):
                if connection.status == psutil.CONN_LISTEN and connection.family.name != "AF_UNIX":
                    self.addresses.add(connection.laddr.ip)


class Project:
    """A folder in which runs are started, with every key planted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = dict(KEYS)
        for name in ("configs", "suites", "tmp"):
            (folder / name).mkdir()
        self._inputs = {
            folder / "configs" / "mine.toml": CONFIG,
            folder / "configs" / "smollm2.toml": CONFIG,
            folder / "suites" / "test_mine.py": SUITE,
            folder / "pytest.ini": "[pytest]\naddopts = -p servematrix.plugin -p no:cacheprovider"
            " --import-mode=importlib\n",
            folder / "keys.json": json.dumps(KEYS),
        }
        for path, text in self._inputs.items():
            path.write_text(text)
        self.environment = {
            **{name: value for name, value in os.environ.items() if "PYTEST" not in name},
            "TMPDIR": str(folder / "tmp"),
            "HOME": str(folder / "tmp"),
            "XDG_CACHE_HOME": str(folder / "tmp"),
            "CUDA_VISIBLE_DEVICES": "",
            "OUR_VARIABLE": KEYS["VARIABLE"],
            "HF_TOKEN": KEYS["HUB"],
            "SERVICE_KEY": KEYS["SERVICE"],
            "HTTP_PROXY": f"http://me:{quote(KEYS['PROXY'], safe='')}@127.0.0.1:1",
        }
        self.changes = [
            "--set",
            f"environment.SET_PASSWORD={json.dumps(KEYS['SET'])}",
            "--set",
            f"environment={{TABLE_KEY = {json.dumps(KEYS['TABLE'])}, PLAIN = 'x'}}",
            "--set",
            "environment.GIVEN@=OUR_VARIABLE",
        ]

    def plant(self, **keys: str) -> list[str]:
        """Plant more; returns the option that names the API key's variable."""
        self.keys |= keys
        (self.folder / "keys.json").write_text(json.dumps(self.keys))
        self.environment["OUR_OWN"] = keys["API"]
        return ["--api-key-env", "OUR_OWN"]

    def run(self, *command: str, status: int) -> tuple[str, Watch]:
        """Run a module to its end; what it printed, and what was seen meanwhile."""
        watch = Watch()
        with (
            subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as process,
            watch.over(process.pid),
        ):
            printed, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == status, printed
        return printed, watch

    def assert_silent(self, printed: str, watch: Watch | None = None) -> None:
        """No key stands in what was printed, in a file that was left, in a command line."""
        places = {"the output": printed}
        if watch is not None:
            places |= {f"argv {number}": line for number, line in enumerate(watch.lines)}
        for path in self.folder.rglob("*"):
            if path.is_file() and path not in self._inputs:
                text = path.read_bytes().decode("utf-8", "replace")
                places[str(path.relative_to(self.folder))] = text
        found = [
            f"{name} as {one!r} in {place}: {text[max(0, text.index(one) - 80) :][:160]}"
            for name, key in self.keys.items()
            for one in written(key)
            for place, text in places.items()
            if one in text
        ]
        assert not found, "\n".join(found[:20])


def written(key: str) -> set[str]:
    """A key in the ways in which programs write one; of base64 what does not depend on more."""
    raw = key.encode()
    spellings = {key, json.dumps(key)[1:-1], repr(key)[1:-1], html.escape(key)}
    spellings |= {quote(key), quote(key, safe=""), json.dumps(key, ensure_ascii=False)[1:-1]}
    spellings |= {base64.b64encode(b"x" * more + raw).decode()[4:-4] for more in range(3)}
    return spellings | {key[:16], json.dumps(key)[1:17]}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def assert_on_loopback(watch: Watch) -> None:
    assert watch.addresses, "nothing was seen to listen"
    assert [one for one in watch.addresses if not ipaddress.ip_address(one).is_loopback] == []


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["here", "worker"])
def test_a_run_gives_no_key_away_and_listens_on_loopback(
    project: Project, workers: tuple[str, ...]
) -> None:
    shown = ["-rA", "-l", "-vv", "--junitxml=results/junit.xml", "-o", "log_cli=true"]
    command = ["pytest", "suites", "--config", "mine", "--engine", "reference", *project.changes]
    project.environment |= {
        "GITHUB_ACTIONS": "true",
        "GITHUB_STEP_SUMMARY": str(project.folder / "summary.md"),
    }
    printed, watch = project.run(*command, *project.plant(API=API_KEY), *shown, *workers, status=1)
    assert "a reason: *** ***" in printed
    assert any("servematrix.engines.reference" in line for line in watch.lines)
    told, _ = project.run("servematrix", "history", "mine", status=0)
    project.assert_silent(printed + told, watch)
    assert_on_loopback(watch)
    left = {path.name for path in (project.folder / "results").rglob("*")}
    assert left >= {"report.html", "history.sqlite", "junit.xml"}
    assert "a reason" in (project.folder / "summary.md").read_text()
    records = (project.folder / "results" / "latest" / "records.jsonl").open()
    (cell,) = (one for one in map(json.loads, records) if one["kind"] == "cell")
    assert {"FILE_TOKEN", "OVERRIDE_SECRET", "SET_PASSWORD", "TABLE_KEY", "GIVEN"} == {
        name for name, value in cell["environment"].items() if value == "***"
    }


def test_a_server_that_tells_all_and_dies_gives_no_key_away(project: Project) -> None:
    (project.folder / "sitecustomize.py").write_text(TELLTALE)
    command = ["pytest", "suites", "--config", "mine", "--engine", "reference", *project.changes]
    printed, watch = project.run(*command, *project.plant(API=API_KEY), status=6)
    assert "exit status 3" in printed
    (log,) = project.folder.glob("results/*-mine-*/mine.log")
    for name in ("OUR_OWN", "GIVEN", "SERVICE_KEY", "https_proxy"):
        assert f"<{name} redacted>" in log.read_text()
    project.assert_silent(printed, watch)


class Echo(BaseHTTPRequestHandler):
    """Serves, and repeats whatever it was told, in answers that are none."""

    def do_GET(self) -> None:
        info = {"api_key": API_KEY, "admin_api_key": ADMIN_KEY, "version": "1"}
        self.answer(200, json.dumps(info if "server_info" in self.path else {}))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        told = f"{self.headers['Authorization']} {ADMIN_KEY} {' '.join(KEYS.values())}"
        if asked.get("text") == "1":
            self.answer(200, '{"text": "2", "meta_info": {}}')
        elif "completions" in self.path:
            # the client shows 400 characters, whose last belong to a key
            shown = {"chat": len("Bearer ") + 17, "text": len("Bearer *** ") + 18}
            kind = "chat" if "chat" in self.path else "text"
            self.answer(400 if kind == "chat" else 500, "x" * (400 - shown[kind]) + told)
        else:
            self.answer(200, told)

    def answer(self, status: int, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_repeats_keys_gives_none_away(project: Project, echo: str) -> None:
    command = ["pytest", "suites", "--config", "mine", "--base-url", echo, "-l", "-rA"]
    given = project.plant(API=API_KEY, ADMIN=ADMIN_KEY)
    # changes of a server that runs already are refused, so what they would plant is not known
    for name in ("SET", "TABLE", "VARIABLE"):
        del project.keys[name]
    (project.folder / "keys.json").write_text(json.dumps(project.keys))
    printed, watch = project.run(*command, *given, status=1)
    assert "gave no JSON" in printed
    assert "answered 400" in printed
    assert "answered 500" in printed
    project.assert_silent(printed, watch)


@pytest.fixture
def typed(
    project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Typed:
    """The `servematrix` command as it is typed in the project; what it printed."""
    monkeypatch.chdir(project.folder)
    given = project.plant(API=API_KEY)
    for name, value in project.environment.items():
        monkeypatch.setenv(name, value)

    def typed(*command: str, status: int) -> str:
        line = [*command, *given] if command[0] == "plan" else list(command)
        monkeypatch.setattr(sys, "argv", ["servematrix", *line])
        try:
            ended: object = cli.main(line)
        except SystemExit as exit:  # argparse
            ended = exit.code
        assert ended == status
        return "".join(capfd.readouterr())

    return typed


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_plan_gives_no_key_away(project: Project, typed: Typed, form: tuple[str, ...]) -> None:
    printed = typed("plan", "mine", "--engine", "reference", *project.changes, *form, status=0)
    assert "OVERRIDE_SECRET" in printed
    project.assert_silent(printed)


def test_a_list_gives_no_key_away(project: Project, typed: Typed) -> None:
    printed = typed("list", "--json", status=0)
    assert "OVERRIDE_SECRET" in printed
    project.assert_silent(printed)


@pytest.mark.parametrize(
    "command",
    [
        ("plan", "mine", "--set", "arguments.x=[1]"),
        ("plan", "mine", "--sett", f"environment.SET_PASSWORD='{KEYS['SET']}'"),
        ("plan", "mine", "--model", KEYS["HUB"] + "\n"),
        ("compare", "--config", "mine", "--b-set", "environment.A_KEY=1"),
        ("validate", "smollm2", "--set", "environment.A_KEY=1"),
        ("calibrate", "smollm2", "--set", "environment.A_KEY=1"),
    ],
)
def test_bad_usage_gives_no_key_away(
    project: Project, typed: Typed, command: tuple[str, ...]
) -> None:
    """Messages repeat what was typed; a number is no text, so these changes are refused."""
    printed = typed(*command, *project.changes, status=4)
    assert "environment.SET_PASSWORD=***" in printed or "--sett" in command
    project.assert_silent(printed)


def test_bad_usage_of_a_run_gives_no_key_away(project: Project) -> None:
    command = ["pytest", "suites", "--config", "mine", "--set", "x.y=1", *project.changes]
    command += ["--model", KEYS["HUB"] + "\n"]
    printed, watch = project.run(*command, status=4)
    assert "environment.SET_PASSWORD=***" in printed
    project.assert_silent(printed, watch)


def test_runs_of_a_validation_are_given_keys_on_no_command_line(project: Project) -> None:
    command = ["servematrix", "validate", "smollm2", "--engine", "reference", *project.changes]
    printed, watch = project.run(*command, status=1)
    assert any("--set=environment.SET_PASSWORD@=" in line for line in watch.lines)
    assert list(project.folder.glob("results/validation-*/smollm2/output.txt"))
    project.assert_silent(printed, watch)
    assert_on_loopback(watch)
