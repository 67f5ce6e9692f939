"""Small servers that behave well or badly, and what the tests need to start them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from servematrix.engines import ports, process
from servematrix.engines.base import Launch
from servematrix.engines.process import ProcessServer

SERVER = r"""
import json, os, signal, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

mode, port = sys.argv[1], int(sys.argv[2])
print("loading", mode, "with", os.environ.get("FAKE_KEY"), flush=True)
if mode == "dies":
    sys.exit("the weights are gone")
if mode == "hangs":
    time.sleep(60)
if mode == "ignores_term":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "children":
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    forks = "import os, sys, time; os.fork() and os._exit(0); os.setsid(); " + stubborn
    subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True)
    subprocess.Popen([sys.executable, "-c", forks]).wait()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/health":
            self.answer(503 if mode == "never_ready" else 200)
        elif self.path == "/server_info":
            self.answer(200, {"version": "9.9.9", "key": os.environ.get("FAKE_KEY")})
        else:
            self.answer(404)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        key = os.environ.get("FAKE_KEY")
        if mode == "broken":
            self.answer(500)
        elif key and self.headers.get("Authorization") != "Bearer " + key:
            self.answer(401)
        elif mode == "refuses":
            self.answer(400, {"error": {"message": "no such model"}})
        else:
            self.answer(200, {"text": "2", "meta_info": {}})
        if mode == "dies_later":
            self.wfile.flush()
            print("out of memory", flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)

    def answer(self, status, body=None):
        data = json.dumps(body or {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


class Fakes:
    """Launches of nothing in particular, and the fake server's processes."""

    server = SERVER

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "logs" / "server.log"

    def command(self, mode: str, port: int) -> list[str]:
        """The command line of a fake server."""
        return [sys.executable, "-c", SERVER, mode, str(port)]

    def launch(self, **changes: Any) -> Launch:
        """A launch with some of its values changed."""
        values: dict[str, Any] = {
            "cell": "fake[1]",
            "model": "a/model",
            "draft_model": None,
            "arguments": {},
            "environment": {},
            "gpus": (),
            "host": "127.0.0.1",
            "port": 0,
            "api_key_env": None,
            "log": self.log,
            "deadline_seconds": 30.0,
        }
        return Launch(**(values | changes))

    def start(self, mode: str, **changes: Any) -> ProcessServer:
        """Start a fake server and wait until it is ready."""
        launch = ports.with_port(self.launch(**changes))
        return process.start("fake", launch, self.command(mode, launch.port), launch.environment)

    def processes(self) -> list[psutil.Process]:
        """The guard, and all that came from it."""
        guards = [
            candidate
            for candidate in psutil.process_iter(["cmdline"])
            if f"--log={self.log}" in (candidate.info["cmdline"] or [])
        ]
        return guards + [child for guard in guards for child in guard.children(recursive=True)]


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    """Fake servers with their log under the test's folder."""
    return Fakes(tmp_path)
