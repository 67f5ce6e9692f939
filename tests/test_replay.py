"""`servematrix replay`: recordings of real servers get the verdicts they deserve, and bad files a
clear word."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from servematrix import cli, outside
from servematrix.gates import consistency
from servematrix.gates.consistency import Compared
from servematrix.replay import reading

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
SHARED = ROOT / ".." / "shared" / "recordings"
HEALTHY = DATA / "traces" / "smollm2.json.gz"
ITEMS = DATA / "hellaswag_cpu"


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip("the shared recordings are not here")
    return path


def replayed(
    capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status, the verdicts in JSON, and what went to stderr."""
    status = cli.main(["replay", "--json", *map(str, arguments)])
    told = capsys.readouterr()
    return status, [json.loads(line) for line in told.out.splitlines()], told.err


def verdicts(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["gate"], row["verdict"]) for row in rows]


def trace_file() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress(HEALTHY.read_bytes()))
    return found


def part(tokens: int = 240, delta: float = 0.01, **more: Any) -> dict[str, Any]:
    """One part as the kit attaches it: every token the likeliest, at logit distances that vary."""
    logprob = [[-0.5 - 0.01 * (i % 50) for i in range(tokens // 2)] for _ in range(2)]
    return {
        "summary": {"top1": 0.1, "largest_gap": 99.0, "mean": 99.0},
        "delta_logprob": [[delta] * (tokens // 2)] * 2,
        "logprob": logprob,
        "gap": [[0.0] * (tokens // 2)] * 2,
        **more,
    }


def items(n: int = 120, **changed: Any) -> list[dict[str, Any]]:
    rows = [
        {"ind": i, "label": i % 4, "nt": [2] * 4, "lp": [-1.0 - (i + k) % 4 for k in range(4)]}
        for i in range(n)
    ]
    rows[7].update(changed)
    return rows


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# -- occupancy traces ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config", "outcomes"),
    [
        ("smollm2", "smollm2", ["pass"]),
        ("smollm2-slow-start", "smollm2", ["pass"]),
        ("smollm2-fp8-kv-cache", "smollm2", ["pass"]),
        ("smollm2-no-overlap", "smollm2", ["fail"]),
        ("smollm2-no-cuda-graph", "smollm2", ["fail"]),
        ("smollm2-standalone", "eagle3", ["pass", "pass"]),
        ("llama8b", "baseline", ["pass"]),
        ("llama8b-again", "baseline", ["pass"]),
        ("llama8b-no-overlap", "baseline", ["fail"]),
        ("llama8b-random-eagle3", "eagle3", ["pass", "fail"]),
    ],
)
def test_packaged_traces(capsys, name, config, outcomes):
    path = DATA / "traces" / f"{name}.json.gz"
    status, rows, _ = replayed(capsys, path, "--config", config)
    gates = ["fwd_occupancy", "accept_length"]
    assert verdicts(rows) == list(zip(gates, outcomes, strict=False))
    assert status == (1 if "fail" in outcomes else 0)
    assert {row["file"] for row in rows} == {str(path)}
    assert {row["request"] for row in rows} == {1}


@pytest.mark.parametrize(
    ("name", "config", "outcomes"),
    [
        ("base", "smollm2", ["pass"] * 3),
        ("l8b", "baseline", ["pass"] * 3),
        ("standalone", "eagle3", ["pass"] * 4),
        ("nooverlap", "smollm2", ["fail"] * 3),
        ("nograph", "smollm2", ["fail"] * 2),
        ("eagle3_smol", "eagle3", ["fail"] * 2),
    ],
)
def test_shared_traces(capsys, name, config, outcomes):
    path = shared(f"traces/{name}.trace.json.gz")
    status, rows, _ = replayed(capsys, path, "--config", config)
    assert [row["verdict"] for row in rows] == outcomes
    assert status == (1 if "fail" in outcomes else 0)


def test_a_verdict_tells_rule_and_risk_and_whose_limits(capsys):
    _, (row,), told = replayed(capsys, HEALTHY, "--config", "smollm2")
    assert row["numbers"]["threshold"] == 94
    assert row["rule"]
    assert 0 < row["alpha"] < 0.001 < 0.9 < row["power"]
    assert row["limits"] == "smollm2"
    assert "exit 0 (all verdicts pass): 1 pass; limits: smollm2" in told


def test_limits_are_the_kits_own_without_a_configuration(capsys):
    _, (row,), told = replayed(capsys, HEALTHY)
    assert (row["numbers"]["threshold"], row["numbers"]["startup_s"]) == (95, 5)
    assert "limits: the kits' defaults" in told


def test_limits_can_be_set(capsys):
    change = "gates.fwd_occupancy.threshold=99.9"
    status, (row,), _ = replayed(capsys, HEALTHY, "--config", "smollm2", "--set", change)
    assert (status, row["verdict"]) == (1, "fail")


def test_an_engine_is_given_the_configuration_that_stands_in(capsys):
    arguments = (HEALTHY, "--config", "baseline", "--engine", "sglang-cpu")
    _, (row,), _ = replayed(capsys, *arguments)
    assert row["limits"] == "smollm2_cpu in place of baseline"
    assert row["numbers"]["threshold"] == 90


def test_a_cell_of_an_axis_has_limits_of_its_own(capsys):
    path = DATA / "traces" / "smollm2-no-cuda-graph.json.gz"
    status, (row,), _ = replayed(capsys, path, "--config", "cuda_graph(max_bs=off)")
    assert (status, row["numbers"]["threshold"]) == (0, 85)


def test_a_request_that_was_stopped_early_is_judged(capsys, tmp_path):
    found = trace_file()
    (one,) = found["traces"]
    one["samples"] = [row for row in one["samples"] if row["t"] < 6]
    tokens = 40 * len({row["fwd_occupancy"] for row in one["samples"]})
    one["meta_info"] = {"finish_reason": {"type": "abort"}, "completion_tokens": tokens}
    one["stopped_early"] = True
    path = tmp_path / "stopped.json"
    path.write_text(json.dumps(found))
    _, (row,), _ = replayed(capsys, path, "--config", "smollm2")
    assert row["verdict"] == "pass", row["reason"]
    assert row["numbers"]["stopping_reason"] == "clear, cut by us"


def test_a_trace_with_too_few_samples_is_an_error(capsys, tmp_path):
    found = trace_file()
    found["traces"][0]["samples"] = found["traces"][0]["samples"][:30]
    path = tmp_path / "short.json"
    path.write_text(json.dumps(found))
    status, (row,), _ = replayed(capsys, path)
    assert (status, row["verdict"]) == (1, "error")
    assert "forward passes imply" in row["reason"]


# -- HellaSwag ----------------------------------------------------------------------------------


def test_a_run_alone_is_held_against_the_floor(capsys):
    path = ITEMS / "bfloat16.jsonl.gz"
    status, rows, _ = replayed(capsys, path, "--config", "smollm2")
    assert (status, verdicts(rows)) == (0, [("accuracy_floor", "pass")])
    status, rows, _ = replayed(capsys, path)
    assert (status, verdicts(rows)) == (1, [("accuracy_floor", "fail")])
    assert rows[0]["numbers"]["accuracy_threshold"] == 0.60


def test_few_items_are_inconclusive(capsys, tmp_path):
    path = tmp_path / "few.jsonl"
    path.write_text(lines(items(8)))
    status, rows, told = replayed(capsys, path, "--config", "smollm2")
    assert (status, verdicts(rows)) == (7, [("accuracy_floor", "inconclusive")])
    assert "exit 7" in told


def test_one_class_only_is_an_error(capsys, tmp_path):
    path = tmp_path / "one-class.json"
    path.write_text(json.dumps([{**row, "label": 2} for row in items()]))
    status, (row,), _ = replayed(capsys, path)
    assert (status, row["verdict"]) == (1, "error")
    assert "one class only" in row["reason"]


@pytest.mark.parametrize(
    ("baseline", "candidate", "outcomes", "status"),
    [
        ("bfloat16", "bfloat16_again", ["pass", "pass", "pass"], 0),
        ("cached_prefix", "cached_prefix_again", ["inconclusive", "pass", "pass"], 7),
        ("bfloat16", "float32", ["inconclusive", "pass", "fail"], 1),
    ],
)
def test_packaged_runs_against_a_baseline(capsys, baseline, candidate, outcomes, status):
    paths = [ITEMS / f"{name}.jsonl.gz" for name in (candidate, baseline)]
    found, rows, _ = replayed(capsys, paths[0], "--baseline", paths[1])
    assert [row["gate"] for row in rows] == ["paired_accuracy", "gold_logprob", "drift"]
    assert ([row["verdict"] for row in rows], found) == (outcomes, status)


def test_healthy_repeats_pass_every_gate(capsys):
    paths = [shared(f"hellaswag/{name}.jsonl.gz") for name in ("base2", "base")]
    status, rows, _ = replayed(capsys, paths[0], "--baseline", paths[1])
    assert (status, [row["verdict"] for row in rows]) == (0, ["pass"] * 3)


def test_an_fp8_kv_cache_is_seen_and_can_be_accepted(capsys):
    paths = [shared(f"hellaswag/{name}_cached_prefix.jsonl.gz") for name in ("kvfp8", "base")]
    status, rows, _ = replayed(capsys, paths[0], "--baseline", paths[1])
    assert status == 1
    assert dict(verdicts(rows))["drift"] == "fail"
    arguments = (paths[0], "--baseline", paths[1], "--accept", "fp8 KV cache")
    _, rows, _ = replayed(capsys, *arguments)
    assert dict(verdicts(rows))["drift"] == "pass"
    assert "accepted as 'fp8 KV cache'" in rows[-1]["reason"]


def test_runs_that_cannot_be_compared_are_an_error(capsys):
    paths = [ITEMS / f"{name}.jsonl.gz" for name in ("float16", "bfloat16")]
    status, rows, _ = replayed(capsys, paths[0], "--baseline", paths[1])
    assert (status, verdicts(rows)) == (1, [("pairing", "error")])
    assert "missing in the candidate" in rows[0]["reason"]


# -- decode consistency -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "outcome"), [("base", "pass"), ("kvfp8", "fail")])
def test_shared_decode_consistency(capsys, name, outcome):
    path = shared(f"decode_consistency/{name}.json.gz")
    status, rows, _ = replayed(capsys, path)
    assert verdicts(rows) == [("decode_consistency", outcome)]
    assert status == (outcome == "fail")
    numbers = rows[0]["numbers"]
    assert (numbers["dtype"], numbers["dtype_told"]) == ("bfloat16", None)
    told = json.loads(gzip.decompress(path.read_bytes()))["concurrency"]["4"]["summary"]
    assert numbers["mean, concurrency 4"] == pytest.approx(told["mean"], rel=1e-4)
    assert numbers["top1, concurrency 4"] == told["argmax_agree"]


def test_raw_rows_outweigh_the_summary_beside_them(capsys, tmp_path):
    path = tmp_path / "attached.json"
    path.write_text(json.dumps({"server": {"dtype": "auto"}, "concurrency": {"4": part()}}))
    status, (row,), _ = replayed(capsys, path)
    assert (status, row["verdict"]) == (0, "pass"), row["reason"]
    numbers = row["numbers"]
    assert (numbers["mean"], numbers["top1"], numbers["largest_gap"]) == (pytest.approx(0.01), 1, 0)
    assert numbers["relative"] == pytest.approx(0.01 / 0.52, rel=0.05)


def test_rows_as_attached_come_to_what_the_kit_found():
    one = Compared("x", [-0.51, -1.7, -0.2], [-0.5, -1.5, -0.2], [-0.5, -0.3, -0.1])
    raw = {
        "delta_logprob": [one.delta],
        "logprob": [list(one.prefill)],
        "gap": [one.gaps],
    }
    content = json.dumps({"concurrency": {"shared prefix": raw}}).encode()
    found = reading.recognise(content, Path("x"))
    assert isinstance(found, reading.Consistency)
    summary = consistency.summarise([one])
    (name, kept) = next(iter(found.parts.items()))
    assert name == "shared prefix"
    assert kept.worst_name == "sequence 0"
    for key in ("tokens", "mean", "p99", "largest", "top1", "largest_gap", "spread"):
        assert getattr(kept, key) == pytest.approx(getattr(summary, key))


RELAXED = ("relative=0.1", "mean=0.03", "worst_sequence=0.1")


@pytest.mark.parametrize(
    ("server", "arguments", "dtype", "outcome"),
    [
        ({"dtype": "bfloat16"}, (), "bfloat16", "pass"),
        ({"dtype": "half", "kv_cache_dtype": "fp8_e5m2"}, (), "float16", "fail"),
        ("a server in words", ("--config", "baseline"), "bfloat16", "pass"),
        ("a server in words", ("--config", "eagle3"), "float16", "fail"),
        (
            {"dtype": "half"},
            (
                "--config=baseline",
                *(f"--set=gates.decode_consistency.float16.{x}" for x in RELAXED),
            ),
            "float16",
            "pass",
        ),
    ],
)
def test_limits_are_those_of_the_dtype(capsys, tmp_path, server, arguments, dtype, outcome):
    path = tmp_path / "dtype.json"
    path.write_text(json.dumps({"server": server, "concurrency": {"1": part()}}))
    _, (row,), _ = replayed(capsys, path, *arguments)
    assert (row["numbers"]["dtype"], row["verdict"]) == (dtype, outcome), row["reason"]
    if "kv_cache_dtype" in server:
        assert "the KV cache is fp8_e5m2" in row["reason"]


def test_too_few_tokens_are_an_error(capsys, tmp_path):
    path = tmp_path / "few.json"
    path.write_text(json.dumps({"concurrency": {"1": part(20)}}))
    status, (row,), _ = replayed(capsys, path)
    assert (status, row["verdict"]) == (1, "error")


# -- printing, and files that are none ----------------------------------------------------------


def test_readable_lines(capsys):
    paths = [DATA / "traces" / f"{name}.json.gz" for name in ("smollm2", "smollm2-no-overlap")]
    assert cli.main(["replay", *map(str, paths), "--config", "smollm2"]) == 1
    told = capsys.readouterr()
    first, second = told.out.splitlines()
    assert first.startswith(f"pass: fwd_occupancy: {paths[0]}, request 1: median")
    assert second.startswith(f"fail: fwd_occupancy: {paths[1]}, request 1: median")
    last = told.err.splitlines()[-1]
    assert last.startswith("servematrix: exit 1 (a verdict failed, or a measurement could not be")
    assert "1 fail, 1 pass" in last


def test_other_files_are_judged_beside_a_bad_one(capsys, tmp_path):
    status, rows, told = replayed(capsys, tmp_path / "absent", HEALTHY, "--config", "smollm2")
    assert (status, verdicts(rows)) == (4, [("fwd_occupancy", "pass")])
    assert "exit 4 (usage or environment): 1 pass, 1 of 2 files not judged" in told


def changed_trace(row: int = 9, **changed: Any) -> str:
    found = trace_file()
    found["traces"][0]["samples"][row].update(changed)
    return json.dumps(found)


def without(key: str) -> str:
    found = trace_file()
    del found["traces"][0]["samples"][9][key]
    return json.dumps(found)


def consistency_file(**changed: Any) -> str:
    return json.dumps({"concurrency": {"4": part(**changed)}})


BAD: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "empty; expected an object with 'traces'"),
    "blank": (" \n\n", "empty"),
    "text": ("hello\nworld\n", "not JSON"),
    "not UTF-8": (b'{"traces": "\xff"}', "not UTF-8 (byte 12)"),
    "cut gzip": (HEALTHY.read_bytes()[:2000], "broken gzip"),
    "damaged gzip": (HEALTHY.read_bytes()[:-8] + b"12345678", "broken gzip"),
    "only the magic": (b"\x1f\x8b", "broken gzip"),
    "cut JSON": ('{"traces": [', "not JSON"),
    "another object": ('{"kind": "run"}', "no recording (an object with the keys kind)"),
    "another list": ('[{"path": "/health"}]', "no recording (a list of 1"),
    "a number": ("3", "no recording (3)"),
    "empty list": ("[]", "no recording (an empty list)"),
    "deep": ("[" * 100_000, "not"),
    "long number": ('{"ind": ' + "9" * 5000 + "}", "a whole number of 5000 digits"),
    "traces of nothing": ('{"traces": []}', "traces: List should have at least 1 item"),
    "traces no list": ('{"traces": 3}', "traces: Input should be a valid list (found 3)"),
    "no samples": ('{"traces": [{"meta_info": {}}]}', "traces.0.samples: Field required"),
    "no t": (without("t"), "traces.0.samples.9.t: Field required"),
    "no occupancy": (without("fwd_occupancy"), "samples.9.fwd_occupancy: Field required"),
    "occupancy in words": (changed_trace(fwd_occupancy="98"), "samples.9.fwd_occupancy: Input"),
    "NaN occupancy": (changed_trace(fwd_occupancy=float("nan")), "NaN is no number"),
    "infinite t": (changed_trace(t=float("inf")), "Infinity is no number"),
    "too large to be finite": (changed_trace(t="@").replace('"@"', "1e999"), "samples.9.t: "),
    "negative duration": (changed_trace(scrape_s=-1), "samples.9.scrape_s: "),
    "not in order": (changed_trace(t=3.0), "samples are not in the order of t"),
    "same t twice": (
        changed_trace(t=trace_file()["traces"][0]["samples"][8]["t"]),
        "rank dp0 has two samples at t",
    ),
    "items without ind": (lines(items()).replace('"ind"', '"i"'), "row 0: no ind"),
    "item without nt": (lines([*items(), {"ind": 1, "label": 0, "lp": [1, 2]}]), "row 120: no nt"),
    "item is a number": (lines(items()) + "3\n", "row 120: an item is an object, found int"),
    "line cut": (lines(items())[:-9], "line 120: not JSON"),
    "NaN in an item": (lines(items(lp=[float("nan")] * 4)), "line 8: not usable JSON (NaN is no"),
    "infinite lp": (lines(items(lp="@")).replace('"@"', "[-1e999, -1, -1, -1]"), "row 7: item 7"),
    "item twice": (lines(items(ind=5)), "item 5 is there 2 times"),
    "tokens from 0": (lines(items(nt=[0, 2, 2, 2])), "row 7: item 7: nt is [0, 2, 2, 2]"),
    "no parts": ('{"concurrency": {}}', "concurrency: Dictionary should have at least 1 item"),
    "part without rows": ('{"concurrency": {"4": {"summary": {}}}}', "4.delta_logprob: Field req"),
    "empty sequence": (consistency_file(delta_logprob=[[]]), "4.delta_logprob.0: List should"),
    "other lengths": (consistency_file(gap=[[0.0]]), "concurrency 4: gap has other lengths"),
    "delta is text": (consistency_file(delta_logprob=[["nan"]]), "(found 'nan')"),
    "delta is NaN": (consistency_file(delta_logprob=[[float("nan")]]), "NaN is no number"),
    "logprob above 0": (consistency_file(logprob=[[800.0] * 120] * 2), "4.logprob.0.0: "),
    "no gap at all": (consistency_file(gap=None, summary={}), "concurrency 4: no row gap, and"),
}


@pytest.mark.parametrize(("content", "told"), list(BAD.values()), ids=list(BAD))
def test_a_bad_file_is_named_with_what_is_wrong(capsys, tmp_path, content, told):
    path = tmp_path / "bad.file"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert cli.main(["replay", str(path)]) == 4
    found = capsys.readouterr()
    assert f"servematrix: {path}" in found.err
    assert told in found.err
    assert not found.out
    assert cli.main(["replay", str(HEALTHY), "--baseline", str(path)]) == 4
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("packed", [False, True])
def test_a_huge_file_is_refused(capsys, tmp_path, monkeypatch, packed):
    monkeypatch.setattr(outside, "MOST_BYTES", 2_000_000)
    content = b" " * 2_000_001
    path = tmp_path / "huge"
    path.write_bytes(gzip.compress(content) if packed else content)
    assert cli.main(["replay", str(path)]) == 4
    assert f"{path}: more than 2 MB" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["absent.json", "", "a\0b"])
def test_what_is_no_file_is_refused(capsys, tmp_path, name):
    assert cli.main(["replay", f"{tmp_path}/{name}"]) == 4
    assert "cannot be read: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([str(HEALTHY), "--set", "gates.hellaswag.accuracy_threshold=0.3"], "--set is about a"),
        ([str(HEALTHY), "--engine", "sglang"], "--engine is about a configuration"),
        ([str(HEALTHY), "--configs", "configs"], "--configs is about a configuration"),
        ([str(HEALTHY), "--config", "smolm2"], "did you mean 'smollm2'"),
        ([str(HEALTHY), "--config", "cuda_graph"], "name one of: cuda_graph(max_bs=1), "),
        ([str(HEALTHY), "--config", "smollm2", "--set", "x.y=1"], "unknown key 'x'"),
        ([str(HEALTHY), "--accept", "fp8"], "name the other run with --baseline"),
        (
            [str(HEALTHY), "--baseline", str(ITEMS / "bfloat16.jsonl.gz"), "--accept", " "],
            "the change has a name",
        ),
        (
            [str(ITEMS / "bfloat16.jsonl.gz"), "--baseline", str(HEALTHY)],
            f"--baseline {HEALTHY}: holds occupancy traces; expected HellaSwag items",
        ),
        (
            [str(HEALTHY), "--baseline", str(ITEMS / "bfloat16.jsonl.gz")],
            f"{HEALTHY}: holds occupancy traces; expected HellaSwag items like --baseline",
        ),
    ],
)
def test_bad_usage(capsys, arguments, message):
    assert cli.main(["replay", *arguments]) == 4
    assert message in capsys.readouterr().err
