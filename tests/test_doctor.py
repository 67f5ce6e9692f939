"""`servematrix doctor`: each check where all is well and where it is not, and the command."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import psutil
import pytest

from drivers import H100, LIMITS, Driver
from servematrix import cli, gpus
from servematrix.doctor import accelerators, command, machine, stores
from servematrix.doctor.finding import Finding, examine
from servematrix.engines import environments, ports
from servematrix.engines.base import EnvironmentProblem
from servematrix.engines.environments import NoSglangError
from servematrix.gpus import GIB, leases
from servematrix.hub import cache
from servematrix.hub.cache import Repository

ROOT = Path(__file__).resolve().parent.parent
Disk = namedtuple("Disk", "total used free")


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without GPUs, with a cache and leases of the test's own."""
    for name in (*LIMITS, "SERVEMATRIX_FAKE_GPUS", "SERVEMATRIX_FAKE_GPU_USES", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SERVEMATRIX_LEASES", str(tmp_path / "leases"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pretend(monkeypatch: pytest.MonkeyPatch, number: int, uses: dict[str, Any]) -> None:
    Path("uses.json").write_text(json.dumps(uses))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("SERVEMATRIX_FAKE_GPUS", str(number))
    monkeypatch.setenv("SERVEMATRIX_FAKE_GPU_USES", "uses.json")


# -- the machine --------------------------------------------------------------------------------


def test_python(monkeypatch):
    assert machine.python().kind == "ok"
    monkeypatch.setattr(machine.platform, "python_version", lambda: "3.10.4")
    found = machine.python()
    assert found.kind == "problem"
    assert "3.10.4" in found.told
    assert ">=3.11" in found.remedy


def fake_nox(folder: Path, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "bin" / "nox"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\necho '{says}' >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_nox_is_asked_for_where_there_is_a_noxfile(place, monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda *_, **__: pytest.fail("asked"))
    assert machine.nox(place).kind == "ok"


@pytest.mark.parametrize(
    ("says", "kind", "told"),
    [
        ("2026.8.10", "ok", "nox 2026.8.10"),
        ("2026.12.1", "ok", "nox 2026.12.1"),
        ("2025.5.1", "problem", "noxfile.py needs >=2026.8.10"),
        ("broken shim", "problem", "does not tell its version: broken shim"),
    ],
)
def test_nox_is_as_new_as_the_noxfile_asks(place, monkeypatch, says, kind, told):
    (place / "noxfile.py").write_text((ROOT / "noxfile.py").read_text())
    (place / "below").mkdir()
    fake_nox(place, says, monkeypatch)
    found = machine.nox(place / "below")
    assert found.kind == kind
    assert told in found.told
    assert kind == "ok" or "nox>=2026.8.10" in found.remedy


def test_no_nox(place, monkeypatch):
    (place / "noxfile.py").write_text("import nox\n")
    monkeypatch.setattr(machine.shutil, "which", lambda *_, **__: None)
    found = machine.nox(place)
    assert (found.kind, found.remedy) == ("warning", "pip install 'nox'")


def test_a_loopback_port(monkeypatch):
    monkeypatch.setattr(ports, "owners", lambda port: [])
    assert machine.loopback().kind == "ok"

    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    found = machine.loopback()
    assert found.kind == "problem"
    assert "Operation not permitted" in found.told


def test_who_has_the_default_port(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(machine, "DEFAULT_PORT", taken.getsockname()[1])
        found = machine.loopback()
    assert found.kind == "warning"
    assert f"(pid {os.getpid()})" in found.told
    monkeypatch.setattr(ports, "owners", lambda port: [None])
    assert "cannot be seen" in machine.loopback().told


@pytest.mark.parametrize(
    ("free", "kinds"),
    [
        (100 * GIB, ("ok", "ok", "ok")),
        (GIB // 2, ("warning", "warning", "warning")),
        (2**20, ("problem", "warning", "warning")),
    ],
)
def test_disks(place, monkeypatch, free, kinds):
    asked = []
    monkeypatch.setattr(
        machine.shutil, "disk_usage", lambda path: asked.append(path) or Disk(free, 0, free)
    )
    missing = place / "not" / "there"
    found = (machine.results(missing), machine.cache_space(missing), machine.shared_memory(place))
    assert tuple(one.kind for one in found) == kinds
    assert asked == [place, place, place]


def test_results_that_cannot_be_written():
    found = machine.results(Path("/proc/of/nobody"))
    assert found.kind == "problem"
    assert "/proc cannot be written: " in found.told
    assert "--results" in found.remedy


def test_no_shared_memory(place):
    assert machine.shared_memory(place / "shm").kind == "warning"


def guard_under(parent: list[str]) -> subprocess.Popen[str]:
    """A process that looks like a guard, started by `parent`, which stays as long as it.

    It tells its number itself: its command line is seen a moment after it was started.
    """
    lives = "import os, sys; print(os.getpid(), flush=True); sys.stdin.read()"
    stand_in = [sys.executable, "-c", lives, machine._GUARD]
    program = f"import subprocess; subprocess.Popen({stand_in!r}).wait()"
    return subprocess.Popen(
        [*parent, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_leftover_guards(place):
    """Its parent is a Python, and then a program of another name, such as init."""
    other = place / "init"
    other.symlink_to(sys.executable)
    for executable, kind in ((sys.executable, "ok"), (str(other), "problem")):
        with guard_under([executable, "-c"]) as parent:
            assert parent.stdout is not None
            pid = parent.stdout.readline().strip()
            found = machine.leftovers(seconds=0.1)
            seen = pid in found.remedy.split()
            # it ends as the other end of its pipe is closed
            psutil_of_guard = psutil.Process(int(pid))
            parent.stdin.close()  # type: ignore[union-attr]
            psutil.wait_procs([psutil_of_guard], timeout=10)
            parent.stdin = None
        assert seen == (kind == "problem"), found


def test_a_guard_that_is_just_ending_is_no_leftover(monkeypatch):
    monkeypatch.setattr(machine, "_is_orphan", lambda process: True)
    monkeypatch.setattr(machine.psutil, "wait_procs", lambda orphans, timeout: (orphans, []))
    assert machine.leftovers().kind == "ok"


# -- GPUs ---------------------------------------------------------------------------------------


def test_no_gpu_is_no_problem():
    found = accelerators.visible()
    assert found.kind == "warning"
    assert "engine reference will serve" in found.told
    assert accelerators.driver().kind == accelerators.users().kind == "ok"
    assert not accelerators.is_real()


def test_gpus_and_their_limit(monkeypatch):
    made = Driver([H100])
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    found = accelerators.visible()
    assert found.kind == "ok"
    assert "H100" in found.told
    assert "limited by CUDA_VISIBLE_DEVICES=0" in found.told
    assert accelerators.driver().told.startswith("nvidia ")
    assert accelerators.is_real()


def test_slices_are_told(monkeypatch):
    (whole,) = gpu_list(monkeypatch)
    one = gpus.Gpu(**(vars(whole) | {"uuid": "MIG-1", "parent": "GPU-whole"}))
    monkeypatch.setattr(gpus, "visible", lambda: [one])
    assert "slices (MIG): 0 of GPU-whole" in accelerators.visible().told


def gpu_list(monkeypatch: pytest.MonkeyPatch) -> list[gpus.Gpu]:
    monkeypatch.setitem(sys.modules, "pynvml", Driver([H100]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    return gpus.visible()


def test_a_limit_that_cannot_be_followed(monkeypatch):
    monkeypatch.setenv("SERVEMATRIX_FAKE_GPUS", "many")
    found = accelerators.visible()
    assert found.kind == "problem"
    assert "SERVEMATRIX_FAKE_GPUS=many" in found.told


def test_pretend_gpus_are_told(monkeypatch):
    pretend(monkeypatch, 2, {})
    found = accelerators.visible()
    assert found.kind == "warning"
    assert "unset SERVEMATRIX_FAKE_GPUS" in found.remedy


def test_a_driver_that_does_not_answer(place, monkeypatch):
    class Nvml:
        class NVMLError(Exception):
            pass

        @classmethod
        def nvmlInit(cls) -> None:  # noqa: N802
            raise cls.NVMLError("Driver/library version mismatch")

    monkeypatch.setitem(sys.modules, "pynvml", Nvml)
    monkeypatch.setattr(accelerators, "KERNEL_MODULE", place)
    found = accelerators.driver()
    assert found.kind == "problem"
    assert "version mismatch" in found.told
    monkeypatch.setattr(accelerators, "KERNEL_MODULE", place / "none")
    assert accelerators.driver().kind == "ok"


def test_a_broken_pynvml_is_named(monkeypatch, tmp_path):
    (tmp_path / "pynvml.py").write_text('raise OSError("libnvidia is broken")')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    found = accelerators.driver()
    assert found == Finding(
        "problem", "pynvml: libnvidia is broken", "pip install --force-reinstall nvidia-ml-py"
    )
    with pytest.raises(EnvironmentProblem, match=r"OSError: libnvidia is broken\): reinstall"):
        gpus.visible()


@pytest.mark.parametrize(
    ("uses", "kind", "told"),
    [
        ({}, "ok", "nobody"),
        ({"PRETEND-0000": [["self", 2**30]]}, "warning", "GPU 0: used by process"),
        ({"PRETEND-0000": [["self", 0]], "PRETEND-0001": [["self", 0]]}, "problem", "GPU 1: used"),
        ({"PRETEND-0001": [[0, 40 * GIB]]}, "warning", "GPU 1: 40.0 GiB of its memory are held"),
    ],
)
def test_who_uses_the_gpus(monkeypatch, uses, kind, told):
    own = {
        name: [[os.getpid() if pid == "self" else pid, memory] for pid, memory in processes]
        for name, processes in uses.items()
    }
    pretend(monkeypatch, 2, own)
    found = accelerators.users()
    assert found.kind == kind
    assert told in found.told
    assert kind != "warning" or "--gpus" in found.remedy


def test_servers_of_ours_are_no_strangers(monkeypatch):
    pretend(monkeypatch, 1, {"PRETEND-0000": [[os.getpid(), GIB]]})
    monkeypatch.setattr("servematrix.gpus.use.Process.is_ours", lambda self: True)
    found = accelerators.users()
    assert (found.kind, found.told) == ("ok", "nobody but our own servers, on 1")


def test_leases(monkeypatch, place):
    pretend(monkeypatch, 1, {})
    assert "none held" in accelerators.held().told
    lease = leases.take(gpus.visible(), 1, holder="cell baseline", seconds=1)
    found = accelerators.held()
    lease.release()
    assert found.kind == "ok"
    assert "PRETEND-0000 by cell baseline (process" in found.told


def test_leases_that_cannot_be_kept(monkeypatch, place):
    (place / "file").write_text("")
    monkeypatch.setenv("SERVEMATRIX_LEASES", str(place / "file"))
    found = accelerators.held()
    assert found.kind == "problem"
    assert "SERVEMATRIX_LEASES" in found.remedy
    monkeypatch.setenv("SERVEMATRIX_LEASES", str(place / "leases"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert accelerators.held().kind == "problem"


# -- what is installed and downloaded -----------------------------------------------------------


def test_sglang_is_found(monkeypatch, place):
    monkeypatch.setattr(environments, "default_pythons", lambda: [Path("/opt/python")])
    monkeypatch.setattr(environments, "probe", lambda python: "0.5.16")
    assert stores.sglang() == Finding("ok", "0.5.16 in /opt/python")


def test_no_sglang(monkeypatch):
    def none(python: Path) -> str:
        raise NoSglangError(f"{python} has no SGLang")

    monkeypatch.setattr(environments, "probe", none)
    found = stores.sglang()
    assert found.kind == "warning"
    assert "has no SGLang" in found.told
    assert "--sglang VERSION" in found.remedy


def test_environments_that_were_made(monkeypatch, place):
    monkeypatch.setattr(environments, "default_pythons", list)
    root = environments.servers_folder()
    for name in ("sglang-0.5.16", "sglang-cpu-0.5.16", "sglang-0.5.17"):
        (root / name / "bin").mkdir(parents=True)
        (root / name / "bin" / "python").touch()
        (root / name / ".servematrix-whole").touch()
    (root / "sglang-0.5.16.log").touch()
    found = stores.sglang()
    assert found.kind == "ok"
    assert found.told.count("sglang-cpu 0.5.16 in") == 1
    assert found.told.count("sglang 0.5.1") == 2
    (root / "sglang-0.5.17" / ".servematrix-whole").unlink()
    found = stores.sglang()
    assert found.kind == "warning"
    assert "not whole, or just being made: sglang 0.5.17" in found.told


def test_the_cache(monkeypatch, place):
    assert stores.hub_cache().kind == "ok"
    monkeypatch.setenv("HF_HOME", "/proc/of/nobody")
    found = stores.hub_cache()
    assert found.kind == "problem"
    assert "/proc cannot be written: " in found.told
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = stores.hub_cache()
    assert found.kind == "ok"
    assert "no hub is asked" in found.told


CONFIG = (
    'description = "d"\nstage = "s"\nestimated_seconds = 1\nsuites = ["basic_sanity"]\n'
    "model.path = {}\n"
)


@pytest.fixture
def directory(place: Path) -> Path:
    made = place / "configs"
    made.mkdir()
    (made / "mine.toml").write_text(CONFIG.format('"org/model"'))
    return made


def test_models(monkeypatch, directory):
    found = stores.weights(directory)
    assert found.kind == "warning"
    assert "not there: org/model" in found.told
    assert "hf download org/model" in found.remedy
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert stores.weights(directory).kind == "warning", "the embedded server needs none"
    monkeypatch.setattr(accelerators, "is_real", lambda: True)
    found = stores.weights(directory)
    assert found.kind == "problem"
    assert "HF_HUB_OFFLINE is set" in found.remedy
    repository = Repository("model", "org/model")
    commit = "a" * 40
    snapshot = repository.within(cache.folder()) / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(commit)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    assert stores.weights(directory) == Finding("ok", "there: org/model (looks whole)")
    cache.keep_list(repository, cache.folder(), commit, {"config.json": 2, "model.safetensors": 2})
    assert stores.weights(directory) == Finding("ok", "there: org/model")


def test_a_model_in_a_folder(directory, place):
    (directory / "mine.toml").write_text(CONFIG.format(json.dumps(str(place / "model"))))
    assert stores.weights(directory).kind == "warning"
    (place / "model").mkdir()
    assert stores.weights(directory) == Finding("ok", f"there: {place / 'model'}")


def test_hellaswag(monkeypatch):
    found = stores.hellaswag()
    assert found.kind == "warning"
    assert "--repo-type dataset" in found.remedy
    monkeypatch.setattr(cache, "looks_whole", lambda *_: True)
    assert "looks whole" in stores.hellaswag().told
    monkeypatch.setattr(cache, "lacks", lambda *_: None)
    assert stores.hellaswag().told.endswith("is there")


def test_configurations(directory):
    assert stores.configurations(directory).kind == "ok"
    (directory / "other.toml").write_text("stagge = 1\n")
    found = stores.configurations(directory)
    assert found.kind == "problem"
    assert "stagge" in found.told


# -- the command --------------------------------------------------------------------------------


def test_a_check_that_breaks_is_a_problem():
    def breaks() -> Finding:
        raise RuntimeError("no such thing")

    def refused() -> Finding:
        raise PermissionError(13, "Permission denied", "/home/somebody/.cache")

    (found,) = examine({"a": refused}).values()
    assert found.told == "/home/somebody/.cache cannot be read: Permission denied"
    assert "XDG_CACHE_HOME" in found.remedy
    found = examine({"a": breaks, "b": lambda: Finding("ok", "fine")})
    assert found["a"].kind == "problem"
    assert "RuntimeError: no such thing" in found["a"].told
    assert found["b"].kind == "ok"


def only(monkeypatch: pytest.MonkeyPatch, **found: Finding) -> None:
    made = {name: (lambda one=one: one) for name, one in found.items()}
    monkeypatch.setattr(command, "checks", lambda *_: made)


@pytest.mark.parametrize(("kind", "status"), [("ok", 0), ("warning", 0), ("problem", 1)])
def test_the_status(monkeypatch, capsys, kind, status):
    only(monkeypatch, a=Finding("ok", "fine"), b=Finding(kind, "told", "a remedy"))
    assert cli.main(["doctor"]) == status
    captured = capsys.readouterr()
    assert ("a remedy" in captured.out) == (kind != "ok")
    assert f"problems: {'b' if status else 'none'}" in captured.err


def test_for_programs(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret_of_mine")
    only(monkeypatch, a=Finding("problem", "red \x1b[31m hf_a_secret_of_mine", "[link=x]"))
    assert cli.main(["doctor", "--json"]) == 1
    (one,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert one == {
        "check": "a",
        "kind": "problem",
        "told": "red \\x1b[31m ***",
        "remedy": "[link=x]",
    }


def test_end_to_end(directory, monkeypatch, capsys):
    monkeypatch.setattr(machine, "_is_orphan", lambda process: False)
    assert cli.main(["doctor", "--json"]) == 0
    found = {one["check"]: one for one in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(found) == list(command.checks(Path(), None, Path("results")))
    assert "1 in " in found["configurations"]["told"]
    assert not any("could not be checked" in one["told"] for one in found.values()), found
    assert not Path("results").exists()


def test_without_configurations(place, capsys, monkeypatch):
    monkeypatch.setattr(machine, "_is_orphan", lambda process: False)
    if any((folder / "configs").is_dir() for folder in place.parents):
        pytest.skip("there are configurations above")
    assert cli.main(["doctor"]) == 0
    assert "no folder configs/" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["doctor", "--configs", str(place)]) == 1
