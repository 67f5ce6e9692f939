from __future__ import annotations

import unittest
from pathlib import Path

import pytest

from servematrix import kits
from servematrix.client import TimedOut, Unreachable
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
