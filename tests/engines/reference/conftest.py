"""Reference servers as the outside sees them: processes that answer HTTP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

READY = "The server is fired up and ready to roll!"
PATIENCE = 60.0  # seconds until a test gives up on a server; never reached on a working one
MODULE = "servematrix.engines.reference"


class Server:
    """A reference server on a port of its own choosing, and a client for it."""

    def __init__(
        self,
        *flags: str,
        timer: bool = True,
        program: tuple[str, ...] = ("-m", MODULE),
        **environment: str,
    ) -> None:
        command = [sys.executable, *program, "--model-path", "test/model", "--port", "0", *flags]
        variables = {key: value for key, value in os.environ.items() if "SGLANG" not in key}
        if timer:
            variables["SGLANG_ENABLE_METRICS_DEVICE_TIMER"] = "1"
        self.process = subprocess.Popen(
            command, env=variables | environment, stderr=subprocess.PIPE, text=True
        )
        self.log: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.session = requests.Session()
        if not self._ready.wait(PATIENCE) or self.process.poll() is not None:
            self.stop()
            raise AssertionError("no server: " + "".join(self.log[-5:]))
        place = next(line for line in self.log if " port " in line)
        self.url = "http://127.0.0.1:" + place.rsplit(" ", 1)[1].strip(" .\n")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if READY in line:
                self._ready.set()
        self._ready.set()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        self.session.close()
        return status

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.session.get(self.url + path, timeout=PATIENCE, **options)

    def post(self, path: str, body: Any, **options: Any) -> requests.Response:
        return self.session.post(self.url + path, json=body, timeout=PATIENCE, **options)

    def generate(self, text: Any = None, tokens: int = 16, **body: Any) -> Any:
        """The answer to a greedy /generate, as JSON."""
        sampling = {"temperature": 0, "max_new_tokens": tokens} | body.pop("sampling_params", {})
        if text is not None:
            body["text"] = text
        answer = self.post("/generate", body | {"sampling_params": sampling})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def flush(self) -> None:
        assert self.post("/flush_cache", None).status_code == 200

    def metrics(self) -> dict[str, dict[tuple[str, ...], float]]:
        """The scrape: sample name without prefix -> values of the telling labels -> value."""
        samples: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(self.get("/metrics").text):
            for sample in family.samples:
                labels = [
                    value
                    for name, value in sorted(sample.labels.items())
                    if name in ("mode", "category", "dp_rank", "le", "endpoint", "status_code")
                ]
                name = sample.name.removeprefix("sglang:")
                samples.setdefault(name, {})[tuple(labels)] = sample.value
        return samples


@pytest.fixture(scope="module")
def launch() -> Iterator[Callable[..., Server]]:
    """Starts servers with given flags; all of them are stopped at the end of the module."""
    started: list[Server] = []

    def start(*flags: str, **options: Any) -> Server:
        server = Server(*flags, **options)
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="module")
def server(launch: Callable[..., Server]) -> Server:
    """A healthy server with metrics and device timing."""
    return launch("--enable-metrics", "--cuda-graph-max-bs", "4")


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The recordings of a real server, where they are at hand."""
    found = Path(__file__).resolve().parents[3].parent / "shared" / "recordings"
    if not found.is_dir():
        pytest.skip("the recordings of a real server are not here")
    return found
