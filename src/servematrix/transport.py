"""HTTP calls through `requests` that have one deadline each and read no more than a bound.

Headers, framing and bodies all end by the deadline, however the server deals them out. Two things
before that do not: looking a name up, and connecting, which may take the whole time anew for each
address of a name.

What is read is bounded too: a body by `max_body`, an event of a stream and their number by the
caller, a header or framing line by `http.client` (64 KiB, and 100 headers). Bodies are asked for
and taken as they are: a compressed one, which could be of any size, is refused.
"""

from __future__ import annotations

import http.client
import http.cookiejar
import itertools
import json
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests
from urllib3 import Timeout
from urllib3.exceptions import HTTPError, InvalidHeader, ReadTimeoutError

from servematrix.deadlines import Adapter, left
from servematrix.redaction import Secrets, without_credentials

_CHUNK = 64 * 1024
_REUSE_SECONDS = 2.0
"""How long an idle connection is trusted; uvicorn closes idle ones after 5 s."""
_EXCERPT = 400
_NO_HTTP = (http.client.LineTooLong, http.client.UnknownProtocol, InvalidHeader)
"""Answers that `http.client` gives up on, beside those without a name: over 100 headers."""


class ClientError(Exception):
    """A call that gave no usable answer; the message says what happened, where, and what to do."""


class Unreachable(ClientError):
    """Nobody answers: refused, reset, or cut before the answer was complete."""


class TimedOut(Unreachable):
    """The answer was not complete by the call's deadline."""


class BadStatus(ClientError):
    """The server answered with another status than 200."""

    def __init__(self, message: str, status: int, body: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class MalformedAnswer(ClientError):
    """The server answered 200 with something that cannot be read, or too much of it."""


class Event(NamedTuple):
    """A server-sent event: when its last byte was read (`time.monotonic`), and its raw bytes."""

    t: float
    raw: bytes


class Transport:
    """Exchanges with one server. Safe to share between threads; each keeps one connection.

    The API key is sent as a bearer token and shown in no message. `max_body` is the most bytes of
    one answer, `max_event` those of one event of a stream.
    """

    def __init__(
        self, base_url: str, *, api_key: str | None, max_body: int, max_event: int
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            told = without_credentials(base_url)
            raise ClientError(f"not a server's address: {told!r}; give http://HOST:PORT")
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise ClientError("the API key has a character that no header carries; a line break?")
        self.base_url = base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._secrets = Secrets([api_key] if api_key else [])
        self._max_body = max_body
        self._max_event = max_event
        self._kept = _Kept()

    def at(self, path: str) -> str:
        """Return the full address of a path, for messages."""
        return self.base_url + path

    def excerpt(self, body: object) -> str:
        """Show an answer for a message: cut, and without the API key."""
        if isinstance(body, str):
            text, size = body, f"{len(body)} characters"
        else:
            # no more of it is encoded than is shown, and of a secret that may be cut there
            parts = json.JSONEncoder(default=repr).iterencode(body)
            text, size = "".join(itertools.islice(parts, 2 * _EXCERPT)), "cut"
        text = self._secrets.redact(text)
        return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}… ({size})"

    def call(self, method: str, path: str, body: Mapping[str, Any] | None, ends: float) -> bytes:
        """Return the body of a 200 answer; `ends` is the deadline on `time.monotonic`."""
        kept = self._kept
        if time.monotonic() - kept.used > _REUSE_SECONDS:
            kept.session.close()
        try:
            with kept.session.ask(self._request(method, path, body), ends) as response:
                return self._whole(response, path)
        except (OSError, HTTPError) as error:
            raise self._told(error, path) from error
        finally:
            kept.used = time.monotonic()

    def events(
        self, path: str, body: Mapping[str, Any], ends: float, *, most: int
    ) -> Iterator[Event]:
        """Post, and yield the server-sent events of the answer over a connection of its own.

        More than `most` of them are a malformed answer.
        """
        buffer = bytearray()
        count = 0
        request = self._request("POST", path, body)
        try:
            with _Session() as session, session.ask(request, ends) as response:
                if response.status_code != 200:
                    self._whole(response, path)
                for data in self._pieces(response, path):
                    now = time.monotonic()
                    seen = max(0, len(buffer) - 1)
                    buffer += data
                    while (end := buffer.find(b"\n\n", seen)) >= 0:
                        count += 1
                        if count > most or end > self._max_event:
                            raise self._too_much(path, most)
                        yield Event(now, bytes(buffer[: end + 2]))
                        del buffer[: end + 2]
                        seen = 0
                    if len(buffer) > self._max_event:
                        raise self._too_much(path, most)
                if buffer:
                    yield Event(time.monotonic(), bytes(buffer))
        except (OSError, HTTPError) as error:
            raise self._told(error, path) from error

    def _too_much(self, path: str, most: int) -> MalformedAnswer:
        return MalformedAnswer(
            f"{self.at(path)}: more than {most} events, or an event over {self._max_event} bytes"
        )

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None) -> requests.Request:
        return requests.Request(method, self.at(path), headers=self._headers, json=body)

    def _whole(self, response: requests.Response, path: str) -> bytes:
        """Return the body of a 200 answer; another status raises `BadStatus` with its body."""
        data = bytearray()
        for part in self._pieces(response, path):
            data += part
            if len(data) > self._max_body:
                raise MalformedAnswer(f"{self.at(path)} answered with over {self._max_body} bytes")
        status = response.status_code
        if status == 200:
            return bytes(data)
        body = self.excerpt(data[: 4 * _EXCERPT].decode("utf-8", "replace"))
        hint = "; does the server ask for an API key?" if status in (401, 403) else ""
        message = f"{self.at(path)} answered {status}: {body or 'no body'}{hint}"
        raise BadStatus(message, status, body)

    def _pieces(self, response: requests.Response, path: str) -> Iterator[bytes]:
        """Read a body as it comes; `requests` itself would wait for full pieces."""
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            raise MalformedAnswer(
                f"{self.at(path)} answered with Content-Encoding {encoding[:40]!r}, which nobody"
                " asked for; is there a proxy before the server?"
            )
        while not response.raw.closed:
            yield response.raw.read1(_CHUNK)

    def _told(self, error: Exception, path: str) -> ClientError:
        """Say where the socket or the protocol failed."""
        first = _first(error)
        if isinstance(first, (TimeoutError, ReadTimeoutError)):
            return TimedOut(f"{self.at(path)} gave no whole answer by its deadline; is it hung?")
        why = self.excerpt(str(first).strip() or type(first).__name__)
        if isinstance(first, _NO_HTTP) or type(first) is http.client.HTTPException:
            return MalformedAnswer(f"{self.at(path)} answered with what is no HTTP ({why})")
        if isinstance(first, http.client.IncompleteRead):
            return Unreachable(f"{self.at(path)} cut its answer ({why}); did the server die?")
        return Unreachable(f"{self.at(path)} does not answer ({why}); is the server running?")


class _Kept(threading.local):
    """A thread's session, and when it was used last."""

    def __init__(self) -> None:
        self.session = _Session()
        self.used = time.monotonic()


class _Session(requests.Session):
    """Asks the server itself and once: no proxy of the environment, no redirect, no cookies."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        self.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        for scheme in ("http://", "https://"):
            self.mount(scheme, Adapter())

    def ask(self, request: requests.Request, ends: float) -> requests.Response:
        timeout: Any = Timeout(total=left(ends))  # which the types of requests do not know
        return self.send(request.prepare(), timeout=timeout, stream=True, allow_redirects=False)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Leave the body of a redirect unread; `requests` reads it without a bound."""


def _first(error: BaseException) -> BaseException:
    """Return the error that the libraries wrapped, one within the other."""
    for inner in (error.__cause__, *error.args):
        if isinstance(inner, BaseException):
            return _first(inner)
    return error
