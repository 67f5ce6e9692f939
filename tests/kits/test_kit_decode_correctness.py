from __future__ import annotations

import itertools

import pytest

from servematrix.gates.verdict import Verdict
from servematrix.kits import BasicDecodeCorrectnessMixin
from servematrix.kits.base import (
    Inconclusive,
    MeasurementError,
    NotApplicable,
    VerdictFailed,
    concludes,
)
from servematrix.kits.decode_correctness import PROBES, _probe

TESTS = [f"test_{probe}" for probe in PROBES]


@pytest.mark.parametrize("test", TESTS)
def test_a_healthy_model_passes(run_kit, test):
    assert run_kit(BasicDecodeCorrectnessMixin, test).raised is None


@pytest.mark.parametrize(
    ("test", "reply"),
    [
        ("test_capital_france", "Berlin"),
        ("test_basic_math", "390"),
        ("test_color_completion", "green"),
        ("test_ascii_ratio", "\u0430\u0431" * 40),
        ("test_no_repetition_blowup", "!" * 80),
        ("test_no_repetition_blowup", "over and over again " * 12),
        (
            "test_no_repetition_blowup",
            "Once there was a ship. " + "The ship sailed on and on. " * 9,
        ),
        ("test_max_token_one", ""),
    ],
)
def test_a_damaged_model_fails(run_kit, scripted, test, reply):
    scripted.reply = lambda prompt: reply
    ran = run_kit(BasicDecodeCorrectnessMixin, test)
    assert isinstance(ran.raised, VerdictFailed)


def test_an_answer_that_changes_fails(run_kit, scripted):
    numbers = itertools.count()
    scripted.reply = lambda prompt: f"Paris {next(numbers)}"
    ran = run_kit(BasicDecodeCorrectnessMixin, "test_determinism_temp_zero")
    assert isinstance(ran.raised, VerdictFailed)
    assert "Paris 0" in ran.verdict.reason
    assert "Paris 1" in ran.verdict.reason


def test_what_comes_after_the_first_newline_may_change(run_kit, scripted):
    numbers = itertools.count()
    scripted.reply = lambda prompt: f"Paris\n{next(numbers)}"
    assert run_kit(BasicDecodeCorrectnessMixin, "test_determinism_temp_zero").raised is None


def test_more_than_one_token_for_one_fails(run_kit, scripted):
    scripted.edit = lambda path, body: {
        **body,
        "meta_info": {**body["meta_info"], "completion_tokens": 2},
    }
    ran = run_kit(BasicDecodeCorrectnessMixin, "test_max_token_one")
    assert isinstance(ran.raised, VerdictFailed)


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_that_the_model_cannot_answer_is_skipped(run_kit, scripted, probe):
    others = tuple(name for name in PROBES if name != probe)
    ran = run_kit(BasicDecodeCorrectnessMixin, f"test_{probe}", decode_correctness_probes=others)
    assert isinstance(ran.raised, NotApplicable)
    assert PROBES[probe] in ran.verdict.reason
    assert not scripted.asked


def test_a_probe_has_the_name_of_its_method(run_kit):
    class Own(BasicDecodeCorrectnessMixin):
        @concludes("decode_correctness")
        @_probe
        def test_basic_math(self):
            """Guards against nothing."""
            return Verdict("pass", "rule", "asked")

    for probes, outcome in ((("basic_math",), "pass"), ((), "not_applicable")):
        ran = run_kit(Own, "test_basic_math", decode_correctness_probes=probes)
        assert ran.verdict.outcome == outcome


def test_an_unknown_probe_is_an_error(run_kit):
    ran = run_kit(
        BasicDecodeCorrectnessMixin, "test_basic_math", decode_correctness_probes=("long_division",)
    )
    assert isinstance(ran.raised, MeasurementError)
    assert "long_division" in ran.verdict.reason
    assert "basic_math" in ran.verdict.reason


def test_a_broken_answer_names_its_field(run_kit, scripted):
    scripted.edit = lambda path, body: {"text": None, "meta_info": body["meta_info"]}
    ran = run_kit(BasicDecodeCorrectnessMixin, "test_basic_math")
    assert isinstance(ran.raised, VerdictFailed)
    assert "text:" in ran.verdict.reason


STOP = "test_stop_string"


def _stopping(scripted):
    """Make the scripted server end its answers at a stop string, as a real one does."""
    scripted.edit = lambda path, body: {**body, "text": _cut(scripted.asked[-1][1], body["text"])}


def _cut(request, text):
    stop = request["sampling_params"].get("stop")
    return text.partition(stop)[0] if stop else text


def test_an_answer_that_ends_at_its_stop_string_passes(run_kit, scripted):
    _stopping(scripted)
    ran = run_kit(BasicDecodeCorrectnessMixin, STOP)
    assert ran.raised is None
    whole, stopped = (body["sampling_params"] for _, body in scripted.asked)
    assert "stop" not in whole
    assert stopped["stop"] in ran.verdict.reason


def test_a_stop_string_that_is_ignored_fails(run_kit):
    ran = run_kit(BasicDecodeCorrectnessMixin, STOP)
    assert isinstance(ran.raised, VerdictFailed)
    assert "stop strings" in ran.verdict.reason


def test_a_second_answer_that_differs_says_nothing_of_stop_strings(run_kit, scripted):
    numbers = itertools.count()
    right = scripted.reply
    scripted.reply = lambda prompt: right(prompt) if next(numbers) == 0 else "something else"
    ran = run_kit(BasicDecodeCorrectnessMixin, STOP)
    assert isinstance(ran.raised, Inconclusive)


def test_an_answer_too_short_to_be_stopped_is_not_applicable(run_kit, scripted):
    scripted.reply = lambda prompt: "no"
    assert isinstance(run_kit(BasicDecodeCorrectnessMixin, STOP).raised, NotApplicable)
