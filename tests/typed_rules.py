"""How each command of the documentation is tried: one rule for each, found by its text.

A command is typed as it stands, in the place of `place.py`. What would take long there is made
small from outside, by PYTEST_ADDOPTS: the command is the same, and runs fewer tests. What cannot be
tried like that is in `PARSED`, each with its reason; its sessions, commands and options must exist.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

SMALL = "test_health"
"""A test of a kit that every suite but one has, and that takes no time."""
FEW = "test_health and (baseline or eagle3) and not sm120"
"""Of two cells of the matrix: one in each shard of two."""


@dataclass(frozen=True)
class Rule:
    """How a command is tried, and how it must end."""

    text: str
    """A regular expression that the whole command matches."""
    says: str
    """What must be found in what it prints: a regular expression."""
    status: int = 0
    only: str = SMALL
    """What pytest runs of it, as `-k` takes it."""
    gpus: bool = False
    before: str = ""
    """A command that goes before, as it does in the page; it must end with status 0."""
    cut: bool = False
    """Whether the run that goes before is one that was killed."""
    runs: Mapping[str, str] = field(default_factory=dict)
    """Runs that are there before: name to a server of `docs/validation`."""
    files: tuple[str, ...] = ()
    """Files that are there before (`Place.bring`)."""
    serves: bool = False
    """Whether a server is to run where the command has port 30000."""


STAGE_A = re.escape("nox -s stage_a")
PASSES = r"exit 0 \(all verdicts pass\)"
CARDS = re.escape("--engine sglang --server-python ~/sglang/.venv/bin/python")
TWO_BASELINES = {
    "20261123-025832-baseline-8cac": "llama8b",
    "20261123-025853-baseline-f54a": "llama8b-no-overlap",
}
SMOLLM2 = {"20261122-140010-smollm2-1a2b": "smollm2", "20261122-170000-smollm2-3c4d": "smollm2"}
REPEATS = {f"20261122-14{n}000-smollm2-{n}a{n}b": "smollm2" for n in range(1, 6)}
BROKEN = {"20261122-160512-smollm2-5f6e": "smollm2-no-overlap"}
SHARDS = "nox -s matrix -- --engine reference --shard 1/2 && "
SHARDS += "nox -s matrix -- --engine reference --shard 2/2"

RULES = (
    Rule(STAGE_A, PASSES + ".*engine reference"),
    Rule(
        STAGE_A + " -- --set arguments.disable-overlap-schedule=true",
        "1 fail.*engine reference",
        status=1,
        only="occupancy",
    ),
    Rule(STAGE_A + f" -- {CARDS} --gpus 1", PASSES + ".*engine sglang.*H100", gpus=True),
    Rule(
        STAGE_A + " -- --engine sglang --sglang 0.5.16 --model ~/models/llama-3.1-8b",
        PASSES + ".*engine sglang.*--sglang 0.5.16 was given",
        gpus=True,
    ),
    Rule(STAGE_A + " -- --base-url http://127.0.0.1:30000", PASSES, serves=True),
    Rule(STAGE_A + " -- --engine reference -k health", PASSES),
    Rule(
        STAGE_A + " -- --engine reference --set arguments.fault=graphs-lost",
        "fail: test_cuda_graph_passes",
        status=1,
        only="cuda_graph",
    ),
    Rule(STAGE_A + " -- --engine reference --junitxml=results/junit.xml", "generated xml file"),
    Rule("nox -s eagle3 -- --set gates.fwd_occupancy.threshold=96", PASSES),
    Rule("nox -s matrix -- --resume latest", PASSES, only=FEW, before="nox -s matrix", cut=True),
    Rule("nox -s matrix -- -n auto", PASSES, only=FEW),
    Rule(
        r"nox -s matrix -- --engine reference --shard [12]/2",
        "shard ./2: . of 13 cells(?s:.*)" + PASSES,
        only=FEW,
    ),
    Rule("nox -j 2 -s stage_a eagle3", "eagle3: success"),
    Rule("nox -s cells -- --config my_model", PASSES, before="servematrix new-config my_model"),
    Rule("servematrix run stage_a --engine reference", PASSES),
    Rule("servematrix new-config my_model", r"wrote .*configs/my_model\.toml"),
    Rule("servematrix new-kit my_kit", r"wrote .*kits/my_kit\.py"),
    Rule(
        "servematrix plan my_model --engine reference",
        "(?m)^my_model ",
        before="servematrix new-config my_model",
    ),
    Rule(
        "servematrix plan my_model --set gates.fwd_occupancy.treshold=96",
        "did you mean 'threshold'",
        status=4,
        before="servematrix new-config my_model",
    ),
    Rule(f"servematrix plan baseline {CARDS} --gpus 1", "sglang.launch_server", gpus=True),
    Rule("servematrix plan --github --engine sglang( --shards 2)?", '"include"'),
    Rule("servematrix doctor", "[0-9]+ checks; problems: none", gpus=True),
    Rule("servematrix faults", "graphs-lost"),
    Rule("servematrix report results/latest", r"report\.html", runs=TWO_BASELINES),
    Rule(
        "servematrix history baseline --kit fwd_occupancy --measure median",
        "✓✗",
        runs=TWO_BASELINES,
    ),
    Rule(
        "servematrix merge results/.-all-. --expect all --out merged"
        " --cell-durations configs/durations.json".replace(".-all-.", r"\*-all-\*"),
        "without verdict: 11 expected cells.*records and report in merged",
        status=1,
        only=FEW,
        before=SHARDS,
    ),
    Rule(
        "servematrix compare results/20261123-025832-baseline-8cac results/latest",
        "fwd_occupancy.test_fwd_occupancy +pass +fail",
        status=1,
        runs=TWO_BASELINES,
    ),
    Rule(
        "servematrix compare results/20261122-140010-smollm2-1a2b results/latest",
        "exit [07] ",
        status=7,
        runs=SMOLLM2,
    ),
    Rule(
        "servematrix compare --b-set arguments.disable-overlap-schedule=true --config baseline"
        " --engine reference",
        r"\[4/4\] A: reference(?s:.*)exit 0 ",
    ),
    Rule(
        "servematrix calibrate baseline --engine reference --repeats 3",
        "wrote baseline",
        only="occupancy",
    ),
    Rule(
        r"servematrix calibrate smollm2 --from results/20261122-14\* --known-bad "
        "results/20261122-160512-smollm2-5f6e",
        "wrote baseline",
        runs=REPEATS | BROKEN,
    ),
    Rule(
        "servematrix replay trace.json.gz decode-consistency.json --config smollm2",
        "exit 0 .*2 pass|exit 0 .*pass",
        files=("trace.json.gz", "decode-consistency.json"),
    ),
    Rule(
        'servematrix replay new.jsonl --baseline old.jsonl --accept "fp8 KV cache"',
        "fp8 KV cache",
        status=1,
        files=("new.jsonl", "old.jsonl"),
    ),
    Rule(
        "servematrix validate --from docs/validation/h200-sglang-0.5.16 --markdown",
        "as expected",
    ),
    Rule(
        "servematrix validate --from results/validation-20261122-140010 --markdown",
        "as expected",
        runs={"validation-20261122-140010": "."},
    ),
    Rule(
        "servematrix validate smollm2 smollm2-no-overlap --engine reference",
        "as expected",
        only="occupancy",
    ),
    Rule(
        "python -m unittest -v test_my_server",
        "test_fwd_occupancy .*(?s:.*)OK",
        files=("test_my_server.py",),
        serves=True,
    ),
)

PARSED: Mapping[str, str] = {
    r'pip install "nox>=2026\.8\.10" uv': "needs a package registry; .ci/run does it",
    r'pip install "servematrix\[ray\]"': "needs a package registry",
    r"ray start --head --port 6379": "leaves a daemon behind; tests/test_ray.py starts a Ray",
    r"nox -s matrix -- --executor ray .*": "tests/test_ray.py starts a Ray, which takes long",
    r"nox -s tests": "this is one of them",
    r"nox -s tests lint typecheck docs": "CI runs it",
    r"\.ci/run": "CI runs it",
    r"nox -s mutants.*": "takes long, and is not in CI either",
    r"nox -s faults": "takes minutes; tests/faults runs parts of it",
    r"servematrix faults --matrix RUN --(json|markdown)": "wants a run of all faults: tests/faults",
    r"nox -s stage_a -- --engine sglang-cpu": "installs PyTorch: benchmarks, docs/validation.md",
    r"servematrix validate --engine sglang .*": "starts nine servers: tests/test_validation.py",
    r"servematrix calibrate smollm2 --repeats 5 --gpus 0": "as the one on `reference`, and longer",
    r"servematrix compare --a sglang==0\.5\.16 .*": "starts eight servers: tests/test_compare.py",
}
"""Commands that are not typed, by a regular expression, and why."""


def rule(text: str) -> Rule | str | None:
    """How a command is tried, or why it is only parsed; None where nothing says."""
    for one in RULES:
        if re.fullmatch(one.text, text):
            return one
    return next((why for known, why in PARSED.items() if re.fullmatch(known, text)), None)
