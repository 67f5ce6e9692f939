"""Where SGLang is looked for, and environments that are made for it."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from servematrix.engines import environments
from servematrix.engines.base import EnvironmentProblem
from servematrix.engines.environments import NoSglangError, ServerEnvironment, probe

UV = """#!/bin/sh
echo "$@" >> {calls}
case "$1 $2" in
"venv --python") mkdir -p "$4/bin"; printf '#!/bin/sh\\necho 0.5.16\\n' > "$4/bin/python";
    chmod +x "$4/bin/python";;
"pip install") echo "resolving"; {install};;
esac
"""


class Tools:
    """A `uv` that is none, alone on PATH beside the shell's own programs."""

    def __init__(self, folder: Path) -> None:
        self.calls = folder / "calls"
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.root = folder / "servers"
        self.said: list[str] = []

    def uv(self, install: str = "true") -> None:
        uv = self.bin / "uv"
        uv.write_text(UV.format(calls=self.calls, install=install))
        uv.chmod(0o755)

    def environment(self) -> ServerEnvironment:
        return ServerEnvironment("0.5.16", self.root)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    made = Tools(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}:/usr/bin:/bin")
    return made


def fake_python(folder: Path, script: str) -> Path:
    python = folder / "fake-python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return python


def test_probe_finds_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    package = tmp_path / "sglang"
    package.mkdir()
    with pytest.raises(NoSglangError, match=f"{sys.executable} has no SGLang"):
        probe(Path(sys.executable))
    (package / "__init__.py").write_text("raise SystemExit('probe must not import it')")
    assert probe(Path(sys.executable)) == "unknown"
    metadata = tmp_path / "sglang-0.5.16.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: sglang\nVersion: 0.5.16\n")
    assert probe(Path(sys.executable)) == "0.5.16"


def test_probe_tells_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoSglangError, match=r"/no/python cannot be run \(No such file"):
        probe(Path("/no/python"))
    broken = fake_python(tmp_path, "echo 'libpython is gone' >&2; exit 127")
    with pytest.raises(NoSglangError, match=r"cannot say .* \(libpython is gone\)"):
        probe(broken)
    silent = fake_python(tmp_path, "exit 1")
    with pytest.raises(NoSglangError, match=r"\(exit status 1\)"):
        probe(silent)
    monkeypatch.setattr(environments, "PROBE_SECONDS", 0.1)
    slow = fake_python(tmp_path, "exec sleep 20")
    with pytest.raises(NoSglangError, match="did not answer within"):
        probe(slow)


def test_it_is_made_once(tools: Tools) -> None:
    tools.uv()
    environment = tools.environment()
    assert not environment.exists()
    environment.make(tools.said.append)
    assert environment.exists()
    tools.environment().make(tools.said.append)
    python = environment.python
    assert tools.calls.read_text().splitlines() == [
        f"venv --python >=3.11,<3.13 {environment.folder}",
        f"pip install --compile-bytecode --python {python} --prerelease=allow sglang==0.5.16",
    ]
    assert len(tools.said) == 2
    assert str(environment.folder) in tools.said[0]


def test_one_that_was_cut_short_is_made_again(tools: Tools) -> None:
    tools.uv()
    environment = tools.environment()
    leftover = environment.folder / "lib" / "half"
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    environment.make(tools.said.append)
    assert environment.exists()
    assert not leftover.exists()


def test_one_that_cannot_be_made_is_an_error_with_the_log(tools: Tools) -> None:
    tools.uv(install="echo 'no matching distribution'; exit 2")
    environment = tools.environment()
    with pytest.raises(EnvironmentProblem) as problem:
        environment.make(tools.said.append)
    sentence, *rest = str(problem.value).splitlines()
    assert "the environment of SGLang 0.5.16 could not be made: `" in sentence
    assert "sglang==0.5.16` failed (exit 2)" in sentence
    assert rest == ["resolving", "no matching distribution"]
    assert not environment.exists()


def test_making_it_has_a_deadline(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    tools.uv(install="exec sleep 60")
    monkeypatch.setattr(environments, "INSTALL_SECONDS", 0.3)
    with pytest.raises(EnvironmentProblem, match="was not done after"):
        tools.environment().make(tools.said.append)


def test_a_second_run_waits_for_the_first(tools: Tools) -> None:
    tools.uv()
    environment = tools.environment()
    tools.root.mkdir()
    lock = FileLock(f"{environment.folder}.lock", thread_local=False)
    lock.acquire()
    waiting = threading.Event()

    def say(line: str) -> None:
        tools.said.append(line)
        waiting.set()

    second = threading.Thread(target=environment.make, args=(say,))
    second.start()
    assert waiting.wait(20)
    assert "another run is making" in tools.said[0]
    environment.python.parent.mkdir(parents=True)
    environment.python.touch()
    (environment.folder / ".servematrix-whole").touch()
    lock.release()
    second.join(20)
    assert not second.is_alive()
    assert not tools.calls.exists()


def test_waiting_for_another_run_has_a_deadline(
    tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "INSTALL_SECONDS", 0.1)
    environment = tools.environment()
    tools.root.mkdir()
    with (
        FileLock(f"{environment.folder}.lock"),
        pytest.raises(EnvironmentProblem, match="another run still makes"),
    ):
        environment.make(tools.said.append)


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc").exists(), reason="needs /proc")
def test_a_folder_that_cannot_be_written_is_an_error(tools: Tools) -> None:
    environment = ServerEnvironment("0.5.16", Path("/proc/servers"))
    with pytest.raises(EnvironmentProblem, match=r"cannot be made in /proc/servers/sglang-0\.5"):
        environment.make(tools.said.append)


def test_what_another_user_has_made_is_not_run(
    tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools.uv()
    environment = ServerEnvironment("0.5.16", tools.root)
    environment.make(tools.said.append)
    if os.getuid() == 0:  # what is root's is trusted
        os.chown(tools.root, 4321, -1)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1234)
    with pytest.raises(EnvironmentProblem, match=r"belongs to another user .*XDG_CAC"):
        environment.make(tools.said.append)
    monkeypatch.setattr(os, "geteuid", lambda: tools.root.stat().st_uid)
    environment.make(tools.said.append)


def test_without_uv_pip_is_used(tools: Tools) -> None:
    python = tools.root / "bin" / "python"
    tool = environments.installer(python)
    assert tool.venv(tools.root) == [sys.executable, "-m", "venv", str(tools.root)]
    assert tool.install("a", "b") == [str(python), "-m", "pip", "install", "a", "b"]


@pytest.mark.parametrize("version", ["", "latest", "../0.5.16", "0.5.16; rm", "-r x", "0.5.16/.."])
def test_what_is_no_version_is_refused(version: str) -> None:
    with pytest.raises(EnvironmentProblem, match="not a version"):
        ServerEnvironment(version)


def test_versions_that_exist() -> None:
    for version in ("0.5.16", "0.4.10.post2", "0.5.17.dev3+gabc1234", "0.6.0rc1"):
        assert ServerEnvironment(version).version == version


def test_the_folder_of_all_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert environments.servers_folder() == Path("/cache/servematrix/servers")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert environments.servers_folder() == Path("/home/me/.cache/servematrix/servers")
