from __future__ import annotations

import unittest
from pathlib import Path

import pytest

from servematrix import kits
from servematrix.client import BadStatus, ClientError, MalformedAnswer, TimedOut, Unreachable
from servematrix.gates.verdict import Verdict
from servematrix.kits.base import (
    Inconclusive,
    Kit,
    MeasurementError,
    NotApplicable,
    VerdictFailed,
    concludes,
)
from servematrix.redaction import Secrets


class Sample(Kit):
    kit = "sample"
    returns: Verdict | Exception

    @concludes("sample")
    def test_it(self) -> Verdict:
        """Guards against nothing.

        Details that do not belong to the rule.
        """
        if isinstance(self.returns, Exception):
            raise self.returns
        return self.returns


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("pass", type(None)),
        ("fail", VerdictFailed),
        ("error", MeasurementError),
        ("inconclusive", Inconclusive),
        ("not_applicable", NotApplicable),
    ],
)
def test_each_outcome_has_its_exception(run_kit, outcome, expected):
    ran = run_kit(Sample, "test_it", returns=Verdict(outcome, "the rule", "the reason"))
    assert type(ran.raised) is expected
    assert ran.verdict.rule == "the rule. Guards against nothing."
    if ran.raised is not None:
        assert "the reason" in str(ran.raised)
        assert ran.raised.verdict is ran.verdict


def test_the_client_is_kept_until_address_or_key_change():
    kit = Sample()
    kit.base_url = "http://127.0.0.1:1"
    first = kit.client
    assert kit.client is first
    kit.base_url = "http://127.0.0.1:2"
    second = kit.client
    assert second is not first
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:2"):
        second.health()
    kit.api_key = "key"
    assert kit.client is not second


def test_a_skip_is_one_for_unittest():
    assert issubclass(NotApplicable, unittest.SkipTest)
    assert issubclass(Inconclusive, AssertionError)


@pytest.mark.parametrize(
    ("error", "outcome"), [(Unreachable("nobody"), "error"), (TimedOut("hung"), "fail")]
)
def test_a_server_that_does_not_answer_gives_a_verdict(run_kit, error, outcome):
    ran = run_kit(Sample, "test_it", returns=error)
    assert ran.verdict.outcome == outcome
    assert str(error) in ran.verdict.reason


def test_a_kit_without_base_url_says_so(run_kit):
    class Asks(Kit):
        kit = "sample"

        @concludes("sample")
        def test_it(self) -> Verdict:
            self.client.health()
            raise AssertionError("not reached")

    ran = run_kit(Asks, "test_it", base_url=None)
    assert ran.verdict.outcome == "error"
    assert "base_url is not set" in ran.verdict.reason


def test_kits_in_one_class_report_under_their_own_name(scripted, recorder):
    class Other(Kit):
        kit = "other"

        @concludes("other")
        def test_other(self) -> Verdict:
            self.measure("x", 1, "s")
            return Verdict("pass", "", "")

    class Both(Sample, Other):
        base_url = scripted.url
        reporter = recorder

    Both().test_other()
    assert Both.reporter.measurements == [("other", "x", 1, "s")]
    assert [verdict[:2] for verdict in Both.reporter.verdicts] == [("other", "test_other")]


def test_a_verdict_has_no_secret(recorder, capsys):
    """It may quote an answer; with `pytest -s` what a kit prints passes nothing else of ours."""
    sample = Sample()
    sample.reporter = recorder
    sample._kit_secrets = Secrets(["s3cret-key"])
    sample.returns = Verdict("fail", "not s3cret-key", "it answered s3cret-key")
    with pytest.raises(VerdictFailed, match=r"it answered \*\*\* \[rule: not \*\*\*") as failed:
        sample.test_it()
    assert "s3cret-key" not in f"{failed.value} {capsys.readouterr().out} {recorder.verdicts}"


def test_kits_share_no_private_names():
    """Two mixins in one class must not override each other's helpers by accident."""
    seen: dict[str, str] = {}
    for mixin in kits.MIXINS:
        name = mixin.__name__
        for attribute in vars(mixin):
            if attribute.startswith("__") or attribute == "kit":
                continue
            if attribute in seen:
                assert attribute.startswith("sanity_"), f"{attribute}: {seen[attribute]}, {name}"
            seen[attribute] = name


def test_kits_import_no_test_runner_records_or_gpu_library():
    folder = Path(__file__).parents[2] / "src" / "servematrix" / "kits"
    for module in folder.glob("*.py"):
        text = module.read_text()
        for forbidden in ("pytest", "nox", "ray", "pynvml", "sglang", "servematrix.records"):
            assert f"import {forbidden}" not in text, module
            assert f"from {forbidden}" not in text, module


# -- what a test concludes with -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "faults", "outcome"),
    [
        (BadStatus("no", 401, ""), "fail", "error"),
        (BadStatus("no", 403, ""), "fail", "error"),
        (BadStatus("no", 404, ""), "fail", "fail"),
        (BadStatus("no", 500, ""), "inconclusive", "inconclusive"),
        (Unreachable("nobody"), "fail", "error"),
        (TimedOut("hung"), "fail", "fail"),
        (TimedOut("hung"), "inconclusive", "inconclusive"),
        (MalformedAnswer("odd"), "fail", "fail"),
        (ClientError("our own"), "fail", "error"),
    ],
)
def test_who_is_at_fault_decides_the_outcome(run_kit, error, faults, outcome):
    class Asks(Kit):
        kit = "sample"

        @concludes("sample", faults=faults)
        def test_it(self) -> Verdict:
            """Guards against
            nothing.

            Details that do not belong to the rule.
            """
            raise error

    ran = run_kit(Asks, "test_it")
    assert (ran.verdict.outcome, ran.verdict.rule) == (outcome, "Guards against nothing.")
    assert ran.verdict.reason == str(error)


def test_a_test_runs_beside_others_only_where_it_says_so():
    def method(self: Kit) -> Verdict:
        raise AssertionError("not reached")

    assert concludes("sample")(method).beside_others is False
    assert concludes("sample", beside_others=True)(method).beside_others is True


def test_a_verdict_is_printed_with_its_kit_and_test(run_kit, capsys):
    run_kit(Sample, "test_it", returns=Verdict("pass", "the rule", "the reason"))
    assert capsys.readouterr().out == "sample.test_it: pass: the reason\n"


def test_what_is_raised_tells_reason_and_rule(run_kit):
    ran = run_kit(Sample, "test_it", returns=Verdict("fail", "the rule", "the reason"))
    assert str(ran.raised) == "the reason [rule: the rule. Guards against nothing.]"


def test_a_test_without_a_docstring_guards_against_what_its_rule_says(run_kit):
    class Bare(Kit):
        kit = "sample"

        @concludes("sample")
        def test_it(self) -> Verdict:
            return Verdict("pass", "the rule", "")

    assert run_kit(Bare, "test_it").verdict.rule == "the rule. "


def test_without_a_reporter_a_test_concludes_all_the_same(scripted):
    class Alone(Sample):
        base_url = scripted.url
        returns = Verdict("pass", "", "")

    Alone().test_it()
    found = Alone()
    found.measure("x", 1, "s")
    found.attach("y", {})
    found.returns = Verdict("fail", "", "why")
    with pytest.raises(VerdictFailed, match="why"):
        found.test_it()


def test_what_is_reported_outside_a_test_belongs_to_the_kit(scripted, recorder):
    found = type("Case", (Sample,), {"base_url": scripted.url, "reporter": recorder})()
    found.measure("x", 1, "s")
    assert recorder.measurements == [("sample", "x", 1, "s")]


def test_an_attachment_belongs_to_the_test_s_kit(run_kit):
    class Attaches(Kit):
        kit = "other"

        @concludes("other")
        def test_it(self) -> Verdict:
            self.attach("name", {"a": 1})
            return Verdict("pass", "", "")

    assert run_kit(Attaches, "test_it").reporter.attachments == {"name": {"a": 1}}


def test_a_user_s_class_that_sets_no_address_is_told():
    with pytest.raises(ClientError, match="base_url is not set"):
        _ = Sample().client


def test_what_is_attached_or_concluded_has_its_kit_and_test():
    reported = []

    class Keeps:
        def attachment(self, kit, name, payload):
            reported.append((kit, name, payload))

        def verdict(self, kit, test, verdict):
            reported.append((kit, test, verdict.outcome))

    class Attaches(Sample):
        reporter = Keeps()

        @concludes("other")
        def test_other(self) -> Verdict:
            self.attach("trace", 5)
            return Verdict("pass", "", "")

    Attaches().test_other()
    Attaches().conclude(Verdict("pass", "", ""))
    assert reported == [
        ("other", "trace", 5),
        ("other", "test_other", "pass"),
        ("sample", "", "pass"),
    ]


def test_one_client_is_kept_and_has_the_key(scripted):
    found = type("Case", (Sample,), {"base_url": scripted.url, "api_key": "s3cret"})()
    assert found.client is found.client
    assert "s3cret" not in found.client.excerpt({"key": "s3cret"})


@pytest.mark.parametrize(
    ("status", "raises"), [(404, False), (405, False), (501, False), (500, True), (401, True)]
)
def test_a_server_without_server_info_tells_nothing(scripted, status, raises):
    scripted.overrides["/server_info"] = (status, "")
    found = type("Case", (Sample,), {"base_url": scripted.url})()
    if raises:
        with pytest.raises(BadStatus):
            found._kit_server_info()
    else:
        assert found._kit_server_info() == {}
