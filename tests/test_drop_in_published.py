"""The five published mixins in a plain `unittest.TestCase`: no pytest, no plugin.

`base_url` is all that is set, apart from HellaSwag items and a floor that fit the embedded server.
They run in a process of their own in which the libraries that only a server, the orchestration or
the matrix needs cannot be imported.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from servematrix.client import Client, ClientError

FORBIDDEN = ("sglang", "nox", "ray", "torch", "pynvml", "pytest", "_pytest", "xdist")
# what Python imports before all else: a module found here is refused to whoever asks for it
BLOCKER = f"""
import sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FORBIDDEN!r}:
            raise ImportError(f"{{name}} is not installed here")
        return None

sys.meta_path.insert(0, Refusing())
"""
PUBLISHED = """
import blocker
import os
import unittest

from servematrix.kits import (
    BasicAPIContractMixin,
    BasicDecodeCorrectnessMixin,
    BasicSchedulerStressMixin,
    FwdOccupancyMixin,
    HellaswagMixin,
)

class TestPublished(
    BasicAPIContractMixin,
    BasicDecodeCorrectnessMixin,
    BasicSchedulerStressMixin,
    FwdOccupancyMixin,
    HellaswagMixin,
    unittest.TestCase,
):
    base_url = os.environ["SERVER_UNDER_TEST"]
"""
# what the embedded server serves: a small text's language model, and items for it
FOR_THE_REFERENCE = "    hellaswag_packaged = True\n    hellaswag_accuracy_threshold = 0.3\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "servematrix.engines.reference", "--model-path", "demo"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enable-metrics"]
    log = tmp_path_factory.mktemp("server") / "server.log"
    environment = {**os.environ, "SGLANG_ENABLE_METRICS_DEVICE_TIMER": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
        try:
            url = f"http://127.0.0.1:{port}"
            ends = time.monotonic() + 30
            while not _is_up(url):
                if process.poll() is not None or time.monotonic() > ends:
                    pytest.fail(f"the embedded server is not up: {log.read_text()[-500:]}")
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait(10)


def _is_up(url: str) -> bool:
    try:
        Client(url, timeout=5).health()
    except ClientError:
        return False
    return True


def unittest_run(folder: Path, code: str, url: str) -> subprocess.CompletedProcess[str]:
    (folder / "blocker.py").write_text(BLOCKER)
    (folder / "test_published.py").write_text(code)
    return subprocess.run(
        [sys.executable, "-m", "unittest", "-v", "test_published"],
        cwd=folder,
        env={**os.environ, "SERVER_UNDER_TEST": url},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_published_mixins_pass_under_unittest(server: str, tmp_path: Path) -> None:
    ended = unittest_run(tmp_path, PUBLISHED + FOR_THE_REFERENCE, server)
    assert ended.returncode == 0, ended.stderr
    for test in ("test_health ", "determinism", "test_accuracy_floor ", "occupancy"):
        assert test in ended.stderr
    assert "\nRan 23 tests" in ended.stderr
    assert "skipped" not in ended.stderr


def test_a_gate_that_fails_fails_the_test_case(server: str, tmp_path: Path) -> None:
    code = PUBLISHED + FOR_THE_REFERENCE.replace("0.3", "0.99")
    ended = unittest_run(tmp_path, code, server)
    assert ended.returncode == 1
    assert "FAILED (failures=1)" in ended.stderr


@pytest.mark.parametrize("name", FORBIDDEN)
def test_the_blocker_blocks(tmp_path: Path, name: str) -> None:
    (tmp_path / "blocker.py").write_text(BLOCKER)
    code = textwrap.dedent(f"import blocker\nimport {name}")
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert "is not installed here" in ended.stderr
