"""What a configuration may not set, and that nothing of it reaches a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from servematrix import changes, matrix
from servematrix import config as configs
from servematrix.config import ConfigError, Place
from servematrix.engines.base import Launch
from servematrix.engines.embedded import EmbeddedEngine
from servematrix.engines.flags import as_flags
from servematrix.validation.running import Command, guarded_run

BASE = """
description = "for tests"
stage = "t"
estimated_seconds = 1
suites = ["mine"]
[model]
path = "org/model"
"""
PLACE = Place("reference")


def loaded(folder: Path, text: str = "") -> configs.Configuration:
    (folder / "mine.toml").write_text(BASE + text)
    return configs.load(folder, "mine")


def launch(**values: object) -> Launch:
    given = {
        "cell": "mine",
        "model": "org/model",
        "draft_model": None,
        "arguments": {},
        "environment": {},
        "gpus": (),
        "host": "127.0.0.1",
        "port": 30000,
        "api_key_env": None,
        "log": Path("log"),
        "deadline_seconds": 1.0,
    }
    return Launch(**(given | values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("host", "loopback address"),
        # the server's parser takes the beginning of a flag for the flag
        ("hos", "loopback address"),
        ("port", "loopback address"),
        ("nccl-port", "loopback address"),
        ("dist-init-addr", "loopback address"),
        ("disaggregation-bootstrap-port", "loopback address"),
        ("some-new-host", "loopback address"),
        ("model-path", "model.path"),
        ("speculative-draft-model-path", "model.draft"),
        ("config", "no record"),
        ("api-key", "--api-key-env"),
        ("api-k", "--api-key-env"),
        ("admin-api-key", "--base-url"),
        ("ssl-keyfile-password", "--base-url"),
        ("some-new-password", "--base-url"),
    ],
)
def test_an_argument_that_is_not_the_configurations(tmp_path: Path, name: str, why: str) -> None:
    for text in (
        f'[arguments]\n{name} = "0.0.0.0"\n',
        f'[[overrides]]\nwhen = {{engine = "sglang"}}\narguments = {{{name} = "0.0.0.0"}}\n',
    ):
        with pytest.raises(ConfigError, match=f"arguments.{name}: .*{why}") as error:
            loaded(tmp_path, text)
        assert str(tmp_path / "mine.toml") in str(error.value)
    with pytest.raises(ConfigError, match=f"arguments.{name}: .*{why}"):
        configs.resolve(loaded(tmp_path), {}, PLACE, [f"arguments.{name}=0.0.0.0"])


@pytest.mark.parametrize("name", ["speculative-token-map", "ssl-keyfile", "tokenizer-path", "tp"])
def test_an_argument_that_only_looks_so(tmp_path: Path, name: str) -> None:
    assert loaded(tmp_path, f'[arguments]\n{name} = "x"\n').arguments == {name: "x"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ('arguments.dtype="a\\u0000b"', "control character"),
        ('arguments.dtype="a\\nb"', "control character"),
        ('model.path="a\\nb"', "control character"),
        ('environment.A="a\\u0000b"', "zero byte"),
        ('model.path="s3://id:planted@bucket/m"', "URL with a password"),
        ('arguments.tokenizer-path="https://me:planted@host"', "URL with a password"),
        ("""arguments.x='{"a": {"secret": "planted"}}'""", "stand in records"),
        ("environment=planted", "environment"),
        ("environment.HF_TOKEN=[1, 2]", "HF_TOKEN"),
        ('environment=["HF_TOKEN=planted"]', "environment"),
        ("HF_TOKEN=planted", "unknown key"),
        ("environment.HF_TOKEN:planted", "expected key=value"),
        ("axis.my_password=planted", "cannot be set"),
    ],
)
def test_a_value_that_is_refused_is_not_shown(tmp_path: Path, change: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as error:
        configs.resolve(loaded(tmp_path), {}, PLACE, [change])
    assert "planted" not in str(error.value)
    assert "[1, 2]" not in str(error.value)


def test_an_axis_is_no_way_around(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"axis\.a: .*control character"):
        loaded(tmp_path, '[axis]\na = ["x", "y\\nz"]\n')


def test_placeholders_are_text_and_no_format_strings(tmp_path: Path) -> None:
    tricks = "{0.__class__} {a.__class__} {a!r} {a:>9} {b} {} {{a}} {a}"
    text = f'[axis]\na = ["{{a.__class__}}"]\n[arguments]\nx = "{tricks}"\n'
    config = configs.resolve(loaded(tmp_path, text), {"a": "7"}, PLACE)
    assert config.arguments["x"] == "{0.__class__} {a.__class__} {a!r} {a:>9} {b} {} {7} 7"


def test_a_value_never_becomes_another_flag() -> None:
    flags = as_flags(
        launch(model="--trust-remote-code", draft_model="-d", arguments={"dtype": "--x", "n": -1})
    )
    assert flags == [
        "--model-path=--trust-remote-code",
        "--speculative-draft-model-path=-d",
        "--host",
        "127.0.0.1",
        "--port",
        "30000",
        "--dtype=--x",
        "--n=-1",
    ]


@pytest.mark.parametrize(
    "name", ["../mine", "/etc/passwd", "..", "mine/../mine", "mine\0", "$(id)", "{0.__class__}"]
)
def test_a_configuration_is_named_and_no_path(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    loaded(folder)
    loaded(tmp_path)
    with pytest.raises(ConfigError, match="--config"):
        matrix.select(folder, [name])
    (folder / "mine.toml").write_text(f"instead.reference = {name!r}\n".replace("\0", "") + BASE)
    with pytest.raises(ConfigError):
        configs.load(folder, "mine")


SHELL = (
    "$(touch pwned) `touch pwned`; touch pwned | touch pwned && touch pwned > pwned -c \"' \\\\ *"
)


def test_shell_text_of_a_configuration_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every string of a configuration reaches the server's argv or environment as it is."""
    monkeypatch.chdir(tmp_path)
    quoted = json.dumps(SHELL)
    variable = json.dumps(f"{SHELL}\n{SHELL}")
    text = BASE.replace('"org/model"', quoted).replace('"for tests"', quoted)
    text += f"draft = {quoted}\n[arguments]\nx = {quoted}\n[environment]\nX = {variable}\n"
    (tmp_path / "mine.toml").write_text(text.replace('stage = "t"', f"stage = {quoted}"))
    config = configs.resolve(configs.load(tmp_path, "mine"), {}, PLACE)
    started = launch(
        model=config.model.path,
        draft_model=config.model.draft,
        arguments=config.arguments,
        environment=config.environment,
        port=0,
        log=tmp_path / "server.log",
        deadline_seconds=20.0,
    )
    engine = EmbeddedEngine("a test")
    with pytest.raises(Exception, match="unrecognized arguments: --x"):
        engine.start(started)  # the embedded server knows no --x, and says what it was given
    assert SHELL in (tmp_path / "server.log").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"mine.toml", "server.log"}


def test_secrets_are_told_apart_from_other_changes() -> None:
    given = ["arguments.x=1", 'environment={HF_TOKEN = "hf_x", A = "b"}', "environment.B_KEY=k"]
    shown, hidden = changes.apart(given)
    assert shown == ["arguments.x=1", 'environment.A="b"']
    assert hidden == {"HF_TOKEN": "hf_x", "B_KEY": "k"}
    assert {"hf_x", "k"} <= set(changes.secrets(given))


def test_a_change_from_a_variable_is_text_and_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    change = "environment.A@=MINE"
    for value in ("1", 'a"b\\\x7f\x01', "é😀", "line\nline"):
        monkeypatch.setenv("MINE", value)
        assert changes.parsed(change) == {"environment": {"A": value}}
        assert changes.apart([change]) == ([], {"A": value})
        assert changes.secrets([change]) == [value]
        assert changes.parsed(changes.assigned("a", value)) == {"a": value}
    assert changes.secret_variables([change, "environment.B=1"]) == ["A"]
    monkeypatch.delenv("MINE")
    with pytest.raises(ValueError, match="'MINE' is not set"):
        changes.parsed(change)


def test_what_a_run_of_ours_prints_has_no_secret_however_short(tmp_path: Path) -> None:
    command = Command([sys.executable, "-c", "import os; print(os.environ)"], {"SECRET_X": "k3y"})
    assert guarded_run(command, tmp_path / "output.txt") == (True, "exit 0")
    text = (tmp_path / "output.txt").read_text()
    assert "SECRET_X" in text
    assert "k3y" not in text


def test_only_variables_are_set_from_a_variable(tmp_path: Path) -> None:
    for key in ("model.path", "environment", "environment.a.b"):
        with pytest.raises(ConfigError, match=r"environment\.NAME@=VARIABLE"):
            configs.resolve(loaded(tmp_path), {}, PLACE, [f"{key}@=PATH"])


def test_only_the_server_gets_the_variables_of_a_configuration(tmp_path: Path) -> None:
    """`PYTHONPATH` and `LD_PRELOAD` of a configuration change no process of ours."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "line = open('/proc/self/cmdline').read().replace('\\0', ' ')\n"
        f"open({str(tmp_path / 'ran')!r}, 'a').write(line + '\\n')\n"
    )
    variables = {
        "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
        "LD_PRELOAD": "/not/there.so",
        "PYTHONSTARTUP": "x",
    }
    server = EmbeddedEngine("a test").start(
        launch(environment=variables, port=0, log=tmp_path / "server.log", deadline_seconds=30.0)
    )
    server.stop()
    ran = (tmp_path / "ran").read_text().splitlines()
    assert [line for line in ran if "servematrix.engines.reference" in line]
    assert not [line for line in ran if "servematrix.engines.guard" in line]
    # the dynamic linker tells in the server's own log that it was asked to preload
    assert "LD_PRELOAD" in (tmp_path / "server.log").read_text()


def test_no_source_of_ours_starts_a_shell() -> None:
    root = Path(__file__).resolve().parent.parent
    found = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select=S602,S604,S605", "--ignore-noqa",
         "--no-cache", str(root / "src"), str(root / "benchmarks"), str(root / "noxfile.py")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout
