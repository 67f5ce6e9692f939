"""What the pages tell people to type works, and the pages are whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import typed_rules
from fake_hub import FakeHub
from handbook import ROOT, Command, commands, fences, pages, unknown, wordings
from place import Place, serving
from typed_rules import PARSED, RULES, Rule

COMMANDS = [one for page in pages() for one in commands(page)]
TEXTS = sorted({one.text for one in COMMANDS})
TYPED = [text for text in TEXTS if isinstance(typed_rules.rule(text), Rule)]
MODEL = {"config.json": b"{}", "model.safetensors": b"x", "tokenizer.json": b"{}"}


def test_there_are_pages_and_commands() -> None:
    assert len(pages()) > 25
    assert len(TEXTS) > 50


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_has_a_rule(command: Command) -> None:
    assert typed_rules.rule(command.text) is not None, "add it to tests/typed_rules.py"


def test_no_rule_is_left_over() -> None:
    for pattern in [*(one.text for one in RULES), *PARSED]:
        assert any(re.fullmatch(pattern, text) for text in TEXTS), f"no page has {pattern}"


def test_few_commands_are_not_typed() -> None:
    assert len(TEXTS) - len(TYPED) <= 18
    assert len(TYPED) >= 33


@pytest.fixture
def place(tmp_path: Path, hub: FakeHub) -> Place:
    hub.files["meta-llama/Llama-3.1-8B-Instruct"] = MODEL
    return Place(tmp_path, HF_ENDPOINT=hub.url)


@pytest.mark.parametrize("text", TYPED)
def test_a_command_does_what_its_page_says(place: Place, text: str) -> None:
    rule = typed_rules.rule(text)
    assert isinstance(rule, Rule)
    for name, server in rule.runs.items():
        place.keep_run(name, server)
    for name in rule.files:
        place.bring(name)
    chosen = {"PYTEST_ADDOPTS": f"-k '{rule.only}'"}
    if rule.before:
        ended = place.typed(rule.before, gpus=rule.gpus, **chosen)
        assert ended.returncode == 0, ended.stdout
        if rule.cut:
            place.cut_short()
    if rule.serves:
        with serving() as port:
            place.move_port(port)
            ended = place.typed(text.replace("30000", str(port)), **chosen)
    else:
        ended = place.typed(text, gpus=rule.gpus, **chosen)
    assert re.search(rule.says, ended.stdout), ended.stdout
    # nox turns any failure into 1
    assert ended.returncode == (min(rule.status, 1) if text.startswith("nox") else rule.status)


@pytest.mark.parametrize("text", TEXTS)
def test_what_a_command_names_is_there(text: str) -> None:
    assert unknown(text) == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_what_the_text_names_is_there(page: Path) -> None:
    """Commands within a sentence or a table are not typed, but what they name exists."""
    assert [problem for text in wordings(page) for problem in unknown(text)] == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_stand_where_they_are_found(page: Path) -> None:
    assert not [language for language, _ in fences(page) if language in ("bash", "sh", "shell")]
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text(encoding="utf-8"))
    assert not re.findall(r"(?m)^ {4,}(?:\$ |nox |servematrix |pytest ).*", text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nox -s stage_b", "stage_b"),
        ("nox -s stage_a -- --engin reference", "--engin"),
        ("servematrix reprot results/latest", "reprot"),
        ("servematrix report --outt x", "--outt"),
        ("nox -s merge -- --expekt all", "--expekt"),
        ("servematrix run stage_a --no-such-option", "--no-such-option"),
    ],
)
def test_what_is_wrong_is_seen(text: str, problem: str) -> None:
    assert unknown(text) == [problem]
    assert typed_rules.rule(text) is None


def built(docs: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """As `nox -s docs` does."""
    options = ("-EnW", "--keep-going", "-q")
    told = ", ".join(f'"{one}"' for one in ("sphinx", *options))
    assert f"in_harness(session, {told}, " in (ROOT / "noxfile.py").read_text()
    command = [sys.executable, "-m", "sphinx", *options, str(docs), str(site)]
    return subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_the_pages_are_built_without_a_warning_and_fetch_nothing(tmp_path: Path) -> None:
    ended = built(ROOT / "docs", tmp_path)
    assert ended.returncode == 0, ended.stderr
    told = list(tmp_path.rglob("*.html"))
    assert len(told) > 30
    tags = "script|img|link|iframe"
    fetched = re.compile(rf"""<(?:{tags})[^>]*(?:src|href)=["'](?:https?:)?//[^"']*""")
    for page in told:
        assert fetched.findall(page.read_text(encoding="utf-8")) == []
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8"))
    assert (tmp_path / "searchindex.js").is_file(), "the search needs no server"


BROKEN = """# A

[b](away.md) and [c](#gone)

![d](lost.svg)

<!-- generated: nothing -->
"""


def test_a_broken_page_fails_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in ("conf.py", "_static"):
        (docs / name).symlink_to(ROOT / "docs" / name)
    (docs / "index.md").write_text(BROKEN)
    ended = built(docs, tmp_path / "site")
    assert ended.returncode != 0
    for problem in ("away.md", "gone", "lost.svg", "no table 'nothing'"):
        assert problem in ended.stderr
