"""Starting, waiting for and stopping a server, with servers that fail in every way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from servematrix.engines import ports, process
from servematrix.engines.base import EnvironmentProblem, Server, ServerFailed

PARENT = """
import sys, time
from pathlib import Path
from servematrix.engines import ports, process
from servematrix.engines.base import Launch

log, server = Path(sys.argv[1]), sys.argv[2]
launch = ports.with_port(
    Launch("fake[1]", "a/model", None, {}, {}, (), "127.0.0.1", 0, None, log, 30.0)
)
command = [sys.executable, "-c", server, "children", str(launch.port)]
running = process.start("fake", launch, command, {})
print("ready", flush=True)
time.sleep(60)
"""


def fails(fakes: Any, mode: str, **changes: Any) -> str:
    with pytest.raises(ServerFailed) as failure:
        fakes.start(mode, **changes)
    assert not fakes.processes()
    return str(failure.value)


def death_of(server: Server) -> str:
    deadline = time.monotonic() + 20
    while server.died() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return server.died() or ""


def test_a_good_server_starts_answers_and_stops(fakes: Any) -> None:
    server = fakes.start("good")
    try:
        assert server.died() is None
        assert server.versions() == {"sglang": "9.9.9"}
        assert server.base_url.startswith("http://127.0.0.1:")
        assert server.command[-1] == server.base_url.rsplit(":", 1)[1]
        assert 0 < server.startup_seconds < 30
        assert "loading good" in server.log_tail()
        running = fakes.processes()
        assert len(running) == 2
    finally:
        server.stop()
    assert not [one for one in running if one.is_running()]
    server.stop()
    assert server.died() is None


def test_a_server_that_dies_on_start_ends_the_wait(fakes: Any) -> None:
    message = fails(fakes, "dies", deadline_seconds=300.0)
    first, *rest = message.splitlines()
    assert first.startswith("the fake server of fake[1] died after ")
    assert "exit status 1" in first
    assert str(fakes.log) in first
    assert "the weights are gone" in "\n".join(rest)


def test_a_command_that_is_not_there_is_named(fakes: Any) -> None:
    resolved = ports.with_port(fakes.launch())
    with pytest.raises(ServerFailed, match="cannot start /no/python: No such file"):
        process.start("fake", resolved, ["/no/python", "-m", "x"], {})


@pytest.mark.parametrize(
    ("mode", "lacks"),
    [
        ("hangs", "does not answer"),
        ("never_ready", "/health answers 503"),
        ("broken", "a request for one token was answered with 500"),
    ],
)
def test_a_server_that_is_not_ready_in_time_is_ended(fakes: Any, mode: str, lacks: str) -> None:
    message = fails(fakes, mode, deadline_seconds=1.5)
    assert "was not ready within 1.5 s: " in message
    assert lacks in message
    assert f"loading {mode}" in message


def test_a_server_that_refuses_ends_the_wait(fakes: Any) -> None:
    message = fails(fakes, "refuses", deadline_seconds=300.0)
    assert "it refuses to generate one token (status 400)" in message
    assert "no such model" in message


def test_a_server_that_dies_later_is_noticed(fakes: Any) -> None:
    server = fakes.start("dies_later")
    death = death_of(server)
    server.stop()
    assert "died: killed by SIGSEGV" in death
    assert "out of memory" in death
    assert not fakes.processes()


def test_a_killed_guard_takes_the_server_with_it(fakes: Any) -> None:
    server = fakes.start("children")
    running = fakes.processes()
    assert len(running) == 4
    running[0].kill()
    assert "its guard was killed by SIGKILL" in death_of(server)
    server.stop()
    _, alive = psutil.wait_procs(running, timeout=20)
    assert not alive


def test_a_server_that_ignores_sigterm_is_killed(fakes: Any) -> None:
    server = fakes.start("ignores_term")
    running = fakes.processes()
    server.stop()
    assert not [one for one in running if one.is_running()]


def test_children_in_sessions_of_their_own_are_ended(fakes: Any) -> None:
    server = fakes.start("children")
    running = fakes.processes()
    assert len(running) == 4
    server.stop()
    assert not [one for one in running if one.is_running()]


def test_nothing_outlives_a_parent_that_is_killed(fakes: Any) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(fakes.log), fakes.server],
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "ready\n"
            running = fakes.processes()
            assert len(running) == 4
        finally:
            parent.kill()
        _, alive = psutil.wait_procs(running, timeout=5)
    assert not alive


def test_an_interrupt_during_the_wait_leaves_nothing(
    fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> str | None:
        raise KeyboardInterrupt

    monkeypatch.setattr(process.ready, "check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fakes.start("good")
    assert not fakes.processes()


def test_the_key_reaches_the_server_and_no_log(fakes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_KEY", "s3cret-key-0123")
    server = fakes.start("good", api_key_env="FAKE_KEY")
    try:
        lines = [argument for one in fakes.processes() for argument in one.cmdline()]
        assert server.versions() == {"sglang": "9.9.9"}
        assert "with <FAKE_KEY redacted>" in server.log_tail()
        assert "s3cret" not in server.log_tail() + " ".join(lines)
    finally:
        server.stop()


def test_a_wrong_key_is_told_apart(fakes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", "another")
    message = fails(
        fakes, "good", api_key_env="OTHER_KEY", environment={"FAKE_KEY": "s3cret-key-0123"}
    )
    assert "it refuses the API key (status 401)" in message


def test_a_stranger_on_the_port_is_not_taken_for_the_server(fakes: Any) -> None:
    resolved = ports.with_port(fakes.launch())
    stranger = subprocess.Popen([sys.executable, "-c", fakes.server, "good", str(resolved.port)])
    try:
        with pytest.raises(ServerFailed) as failure:
            process.start("fake", resolved, fakes.command("hangs", resolved.port), {})
    finally:
        stranger.kill()
        stranger.wait()
    assert f"another process took port {resolved.port} by python" in str(failure.value)
    assert f"(pid {stranger.pid})" in str(failure.value)
    assert not fakes.processes()


def test_another_run_that_exits_spares_our_server(fakes: Any) -> None:
    server = fakes.start("good")
    try:
        marks = {one.environ().get("mirakuru_uuid", "") for one in fakes.processes()}
        assert len(marks) == 1
        assert not any(character.isdigit() for mark in marks for character in mark)
    finally:
        server.stop()


def test_a_port_in_use_is_an_error_that_names_its_holder(fakes: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(EnvironmentProblem) as problem:
            ports.with_port(fakes.launch(port=port))
    assert f"port {port} on 127.0.0.1 is in use by " in str(problem.value)
    assert f"(pid {os.getpid()})" in str(problem.value)
    assert ports.with_port(fakes.launch(port=port)).port == port


def test_a_chosen_port_is_none_that_connections_are_given(
    fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    chosen = {ports.with_port(fakes.launch()).port for _ in range(20)}
    assert not any(first <= port <= last for port in chosen)
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = holder.getsockname()[1]
        monkeypatch.setattr(ports, "_quiet_ports", lambda: [taken] * ports.TRIES)
        assert ports.with_port(fakes.launch()).port != taken


def test_an_address_that_is_not_ours_is_an_error(fakes: Any) -> None:
    with pytest.raises(EnvironmentProblem, match="is not to be had"):
        ports.with_port(fakes.launch(host="203.0.113.7"))


def test_a_log_that_cannot_be_written_stops_the_launch(fakes: Any) -> None:
    fakes.log.parent.write_text("a file where the folder should be")
    with pytest.raises(EnvironmentProblem, match=r"server\.log cannot be written"):
        fakes.start("good")


def test_hosts_as_urls_write_them() -> None:
    assert ports.url_host("127.0.0.1") == "127.0.0.1"
    assert ports.url_host("0.0.0.0") == "127.0.0.1"
    assert ports.url_host("::") == "[::1]"


@pytest.mark.parametrize(
    ("told", "returncode", "words"),
    [
        ("exit 3", 3, "exit status 3"),
        ("signal 9", 137, "killed by SIGKILL"),
        ("signal 200", 328, "killed by signal 200"),
        ("left 12 13", 1, "its processes 12 13 could not be ended"),
        ("", -signal.SIGKILL, "its guard was killed by SIGKILL"),
        ("", 1, "its guard failed with exit status 1"),
        ("cannot start x: No such file", 127, "cannot start x: No such file"),
    ],
)
def test_endings_in_words(told: str, returncode: int, words: str) -> None:
    assert process._in_words(told, returncode) == words
