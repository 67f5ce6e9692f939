"""What `servematrix new-kit` writes is linted, typed, tested and run as it is, and can fail."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from servematrix.cli import main
from servematrix.exit_codes import Exit

ROOT = Path(__file__).resolve().parent.parent
# the longest that there may be, so that no other makes a line too long
LONGEST = "first_token_of_a_cold_server_1"
RUFF = [sys.executable, "-m", "ruff"]
OURS = f"--config={ROOT / 'pyproject.toml'}"


def command(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def written(root: Path) -> set[str]:
    return {str(one.relative_to(root)) for one in root.rglob("*") if one.is_file()}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new folder with one new kit."""
    monkeypatch.chdir(tmp_path)
    assert main(["new-kit", "night_tokens"]) == 0
    return tmp_path


def test_a_new_folder_gets_all_that_a_kit_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-kit", "night_tokens"]) == 0
    assert written(tmp_path) == {
        "configs/night_tokens.toml",
        "gates/__init__.py",
        "gates/night_tokens.py",
        "kits/__init__.py",
        "kits/night_tokens.py",
        "pytest.ini",
        "suites/test_only_night_tokens.py",
        "tests/test_kit_night_tokens.py",
    }
    told = capsys.readouterr().out
    assert all(f"wrote {tmp_path / one}\n" in told for one in written(tmp_path))
    assert "python -m pytest tests/test_kit_night_tokens.py" in told


def test_it_passes_lint_and_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "json", LONGEST):
        assert main(["new-kit", name]) == 0
    for settings in ([OURS], ["--isolated"]):
        for check in (["check", *settings], ["format", "--check", *settings]):
            subprocess.run([*RUFF, *check, "."], check=True)
    sorted_as_usual = ["check", "--isolated", "--select=E,F,I,N,D1", "--ignore=D102,D103", "."]
    subprocess.run([*RUFF, *sorted_as_usual], check=True)
    typed = command(tmp_path, "mypy", "--strict", "gates", "kits", "suites", "tests")
    assert typed.returncode == 0, typed.stdout + typed.stderr


def test_its_tests_pass_and_notice_a_broken_gate_and_a_broken_kit(
    made: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # as people type it
    typed = shutil.which("pytest", path=str(Path(sys.executable).parent))
    assert typed is not None
    ended = subprocess.run([typed, "-q"], cwd=made, capture_output=True, text=True, timeout=120)
    assert "9 passed" in ended.stdout, ended.stdout
    running = {}
    for file, right, wrong in (
        ("gates", "tokens != asked", "tokens > asked"),
        ("kits", "parsed.meta_info.completion_tokens", "asked"),
    ):
        broken = tmp_path_factory.mktemp("broken") / "project"
        shutil.copytree(made, broken)
        path = broken / file / "night_tokens.py"
        assert path.read_text().count(right) == 1, right
        path.write_text(path.read_text().replace(right, wrong))
        running[right] = subprocess.Popen([typed, "-q"], cwd=broken, stdout=subprocess.PIPE)
    for right, one in running.items():
        told, _ = one.communicate(timeout=120)
        assert one.returncode == Exit.FAILED, f"{right}: {told.decode()}"


def test_the_suite_is_green_before_the_embedded_server_and_red_once_it_is_broken(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("servematrix", "run", "night_tokens", "--engine=reference")
    # from a folder within, where `kits` is not beside the caller, and without settings of pytest
    (made / "pytest.ini").unlink()
    ended = command(made / "tests", *words)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "1 pass" in ended.stdout
    lines = (made / "tests" / "results" / "latest" / "records.jsonl").read_text().splitlines()
    verdict = next(one for one in map(json.loads, lines) if one["kind"] == "verdict")
    assert (verdict["kit"], verdict["numbers"]["answers"]) == ("night_tokens", 8)
    kit = made / "kits" / "night_tokens.py"
    kit.write_text(kit.read_text().replace("max_new_tokens=asked", "max_new_tokens=asked - 1"))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    ended = command(made, *words, "--set=kits.night_tokens.requests=3")
    assert ended.returncode == Exit.FAILED, ended.stdout + ended.stderr
    assert "3 of 3 answers have another number of tokens" in ended.stdout
    file = "configs/night_tokens.toml"
    at = (made / file).read_text().splitlines().index("most_wrong = 0") + 1
    assert f"::error file={file},line={at}," in ended.stdout


def test_another_kit_joins_the_first(made: Path) -> None:
    before = written(made)
    (made / "pytest.ini").write_text("[pytest]\n")
    assert main(["new-kit", "more"]) == 0
    assert written(made) - before == {
        "configs/more.toml",
        "gates/more.py",
        "kits/more.py",
        "suites/test_only_more.py",
        "tests/test_kit_more.py",
    }
    assert (made / "pytest.ini").read_text() == "[pytest]\n"


def test_settings_that_the_first_kit_brought_are_not_asked_for_again(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["new-kit", "more"]) == 0
    assert "pytest has settings" not in capsys.readouterr().out


def test_settings_of_pytest_that_are_there_are_left_alone_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("# mine\n")
    assert main(["new-kit", "mine"]) == 0
    assert not (tmp_path / "pytest.ini").exists()
    assert 'pythonpath = ["."]' in capsys.readouterr().out


def test_in_the_repository_a_kit_is_a_module_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    package = tmp_path / "src" / "servematrix"
    shutil.copytree(ROOT / "src" / "servematrix", package)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    before = written(tmp_path)
    monkeypatch.chdir(tmp_path)
    # sorted before and after what it is imported with
    for name in ("alpha", "zebra"):
        assert main(["new-kit", name]) == 0
    assert written(tmp_path) - before == {
        file.format(name)
        for name in ("alpha", "zebra")
        for file in (
            "src/servematrix/gates/{}.py",
            "src/servematrix/kits/{}.py",
            "suites/test_only_{}.py",
            "tests/kits/test_kit_{}.py",
        )
    }
    assert "kits.MIXINS" in capsys.readouterr().out
    new = [*package.rglob("alpha.py"), *package.rglob("zebra.py"), "suites", "tests"]
    for check in (["check"], ["format", "--check"]):
        subprocess.run([*RUFF, *check, *map(str, new)], check=True)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "src"))
    ended = command(tmp_path, "pytest", "tests/kits", "-q")
    assert "18 passed" in ended.stdout, ended.stdout + ended.stderr
    suite = '--set=suites=["only_alpha"]'
    ended = command(tmp_path, "servematrix", "run", "baseline", "--engine=reference", suite)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "1 pass" in ended.stdout


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("hellaswag", "there is a kit of that name"),
        ("class", "no keyword"),
        ("../up", "not a name"),
        ("Night", "not a name"),
        ("a-b", "not a name"),
        ("1a", "not a name"),
        ("", "not a name"),
        (f"{LONGEST}a", "30 at most"),
        ("all", "that of a session"),
        ("stage_a", "that of a session"),
        ("test_me", "begins with test"),
        ("model_dump", "begins with test or model_"),
    ],
)
def test_what_is_no_name_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-kit", name]) == Exit.USAGE
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["kits/mine.py", "tests/test_kit_mine.py", "configs/mine.toml"])
def test_nothing_is_overwritten(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    there: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / there
    path.parent.mkdir()
    path.write_text("# kept\n")
    assert main(["new-kit", "mine"]) == Exit.USAGE
    assert f"{path} is there already" in capsys.readouterr().err
    assert written(tmp_path) == {there}
    assert path.read_text() == "# kept\n"
