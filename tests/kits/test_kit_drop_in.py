"""Every kit in a plain `unittest.TestCase` that only says where the embedded server is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import unittest
from collections.abc import Iterator

import pytest

from servematrix.client import Client, ClientError
from servematrix.kits import MIXINS

NOT_SPECULATING = (
    "the server does not speculate [rule: the server speculates (speculative_algorithm in"
    " /server_info). "
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "servematrix.engines.reference", "--model-path", "demo"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enable-metrics"]
    command += ["--cuda-graph-max-bs", "4"]
    log = tmp_path_factory.mktemp("reference") / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "SGLANG_ENABLE_METRICS_DEVICE_TIMER": "1"},
        )
        try:
            _wait(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(10)


def _wait(url: str, process: subprocess.Popen[bytes], log) -> None:
    ends = time.monotonic() + 20
    while True:
        try:
            Client(url, timeout=5).health()
            return
        except ClientError:
            if process.poll() is not None or time.monotonic() > ends:
                pytest.fail(f"the embedded server is not up: {log.read_text()[-500:]}")


def test_all_kits_drop_into_a_plain_test_case(reference):
    class Everything(*MIXINS, unittest.TestCase):
        base_url = reference
        # what the embedded server serves: a small text's language model, and items for it
        hellaswag_packaged = True
        hellaswag_accuracy_threshold = 0.3

    loaded = unittest.defaultTestLoader.loadTestsFromTestCase(Everything)
    result = unittest.TestResult()
    loaded.run(result)
    assert result.testsRun == 28
    assert all(reason.startswith(NOT_SPECULATING) for _, reason in result.skipped)
    assert len(result.skipped) == 2
    assert [text for _, text in result.failures + result.errors] == []
