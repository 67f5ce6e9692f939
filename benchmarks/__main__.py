"""The project's figures, measured on this machine: `nox -s bench [-- NAME…]`.

Each figure is a median of several runs with its spread, beside the aim that it is held against.
A figure that misses its aim is shown as such and fails nothing: machines are shared and noisy.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import accuracy_gates, occupancy_gates, scale, survival
from servematrix import config as configs
from servematrix import data, matrix, metrics, records
from servematrix.client import Client
from servematrix.engines.base import Launch, Server
from servematrix.engines.embedded import EmbeddedEngine
from servematrix.kits import HellaswagMixin
from servematrix.kits.scoring import examples, score
from servematrix.redaction import Secrets
from servematrix.report import command as reports
from tests import rich_run

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Figure:
    """One measured figure: all runs, their unit, and the aim where there is one."""

    name: str
    values: list[float]
    unit: str
    aim: float | None = None
    more_is_better: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        if self.aim is None:
            return "reported"
        met = self.median >= self.aim if self.more_is_better else self.median <= self.aim
        sign = "≥" if self.more_is_better else "≤"
        return f"{'met' if met else 'MISSED'} ({sign} {self.aim:g})"


@contextmanager
def reference_server() -> Iterator[Server]:
    """The embedded server as `baseline` runs it."""
    with tempfile.TemporaryDirectory() as folder:
        baseline = configs.load(ROOT / "configs", "baseline")
        server = EmbeddedEngine("benchmark").start(
            Launch(
                cell="bench",
                model="bench",
                draft_model=None,
                arguments=baseline.arguments,
                environment=baseline.environment,
                gpus=(),
                host="127.0.0.1",
                port=0,
                api_key_env=None,
                log=Path(folder, "server.log"),
                deadline_seconds=60,
            )
        )
        try:
            yield server
        finally:
            server.stop()


def start() -> Iterator[Figure]:
    """Server start to ready."""
    seconds = []
    for _ in range(5):
        with reference_server() as server:
            seconds.append(server.startup_seconds)
    yield Figure("embedded server: start to ready", seconds, "s", aim=2)


def stage_a() -> Iterator[Figure]:
    """The whole of stage_a, and how much of it is neither the server's start nor its requests."""
    whole, ours = [], []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as results:
            command = ["-m", "pytest", "suites", "--config", "baseline", "--engine", "reference"]
            command += ["--results", results, "-q", "--durations=0", "--durations-min=0"]
            began = time.perf_counter()
            run = subprocess.run(
                [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
            )
            seconds = time.perf_counter() - began
            if run.returncode != 0:
                raise SystemExit(f"stage_a ended with {run.returncode}:\n{run.stdout[-3000:]}")
            whole.append(seconds)
            # the calls are the kits' requests; the server's start is inside the first set-up
            calls = _durations(run.stdout, "call")
            starts = [
                record["startup_seconds"]
                for record in records.read(Path(results, "latest"))
                if record["kind"] == "cell"
            ]
            ours.append(seconds - calls - sum(starts))
    yield Figure("stage_a on reference, all of it", whole, "s", aim=25)
    yield Figure("  of which neither tests nor server start", ours, "s", aim=2)


def _durations(text: str, phase: str) -> float:
    lines = (line.split() for line in text.splitlines())
    return sum(
        float(words[0].removesuffix("s")) for words in lines if len(words) > 2 and words[1] == phase
    )


def hellaswag() -> Iterator[Figure]:
    """Items a second and client CPU an item, with and without shots."""
    items = data.load(None, packaged=True)
    with reference_server() as server:
        for shots, aims in ((0, (400.0, 1.5)), (20, (None, None))):
            rates, cpu = [], []
            for _ in range(5):
                client = Client(server.base_url)
                client.flush_cache()
                questions, solved = items.split(200, shots)
                prefix = examples(solved.items)
                before, began = _cpu_seconds(), time.perf_counter()
                scored = score(
                    client,
                    questions.items,
                    prefix,
                    batch_items=HellaswagMixin.hellaswag_batch_items,
                    parallel=HellaswagMixin.hellaswag_parallel,
                    timeout=60,
                )
                seconds = time.perf_counter() - began
                rates.append(len(scored) / seconds)
                cpu.append((_cpu_seconds() - before) / len(scored) * 1000)
            name = f"HellaSwag, {shots}-shot"
            yield Figure(f"{name}: items a second", rates, "/s", aims[0], more_is_better=True)
            yield Figure(f"{name}: client CPU an item", cpu, "ms", aims[1])


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def scrape() -> Iterator[Figure]:
    """One parse of a /metrics answer."""
    with reference_server() as server:
        client = Client(server.base_url)
        client.generate("Once upon a time", max_new_tokens=100, ignore_eos=True)
        text = client.metrics_text()
    lines = len(text.splitlines())
    yield Figure(f"/metrics parse, {lines} lines", _timed(lambda: metrics.read(text), 50), "ms", 2)


def _timed(call: Callable[[], object], runs: int) -> list[float]:
    values = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        values.append((time.perf_counter() - began) * 1000)
    return values


def collection() -> Iterator[Figure]:
    """Collecting 1,000 cells: planning alone, and pytest with a suite of one test."""
    with tempfile.TemporaryDirectory() as folder:
        many = Path(folder, "configs")
        many.mkdir()
        text = (ROOT / "configs" / "baseline.toml").read_text()
        text = text.replace('"basic_sanity"', '"many"')
        (many / "many.toml").write_text(
            text.replace("suites =", f"axis.number = {list(range(1000))}\nsuites =")
        )
        suite = Path(folder, "test_many.py")
        suite.write_text(
            "import pytest\n\n\n@pytest.mark.suite('many')\n"
            "class TestMany:\n    def test_one(self):\n        pass\n"
        )
        plan = _timed(lambda: matrix.select(many, ["all"]), 5)
        yield Figure("1,000 cells expanded", [value / 1000 for value in plan], "s")
        command = [sys.executable, "-m", "pytest", "-q", "--collect-only", str(suite)]
        command += ["--configs", str(many), "--config", "all", "--results", folder]
        command += ["--engine", "reference", "-p", "no:cacheprovider"]
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - began)
        yield Figure("1,000 cells collected by pytest", seconds, "s", aim=2)


def gates() -> Iterator[Figure]:
    """False alarms and power of the gates, on recordings and on simulated outcomes."""
    for module in (accuracy_gates, occupancy_gates):
        for row in module.figures():
            yield Figure(*row)


def report() -> Iterator[Figure]:
    """A run of fifty cells with all plots, and one of a single cell, as a page."""
    for cells in (50, 1):
        with tempfile.TemporaryDirectory() as folder:
            run = rich_run.make(Path(folder, "run"), [f"smollm2(n={n})" for n in range(cells)])
            out = run / "report.html"
            seconds = _timed(lambda run=run, out=out: reports.write([run], out, Secrets()), 3)
            size = [out.stat().st_size / 1e6]
        yield Figure(f"report, cells: {cells}; size", size, "MB", 2)
        yield Figure(f"report, cells: {cells}; drawn in", [one / 1000 for one in seconds], "s")


def survived() -> Iterator[Figure]:
    """What runs leave that are killed at random moments; takes some twenty minutes."""
    for row in survival.figures():
        yield Figure(*row)


def scaled() -> Iterator[Figure]:
    """Many cells on many GPUs, which are pretend ones; takes some six minutes."""
    for row in scale.figures():
        yield Figure(*row)


SECTIONS = {
    "start": start,
    "stage_a": stage_a,
    "hellaswag": hellaswag,
    "scrape": scrape,
    "collection": collection,
    "gates": gates,
    "report": report,
    "survival": survived,
    "scale": scaled,
}
ON_REQUEST = {"survival", "scale"}
"""Sections that are measured only where they are named: they take long."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=__doc__)
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], metavar="NAME")
    chosen = parser.parse_args().sections or [name for name in SECTIONS if name not in ON_REQUEST]
    memory = psutil.virtual_memory().total / 2**30
    machine = f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.machine()}, Python"
    table = Table(title=f"servematrix on {machine} {platform.python_version()}")
    for column in ("figure", "median", "min", "max", "unit", "runs", "aim"):
        table.add_column(column, justify="left" if column in ("figure", "aim") else "right")
    for section in chosen:
        for figure in SECTIONS[section]():
            table.add_row(
                figure.name,
                f"{figure.median:.3g}",
                f"{min(figure.values):.3g}",
                f"{max(figure.values):.3g}",
                figure.unit,
                str(len(figure.values)),
                figure.verdict,
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
