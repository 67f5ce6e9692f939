"""A pytest plugin for benchmarks: servers that are there at once, and do nothing.

Everything else is as in a run on GPUs: leases, workers, records, verdicts.
"""

from __future__ import annotations

from typing import Any

from servematrix import run
from servematrix.engines.base import Launch


class _IdleServer:
    # nobody listens there, which is told at once
    base_url = "http://127.0.0.1:9"
    command: list[str] = []  # noqa: RUF012
    startup_seconds = 0.0

    def died(self) -> None:
        return None

    def versions(self) -> dict[str, str]:
        return {"reference": "idle"}

    def log_tail(self, lines: int = 20) -> str:
        return ""

    def stop(self) -> None:
        return None


class _IdleEngine:
    name = "reference"
    note = "idle: for benchmarks of the matrix itself"
    reason = "a benchmark"

    def prepare(self, launch: Launch, say: object) -> None:
        pass

    def command(self, launch: Launch) -> list[str]:
        return []

    def environment(self, launch: Launch) -> dict[str, str]:
        return {}

    def start(self, launch: Launch) -> _IdleServer:
        return _IdleServer()


def pytest_configure() -> None:
    def choose(*_: object, **__: object) -> Any:
        return _IdleEngine()

    run.choice.choose = choose
