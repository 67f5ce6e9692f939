"""Models and data on disk: one download a host, none where it is there, and what is said if not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pytest
from filelock import FileLock
from pyarrow import parquet

from fake_hub import COMMIT, FakeHub
from servematrix import data, models
from servematrix.engines.base import EnvironmentProblem, Launch
from servematrix.engines.sglang import SglangEngine
from servematrix.engines.sglang_cpu.engine import SglangCpuEngine
from servematrix.hub import cache, download, fetch
from servematrix.hub.cache import Repository
from servematrix.hub.download import DownloadCut

ROOT = Path(__file__).resolve().parent.parent
MODEL = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "chat_template.jinja": b"{{ messages }}",
    "tokenizer.json": b'{"version": "1.0"}',
    "model.safetensors": b"s" * 300_000,
    "pytorch_model.bin": b"p" * 300_000,
    "original/consolidated.00.pth": b"c" * 300_000,
}
SERVED = {"config.json", "chat_template.jinja", "tokenizer.json", "model.safetensors"}
TARGET = Repository("model", "org/model")


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., Launch]:
    """A launch of `org/model` with some of its values changed."""

    def launch(**changes: Any) -> Launch:
        values: dict[str, Any] = {
            "cell": "mine",
            "model": "org/model",
            "draft_model": None,
            "arguments": {},
            "environment": {},
            "gpus": (),
            "host": "127.0.0.1",
            "port": 0,
            "api_key_env": None,
            "log": tmp_path / "server.log",
            "deadline_seconds": 1.0,
        }
        return Launch(**(values | changes))

    return launch


@pytest.fixture
def engine() -> SglangEngine:
    return SglangEngine(Path("/bin/python3"), "0.5.16", "a test")


def here() -> Path:
    return cache.folder(os.environ)


def wait_until(is_true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- which files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "left_out"),
    [
        ("preferred", {"pytorch_model.bin", "original/consolidated.00.pth", "flax_model.msgpack"}),
        (
            "none",
            {"model.safetensors", "pytorch_model.bin", "original/consolidated.00.pth"}
            | {"flax_model.msgpack"},
        ),
        ("all", {"flax_model.msgpack"}),
    ],
)
def test_the_files_that_a_server_loads(weights: str, left_out: set[str]) -> None:
    names = [*MODEL, "flax_model.msgpack"]
    assert {*names} - {*fetch.wanted(names, weights)} == left_out


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["config.json", "pytorch_model.bin", "tf_model.h5"], ["config.json", "pytorch_model.bin"]),
        (["params.json", "consolidated.safetensors"], ["params.json", "consolidated.safetensors"]),
        (["consolidated.safetensors", "model-1.safetensors"], ["model-1.safetensors"]),
        (["a.gguf", "b.pt"], ["b.pt"]),
        (["config.json"], ["config.json"]),
    ],
)
def test_other_forms_are_taken_where_the_first_is_not_there(
    names: list[str], taken: list[str]
) -> None:
    assert fetch.wanted(names, "preferred") == taken


def test_what_a_launch_needs(launch: Callable[..., Launch], tmp_path: Path) -> None:
    (tmp_path / "org").mkdir()
    arguments = {
        "revision": "v1",
        "load-format": "dummy",
        "speculative-draft-model-revision": "v2",
        "speculative-draft-load-format": "pt",
        "tokenizer-path": "org/tokens",
    }
    assert models.needed(launch(draft_model="org/draft", arguments=arguments)) == [
        Repository("model", "org/model", "v1", "none"),
        Repository("model", "org/draft", "v2", "all"),
        Repository("model", "org/tokens", weights="none"),
    ]
    assert models.needed(launch(draft_model="org/model")) == [TARGET]
    for named in (str(tmp_path / "org"), "/not/there", "s3://bucket/m", "package:m==1", "../m"):
        assert models.needed(launch(model=named)) == []


def test_the_cache_is_where_the_hub_has_it(tmp_path: Path) -> None:
    """Whatever the variables, in the words of the hub's own library."""
    program = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PLACE": "/a"}
    for given in (
        {},
        {"XDG_CACHE_HOME": "/x"},
        {"HF_HOME": "~/h", "XDG_CACHE_HOME": "/x"},
        {"HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/h"},
        {"HF_HUB_CACHE": "$PLACE/new", "HUGGINGFACE_HUB_CACHE": "/old"},
    ):
        command = [sys.executable, "-c", program]
        told = subprocess.run(command, env=home | given, capture_output=True, text=True, check=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", home["HOME"])
            patch.setenv("PLACE", home["PLACE"])
            assert cache.folder(home | given) == Path(told.stdout.strip()), given


# -- a download ----------------------------------------------------------------------------------

PROGRAM = """
import os, sys
from servematrix.hub import download
from servematrix.hub.cache import Repository
download.ensure(Repository("model", "org/model"), os.environ, lambda told: print(told, flush=True))
"""


def test_four_processes_download_once_and_a_fifth_asks_nothing(hub: FakeHub) -> None:
    hub.files["org/model"] = MODEL
    hub.held.clear()
    command = [sys.executable, "-c", PROGRAM]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        first = [one.stdout.readline() for one in started if one.stdout]
        hub.held.set()
        told = [one.communicate(timeout=60)[0] for one in started]
    finally:
        for one in started:
            one.kill()
    assert [one.returncode for one in started] == [0] * 4
    assert hub.downloads() == Counter(SERVED)
    assert sum("downloading model org/model (revision main) into" in line for line in first) == 1
    holder = started[next(n for n, line in enumerate(first) if line.startswith("downl"))].pid
    waiting = [line for line in first if line.startswith(f"process {holder} of ")]
    assert len(waiting) == 3
    assert all("downloads model org/model (revision main); waiting for it" in at for at in waiting)
    (done,) = filter(None, told)
    assert "is there: 4 files of 300.1 kB, 300.1 kB of it downloaded in " in done
    asked = len(hub.asked)
    lines: list[str] = []
    download.ensure(TARGET, os.environ, lines.append)
    assert (len(hub.asked), lines) == (asked, [])


def test_a_cut_download_says_so_and_the_next_completes_it(hub: FakeHub) -> None:
    hub.files["org/model"] = MODEL
    hub.cut = "model.safetensors"
    with pytest.raises(DownloadCut, match=r"model org/model .*the download was cut; run again"):
        download.ensure(TARGET, os.environ, print)
    assert cache.lacks(TARGET, here()) is not None
    assert not cache.looks_whole(TARGET, here())
    hub.cut = None
    before = hub.downloads()
    download.ensure(TARGET, os.environ, print)
    assert hub.downloads() - before == Counter(["model.safetensors"]), "the others are kept"
    assert cache.lacks(TARGET, here()) is None


def test_a_download_that_is_killed_is_cut(hub: FakeHub) -> None:
    hub.files["org/model"] = MODEL
    hub.held.clear()
    caught: list[EnvironmentProblem] = []

    def ensure() -> None:
        try:
            download.ensure(TARGET, os.environ, print)
        except EnvironmentProblem as error:
            caught.append(error)

    thread = threading.Thread(target=ensure)
    thread.start()
    wait_until(lambda: any("/resolve/" in path for _, path, _ in hub.asked))
    (process,) = (
        one
        for one in psutil.Process().children(recursive=True)
        if one.cmdline()[1:4] == ["-P", "-m", "servematrix.hub.fetch"]
    )
    process.kill()
    thread.join(30)
    assert isinstance(caught[0], DownloadCut)
    assert "signal 9" in str(caught[0])


def test_a_download_that_takes_too_long_is_cut_and_ended(hub: FakeHub) -> None:
    hub.files["org/model"] = MODEL
    hub.held.clear()
    others = set(psutil.Process().children(recursive=True))
    with pytest.raises(DownloadCut, match="it was not done after 1 s"):
        download.ensure(TARGET, os.environ, print, seconds=1.0)
    assert set(psutil.Process().children(recursive=True)) <= others


def test_who_waits_too_long_is_told_for_whom(hub: FakeHub) -> None:
    lock = here() / ".locks" / "servematrix" / f"{TARGET.key}.lock"
    lock.parent.mkdir(parents=True)
    lock.with_suffix(".holder").write_text("process 7 of\x1b[2J ann on host-b")
    lines: list[str] = []
    with (
        FileLock(lock),
        pytest.raises(EnvironmentProblem, match=r"process 7 of\\x1b\[2J ann on host-b still downl"),
    ):
        download.ensure(TARGET, os.environ, lines.append, seconds=0.1)
    assert lines[0].endswith("downloads model org/model (revision main); waiting for it")
    assert not hub.asked


@pytest.mark.parametrize(
    ("status", "headers", "told"),
    [
        (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask us, not hf_s3cret"}, "ask us,"),
        (401, {"X-Error-Code": "GatedRepo"}, "access to it is restricted"),
        (404, {"X-Error-Code": "RepoNotFound"}, "there is none of that name, or it is private"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "it has no such revision"),
        (503, {}, "the hub cannot be reached"),
    ],
)
def test_what_a_hub_refuses(hub: FakeHub, status: int, headers: dict[str, str], told: str) -> None:
    hub.refused["org/model"] = (status, headers)
    variables = {**os.environ, "HF_TOKEN": "hf_s3cret"}
    with pytest.raises(EnvironmentProblem) as caught:
        download.ensure(TARGET, variables, print)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hf_s3cret" not in str(caught.value)
    assert isinstance(caught.value, DownloadCut) is (status == 503)
    assert hub.asked[-1][2] == "Bearer hf_s3cret", "the server's own token was used"


def test_a_full_disk_is_no_cut() -> None:
    full = OSError(28, "No space left on device")
    wrapped = RuntimeError("cannot write")
    wrapped.__cause__ = full
    assert fetch.problem_of(full, begun=True) == "disk"
    assert fetch.problem_of(wrapped, begun=True) == "disk"
    assert fetch.problem_of(RuntimeError("xet"), begun=True) == "cut"
    assert fetch.problem_of(KeyError("a bug"), begun=True) == "other"


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(
        EnvironmentProblem, match=r"/file cannot be written \(Not a directory\); name"
    ):
        download.ensure(TARGET, os.environ, print)


# -- what is there -------------------------------------------------------------------------------


def fill(**files: bytes | None) -> Path:
    """A cache that another program has filled: no list says what belongs to it."""
    snapshot = TARGET.within(here()) / "snapshots" / COMMIT
    (TARGET.within(here()) / "refs").mkdir(parents=True)
    (TARGET.within(here()) / "refs" / "main").write_text(COMMIT)
    for name, content in (MODEL | files).items():
        if content is not None and "/" not in name:
            snapshot.mkdir(parents=True, exist_ok=True)
            (snapshot / name).write_bytes(content)
    return snapshot


INDEX = json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}).encode()


@pytest.mark.parametrize(
    ("files", "whole"),
    [
        ({}, True),
        ({"model.safetensors": None}, True),
        ({"model.safetensors": None, "pytorch_model.bin": None}, False),
        ({"config.json": None}, False),
        ({"model.safetensors.index.json": INDEX}, False),
        ({"model.safetensors.index.json": INDEX, "model-2.safetensors": b"s"}, True),
        ({"model.safetensors.index.json": b"[]"}, False),
    ],
)
def test_offline_what_looks_whole_is_taken_and_else_told(
    hub: FakeHub,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, bytes | None],
    whole: bool,
) -> None:
    fill(**files)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cache.looks_whole(TARGET, here()) is whole
    if whole:
        download.ensure(TARGET, os.environ, print)
    else:
        with pytest.raises(EnvironmentProblem) as caught:
            download.ensure(TARGET, os.environ, print)
        told = str(caught.value)
        problem = "HF_HUB_OFFLINE is set, and model org/model (revision main) is not complete in"
        assert f"{problem} {here()}" in told
        assert "`hf download org/model --revision main` on a machine with a network" in told
    assert not hub.asked


def test_a_cache_that_another_filled_is_looked_through_once(hub: FakeHub) -> None:
    fill(**{"chat_template.jinja": None})
    hub.files["org/model"] = MODEL
    download.ensure(TARGET, os.environ, print)
    assert "chat_template.jinja" in hub.downloads(), "it looked whole and was not"
    assert cache.lacks(TARGET, here()) is None


def test_without_a_hub_what_looks_whole_is_taken_as_it_is(hub: FakeHub) -> None:
    fill()
    lines: list[str] = []
    for status, why in ((503, "the hub cannot be reached"), (401, "access to it is restricted")):
        hub.refused["org/model"] = (status, {"X-Error-Code": "GatedRepo"} if status < 500 else {})
        download.ensure(TARGET, os.environ, lines.append)
        assert why in lines[-1]
        assert lines[-1].endswith("looks whole, and is taken as it is")
    assert cache.lacks(TARGET, here()) is not None, "and no server is told to ask nobody"


def test_a_cache_that_may_only_be_read_is_read(hub: FakeHub) -> None:
    fill()
    (here() / ".locks").touch()
    lines: list[str] = []
    download.ensure(TARGET, os.environ, lines.append)
    assert "cannot be written (" in lines[-1]
    assert lines[-1].endswith(
        "model org/model (revision main) in it looks whole, and is taken as it is"
    )
    assert not hub.asked


@pytest.mark.parametrize("harm", ["gone", "cut", "list"])
def test_files_that_were_harmed_are_downloaded_again(hub: FakeHub, harm: str) -> None:
    hub.files["org/model"] = MODEL
    download.ensure(TARGET, os.environ, print)
    file = here() / "models--org--model" / "snapshots" / COMMIT / "tokenizer.json"
    if harm == "gone":
        file.resolve().unlink()
    elif harm == "cut":
        file.resolve().unlink()
        file.unlink()
        file.write_bytes(b"{")
    else:
        (kept,) = (here() / "models--org--model" / "servematrix").iterdir()
        kept.write_text('{"files": 3}')
    lacks = cache.lacks(TARGET, here())
    told = "it is not known which" if harm == "list" else "tokenizer.json is missing or cut"
    assert lacks is not None
    assert told in lacks
    if harm == "gone":
        download.ensure(TARGET, os.environ, print)
        assert hub.downloads()["tokenizer.json"] == 2
        assert cache.lacks(TARGET, here()) is None


# -- a launch ------------------------------------------------------------------------------------


def test_a_server_whose_models_are_there_asks_no_hub(
    hub: FakeHub, engine: SglangEngine, launch: Callable[..., Launch]
) -> None:
    hub.files["org/model"] = MODEL
    hub.files["org/draft"] = {"config.json": b"{}", "model.safetensors": b"d"}
    both = launch(draft_model="org/draft")
    lines: list[str] = []
    engine.prepare(launch(), lines.append)
    assert engine.environment(launch())["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in engine.environment(both), "the draft is not there"
    engine.prepare(both, lines.append)
    assert engine.environment(both)["HF_HUB_OFFLINE"] == "1"
    asked = len(hub.asked)
    engine.prepare(both, lines.append)
    assert (len(hub.asked), len(lines)) == (asked, 4), "a line at the start and end of each"
    own = launch(environment={"HF_HUB_OFFLINE": "0"})
    assert engine.environment(own)["HF_HUB_OFFLINE"] == "0"
    for name in ("trust-remote-code", "speculative-token-map", "lora-paths"):
        more = launch(arguments={name: "x"})
        assert "HF_HUB_OFFLINE" not in engine.environment(more), name


def test_the_cache_is_that_of_the_server(
    hub: FakeHub, engine: SglangEngine, launch: Callable[..., Launch], tmp_path: Path
) -> None:
    hub.files["org/model"] = MODEL
    own = launch(environment={"HF_HOME": str(tmp_path / "own")}, arguments={"load-format": "dummy"})
    engine.prepare(own, print)
    assert {path.name for path in (tmp_path / "own").rglob(f"{COMMIT}/*")} == {
        *SERVED - {"model.safetensors"}
    }
    assert engine.environment(own)["HF_HUB_OFFLINE"] == "1"
    assert not here().exists()


def test_a_model_that_is_not_there_starts_no_server(
    hub: FakeHub, launch: Callable[..., Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    engine = SglangCpuEngine(Path("/bin/python3"), "0.5.16", "a test")
    with pytest.raises(EnvironmentProblem, match="HF_HUB_OFFLINE is set, and model org/model"):
        engine.prepare(launch(), print)
    assert not hub.asked


def test_modelscope_is_left_alone_and_said_once(
    hub: FakeHub, engine: SglangEngine, launch: Callable[..., Launch]
) -> None:
    one = launch(environment={"SGLANG_USE_MODELSCOPE": "true"})
    lines: list[str] = []
    engine.prepare(one, lines.append)
    engine.prepare(one, lines.append)
    assert lines == [models.ELSEWHERE]
    assert "HF_HUB_OFFLINE" not in engine.environment(one)
    assert not hub.asked


STANDS_IN = """#!/bin/sh
case "$*" in
*sglang.launch_server*) echo "offline: $HF_HUB_OFFLINE"; exit 3 ;;
*torch*) echo '{"version": "2.9.0", "builds": {}, "packages": []}' ;;
*) echo 0.5.16 ;;
esac
"""


def test_a_whole_run(hub: FakeHub, tmp_path: Path) -> None:
    """With a server that tells its environment and dies."""
    hub.files["org/model"] = MODEL
    python = tmp_path / "python"
    python.write_text(STANDS_IN)
    python.chmod(0o755)
    command = [sys.executable, "-m", "pytest", "suites/test_one_kit.py", "--config=smollm2_cpu"]
    command += ["--engine=sglang-cpu", f"--server-python={python}", "--model=org/model"]
    command += ["--set", 'suites=["only_api_contract"]', f"--results={tmp_path / 'results'}"]

    def run(**variables: str) -> tuple[int, str]:
        found = subprocess.run(
            command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True
        )
        return found.returncode, found.stdout + found.stderr

    status, text = run(HF_HUB_OFFLINE="1")
    assert status == 4, text
    assert "HF_HUB_OFFLINE is set, and model org/model (revision main) is not complete" in text
    assert not list((tmp_path / "results").rglob("*.log")), "no server was started"
    status, text = run()
    assert status == 6, text
    assert "offline: 1" in text
    told = text.index("servematrix: downloading model org/model")
    assert told < text.index("= ERRORS ="), "said while it goes on"
    assert "Captured" not in text


# -- data ----------------------------------------------------------------------------------------


def test_hellaswag_is_downloaded_once(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = {"ind": 4, "activity_label": "Canoeing", "ctx": "Two women sit.", "label": "2"}
    table = pyarrow.Table.from_pylist([row | {"endings": ["a.", "b.", "c.", "d."]}])
    parquet.write_table(table, tmp_path / "items.parquet")
    content = (tmp_path / "items.parquet").read_bytes()
    file = "data/validation-00000-of-00001.parquet"
    hub.files["Rowan/hellaswag"] = {file: content, "data/train-0.parquet": b"t", "README.md": b"r"}
    monkeypatch.setattr(data, "HUB_REVISION", COMMIT)
    assert [item.label for item in data.load(None).items] == [2]
    asked = len(hub.asked)
    assert data.load(None).checksum == data.load(None).checksum
    assert len(hub.asked) == asked
    assert hub.downloads() == Counter([file])
