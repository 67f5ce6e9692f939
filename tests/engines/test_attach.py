"""A server that somebody else runs."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from servematrix.engines.attach import AttachEngine
from servematrix.engines.base import EnvironmentProblem, ServerFailed


@pytest.fixture
def port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


@pytest.fixture
def running(request: pytest.FixtureRequest, fakes: Any, port: int) -> Iterator[Any]:
    server = subprocess.Popen(
        [sys.executable, "-c", fakes.server, request.param, str(port)], stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            assert time.monotonic() < deadline
    yield server
    server.kill()
    server.wait()


@pytest.mark.parametrize("running", ["good"], indirect=True)
def test_it_uses_the_server_and_leaves_it_alone(fakes: Any, running: Any, port: int) -> None:
    engine = AttachEngine(f"http://127.0.0.1:{port}/", "a test")
    launch = fakes.launch()
    engine.prepare(launch, print)
    assert engine.command(launch) == []
    assert engine.environment(launch) == {}
    server = engine.start(launch)
    assert server.base_url == f"http://127.0.0.1:{port}"
    assert server.versions() == {"sglang": "9.9.9"}
    assert server.log_tail() == ""
    server.stop()
    assert running.poll() is None
    assert server.died() is None
    running.kill()
    running.wait()
    assert f"the server at http://127.0.0.1:{port} can no longer be reached" in str(server.died())
    assert server.versions() == {}


@pytest.mark.parametrize(
    ("running", "why"),
    [
        ("never_ready", "/health answers 503"),
        ("broken", "a request for one token was answered with 500"),
        ("refuses", "it answers, but it refuses to generate one token (status 400)"),
    ],
    indirect=["running"],
)
def test_a_server_that_does_not_generate_is_no_use(
    fakes: Any, running: Any, port: int, why: str
) -> None:
    with pytest.raises(ServerFailed) as failure:
        AttachEngine(f"http://127.0.0.1:{port}", "a test").start(fakes.launch())
    assert why in str(failure.value)
    assert f"--base-url http://127.0.0.1:{port}: " in str(failure.value)


def test_an_unreachable_server_is_known_at_once(fakes: Any, port: int) -> None:
    engine = AttachEngine(f"http://127.0.0.1:{port}", "a test")
    began = time.monotonic()
    with pytest.raises(ServerFailed) as failure:
        engine.start(fakes.launch(deadline_seconds=900.0))
    assert time.monotonic() - began < 10
    assert "does not answer" in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_server_that_accepts_and_says_nothing_ends_at_the_deadline(fakes: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServerFailed, match="accepts connections, but /health does not answer"):
            AttachEngine(url, "a test").start(fakes.launch(deadline_seconds=0.2))


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("127.0.0.1:30000", "not a URL"),
        ("ftp://host", "not a URL"),
        ("http://", "not a URL"),
        ("http://host:port", "not a URL"),
        ("http://[::1:30000", "not a URL"),
        ("me:secret@host", "holds a user or a password"),
        ("http://me:secret@host", "holds a user or a password"),
    ],
)
def test_a_url_that_cannot_be_used_is_an_error(url: str, problem: str) -> None:
    with pytest.raises(EnvironmentProblem, match=problem) as error:
        AttachEngine(url, "a test")
    assert "secret" not in str(error.value)
