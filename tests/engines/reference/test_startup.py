"""Starting and stopping: what the log says, what the exit status is, what stays behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from servematrix.engines.reference import arguments

START = [sys.executable, "-m", "servematrix.engines.reference"]


def run(*flags: str) -> tuple[int, str]:
    done = subprocess.run([*START, *flags], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--model-path", "m", "--no-such-flag"), "unrecognized arguments: --no-such-flag"),
        ((), "required: --model-path"),
        (("--model-path", "m", "--host", "0.0.0.0"), "listens on loopback only"),
        (("--model-path", "m", "--host", "example.org"), "listens on loopback only"),
        (("--model-path", "m", "--port", "99999"), "99999 is no port"),
        (("--model-path", "m", "--mem-fraction-static", "2"), "not between 0 and 1"),
        (("--model-path", "m", "--time-scale", "nan"), "not a positive number"),
        (("--model-path", "m", "--speculative-algorithm", "MAGIC"), "invalid choice"),
        (
            ("--model-path", "m", "--speculative-algorithm", "EAGLE3"),
            "needs --speculative-draft-model-path",
        ),
        (
            (
                "--model-path", "m", "--speculative-algorithm", "EAGLE3",
                "--speculative-draft-model-path", "d", "--speculative-eagle-topk", "4",
            ),
            "drafts one chain",
        ),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_a_usage_error(
    flags: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        arguments.parse(flags)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_usage_error_is_the_process_status_too() -> None:
    status, log = run("--model-path", "m", "--no-such-flag")
    assert status == 2
    assert log.startswith("usage:")


@pytest.mark.parametrize("flag", ["--model-path", "--speculative-draft-model-path"])
def test_a_model_path_without_a_model_is_an_error(flag: str) -> None:
    status, log = run("--model-path", "m", flag, "/no/such/model")
    assert status == 1
    assert f"{flag} /no/such/model: there is no such file or folder" in log


def test_a_port_in_use_is_an_error(server: Any) -> None:
    port = server.url.rsplit(":", 1)[1]
    status, log = run("--model-path", "m", "--port", port)
    assert status == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in log


def test_the_device_timer_is_read_as_sglang_reads_it() -> None:
    name = arguments.DEVICE_TIMER_VARIABLE
    assert all(arguments.device_timer({name: value}) for value in ("1", "true", "True"))
    assert not any(arguments.device_timer(one) for one in ({}, {name: "0"}, {name: "false"}))


def test_no_key_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(arguments.API_KEY_VARIABLE, "secret")
    options = arguments.parse(["--model-path", "m"])
    assert options.api_key == "secret"
    assert "secret" not in str(arguments.as_server_info(options))


def test_a_server_is_ready_when_it_says_so_and_ends_clean(launch: Callable[..., Any]) -> None:
    server = launch("--served-model-name", "shown")
    assert server.get("/health").status_code == 200
    assert server.get("/health_generate").status_code == 200
    assert server.get("/v1/models").json()["data"][0]["id"] == "shown"
    assert "ready to roll" in server.log[-1] or "Prefill" in server.log[-1]
    process = psutil.Process(server.process.pid)
    assert not process.children()
    assert server.stop() == 0
    with socket.socket() as probe:
        port = int(server.url.rsplit(":", 1)[1])
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_signal_ends_a_server_in_the_middle_of_a_stream(launch: Callable[..., Any]) -> None:
    server = launch()
    sampling = {"max_new_tokens": 12_000, "ignore_eos": True}
    body = {"text": "Once", "sampling_params": sampling, "stream": True}
    answer = server.post("/generate", body, stream=True)
    parts = answer.iter_content(64)
    next(parts)
    reader = threading.Thread(target=lambda: list(parts), daemon=True)
    reader.start()
    assert server.stop() == 0
    reader.join(30)
    assert not reader.is_alive()


DYING = """
import sys
from servematrix.engines.reference import __main__ as program
from servematrix.engines.reference.scheduler import Scheduler

async def broken(self):
    raise MemoryError("the device is gone")

Scheduler._decode = broken
sys.exit(program.main())
"""


def test_a_server_whose_scheduler_dies_ends_with_an_error(launch: Callable[..., Any]) -> None:
    server = launch(program=("-c", DYING))
    answer = server.generate("Once", tokens=8)
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"
    assert server.process.wait(30) == 1
    server.stop()
    assert any("the device is gone" in line for line in server.log)


def test_an_interrupt_is_a_clean_end(launch: Callable[..., Any]) -> None:
    server = launch()
    server.process.send_signal(2)
    assert server.process.wait(30) == 0


def test_the_port_can_be_taken_again_at_once(launch: Callable[..., Any]) -> None:
    first = launch()
    port = first.url.rsplit(":", 1)[1]
    first.get("/health")
    first.stop()
    second = launch("--port", port)
    assert second.url == first.url
    assert os.getpgid(second.process.pid) == os.getpgid(0)
