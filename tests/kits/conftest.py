"""A scripted server: it answers as a healthy one does, and each knob breaks one thing."""

from __future__ import annotations

import json
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from servematrix.gates.verdict import Verdict
from servematrix.kits.base import Kit

CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Spain": "Madrid",
    "Egypt": "Cairo",
    "Russia": "Moscow",
    "Greece": "Athens",
}
PROSE = (
    "children chased a red kite over the wide lawn while their parents read in the shade and two"
    " old dogs slept beside an empty basket until the church bell rang for supper"
)
LONG = 300
"""A request for so many tokens is decoded window by window."""
LABELS = 'dp_rank="0",pp_rank="0",tp_rank="0"'


class Scripted:
    """State and knobs of the scripted server. Its tokens are words."""

    def __init__(self) -> None:
        self.url = ""
        self.overrides: dict[str, tuple[int, Any]] = {}  # path -> status and body
        self.reply: Callable[[str], str] = _reply
        self.edit: Callable[[str, dict[str, Any]], Any] = lambda path, body: body
        self.frames: Callable[[list[bytes]], list[bytes]] = lambda frames: frames
        self.info: dict[str, Any] = {"decode_log_interval": 40, "speculative_algorithm": None}
        self.context: int | None = 4096
        self.cached = 0
        self.has_tokenize = True
        self.logprob: Callable[[str, str], Any] = lambda context, ending: -1.0
        # occupancy
        self.timer = True
        self.gauge: Callable[[int], float] = lambda window: 98.0 + window / 100
        self.idle_gauge = 55.5
        self.counter_share: float | None = 0.98
        self.more_metrics = ""
        self.running_reqs = 1
        self.served_extra = 0
        self.finish = "length"
        self.broken_stream: list[bytes] | None = None
        self.cut_to: int | None = None
        self.abort_status = 200
        self.spec: dict[str, Any] = {}
        self.scrape_status = lambda number: 200
        self.asked: list[tuple[str, Any]] = []
        self._window = -1
        self._rid: str | None = None
        self._aborted = False
        self._served = 0
        self._started = 0.0
        self._scrapes = 0
        self._scraped = threading.Condition()

    # -- /metrics -------------------------------------------------------------------------------

    def metrics(self) -> str:
        running = self._window >= 0
        gauge = self.gauge(self._window) if running else self.idle_gauge
        lines = [
            f"sglang:num_running_reqs{{{LABELS}}} {self.running_reqs if running else 0}",
            f"sglang:num_queue_reqs{{{LABELS}}} 0.0",
            f"sglang:num_requests_total{{}} {self._served}",
        ]
        if self.timer:
            lines.append(f"sglang:fwd_occupancy{{{LABELS}}} {gauge}")
        if self.counter_share is not None:
            busy = self.counter_share * (time.monotonic() - self._started) if running else 0.0
            name = "sglang:forward_execution_seconds_total"
            lines.append(f'{name}{{category="decode",{LABELS}}} {busy}')
        return "\n".join([*lines, self.more_metrics]) + "\n"

    def scraped(self) -> int:
        with self._scraped:
            self._scrapes += 1
            self._scraped.notify_all()
            return self._scrapes

    # -- /generate ------------------------------------------------------------------------------

    def stream(self, body: dict[str, Any]) -> Iterator[bytes]:
        limit = body["sampling_params"]["max_new_tokens"]
        if self.broken_stream is not None and body["sampling_params"].get("ignore_eos"):
            yield from self.broken_stream
            return
        words = self.reply(body["text"]).split(" ")[:limit]
        frames = [
            _frame(self._generated(body["text"], " ".join(words[: i + 1]), i + 1))
            for i in range(len(words))
        ]
        yield from self.frames([*frames, b"data: [DONE]\n\n"])

    def _long(self, body: dict[str, Any], limit: int) -> dict[str, Any]:
        """Decode window by window; each waits until it was scraped, so that none goes unseen."""
        self._started = time.monotonic()
        self._rid, self._aborted = body.get("rid"), False
        interval = self.info["decode_log_interval"]
        tokens = min(limit, self.cut_to or limit)
        finish = self.finish
        for window in range(1, tokens // interval + 1):
            self._window = window
            with self._scraped:
                seen = self._scrapes
                self._scraped.wait_for(
                    lambda seen=seen: self._scrapes > seen + 1 or self._aborted, timeout=2
                )
            if self._aborted:
                tokens, finish = window * interval, "abort"
                break
        self._window = -1
        self._served += 1 + self.served_extra
        answer = self._generated(body["text"], "word " * tokens, tokens)
        answer["meta_info"]["finish_reason"] = {"type": finish}
        answer["meta_info"].update(self.spec)
        return answer

    def generate(self, body: dict[str, Any]) -> Any:
        text, limit = body["text"], body["sampling_params"]["max_new_tokens"]
        if isinstance(text, list):
            starts = body.get("logprob_start_len", [None] * len(text))
            return [self._score(one, start) for one, start in zip(text, starts, strict=True)]
        if limit >= LONG:
            return self._long(body, limit)
        self._served += 1
        words = self.reply(text).split(" ")[:limit]
        return self._generated(text, " ".join(words), len(words))

    def _score(self, text: str, start: int | None) -> dict[str, Any]:
        answer = self._generated(text, "", 0)
        if start is not None:
            words = text.split()
            context, ending = " ".join(words[: start + 1]), " ".join(words[start + 1 :])
            value = self.logprob(context, ending)
            entries = [[None, 7, None]] + [[value, 8, None] for _ in words[start + 1 :]]
            answer["meta_info"]["input_token_logprobs"] = entries
        return answer

    def _generated(self, prompt: str, text: str, tokens: int) -> dict[str, Any]:
        meta = {
            "id": "1",
            "finish_reason": {"type": "stop"},
            "prompt_tokens": len(prompt.split()),
            "completion_tokens": tokens,
            "cached_tokens": self.cached,
        }
        return {"text": text, "meta_info": meta}

    def abort(self, rid: str) -> None:
        with self._scraped:
            self._aborted = rid == self._rid
            self._scraped.notify_all()

    # -- the rest -------------------------------------------------------------------------------

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        self.asked.append((path, body))
        if path in self.overrides:
            return self.overrides[path]
        if path in ("/health", "/health_generate"):
            return 200, ""
        if path == "/abort_request":
            if self.abort_status == 200:
                self.abort(body["rid"])
            return self.abort_status, ""
        if path in ("/server_info", "/get_server_info"):
            found = {"model_path": "m", "version": "1", "internal_states": [{}], **self.info}
        elif path in ("/model_info", "/get_model_info"):
            found = {"model_path": "m", "is_generation": True}
        elif path == "/v1/models":
            model = {"id": "m", "object": "model", "max_model_len": self.context}
            found = {"object": "list", "data": [model]}
        elif path == "/tokenize" and self.has_tokenize:
            found = {"count": len(body["prompt"].split())}
        elif path == "/generate":
            found = self.generate(body)
        elif path == "/v1/chat/completions":
            message = {"role": "assistant", "content": "Hi"}
            found = _openai("chat.completion", {"message": message})
        elif path == "/v1/completions":
            found = _openai("text_completion", {"text": " Paris"})
        else:
            return 404, {"detail": "Not Found"}
        return 200, self.edit(path, found)


def _reply(prompt: str) -> str:
    tail = prompt[-60:]
    for country, city in CAPITALS.items():
        if f"capital of {country}?" in tail:
            return f"{city} is the capital.\nQ: and so on"
    if "17 multiplied by 23" in tail:
        return "391"
    if "red, blue, and" in tail:
        return "yellow."
    return PROSE


def _openai(kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "1",
        "object": kind,
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", **choice}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
    }


def _frame(event: Any) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 64 * 1024  # one packet an answer: small ones would wait for acknowledgements
    scripted: Scripted

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: Any) -> None:
        server = self.scripted
        if self.path == "/metrics" and self.path not in server.overrides:
            text = server.metrics().encode()
            status = server.scrape_status(server.scraped())
            self._send(status, text)
        elif isinstance(body, dict) and body.get("stream") and self.path not in server.overrides:
            server.asked.append((self.path, body))
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for data in server.stream(body):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        else:
            status, answer = server.answer(self.path, body)
            self._send(status, answer.encode() if isinstance(answer, str) else _dump(answer))

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _dump(answer: Any) -> bytes:
    return json.dumps(answer).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """A running scripted server with its knobs."""
    state = Scripted()
    handler = type("Handler", (_Handler,), {"scripted": state})
    with _Server(("127.0.0.1", 0), handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


class Recorder:
    """A reporter that keeps what it is given."""

    def __init__(self) -> None:
        self.measurements: list[tuple[str, str, Any, str]] = []
        self.attachments: dict[str, Any] = {}
        self.verdicts: list[tuple[str, str, Verdict]] = []

    def measurement(self, kit: str, name: str, value: Any, unit: str) -> None:
        self.measurements.append((kit, name, value, unit))

    def attachment(self, kit: str, name: str, payload: object) -> None:
        self.attachments[name] = json.loads(json.dumps(payload))

    def verdict(self, kit: str, test: str, verdict: Verdict) -> None:
        self.verdicts.append((kit, test, verdict))


class Ran:
    """One kit test that was run: its only verdict, what it raised, what it reported."""

    def __init__(self, verdict: Verdict, raised: BaseException | None, reporter: Recorder) -> None:
        self.verdict = verdict
        self.raised = raised
        self.reporter = reporter


Runner = Callable[..., Ran]


@pytest.fixture
def recorder() -> Recorder:
    """A reporter that keeps what it is given."""
    return Recorder()


@pytest.fixture
def run_kit(scripted: Scripted) -> Runner:
    """Run one test of a mixin against the scripted server, in a class of nothing else."""

    def run(mixin: type[Kit], test: str, **attributes: Any) -> Ran:
        reporter = Recorder()
        attributes = {"base_url": scripted.url, "reporter": reporter, **attributes}
        instance = type("Case", (mixin,), attributes)()
        raised: BaseException | None = None
        try:
            getattr(instance, test)()
        except (AssertionError, unittest.SkipTest) as error:
            raised = error
        assert len(reporter.verdicts) == 1, "a test concludes exactly once"
        kit, name, verdict = reporter.verdicts[0]
        assert (kit, name) == (mixin.kit, test)
        return Ran(verdict, raised, reporter)

    return run
