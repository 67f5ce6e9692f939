"""A small hub that answers what `huggingface_hub` asks, counts it, and can be told to misbehave."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Repositories with files; `refused` answers everything of a name with a status instead."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.refused: dict[str, tuple[int, dict[str, str]]] = {}
        self.cut: str | None = None
        """The file whose download breaks in the middle, and is refused from then on."""
        self._broke = False
        self.held = threading.Event()
        """Files are given only while it is set."""
        self.held.set()
        self.asked: list[tuple[str, str, str | None]] = []
        """Method, path and token of each request."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self.held.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def downloads(self) -> Counter[str]:
        """How often each file was given."""
        found = [path for method, path, _ in self.asked if method == "GET" and "/resolve/" in path]
        return Counter(path.partition(f"/{COMMIT}/")[2] for path in found)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path).removeprefix("/api")
        token = request.headers.get("Authorization")
        self.asked.append((request.command, path, token))
        path = path.removeprefix("/models/").removeprefix("/datasets/").removeprefix("/")
        name = "/".join(PurePosixPath(path).parts[:2])
        rest = path.removeprefix(f"{name}/")
        status, headers = self.refused.get(name, (200, {}))
        if name not in self.files and status == 200:
            status, headers = 404, {"X-Error-Code": "RepoNotFound"}
        if status != 200:
            self._send(request, status, b"", headers)
        elif rest.startswith("resolve/"):
            self._give(request, self.files[name], rest.removeprefix("resolve/").split("/", 1)[1])
        elif rest.startswith("tree/"):
            listed = [
                {"type": "file", "path": one, "size": len(data), "oid": _etag(data)}
                for one, data in self.files[name].items()
            ]
            self._send(request, 200, json.dumps(listed).encode())
        elif rest.removeprefix("revision/") in ("main", COMMIT):
            found = [{"rfilename": one} for one in self.files[name]]
            info = {"_id": "1", "id": name, "modelId": name, "sha": COMMIT, "siblings": found}
            self._send(request, 200, json.dumps(info).encode())
        else:
            self._send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})

    def _give(self, request: BaseHTTPRequestHandler, files: dict[str, bytes], name: str) -> None:
        if name not in files:
            self._send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        data = files[name]
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT}
        if request.command == "GET":
            self.held.wait(30)
        if request.command == "GET" and name == self.cut:
            if self._broke:
                self._send(request, 503, b"")
                return
            self._broke = True
            request.send_response(200)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                request.send_header(key, value)
            request.end_headers()
            request.wfile.write(data[: len(data) // 2])
            request.wfile.flush()
            request.close_connection = True
            return
        self._send(request, 200, data, headers)

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        data: bytes,
        headers: dict[str, str] | None = None,
    ) -> None:
        request.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(data)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
