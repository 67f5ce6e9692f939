"""What a server and its log wrote, as a terminal and a document get to see it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.table import Table

from malforming import LOUD
from servematrix import records, terminal
from servematrix.cli import main
from servematrix.engines.log import last_lines
from servematrix.validation import kept
from wire import Wire

OBEYED = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What a terminal obeys, or shows as something else: controls, directions, lone surrogates."""
FORMS = ((), ("--markdown",), ("--json",))
ROOT = Path(__file__).resolve().parent.parent


@given(st.text())
@example(LOUD)
@example("a\r\nb\tc\u2028d\x85\u2066")
@example("\ud800")
def test_what_is_shown_is_visible_and_nothing_is_lost(text):
    shown = terminal.shown(text)
    assert not OBEYED.search(shown)
    shown.encode()
    assert terminal.line(text, None).isprintable()
    assert shown.count("\n") == text.count("\n")
    assert len(shown) >= len(text)


def test_plain_text_is_shown_as_it_is():
    text = "Grüße, 東京: |Δ| ≤ 0.5 nats\n\tand so on 🙂"
    assert terminal.shown(text) == text


def test_a_text_without_an_end_is_cut():
    assert terminal.line("x" * 10_000) == f"{'x' * terminal.MOST}… (10000 characters)"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("a|b", r"a\|b"),
        ("a\\|b", r"a\\\|b"),
        ("a\nb", r"a\\nb"),
        ("<img src=x> &lt;", r"\<img src=x\> &amp;lt;"),
        ("[a](javascript:b) `c` *d*", r"\[a\](javascript:b) \`c\` \*d\*"),
        ("fwd_occupancy.test_fwd_occupancy", "fwd_occupancy.test_fwd_occupancy"),
    ],
)
def test_a_cell_of_a_document_means_only_itself(text, cell):
    assert terminal.markdown(text) == cell


def test_the_end_of_a_log_is_visible(tmp_path):
    log = tmp_path / "server.log"
    log.write_bytes(b"first\n" + LOUD.encode() + b"\rback\n\xff\xfe\x9b2J\n")
    shown = last_lines(log, 20)
    assert not OBEYED.search(shown)
    assert "\\x1b[31m" in shown
    assert shown.startswith("first\n")


# -- whole commands -----------------------------------------------------------------------------

SUITE = """
import pytest
from servematrix.kits import MIXINS


@pytest.mark.suite("mine")
class TestMine(*(one for one in MIXINS if one.kit != "hellaswag")):
    def test_of_its_own(self):
        print(self.base_url)
        raise ValueError(self.client.models()["id"])
"""
CONFIG = """
description = "for tests"
stage = "t"
estimated_seconds = 1
suites = ["mine"]
model.path = "m"
kits.decode_consistency.prompts = { 1 = 1 }
kits.scheduler_stress.requests = 1
"""


def loud(connection: socket.socket, wire: Wire) -> None:
    """Answers everything with text that a terminal would obey; generates one token."""
    meta = {"prompt_tokens": 3, "completion_tokens": 1, "finish_reason": {"type": LOUD}}
    answers: dict[bytes, Any] = {
        b"/health": {},
        b"/server_info": {"version": LOUD, "dtype": LOUD, "speculative_algorithm": LOUD},
        b"/model_info": {"model_path": LOUD},
        b"/v1/models": {"id": LOUD, "object": LOUD},
        b"/generate": {"text": f"{LOUD} [/] [link=x]", "meta_info": meta},
        b"/tokenize": {"count": LOUD},
    }
    while head := wire.read(connection):
        path = head.split(b" ")[1]
        found = answers.get(path)
        if b"/generate" in path and b'"text": [' in wire.requests[-1]:
            found = [found] * 64
        body = (json.dumps(found) if found is not None else LOUD).encode()
        if path == b"/metrics":
            body = f"sglang:num_running_reqs{{tp_rank={LOUD}}} 1\n".encode()
        status = b"200 OK" if found is not None or path == b"/metrics" else b"500 \x1b[31m"
        head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
        connection.sendall(head + body)


@pytest.fixture
def matrix(tmp_path):
    """Run the matrix with some options; returns all that was printed, as bytes."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.toml").write_text(CONFIG)
    (tmp_path / "test_mine.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-p", "servematrix.plugin", "--config", "mine"]

    def run(*options: str) -> str:
        done = subprocess.run(
            [*command, *options, "-rA", "-vv"], capture_output=True, timeout=300, cwd=tmp_path
        )
        return (done.stdout + done.stderr).decode("utf-8", "surrogateescape")

    return run


def test_a_run_against_a_loud_server_shows_what_it_said(wire, matrix, tmp_path):
    printed = matrix("--base-url", wire(loud).url)
    assert not OBEYED.search(printed), repr(OBEYED.search(printed))
    for place in ("serving \\x1b[31m", "ValueError: \\x1b[31m", "not found in '\\x1b[31m"):
        assert place in printed, place
    lines = (tmp_path / "results" / "latest" / records.FILE).read_bytes().splitlines()
    assert max(map(len, lines)) < 20_000
    (cell,) = (one for one in map(json.loads, lines) if one["kind"] == "cell")
    assert cell["model"] == terminal.line(LOUD)
    assert cell["versions"] == {"sglang": terminal.line(LOUD)}
    assert sum(json.loads(line)["kind"] == "verdict" for line in lines) > 20


def test_a_loud_log_is_shown_as_it_stands(matrix):
    printed = matrix("--engine", "reference", "--model", "/no/such/\u202e[red]")
    assert not OBEYED.search(printed), repr(OBEYED.search(printed))
    assert "/no/such/\\u202e[red]" in printed


def test_a_loud_option_is_refused_as_it_stands(matrix):
    printed = matrix("--engine", "reference", "--model", f"/no/such/{LOUD}")
    assert not OBEYED.search(printed), repr(OBEYED.search(printed))
    assert "control character" in printed


@pytest.fixture
def runs(tmp_path) -> Path:
    """A folder with a loud run twice, as `compare` and `validate` read it."""
    for name in "ab":
        made = records.Run(tmp_path / name)
        made.folder.mkdir()
        made.write("run", engine=LOUD, simulated=False, gpus=[])
        cell = {"cell": LOUD, "gpus": [], "versions": {LOUD: LOUD}, "startup_seconds": 1.0}
        made.write("cell", **cell)
        for test, outcome in ((LOUD, "pass" if name == "a" else "fail"), ("test_health", "fail")):
            verdict = {"cell": LOUD, "kit": LOUD, "test": test, "verdict": outcome}
            made.write("verdict", **verdict, rule=LOUD, reason=f"{LOUD}\n| x |", numbers={})
        made.write("end", exit_code=1, counts={})
        entry = {"time": "now", "server": {"name": name, "config": "baseline", "model": "m"}}
        entry["server"]["description"] = LOUD
        (made.folder / kept.SERVER_FILE).write_text(json.dumps(entry))
    return tmp_path


@pytest.mark.parametrize(
    ("command", "form"),
    [
        *((command, [*form]) for command in ("compare", "validate") for form in FORMS),
        ("replay", []),
        ("replay", ["--json"]),
    ],
)
def test_tables_show_what_records_hold(runs, command, form, capsys):
    recording = runs / "recording.json"
    recording.write_text(json.dumps({LOUD: 1}))
    arguments = {
        "compare": [str(runs / "a"), str(runs / "b")],
        "validate": ["--from", str(runs)],
        "replay": [str(recording)],
    }[command]
    main([command, *arguments, *form])
    captured = capsys.readouterr()
    printed = captured.out + captured.err
    assert not OBEYED.search(printed), repr(OBEYED.search(printed))
    assert re.search(r"x1b\\?\[31m|u001b\[31m", printed)
    if "--markdown" in form:
        table = [line for line in captured.out.splitlines() if line.startswith("|")]
        assert len({re.sub(r"\\.", "", line).count("|") for line in table}) == 1
        assert "<b>" not in re.sub(r"\\.", "", captured.out)


def test_markup_is_text_in_every_table(capsys):
    table = Table("[red]heading[/]")
    table.add_row("[link=x]cell[/link] :warning: [/]")
    terminal.console(width=60).print(table)
    printed = capsys.readouterr().out
    assert "[red]heading[/]" in printed
    assert "[link=x]cell[/link] :warning: [/]" in printed
    others = [file.name for file in (ROOT / "src").rglob("*.py") if "Console(" in file.read_text()]
    assert others == ["terminal.py"], "tables are printed by terminal.console alone"
