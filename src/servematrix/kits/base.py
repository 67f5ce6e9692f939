"""What every kit shares: the client, the reporter, and the one way in which a test concludes.

A test of a kit is a method that measures and returns the verdict of a gate. The decorator
`concludes` makes it a test: it names the kit, turns a server that does not answer into a verdict
too, and concludes exactly once. It needs neither pytest nor a `unittest.TestCase`.

Kits are mixed into one class, with each other and with a user's own tests. So what a kit keeps to
itself is a function of its module or has a mangled name (`__like_this`).
"""

from __future__ import annotations

import functools
import inspect
import unittest
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Protocol, TypeVar

from servematrix.client import (
    BadStatus,
    Client,
    ClientError,
    MalformedAnswer,
    TimedOut,
    Unreachable,
)
from servematrix.gates.verdict import Number, Outcome, Verdict
from servematrix.kits import answers
from servematrix.redaction import Secrets
from servematrix.terminal import line

ABSENT = (404, 405, 501)
"""Statuses of a route that a server does not have."""

K = TypeVar("K", bound="Kit")


class VerdictFailed(AssertionError):
    """The server does not meet the rule."""


class MeasurementError(AssertionError):
    """The measurement does not hold, so nothing is said about the server."""


class Inconclusive(AssertionError):
    """The measurement was made and does not decide."""


class NotApplicable(unittest.SkipTest):
    """The rule does not apply to this server."""


class Reporter(Protocol):
    """Where measurements and verdicts go; the plugin sets one that writes records.

    Any object with these methods will do. What they raise ends the test that reported.
    """

    def measurement(self, kit: str, name: str, value: Number, unit: str) -> None:
        """Record one value of a kit; `unit` in words, such as `tokens/s`, empty without one."""

    def attachment(self, kit: str, name: str, payload: object) -> None:
        """Keep a JSON-able payload of a kit, as a file `name` beside the records."""

    def verdict(self, kit: str, test: str, verdict: Verdict) -> None:
        """Record the verdict of a kit's test; called once a test, also where it is no pass."""


class Progress(Protocol):
    """Where a test tells how far it is; the plugin sets one that shows it to who waits."""

    def now(self, kit: str, phase: str, detail: str) -> None:
        """Show how far a test of a kit is: what it does, and how much of it is done."""

    def over(self, kit: str) -> None:
        """Show it no more."""


class Kit:
    """Base of every mixin. The user sets `base_url`, and the rest where it is needed.

    `base_url` is the server's `http://HOST:PORT`, without a path. `served_model_name` is what
    OpenAI's routes are asked for, `api_key` what the server wants as a bearer token; without a
    `reporter` verdicts are printed and raised only. `kit` is the kit's name in records.

    A class may mix several kits: what is reported from within a test belongs to the kit that
    defines the test.
    """

    kit: ClassVar[str]
    base_url: str
    """Where the server answers, such as `http://127.0.0.1:30000`."""
    served_model_name: str = "default"
    """The model's name in requests to `/v1`."""
    api_key: str | None = None
    """The server's key; it is in no message and no record."""
    reporter: Reporter | None = None
    """Where measurements and verdicts go; None prints them."""
    progress: Progress | None = None
    """Where progress goes; None shows none."""

    _kit_running: tuple[str, str] | None = None
    _kit_client: Client | None = None
    _kit_client_for: tuple[str, str | None] | None = None
    _kit_secrets: Secrets | None = None
    _kit_tell: Callable[[str], object] = staticmethod(print)

    @property
    def client(self) -> Client:
        """The client for `base_url`; one is kept as long as the address and key stay.

        Raises `ClientError` where `base_url` is not set.
        """
        address = getattr(self, "base_url", None)
        if not isinstance(address, str):
            raise ClientError("base_url is not set; set it to the server's http://HOST:PORT")
        wanted = (address, self.api_key)
        if self._kit_client is None or self._kit_client_for not in (None, wanted):
            self._kit_client = Client(address, api_key=self.api_key)
            self._kit_client_for = wanted
        return self._kit_client

    def measure(self, name: str, value: Number, unit: str) -> None:
        """Report one measured value; `unit` in words, such as `tokens/s`, empty without one."""
        if self.reporter is not None:
            self.reporter.measurement(self._kit_test()[0], name, value, unit)

    def attach(self, name: str, payload: object) -> None:
        """Report a JSON-able payload that is too large for a measurement, such as a trace."""
        if self.reporter is not None:
            self.reporter.attachment(self._kit_test()[0], name, payload)

    def progressed(self, phase: str, detail: str = "") -> None:
        """Tell whoever waits how far the test is; nothing is shown where nobody asked for it."""
        if self.progress is not None:
            self.progress.now(self._kit_test()[0], phase, detail)

    def conclude(self, verdict: Verdict) -> None:
        """Print and report a verdict, and raise unless it is a pass.

        What a server wrote into its reason is escaped, and a reason without an end is cut.
        Raises `VerdictFailed`, `MeasurementError`, `Inconclusive` or `NotApplicable`; each has the
        verdict as its attribute `verdict`.
        """
        __tracebackhide__ = True
        kit, test = self._kit_test()
        rule, reason = verdict.rule, verdict.reason
        if self._kit_secrets is not None:
            # what a server answered stands in reasons, and it may know more than our own key
            rule, reason = map(self._kit_secrets.redact, (rule, reason))
        verdict = replace(verdict, rule=line(rule), reason=line(reason))
        self._kit_tell(f"{kit}.{test}: {verdict.outcome}: {verdict.reason}")
        if self.reporter is not None:
            self.reporter.verdict(kit, test, verdict)
        if verdict.outcome == "pass":
            return
        problem = _RAISED[verdict.outcome](f"{verdict.reason} [rule: {verdict.rule}]")
        problem.verdict = verdict
        raise problem

    def _kit_server_info(self) -> dict[str, Any]:
        """Return what `/server_info` tells; nothing where a server has no such route.

        Raises `MalformedAnswer` where what kits read of it is not what it must be.
        """
        try:
            info = self.client.server_info()
        except BadStatus as error:
            if error.status not in ABSENT:
                raise
            return {}
        parsed = answers.parse(answers.Settings, info)
        if isinstance(parsed, str):
            raise MalformedAnswer(f"/server_info: {parsed}")
        return info

    def _kit_generate(self, prompt: str, max_new_tokens: int, timeout: float) -> answers.Generated:
        """Return a greedy answer of `/generate`; raises `MalformedAnswer` where it is not whole."""
        body = self.client.generate(prompt, max_new_tokens=max_new_tokens, timeout=timeout)
        return self._kit_parsed(body)

    def _kit_parsed(self, body: dict[str, Any]) -> answers.Generated:
        """Return an answer of `/generate` as its model; raises `MalformedAnswer`."""
        parsed = answers.parse(answers.Generated, body)
        if isinstance(parsed, str):
            raise MalformedAnswer(f"/generate: {parsed}; it was {self.client.excerpt(body)}")
        return parsed

    def _kit_test(self) -> tuple[str, str]:
        return self._kit_running or (self.kit, "")


def concludes(
    kit: str, *, faults: Outcome = "fail", beside_others: bool = False
) -> Callable[[Callable[[K], Verdict]], Callable[[K], None]]:
    """Make a method that returns a verdict a test of `kit` which concludes with that verdict.

    The first paragraph of the docstring, which says what bug the test guards against, becomes part
    of the rule. A server that answers wrongly, or not in time, gives the outcome `faults`; one that
    refuses our key, or does not answer at all, gives an error. `beside_others`: what the test finds
    does not depend on what else the server does, so that other kits' tests of this sort may run
    meanwhile.
    """

    def decorate(method: Callable[[K], Verdict]) -> Callable[[K], None]:
        guards = " ".join((inspect.getdoc(method) or "").split("\n\n")[0].split())

        @functools.wraps(method)
        def test(self: K) -> None:
            __tracebackhide__ = True
            self._kit_running = (kit, method.__name__)
            try:
                verdict = method(self)
                verdict = replace(verdict, rule=f"{verdict.rule}. {guards}")
            except ClientError as error:
                verdict = Verdict(_outcome(error, faults), guards, str(error))
            finally:
                if self.progress is not None:
                    self.progress.over(kit)
            self.conclude(verdict)

        test.beside_others = beside_others  # type: ignore[attr-defined]
        return test

    return decorate


def _outcome(error: ClientError, faults: Outcome) -> Outcome:
    if isinstance(error, BadStatus) and error.status in (401, 403):
        return "error"
    if isinstance(error, Unreachable) and not isinstance(error, TimedOut):
        return "error"
    return "error" if type(error) is ClientError else faults


_RAISED: dict[Outcome, Callable[[str], Any]] = {
    "fail": VerdictFailed,
    "error": MeasurementError,
    "inconclusive": Inconclusive,
    "not_applicable": NotApplicable,
}
