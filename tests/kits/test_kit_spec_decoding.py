from __future__ import annotations

import pytest

from numeric_client import NumericClient, likeliest
from servematrix.gates.accept_length import Drafts
from servematrix.kits import SpecDecodingMixin, answers
from servematrix.kits.base import Inconclusive, MeasurementError, NotApplicable, VerdictFailed
from servematrix.kits.spec_decoding import _drafts, _fast_enough

LENGTH = "test_accept_length"
TOP1 = "test_accepted_tokens_are_top1"


def account(passes=30, histogram=(1, 0, 0, 29), **more):
    correct = sum(i * n for i, n in enumerate(histogram))
    return {
        "spec_verify_ct": passes,
        "spec_accept_histogram": list(histogram),
        "spec_accepted_drafts": correct,
        "spec_proposed_drafts": 3 * passes,
        "spec_accept_rate": correct / (3 * passes),
        "spec_accept_length": 117 / passes,
        **more,
    }


@pytest.fixture
def server():
    found = NumericClient()
    found.info["speculative_algorithm"] = "EAGLE3"
    found.meta = account()
    return found


@pytest.fixture
def run(run_kit, server):
    return lambda test, **more: run_kit(
        SpecDecodingMixin, test, _kit_client=server, **{"spec_decoding_tokens": 117, **more}
    )


def test_speculation_that_pays_passes(run):
    ran = run(LENGTH)
    assert ran.raised is None
    numbers = ran.verdict.numbers
    assert numbers["accept_length"] == pytest.approx(3.9)
    assert numbers["accept_rate"] == pytest.approx(87 / 90)
    assert numbers["histograms"] == numbers["requests"] == 6
    assert numbers["decode_tokens_per_s"] == pytest.approx(100)
    kept = ran.reporter.attachments["drafts"]
    assert len(kept) == 6
    assert sum(kept[0]["histogram"]) == kept[0]["verify_passes"] == 30


def test_drafts_that_are_never_accepted_fail(run, server):
    server.meta = account(117, [117], spec_accept_length=1.0)
    ran = run(LENGTH)
    assert isinstance(ran.raised, VerdictFailed)
    assert "hardly accepts" in ran.verdict.reason


def test_the_published_names_are_honoured(run):
    assert isinstance(run(LENGTH, accept_length_thres=3.95).raised, VerdictFailed)
    assert isinstance(run(LENGTH, bs_1_speed_thres=150.0).raised, VerdictFailed)
    assert run(LENGTH, bs_1_speed_thres=50.0).raised is None


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"spec_accept_length": 3.0}, "accept length 3.000"),
        ({"spec_accept_rate": 0.5}, "accept rate 0.500"),
        ({"spec_accept_histogram": [1, 0, 0, 20]}, "21 in the histogram"),
        ({"spec_accept_histogram": [30]}, "117 tokens, 30 by the histogram"),
        ({"spec_accepted_drafts": 80}, "80 correct drafts"),
    ],
)
def test_figures_that_contradict_each_other_decide_nothing(run, server, more, told):
    server.meta = account(**more)
    ran = run(LENGTH)
    assert isinstance(ran.raised, Inconclusive)
    assert told in ran.verdict.reason


def test_a_version_without_a_histogram_is_judged_without(run, server):
    server.meta = {"spec_verify_ct": 30}
    ran = run(LENGTH)
    assert ran.raised is None
    assert ran.verdict.numbers["histograms"] == 0


def test_requests_decoded_without_drafts_fail(run, server):
    server.meta = {}
    ran = run(LENGTH)
    assert isinstance(ran.raised, VerdictFailed)
    assert "6 of 6 requests were decoded without drafts" in ran.verdict.reason


def test_an_answer_without_a_count_fails(run, server):
    server.without = {"completion_tokens"}
    assert isinstance(run(LENGTH).raised, VerdictFailed)


@pytest.mark.parametrize("test", [LENGTH, TOP1])
def test_a_server_that_does_not_speculate(run, server, test):
    server.info["speculative_algorithm"] = None
    assert isinstance(run(test).raised, NotApplicable)
    ran = run(test, spec_decoding_required=True)
    assert isinstance(ran.raised, VerdictFailed)
    assert "although it was asked to" in ran.verdict.reason


def test_tokens_that_the_target_would_have_said_pass(run):
    ran = run(TOP1)
    assert ran.raised is None
    assert ran.verdict.numbers["wrong_tokens"] == 0
    assert ran.verdict.numbers["tokens"] == 6 * 117


def test_a_token_accepted_wrongly_fails(run, server):
    """One in fifty tokens is the draft's and not the target's."""
    server.decoded = lambda context: 1 if sum(context) % 50 == 0 else likeliest(context)
    ran = run(TOP1)
    assert isinstance(ran.raised, VerdictFailed)
    assert "drafts are accepted wrongly" in ran.verdict.reason
    assert ran.verdict.numbers["wrong_tokens"] > 0


def test_near_ties_may_turn_round(run, server):
    server.decoded = lambda context: 1 if sum(context) % 50 == 0 else likeliest(context)
    ran = run(TOP1, spec_decoding_near_tie=3.5)
    assert ran.raised is None
    assert ran.verdict.numbers["near_ties"] > 0


def test_dummy_weights_and_missing_log_probabilities_say_nothing(run, server):
    server.flat = True
    assert isinstance(run(TOP1).raised, NotApplicable)
    server.without = {"input_token_logprobs"}
    assert isinstance(run(TOP1).raised, NotApplicable)


def test_a_refused_key_is_an_error(run, server):
    server.status = {"server_info": 401}
    assert isinstance(run(LENGTH).raised, MeasurementError)


ACCOUNT = {"completion_tokens": 23, "spec_verify_ct": 10, "spec_accept_length": 2.3}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, Drafts(23, 10, length=2.3)),
        ({"spec_verify_ct": None}, Drafts(23, 0, length=2.3)),
        (
            {
                "spec_accept_histogram": [2, 3, 5],
                "spec_accepted_drafts": 13,
                "spec_proposed_drafts": 20,
                "spec_accept_rate": 0.65,
            },
            Drafts(23, 10, (2, 3, 5), 13, 20, 2.3, 0.65),
        ),
        (
            {
                "spec_correct_drafts_histogram": [2, 3, 5],
                "spec_num_correct_drafts": 13,
                "spec_num_proposed_drafts": 20,
            },
            Drafts(23, 10, (2, 3, 5), 13, 20, 2.3),
        ),
        ({"spec_accept_histogram": []}, Drafts(23, 10, length=2.3)),
    ],
)
def test_an_account_is_read_under_both_names(more, expected):
    account = answers.parse(answers.Account, {**ACCOUNT, **more})
    assert _drafts(account, 23) == expected


@pytest.mark.parametrize(
    ("speed", "outcome"), [(150.1, "pass"), (150.0, "fail"), (0.0, "fail"), (None, "error")]
)
def test_a_speed_on_the_floor_is_not_above_it(speed, outcome):
    assert _fast_enough(speed, 150.0).outcome == outcome


def test_the_algorithm_stands_in_the_verdict(run, server):
    server.info["speculative_algorithm"] = "STANDALONE"
    assert run(LENGTH).verdict.numbers["spec_algorithm"] == "STANDALONE"


def test_the_gap_of_each_token_is_kept_by_prompt_to_six_digits(run, server):
    server.decoded = lambda context: 1 if sum(context) % 50 == 0 else likeliest(context)
    whole = server.score

    def score(prompts, starts=None, *, top=0, timeout=None):
        answers = whole(prompts, starts, top=top)
        for answer in answers if top else ():
            for first, *_ in answer["meta_info"]["input_top_logprobs"][1:]:
                first[0] += 0.1234564
        return answers

    server.score = score
    ran = run(TOP1, spec_decoding_near_tie=0.1)
    kept = ran.reporter.attachments["gaps"]
    assert len(kept) == 6
    assert {len(gaps) for gaps in kept.values()} == {117}
    values = {gap for gaps in kept.values() for gap in gaps}
    assert values == {0.123456, 3.123456}
    found = {name: value for _, name, value, _ in ran.reporter.measurements}
    assert found["largest_gap"] == pytest.approx(3.1234564)
    assert found["near_ties"] == 0


def test_why_there_are_no_log_probabilities_is_told(run, server):
    server.without = {"input_token_logprobs"}
    assert "no input_token_logprobs" in run(TOP1).verdict.reason


def test_a_near_tie_is_what_the_dtype_allows_unless_it_is_given(run, server):
    assert run(TOP1).verdict.numbers["near_tie_limit"] == 0.5
    server.info["dtype"] = "float16"
    assert run(TOP1).verdict.numbers["near_tie_limit"] == 0.0625
    assert run(TOP1, spec_decoding_near_tie=1.5).verdict.numbers["near_tie_limit"] == 1.5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("spec_verify_ct", wrong) for wrong in ("30", -30, 1.5, True, 10**400, [])),
        *(("spec_accept_histogram", wrong) for wrong in ("1,0,0,29", [None], [-1], {"0": 1}, 7)),
        *(("spec_accept_length", wrong) for wrong in ("3.9", -1, 1e308, float("nan"), [])),
        *(("spec_accept_rate", wrong) for wrong in ("x", float("inf"))),
        *(("spec_accepted_drafts", wrong) for wrong in ("x", -1, 2**63)),
        ("completion_tokens", 10**400),
    ],
)
def test_an_account_that_is_none_is_named(run, server, field, value):
    server.meta = account(**{field: value})
    ran = run(LENGTH)
    assert isinstance(ran.raised, VerdictFailed)
    assert f"/generate: meta_info: {field}" in ran.verdict.reason
