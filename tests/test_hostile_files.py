"""Files that nobody wrote so: each reader says what is wrong, and where, or reads them."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from malforming import WRONG_VALUES
from servematrix import baselines, matrix, metrics, records
from servematrix import config as configs
from servematrix.baselines import BaselineError
from servematrix.calibration import measured
from servematrix.compare import runs
from servematrix.config import ConfigError, Place
from servematrix.gates import stream
from servematrix.records import RecordsError
from servematrix.redaction import Secrets
from servematrix.replay import reading
from servematrix.replay.reading import RecordingError
from servematrix.validation import kept

ROOT = Path(__file__).resolve().parent.parent
JSON = st.recursive(
    st.one_of(st.sampled_from(WRONG_VALUES), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@contextmanager
def folder() -> Iterator[Path]:
    """A folder of one example; a fixture's would be shared by all."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def mutated(data: st.DataObject, value: Any, values: st.SearchStrategy[Any]) -> Any:
    """A tree with one place replaced, left out, or named otherwise."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 5)):
        key = data.draw(st.sampled_from(sorted(value)))
        copy = dict(value)
        change = data.draw(st.sampled_from(("inside", "inside", "leave out", "name otherwise")))
        if change == "inside":
            copy[key] = mutated(data, value[key], values)
        else:
            del copy[key]
            if change == "name otherwise":
                copy[data.draw(st.text(max_size=8))] = value[key]
        return copy
    if isinstance(value, list) and value and data.draw(st.integers(0, 5)):
        index = data.draw(st.integers(0, len(value) - 1))
        return [*value[:index], mutated(data, value[index], values), *value[index + 1 :]]
    return data.draw(values)


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """Bytes of which some are left out, put in or changed."""
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 20)))
    return content[:start] + data.draw(st.binary(max_size=6)) + content[end:]


def refusal(kind: type[Exception], read: Callable[[], object]) -> str | None:
    """What a reader says of a file that it refuses; None where it reads it."""
    try:
        read()
    except kind as error:
        return str(error)
    return None


# -- configurations -----------------------------------------------------------------------------

FILES = sorted((ROOT / "configs").glob("*.toml"))
TREES = [tomllib.loads(path.read_text()) for path in FILES]
TOML = st.recursive(
    st.one_of(
        st.sampled_from((True, "", "x", "\x1b[31m", -1, 0, 2**70, 1e308, float("nan"), "{max_bs}")),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def toml(value: Any) -> str:
    """A TOML value; tables are written inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool | str):
        return json.dumps(value)
    return repr(value)


def loaded(text: bytes) -> None:
    """Load a configuration and resolve its cells: fine, or an error that names the file."""
    with folder() as directory:
        for path in FILES:
            (directory / path.name).symlink_to(path)
        (directory / "mine.toml").write_bytes(text)
        told = refusal(ConfigError, lambda: configs.load(directory, "mine"))
        assert told is None or all("mine.toml: " in line for line in told.split("\n"))
        if told is None:
            told = refusal(ConfigError, lambda: resolved(configs.load(directory, "mine")))
            assert told is None or "configuration mine: " in told


def resolved(config: configs.Configuration) -> None:
    for cell in matrix.expand(config):
        configs.digest(configs.resolve(config, cell.axis, Place("sglang")))
    configs.attributes(config)


@given(st.data())
def test_a_configuration_is_read_or_its_key_named(data):
    tree = mutated(data, data.draw(st.sampled_from(TREES)), TOML)
    if isinstance(tree, dict):
        text = "\n".join(f"{json.dumps(key)} = {toml(value)}" for key, value in tree.items())
        loaded(text.encode(errors="replace"))


@given(st.data())
def test_a_damaged_configuration_is_read_or_its_file_named(data):
    loaded(damaged(data, data.draw(st.sampled_from(FILES)).read_bytes()))


@pytest.mark.parametrize(
    "text",
    [b"a = " + b"[" * 5000, b"a = " + b"9" * 5000, b"\xff", b"a = 1e999", b"a" * 10**6, b"\x00"],
    ids=["deep", "digits", "no UTF-8", "infinite", "long", "zero"],
)
def test_toml_at_its_limits(text):
    loaded(text)


@given(st.data())
def test_a_change_is_made_or_refused(data):
    config = configs.load(ROOT / "configs", "baseline")
    keys = ("gates", "arguments", "arguments.x", "environment", "suites", "model.path", "")
    key = data.draw(st.sampled_from(keys)) + data.draw(st.just("") | st.text(max_size=6))
    value = data.draw(TOML.map(toml) | st.text(max_size=8))
    change = [f"{key}={value}"]
    told = refusal(ConfigError, lambda: configs.resolve(config, {}, Place("sglang"), change))
    assert told is None or "--set" in told


# -- records ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The records of a run with one cell, as a session writes them."""
    made = records.Run.create(tmp_path_factory.mktemp("results"), "x")
    made.write("run", engine="reference", simulated=True, gpus=[], git_commit=None)
    made.write(
        "cell",
        cell="x",
        configuration={"name": "x", "model": {"path": "m"}, "arguments": {"dtype": "half"}},
        parameters={},
        gpus=[],
        versions={"reference": "1"},
        model="m",
        simulated=True,
        startup_seconds=0.5,
    )
    rows = [{"ind": i, "label": 0, "lp": [-1.0, -2.0], "nt": [1, 1]} for i in range(3)]
    path = made.attach("x-hellaswag-items", rows)
    made.write("measurement", cell="x", kit="hellaswag", name="items", path=path, unit="file")
    for kit, test in (
        ("hellaswag", "test_accuracy_floor"),
        ("fwd_occupancy", "test_fwd_occupancy"),
    ):
        numbers = {"n": 3, "shots": 0, "settled_median": 98.0, "accuracy": 0.5}
        numbers |= {"checksum_questions": "a" * 64, "checksum_shots": "b" * 64}
        verdict = {"verdict": "pass", "rule": "r", "reason": "why", "numbers": numbers}
        made.write("verdict", cell="x", kit=kit, test=test, **verdict)
    made.write("end", exit_code=0, counts={"pass": 2})
    entry = {"time": "now", "server": {"name": "s", "description": "d", "config": "baseline"}}
    entry["server"]["model"] = "llama-8b"
    (made.folder / kept.SERVER_FILE).write_text(json.dumps(entry))
    return made.folder


def read_all(path: Path) -> None:
    """Every way in which records are read: each reads them, or says what is wrong."""
    for read in (
        lambda: list(records.read(path)),
        lambda: [cell.items() for cell in runs.read(path).cells.values()],
        lambda: kept.row(path),
        lambda: measured.cells(path, "x"),
        lambda: measured.read(path, "x"),
    ):
        told = refusal(RecordsError, read)
        assert told is None or str(path) in told


def test_the_records_that_are_spoiled_here_are_read(run):
    assert len(list(records.read(run))) == 6
    assert runs.read(run).cells["x"].items()
    assert kept.row(run).counts == {"pass": 2}
    assert measured.read(run, "x").rows


@given(data=st.data())
def test_records_with_something_else_in_them_are_read_or_refused(run, data):
    lines = (run / records.FILE).read_text().splitlines()
    index = data.draw(st.integers(0, len(lines) - 1))
    lines[index] = json.dumps(mutated(data, json.loads(lines[index]), JSON))
    with folder() as path:
        shutil.copytree(run, path, dirs_exist_ok=True)
        (path / records.FILE).write_text("\n".join(lines) + "\n")
        read_all(path)


@given(data=st.data())
def test_damaged_records_are_read_or_refused(run, data):
    name = data.draw(st.sampled_from((records.FILE, kept.SERVER_FILE, "files")))
    with folder() as path:
        shutil.copytree(run, path, dirs_exist_ok=True)
        file = next((path / name).iterdir()) if name == "files" else path / name
        file.write_bytes(damaged(data, file.read_bytes()))
        read_all(path)


@pytest.mark.parametrize("line", [b"[" * 10**5, b'{"kind": "run", "schema": ' + b"9" * 5000, b""])
def test_records_at_the_limits_of_json(tmp_path, line):
    (tmp_path / records.FILE).write_bytes(line)
    read_all(tmp_path)


@given(JSON)
@example("\ud800")
@example({"\udfff": ["\ud800\u2028\x1b"]})
def test_what_is_recorded_is_read_back(value):
    with folder() as root:
        made = records.Run.create(root, "x")
        made.write("run", value=value)
        path = made.attach("x", value)
        (record,) = records.read(made.folder)
        assert record["value"] == records.attached(made.folder, path) == Secrets().plain(value)


# -- baselines ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def baseline(tmp_path_factory) -> Path:
    """A baseline with items, as `calibrate` writes it."""
    path = tmp_path_factory.mktemp("baselines") / "x" / "gpu.json"
    serving = {"model": {"path": "m"}, "arguments": {}, "environment": {}, "kits": {}}
    provenance = {
        **{"cell": "x", "parameters": {}, "engine": "sglang", "simulated": False},
        **{"versions": {"sglang": "1"}, "hardware": "gpu", "gpus": ["GPU"], "drivers": ["1"]},
        **{"model": "m", "dtype": "half", "commits": [], "first": "1", "last": "2"},
        "runs": ["a", "b", "c", "d", "e"],
    }
    bound = {"unit": "%", "better": "higher", "bound": 97.0, "alpha": 0.001, "extrapolated": True}
    content = {
        "provenance": provenance,
        "serving": serving,
        "serving_digest": baselines.digest(serving),
        "scoring": None,
        "distributions": {"settled_median": [98.0, 98.1, 98.2, 98.3, 98.4]},
        "assumption": "normal",
        "thresholds": {"settled_median": bound},
        "known_bad_checked": [],
    }
    baselines.write(path, content, [{"ind": 0}])
    return path


def test_the_baseline_that_is_spoiled_here_is_read(baseline):
    assert baselines.at(baseline).rows == [{"ind": 0}]


@given(data=st.data(), signed=st.booleans())
def test_a_baseline_with_something_else_in_it_is_read_or_refused(baseline, data, signed):
    content = mutated(data, json.loads(baseline.read_text()), JSON)
    if signed and isinstance(content, dict):  # as somebody would who goes to such lengths
        content["checksums"] = {
            key: baselines.digest(value) for key, value in content.items() if key != "checksums"
        }
    with folder() as root:
        path = Path(shutil.copytree(baseline.parent, root / "x")) / baseline.name
        path.write_text(json.dumps(content))
        told = refusal(BaselineError, lambda: baselines.at(path).described())
        assert told is None or str(path.parent) in told


@given(data=st.data(), items=st.booleans())
def test_a_damaged_baseline_is_read_or_refused(baseline, data, items):
    with folder() as root:
        path = Path(shutil.copytree(baseline.parent, root / "x")) / baseline.name
        file = path.with_name("gpu.items.json.gz") if items else path
        file.write_bytes(damaged(data, file.read_bytes()))
        told = refusal(BaselineError, lambda: baselines.at(path))
        assert told is None or str(path) in told


@pytest.mark.parametrize("text", [b"[" * 10**5, b'{"format": ' + b"9" * 5000 + b"}", b"\xff", b""])
def test_a_baseline_at_the_limits_of_json(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(BaselineError, match=r"x\.json"):
        baselines.at(tmp_path / "x.json")


# -- recordings ---------------------------------------------------------------------------------

SAMPLE = {"t": 0.5, "scrape_s": 0.01, "request_running": True, "num_running_reqs": 1.0}
SAMPLE["fwd_occupancy"] = 9
RECORDINGS = (
    {
        "traces": [
            {"meta_info": {"completion_tokens": 9}, "samples": [SAMPLE | {"fwd_occupancy": 9}]}
        ]
    },
    {"concurrency": {"1": {"delta_logprob": [[0.1]], "logprob": [[-1.0]], "gap": [[0.0]]}}},
    [{"ind": i, "label": 0, "lp": [-1.0, -2.0], "nt": [1, 1]} for i in range(2)],
)


@given(st.data(), st.booleans())
def test_a_recording_is_read_or_refused(data, packed):
    content = json.dumps(mutated(data, data.draw(st.sampled_from(RECORDINGS)), JSON)).encode()
    if data.draw(st.booleans()):
        content = damaged(data, content)
    with folder() as root:
        path = root / "recording"
        path.write_bytes(gzip.compress(content) if packed else content)
        told = refusal(RecordingError, lambda: reading.read(path))
        assert told is None or str(path) in told


# -- /metrics -----------------------------------------------------------------------------------

LABEL = st.text(alphabet=st.characters(codec="utf-8"), max_size=8)
GAUGES = sorted(metrics._GAUGES.items())


def escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


@given(
    st.dictionaries(st.tuples(LABEL, LABEL), st.dictionaries(st.sampled_from(GAUGES), st.floats())),
    LABEL,
)
def test_an_exposition_is_read_as_it_was_written(ranks, model):
    lines = [
        f'{name}{{model_name="{escaped(model)}",dp_rank="{escaped(dp)}",tp_rank="{escaped(tp)}"}}'
        f" {value!r}"
        for (dp, tp), gauges in ranks.items()
        for (name, _), value in gauges.items()
    ]
    meant = all(
        metrics._meant(name, value)
        for gauges in ranks.values()
        for (name, _), value in gauges.items()
    )
    try:
        found = metrics.read("\n".join(lines) + "\n")
    except metrics.MalformedMetrics:
        assert not meant
        return
    assert meant
    told = {
        (rank.group, field): getattr(rank, field)
        for rank in found.ranks.values()
        for field in metrics._GAUGES.values()
    }
    groups = [dp for dp, _ in ranks]
    for (dp, _), gauges in ranks.items():
        if groups.count(dp) == 1:
            for (_, field), value in gauges.items():
                assert told[dp, field] == value or value != value


@given(
    st.lists(
        st.sampled_from(metrics._WANTED).flatmap(
            lambda name: st.text(
                st.sampled_from('{}",=\\ \t\n#0123456789.eE+-NaInf_abr\x85\u2028')
                | st.characters(),
                max_size=30,
            ).map(lambda rest: name + rest)
        ),
        max_size=3,
    )
)
def test_any_text_is_metrics_or_malformed(lines):
    told = refusal(metrics.MalformedMetrics, lambda: metrics.read("\n".join(lines)))
    assert told is None or "/metrics" in told


# -- streams ------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_any_blocks_are_framed_or_have_a_fault(blocks):
    framed = stream.unframe(blocks)
    assert framed.fault is not None or blocks[-1] == b"data: [DONE]\n\n"
    verdict = stream.judge(blocks, whole="a", expected=None)
    assert verdict.outcome in ("pass", "fail")
