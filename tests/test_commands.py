"""Lines of foreign text that GitHub would obey, in all that a run prints in a workflow."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from servematrix import ci, cli
from servematrix.ci import commands

COMMANDS = (
    "add-mask|debug|error|warning|notice|group|endgroup|set-output|set-env|stop-commands|echo"
)
OBEYED = re.compile(rf"^\s*::(?:{COMMANDS})(?: [^:]*)?::|##\[", re.IGNORECASE)
"""What the runner takes for a command: it trims a line, and looks for the older form anywhere."""

HOSTILE = "::add-mask::a\n  ::error file=x::injected\n\t##[error]older\r::set-output name=a::b\n"

CONFIG = """
description = "for tests"
stage = "t"
estimated_seconds = 1
suites = ["mine"]
[model]
path = "org/model"
[environment]
PYTHONPATH = "."
"""
SITE = f"""
import sys
if "servematrix.engines.reference" in sys.orig_argv:
    print({HOSTILE!r}, flush=True)
    sys.stdout.flush()
"""
DIES = """
    import os
    os._exit(3)
"""
SUITE = f"""
import pytest
from servematrix.gates.verdict import Verdict
from servematrix.kits.base import Kit

HOSTILE = {HOSTILE!r}


class MineMixin(Kit):
    kit = "mine"

    def test_verdict(self):
        self.progressed("::error::phase", "::error::detail")
        self.conclude(Verdict("fail", HOSTILE, HOSTILE))

    def test_assertion(self):
        print(HOSTILE)
        answer = HOSTILE
        assert answer == "", HOSTILE

    def test_error(self):
        raise RuntimeError(HOSTILE)

    def test_pass(self):
        print("\\n" + HOSTILE)
        self.conclude(Verdict("pass", "a rule", HOSTILE))


@pytest.mark.suite("mine")
class TestMine(MineMixin):
    pass
"""


def obeyed(printed: str) -> list[str]:
    """The lines that GitHub obeys; a carriage return ends one for it."""
    return [line for line in re.split(r"\r\n|\r|\n", printed) if OBEYED.search(line)]


@pytest.fixture
def run(tmp_path: Path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.toml").write_text(CONFIG)
    (tmp_path / "sitecustomize.py").write_text(SITE)
    (tmp_path / "test_mine.py").write_text(SUITE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "servematrix.plugin",
        "--import-mode=importlib",
    ]
    command += ["--engine=reference", "--config=mine", "-rA", "-vv"]
    left_out = ("PYTEST_ADDOPTS", ci.SUMMARY)
    inherited = {name: at for name, at in os.environ.items() if name not in left_out}

    def run(*options: str, workflow: str = "true") -> str:
        done = subprocess.run(
            [*command, *options],
            cwd=tmp_path,
            env=inherited | {ci.ANNOTATED: workflow},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
        )
        return done.stdout.decode()

    return run


@pytest.mark.parametrize("options", [(), ("-s",), ("--color=yes",), ("-n", "1")])
def test_github_obeys_our_annotations_alone(run, options) -> None:
    printed = run(*options)
    found = obeyed(printed)
    assert len(found) == 3, found
    assert all(
        one.startswith("::error file=configs/mine.toml,line=1,title=mine%3A ") for one in found
    )
    assert ":\\u003aadd-mask::a" in printed, "it is shown"
    assert "##\\u005berror]older" in printed


def test_elsewhere_text_stays_as_it_is(run) -> None:
    assert len(obeyed(run(workflow="false"))) > 10


def test_the_end_of_a_dead_servers_log(run, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE + DIES)
    printed = run()
    assert ":\\u003aadd-mask::a" in printed, "the log is shown"
    (found,) = obeyed(printed)
    assert found.startswith("::error file=configs/mine.toml")


def test_a_command_prints_none(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setenv(ci.ANNOTATED, "true")
    (tmp_path / "mine.toml").write_text(CONFIG.replace('"for tests"', '"##[error]described"'))
    assert cli.main(["list", f"--configs={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "##\\u005berror]described" in printed
    assert not obeyed(printed)


PIECES = st.lists(
    st.one_of(
        st.text(max_size=5),
        st.sampled_from(
            [":", "::", "::error::", "::add-mask::x", "##[", "##", "[error]", "\n", "\r", " ", "\t"]
        ),
    ),
    max_size=8,
)


@given(PIECES)
@example(["a\n", " ", ":", ":error::x"])
@example(["#", "#[", "error]"])
@example(["x ##", "[group]"])
@example([" " * 100, "::error::x"])
@example(["\x0b::error::x"])
@example(["::error::", "::error::\r\n::error::"])
def test_no_line_is_obeyed_however_it_is_cut(pieces: list[str]) -> None:
    written = io.StringIO(newline="")
    stream = commands.Unobeyed(written)
    for piece in pieces:
        assert stream.write(piece) == len(piece)
    assert not obeyed(written.getvalue()), repr(written.getvalue())


@given(st.text("ab:#[ \n", max_size=30))
def test_what_is_no_command_stays_as_it_is(text: str) -> None:
    written = io.StringIO()
    commands.Unobeyed(written).write(text)
    back = written.getvalue().replace("\\u003a", ":").replace("\\u005b", "[")
    assert back == text
    if "::" not in text and "##[" not in text:
        assert written.getvalue() == text


def test_only_ours_are_obeyed() -> None:
    written = io.StringIO()
    stream = commands.Unobeyed(written)
    with commands.ours():
        stream.write("::error::ours\n")
    stream.write("::error::theirs\n")
    assert obeyed(written.getvalue()) == ["::error::ours"]


def test_a_test_id_is_no_command() -> None:
    written = io.StringIO()
    commands.Unobeyed(written).write("suites/test_a.py::TestA::test_b[baseline] PASSED\n")
    assert "\\" not in written.getvalue()


def test_no_stream_is_changed_outside_a_workflow(monkeypatch) -> None:
    monkeypatch.delenv(ci.ANNOTATED, raising=False)
    assert commands.unobeyed(sys.stdout) is sys.stdout
    with commands.kept_from_output():
        assert not isinstance(sys.stdout, commands.Unobeyed)
    monkeypatch.setenv(ci.ANNOTATED, "true")
    changed = commands.unobeyed(sys.stdout)
    assert changed is not sys.stdout
    assert commands.original(changed) is sys.stdout
