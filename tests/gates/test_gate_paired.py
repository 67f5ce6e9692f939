from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import nct as noncentral
from scipy.stats import norm as normal
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from servematrix.gates import drift, paired, pairs, proportions
from servematrix.gates.pairs import PairingError, Pairs, align

RECORDED = Path(__file__).parents[2] / ".." / "shared" / "recordings" / "hellaswag"
ON_CPU = Path(__file__).parents[1] / "data" / "hellaswag_cpu"


def rows_of(path: Path) -> list[dict]:
    if not path.exists():
        pytest.skip("the recordings are not here")
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def recorded(name: str) -> list[dict]:
    return rows_of(RECORDED / f"{name}.jsonl.gz")


def on_cpu(name: str) -> list[dict]:
    return rows_of(ON_CPU / f"{name}.jsonl.gz")


def outcomes(baseline, candidate, **limits) -> dict[str, str]:
    return {name: v.outcome for name, v in paired.judge(baseline, candidate, **limits).items()}


HEALTHY = {"paired_accuracy": "pass", "gold_logprob": "pass", "drift": "pass"}


# -- recorded servers ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["base2", "nograph"])
def test_recorded_repeats_pass_every_gate(name):
    assert outcomes(recorded("base"), recorded(name)) == HEALTHY


def test_the_recorded_fp8_cache_lost_log_probability_and_drifted():
    verdicts = paired.judge(recorded("base_cached_prefix"), recorded("kvfp8_cached_prefix"))
    assert verdicts["gold_logprob"].outcome == "fail"
    assert verdicts["drift"].outcome == "fail"
    # 40 lost and 27 won of 2,000: answers alone do not show it
    accuracy = verdicts["paired_accuracy"]
    assert (accuracy.outcome, accuracy.numbers["lost"], accuracy.numbers["won"]) == (
        "inconclusive",
        40,
        27,
    )
    assert verdicts["drift"].numbers["drift_flips"] == 114


def test_the_recorded_fp8_cache_drifts_on_any_500_items():
    pairs = align(recorded("base_cached_prefix"), recorded("kvfp8_cached_prefix"))
    rng = np.random.default_rng(1)
    for _ in range(200):
        assert drift.judge(taken(pairs, rng.choice(pairs.n, 500))).outcome == "fail"


def test_recorded_repeats_on_a_cpu_pass_every_gate():
    assert outcomes(on_cpu("bfloat16"), on_cpu("bfloat16_again")) == HEALTHY


@pytest.mark.parametrize("name", ["cached_prefix_again", "cached_prefix_one_by_one"])
def test_recorded_repeats_through_the_cache_do_not_drift(name):
    pairs = align(on_cpu("cached_prefix"), on_cpu(name))
    assert drift.judge(pairs).outcome == "pass"
    assert paired.gold_logprob(pairs).outcome != "fail"
    assert paired.accuracy(pairs).outcome != "fail"
    # they are no exact repeats: the limits of whole prompts would not do
    assert drift.judge(pairs, drift.HEALTHY).outcome == "fail"
    assert drift.judge(pairs, drift.measured([pairs])).outcome == "pass"


def test_a_recorded_change_of_dtype_drifts_and_loses_nothing():
    verdicts = paired.judge(on_cpu("bfloat16"), on_cpu("float32"))
    assert verdicts["drift"].outcome == "fail"
    assert verdicts["drift"].numbers["drift_moved"] == 1000
    assert verdicts["gold_logprob"].outcome == "pass"
    # 8 lost and 2 won of 1,000: too few items to exclude a loss of a point
    assert verdicts["paired_accuracy"].outcome == "inconclusive"


def test_a_recorded_change_to_float16_drifts_on_150_items():
    some = on_cpu("bfloat16")[:150]
    verdicts = paired.judge(some, on_cpu("float16"))
    assert verdicts["drift"].outcome == "fail"
    assert "fail" not in (verdicts["gold_logprob"].outcome, verdicts["paired_accuracy"].outcome)


def test_a_recorded_change_of_machine_drifts_and_fails_nothing_else():
    verdicts = paired.judge(recorded("base")[:1000], on_cpu("bfloat16"))
    assert verdicts["drift"].outcome == "fail"
    assert verdicts["paired_accuracy"].outcome == "pass"
    assert verdicts["gold_logprob"].outcome == "inconclusive"


def test_cached_and_whole_prompts_are_refused():
    some = recorded("base")[:2000]
    for verdicts in (
        paired.judge(some, recorded("base_cached_prefix")),
        paired.judge(recorded("base_cached_prefix"), some),
    ):
        assert list(verdicts) == ["pairing"]
        assert verdicts["pairing"].outcome == "error"
        assert "scored differently" in verdicts["pairing"].reason


# -- simulated servers --------------------------------------------------------------------------


def taken(pairs: Pairs, chosen) -> Pairs:
    return replace(
        pairs,
        labels=pairs.labels[chosen],
        baseline=pairs.baseline[chosen],
        candidate=pairs.candidate[chosen],
    )


def run_of(n: int = 1000, seed: int = 0) -> list[dict]:
    """A whole-prompt run: four endings of 5 to 15 tokens, two answers in five right."""
    rng = np.random.default_rng(seed)
    rows = []
    for ind in range(n):
        label = int(rng.integers(4))
        means = rng.normal(-2.5, 0.4, 4)
        means[label] += 0.15
        nt = [int(tokens) for tokens in rng.integers(5, 16, 4)]
        rows.append({"ind": ind, "label": label, "lp": list(means * nt), "nt": nt})
    return rows


def right(row: dict) -> bool:
    means = [lp / nt for lp, nt in zip(row["lp"], row["nt"], strict=True)]
    return means.index(max(means)) == row["label"]


def spoilt(rows: list[dict], losses: int, wins: int = 0) -> list[dict]:
    """The same run with so many right answers made wrong, and so many wrong ones right."""
    found = []
    for row in rows:
        lp, label = list(row["lp"]), row["label"]
        was_right = right(row)
        if was_right and losses > 0:
            losses -= 1
            lp[label] = -100.0 * row["nt"][label]
        elif not was_right and wins > 0:
            wins -= 1
            lp[label] = -0.01 * row["nt"][label]
        found.append({**row, "lp": lp})
    return found


def moved(rows: list[dict], by: float, share: float = 1.0, gold: float = 0.0) -> list[dict]:
    """The same run with every mean moved by about `by` nats, the right endings by `gold` more."""
    rng = np.random.default_rng(7)
    found = []
    for i, row in enumerate(rows):
        moves = rng.choice([-by, by], 4) if i < share * len(rows) else np.zeros(4)
        moves[row["label"]] += gold
        lp = [float(lp + nt * m) for lp, nt, m in zip(row["lp"], row["nt"], moves, strict=True)]
        found.append({**row, "lp": lp})
    return found


def changed(number: int, **values) -> list[dict]:
    return [{**row, **values} if i == number else row for i, row in enumerate(RUN)]


def cached(rows: list[dict], share: float = 0.9, n0: int = 40) -> list[dict]:
    return [{**row, "n0": n0, "cached": [int(share * n0)] * 4} for row in rows]


RUN = run_of()
BEST = spoilt(RUN, losses=0, wins=1000)
"""The same run with every answer right."""


def test_a_run_equals_itself():
    verdicts = paired.judge(RUN, RUN)
    assert {name: v.outcome for name, v in verdicts.items()} == HEALTHY
    assert [v.alpha for v in verdicts.values()] == [0.001] * 3
    assert all(0.36 < v.power <= 1.0 for v in verdicts.values())


@pytest.mark.parametrize(
    ("losses", "wins", "outcome"),
    [
        (0, 0, "pass"),
        (3, 1, "pass"),
        (9, 0, "inconclusive"),
        (10, 0, "fail"),
        (20, 5, "inconclusive"),
        (20, 3, "fail"),
        (30, 30, "inconclusive"),
        (5, 40, "pass"),
    ],
)
def test_lost_answers(losses, wins, outcome):
    verdict = paired.accuracy(align(RUN, spoilt(RUN, losses, wins)))
    assert verdict.outcome == outcome, verdict.reason
    assert (verdict.numbers["lost"], verdict.numbers["won"]) == (losses, wins)


@pytest.mark.parametrize(("losses", "wins"), [(0, 0), (9, 0), (30, 30), (2, 3)])
def test_the_items_asked_for_would_decide(losses, wins):
    few = run_of(400)
    verdict = paired.accuracy(align(few, spoilt(few, losses, wins)))
    assert verdict.outcome == "inconclusive"
    needed = verdict.numbers["loss_items_needed"]
    lost, won = round(losses * needed / 400), round(wins * needed / 400)
    decided = paired.mcnemar(lost, won) <= 0.001 or paired.excluded(lost, won, needed, 0.01)
    assert decided
    assert f"about {needed:,} items" in verdict.reason


def test_without_a_flip_the_margin_needs_536_items():
    """z² (1 - margin) / margin, with z = 2.326: what Tango's interval asks for."""
    assert paired.accuracy(align(RUN[:535], RUN[:535])).outcome == "inconclusive"
    assert paired.accuracy(align(RUN[:536], RUN[:536])).outcome == "pass"


def test_a_wider_margin_needs_fewer_items():
    pairs = align(RUN[:200], RUN[:200])
    assert paired.accuracy(pairs).outcome == "inconclusive"
    assert paired.accuracy(pairs, margin=0.03).outcome == "pass"


def test_a_baseline_that_knows_nothing_is_an_error():
    baseline = spoilt(RUN, losses=1000)
    verdict = paired.accuracy(align(baseline, RUN))
    assert verdict.outcome == "error"
    assert "has 0 of 1000 right" in verdict.reason


@pytest.mark.parametrize(
    ("gold", "outcome"),
    [(0.0, "pass"), (0.01, "pass"), (-0.0017, "inconclusive"), (-0.02, "fail"), (-2.0, "fail")],
)
def test_a_loss_of_gold_log_probability(gold, outcome):
    verdict = paired.gold_logprob(align(RUN, moved(RUN, 0.01, gold=gold)))
    assert verdict.outcome == outcome, verdict.reason
    if outcome == "inconclusive":
        assert verdict.numbers["gold_items_needed"] > 1000


def test_the_gold_test_is_that_of_scipy():
    pairs = align(RUN, moved(RUN, 0.05, gold=-0.004))
    _, _, low, high = paired.gold_bounds(pairs.gold)
    p = ttest_1samp(pairs.gold, -low, alternative="less").pvalue
    assert p == pytest.approx(0.001)
    assert ttest_1samp(pairs.gold, -high, alternative="greater").pvalue == pytest.approx(0.01)


def test_one_ruined_item_neither_fails_a_run_nor_hides_a_loss():
    ruined = [{**RUN[0], "lp": [-1e6] * 4}, *RUN[1:]]
    assert paired.gold_logprob(align(RUN, ruined)).outcome == "inconclusive"
    lossy = moved(RUN, 0.01, gold=-0.01)
    verdict = paired.gold_logprob(align(RUN, [ruined[0], *lossy[1:]]))
    assert (verdict.outcome, verdict.numbers["gold_clipped"]) == ("fail", 1)


def test_one_ruined_item_in_fifty_is_seen():
    ruined = [{**row, "lp": [-1e6] * 4} if i % 50 == 0 else row for i, row in enumerate(RUN)]
    assert paired.gold_logprob(align(RUN, ruined)).outcome == "fail"


def test_gold_power_is_that_of_simulation():
    rng = np.random.default_rng(1)
    gold = rng.normal(-0.01, 0.07, (20_000, 300))
    low = paired.gold_bounds(gold)[2]
    power = paired.gold_power(300, 0.07, 0.008, 0.001)
    assert (low > 0.002).mean() == pytest.approx(power, abs=0.015)


@pytest.mark.parametrize(
    ("by", "share", "outcome"),
    [
        (0.0, 1.0, "pass"),
        (0.0009, 1.0, "pass"),
        (0.01, 0.01, "pass"),
        (0.01, 0.03, "fail"),
        (0.01, 1.0, "fail"),
    ],
)
def test_moved_items(by, share, outcome):
    verdict = drift.judge(align(RUN, moved(RUN, by, share)))
    assert verdict.outcome == outcome, verdict.reason
    assert verdict.numbers["drift_flips"] == 0 or by > 0


def test_flips_alone_are_a_drift():
    """Six answers of a thousand change by a hair each: no log-probability moves beyond repeats."""
    candidate = []
    for row in RUN:
        means = np.array(row["lp"]) / row["nt"]
        if row["ind"] < 8:
            best = int(means.argmax())
            means[(best + 1) % 4] = means[best] + 1e-6
        candidate.append({**row, "lp": list(means * row["nt"])})
    limits = drift.Healthy(delta=10.0)
    verdict = drift.judge(align(RUN, candidate), limits)
    assert (verdict.outcome, verdict.numbers["drift_moved"]) == ("fail", 0)


def test_an_accepted_drift_passes_under_its_name():
    drifted = align(RUN, moved(RUN, 0.01))
    verdict = drift.judge(drifted, accepted="fp8 KV cache")
    assert verdict.outcome == "pass"
    assert "accepted as 'fp8 KV cache'" in verdict.reason
    assert verdict.numbers["drift_accepted"] == "fp8 KV cache"
    assert outcomes(RUN, moved(RUN, 0.01), accepted="kernel")["drift"] == "pass"
    with pytest.raises(ValueError, match="has a name"):
        drift.judge(drifted, accepted=" ")


def test_an_accepted_drift_accepts_no_loss():
    assert outcomes(RUN, spoilt(RUN, 200), accepted="kernel") == {
        "paired_accuracy": "fail",
        "gold_logprob": "fail",
        "drift": "pass",
    }


def test_few_items_with_a_few_moved_are_inconclusive():
    few = RUN[:100]
    verdict = drift.judge(align(few, moved(few, 0.01, share=0.05)))
    assert verdict.outcome == "inconclusive"
    assert verdict.numbers["drift_items_needed"] > 100


def test_limits_are_learnt_from_repeats():
    noisy = [align(RUN, moved(RUN, 0.01)), align(RUN, moved(RUN, 0.012))]
    healthy = drift.measured(noisy)
    assert 0.01 < healthy.delta < 0.0121
    assert drift.judge(noisy[1], healthy).outcome == "pass"
    assert drift.judge(align(RUN, moved(RUN, 0.05)), healthy).outcome == "fail"
    still = drift.measured([align(RUN, RUN)] * 11)
    assert still == drift.HEALTHY
    through = align(cached(RUN), cached(RUN))
    for repeats in ([], [align(RUN, RUN), through]):
        with pytest.raises(ValueError, match="scored the same way, and one at least"):
            drift.measured(repeats)
    with pytest.raises(ValueError, match="no limits"):
        drift.Healthy(moved=0.2)


@given(st.integers(100, 400), st.integers(0, 2**32 - 1))
def test_a_healthy_server_never_fails(n, seed):
    """Whatever the items, a repeat that moves one by rounding is no failure."""
    rows = run_of(n, seed)
    again = [{**rows[0], "lp": [lp + 0.01 for lp in rows[0]["lp"]]}, *rows[1:]]
    assert "fail" not in outcomes(rows, again).values()


# -- what is stated, and where the limits lie ---------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "wins", "outcome"), [(0, 0, "pass"), (10, 0, "fail"), (20, 8, "inconclusive")]
)
def test_every_number_of_a_paired_accuracy_is_stated(losses, wins, outcome):
    pairs = align(RUN, spoilt(RUN, losses, wins))
    verdict = paired.accuracy(pairs, margin=0.02, alpha=0.002, miss=0.03)
    assert verdict.outcome == outcome, verdict.reason
    low, high = proportions.tango_bounds(losses, wins, 1000, 0.03)
    before = sum(map(right, RUN))
    power = proportions.mcnemar_power(1000, 0.02, 2 * min(losses, wins) / 1000, 0.002)
    needs = {"loss_items_needed": verdict.numbers.get("loss_items_needed")}
    assert verdict.numbers == {
        "n": 1000,
        "correct_baseline": before,
        "correct_candidate": before - losses + wins,
        "lost": losses,
        "won": wins,
        "loss": pytest.approx((losses - wins) / 1000),
        "loss_low": pytest.approx(low),
        "loss_high": pytest.approx(high),
        "loss_margin": 0.02,
        "loss_p": pytest.approx(float(proportions.mcnemar(losses, wins))),
        "loss_alpha": 0.002,
        "loss_miss": 0.03,
        "loss_effect": 0.02,
        "loss_power": pytest.approx(power),
        **(needs if outcome == "inconclusive" else {}),
    }
    assert (verdict.alpha, verdict.power) == (0.002, pytest.approx(power))


@pytest.mark.parametrize(("knows", "outcome"), [(9, "error"), (10, "fail")])
def test_a_baseline_knows_enough_where_losing_all_of_it_is_beyond_chance(knows, outcome):
    """A loss of 10 has a p of 2 ** -10 < 0.001, one of 9 has more."""
    nothing = spoilt(RUN, losses=1000)
    some = [
        row if i < knows else worse
        for i, (row, worse) in enumerate(zip(BEST, nothing, strict=True))
    ]
    verdict = paired.accuracy(align(some, nothing))
    assert verdict.outcome == outcome
    if outcome == "error":
        assert verdict.numbers == {"n": 1000, "correct_baseline": 9}


@pytest.mark.parametrize(
    ("gold", "outcome"), [(0.0, "pass"), (-0.0017, "inconclusive"), (-0.02, "fail")]
)
def test_every_number_of_a_gold_loss_is_stated(gold, outcome):
    pairs = align(RUN, moved(RUN, 0.01, gold=gold))
    verdict = paired.gold_logprob(pairs, margin=0.0021, alpha=0.002, miss=0.03, effect=0.011)
    assert verdict.outcome == outcome, verdict.reason
    mean, error, low, high = map(float, paired.gold_bounds(pairs.gold, 0.002, 0.03))
    assert mean == pytest.approx(-pairs.gold.mean())
    assert error == pytest.approx(pairs.gold.std(ddof=1) / math.sqrt(1000))
    # the differences spread less than 0.07, which power is stated for at least
    power = paired.gold_power(1000, 0.07, 0.011 - 0.0021, 0.002)
    needs = {"gold_items_needed": verdict.numbers.get("gold_items_needed")}
    assert verdict.numbers == {
        "n": 1000,
        "gold_loss": mean,
        "gold_loss_low": low,
        "gold_loss_high": high,
        "gold_standard_error": error,
        "gold_clipped": 0,
        "gold_margin": 0.0021,
        "gold_alpha": 0.002,
        "gold_miss": 0.03,
        "gold_effect": 0.011,
        "gold_power": power,
        **(needs if outcome == "inconclusive" else {}),
    }
    assert (verdict.alpha, verdict.power) == (0.002, power)


def test_the_power_of_differences_that_spread_widely_is_that_of_their_spread():
    pairs = align(RUN, moved(RUN, 0.3))
    spread = float(pairs.gold.std(ddof=1))
    assert spread > 0.07
    expected = paired.gold_power(1000, spread, 0.008, 0.001)
    assert paired.gold_logprob(pairs).power == pytest.approx(expected)


@pytest.mark.parametrize("mean", [0.0019, 0.0022])
def test_the_items_a_gold_loss_asks_for_bring_the_bound_to_the_margin(mean):
    spread = 0.02
    gold = np.resize([-mean - spread, -mean + spread], 1000)
    pairs = replace(align(RUN, RUN), candidate=align(RUN, RUN).baseline + gold[:, None])
    verdict = paired.gold_logprob(pairs)
    assert verdict.outcome == "inconclusive"
    needed = verdict.numbers["gold_items_needed"]
    z = normal.isf(0.001 if mean > 0.002 else 0.01)
    deviation = gold.std(ddof=1)
    assert z * deviation / math.sqrt(needed) <= abs(mean - 0.002)
    assert z * deviation / math.sqrt(needed - 1) > abs(mean - 0.002)


def test_a_gold_loss_on_the_margin_is_decided_by_no_number_of_items():
    for spread in (0.0, 0.125):
        gold = np.resize([-0.25 - spread, -0.25 + spread], 1000)
        pairs = replace(
            align(RUN, RUN), baseline=np.zeros((1000, 4)), candidate=np.tile(gold, (4, 1)).T
        )
        verdict = paired.gold_logprob(pairs, margin=0.25)
        assert (verdict.outcome, verdict.numbers["gold_items_needed"]) == ("inconclusive", None)


def test_differences_are_cut_beyond_a_nat():
    gold = np.array([-3.0, -1.0, 1.0, 3.0])
    mean, error, _, _ = paired.gold_bounds(gold)
    assert (mean, error) == (0.0, pytest.approx(math.sqrt(4 / 3) / 2))
    candidate = np.zeros((1000, 4))
    candidate[:3] = [[-1.0] * 4, [-1.01] * 4, [1.01] * 4]
    pairs = replace(align(RUN, RUN), baseline=np.zeros((1000, 4)), candidate=candidate)
    assert paired.gold_logprob(pairs).numbers["gold_clipped"] == 2


@pytest.mark.parametrize(
    ("share", "accepted", "outcome"),
    [
        (0.0, None, "pass"),
        (1.0, None, "fail"),
        (1.0, "kernel", "pass"),
        (0.05, None, "inconclusive"),
    ],
)
def test_every_number_of_a_drift_is_stated(share, accepted, outcome):
    some = RUN if share != 0.05 else RUN[:100]
    n, by = len(some), math.ceil(share * len(some))
    pairs = align(some, moved(some, 0.01, share))
    healthy = drift.Healthy(delta=0.002, moved=0.011, flips=0.002)
    verdict = drift.judge(pairs, healthy, accepted=accepted, alpha=0.002, miss=0.03)
    assert verdict.outcome == outcome, verdict.reason
    power = proportions.exceeding_power(n, 0.011, 0.1, 0.001)
    flips = int(pairs.flipped.sum())
    needs = {"drift_items_needed": verdict.numbers.get("drift_items_needed")}
    assert verdict.numbers == {
        "n": n,
        "drift_moved": by,
        "drift_moved_share_high": pytest.approx(float(proportions.upper_bound(by, n, 0.03))),
        "drift_flips": flips,
        "drift_delta_mean": pytest.approx(0.01 * by / n),
        "drift_delta_p99": pytest.approx(float(np.quantile(pairs.moved, 0.99))),
        "drift_delta_largest": pytest.approx(0.01 if by else 0.0),
        "drift_p_moved": pytest.approx(float(proportions.exceeding(by, n, 0.011))),
        "drift_p_flips": pytest.approx(float(proportions.exceeding(flips, n, 0.002))),
        "drift_healthy_delta": 0.002,
        "drift_healthy_moved": 0.011,
        "drift_healthy_flips": 0.002,
        "drift_alpha": 0.002,
        "drift_miss": 0.03,
        "drift_effect": 0.1,
        "drift_power": power,
        "drift_accepted": accepted,
        **(needs if outcome == "inconclusive" else {}),
    }
    assert (verdict.alpha, verdict.power) == (0.002, power)


def test_an_item_that_moved_by_the_limit_has_not_moved():
    candidate = np.zeros((1000, 4))
    candidate[:50] = 0.001
    candidate[50:53] = 0.0011
    pairs = replace(align(RUN, RUN), baseline=np.zeros((1000, 4)), candidate=candidate)
    assert drift.judge(pairs).numbers["drift_moved"] == 3


def test_each_gate_on_pairs_has_the_limits_it_is_given():
    healthy = drift.Healthy(delta=0.5, moved=0.02, flips=0.03)
    found = paired.judge(RUN, RUN, margin=0.03, gold_margin=0.1, healthy=healthy, accepted="x")
    assert found["paired_accuracy"].numbers["loss_margin"] == 0.03
    assert found["gold_logprob"].numbers["gold_margin"] == 0.1
    assert found["drift"].numbers["drift_healthy_delta"] == 0.5
    assert found["drift"].numbers["drift_accepted"] == "x"
    assert "missing in the candidate: item 0" in paired.judge(RUN, RUN[1:])["pairing"].reason


def test_a_move_is_rounded_to_nine_digits():
    candidate = np.full((100, 4), 0.001 + 4e-10)
    some = replace(align(RUN, RUN), baseline=np.zeros((100, 4)), candidate=candidate)
    assert set(some.moved) == {0.001}


def test_the_items_that_a_drift_asks_for_have_a_p_of_half_the_risk_at_most():
    few = RUN[:100]
    # 5 of 100 are 6 of 110
    alpha = 2 * float(proportions.exceeding(6, 110, 0.01))
    verdict = drift.judge(align(few, moved(few, 0.01, 0.05)), alpha=alpha)
    assert (verdict.outcome, verdict.numbers["drift_items_needed"]) == ("inconclusive", 110)


def test_the_items_that_exclude_a_drift_are_as_few_as_the_bound_allows():
    few = RUN[:100]
    verdict = drift.judge(align(few, moved(few, 0.01, 0.04)))
    assert verdict.outcome == "inconclusive"
    needed = verdict.numbers["drift_items_needed"]
    assert proportions.upper_bound(round(0.04 * needed), needed, 0.01) < 0.1
    assert proportions.exceeding(round(0.04 * needed), needed, 0.01) > 0.0005
    assert needed > 101


def test_the_items_that_a_drift_asks_for_do_decide():
    few = RUN[:100]
    verdict = drift.judge(align(few, moved(few, 0.01, 0.05)))
    assert verdict.outcome == "inconclusive"
    needed = verdict.numbers["drift_items_needed"]
    decided = [
        bool(
            (proportions.exceeding(round(5 / 100 * n), n, 0.01) <= 0.0005)
            | (proportions.upper_bound(round(5 / 100 * n), n, 0.01) < 0.1)
        )
        for n in (needed, int(needed * 0.97))
    ]
    assert decided == [True, False]


@pytest.mark.parametrize(
    ("limits", "makes_sense"),
    [
        ({"delta": 0.0, "moved": 0.0, "flips": 0.0}, True),
        ({"moved": 0.0999, "flips": 0.9999}, True),
        ({"delta": -0.001}, False),
        ({"delta": math.nan}, False),
        ({"moved": -0.001}, False),
        ({"moved": 0.1}, False),
        ({"flips": -0.001}, False),
        ({"flips": 1.0}, False),
    ],
)
def test_limits_of_healthy_repeats_are_shares_below_what_must_be_seen(limits, makes_sense):
    if makes_sense:
        drift.Healthy(**limits)
        return
    with pytest.raises(ValueError, match="no limits"):
        drift.Healthy(**limits)


def test_limits_of_the_cache_are_those_of_runs_through_it():
    through = align(cached(RUN), cached(RUN))
    assert drift.healthy_limits(through) == drift.HEALTHY_CACHED
    assert drift.healthy_limits(align(RUN, RUN)) == drift.HEALTHY
    assert drift.judge(through).numbers["drift_healthy_delta"] == 0.035


def test_measured_limits_are_bounds_of_what_all_repeats_show():
    repeats = [align(RUN, moved(RUN, 0.01)), align(RUN, moved(RUN, 0.02))]
    shifts = np.concatenate([pairs.moved for pairs in repeats])
    flips = sum(int(pairs.flipped.sum()) for pairs in repeats)
    assert flips > 0
    found = drift.measured(repeats, miss=0.02)
    assert found.delta == pytest.approx(np.quantile(shifts, 0.99))
    beyond = int((shifts > found.delta).sum())
    assert found.moved == max(0.01, float(proportions.upper_bound(beyond, 2000, 0.02)))
    assert found.flips == pytest.approx(float(proportions.upper_bound(flips, 2000, 0.02)))


@pytest.mark.parametrize(("miss", "items"), [(0.01, 536), (0.05, 268)])
def test_the_items_without_a_flip_follow_the_risk(miss, items):
    """z² (1 - margin) / margin, with z = 2.326 and 1.645."""
    assert paired.accuracy(align(RUN[:items], RUN[:items]), miss=miss).outcome == "pass"
    few = paired.accuracy(align(RUN[:200], RUN[:200]), miss=miss)
    assert few.outcome == "inconclusive"
    assert items <= few.numbers["loss_items_needed"] <= 1.01 * items + 1


def test_a_loss_with_a_p_of_the_risk_exactly_fails():
    assert paired.accuracy(align(RUN, spoilt(RUN, 10)), alpha=2.0**-10).outcome == "fail"
    few = RUN[:400]
    verdict = paired.accuracy(align(few, spoilt(few, 5)), alpha=2.0**-10)
    assert verdict.outcome == "inconclusive"
    assert 760 <= verdict.numbers["loss_items_needed"] <= 770  # where 5 of 400 are 10


def test_a_loss_that_is_just_not_rejected_is_not_excluded():
    # the statistic of the very loss that was seen is 0, and so is the quantile of one half
    assert not paired.excluded(10, 0, 1000, 0.01, 0.5)


def test_a_drift_with_a_p_of_half_the_risk_exactly_fails():
    pairs = align(RUN, moved(RUN, 0.01, 0.015))
    p = float(proportions.exceeding(15, 1000, 0.01))
    assert drift.judge(pairs, drift.HEALTHY, alpha=2 * p).outcome == "fail"
    assert drift.judge(pairs, drift.HEALTHY, alpha=1.99 * p).outcome == "pass"


def test_the_power_of_a_drift_is_that_of_half_its_risk():
    few = RUN[:100]
    verdict = drift.judge(align(few, few), alpha=0.05)
    assert verdict.power == proportions.exceeding_power(100, 0.01, 0.1, 0.025)
    assert verdict.power != proportions.exceeding_power(100, 0.01, 0.1, 0.1)


def test_gold_bounds_of_many_runs_are_those_of_each():
    gold = np.array([[0.1, 0.2, 0.4], [0.0, -0.5, 0.9], [3.0, -3.0, 0.0]])
    together = paired.gold_bounds(gold)
    for i, row in enumerate(gold):
        assert [one[i] for one in together] == pytest.approx(
            list(map(float, paired.gold_bounds(row)))
        )


def test_gold_power_of_few_items_is_noncentral_t():
    expected = noncentral.sf(student.isf(0.01, 4), 4, 0.1 * math.sqrt(5) / 0.07)
    assert paired.gold_power(5, 0.07, 0.1, 0.01) == pytest.approx(expected)


def test_what_the_t_bound_leaves_open_and_the_normal_one_would_not_asks_for_one_item_more():
    gold = np.resize([-1.0, 1.0], 100)
    error = gold.std(ddof=1) / 10
    # between the quantiles of the normal and of t(99) at 0.001
    assert normal.isf(0.001) < 3.13 < student.isf(0.001, 99)
    some = align(RUN[:100], RUN[:100])
    shifted = some.baseline + 0.1 * gold[:, None] - (0.002 + 3.13 * 0.1 * error)
    verdict = paired.gold_logprob(replace(some, candidate=shifted))
    assert (verdict.outcome, verdict.numbers["gold_items_needed"]) == ("inconclusive", 101)


# -- runs that cannot be compared ---------------------------------------------------------------


def test_a_hundred_items_are_enough_to_compare():
    assert align(RUN[:100], RUN[:100]).n == 100


@pytest.mark.parametrize("counts", [[-1] * 4, [0.5] * 4, [True] * 4, [], (3, "1"), 3, None])
def test_what_is_no_count_of_cached_tokens_is_refused(counts):
    assert "no counts of tokens" in pairs.problem_of({**RUN[0], "n0": 40, "cached": counts})


@pytest.mark.parametrize("n0", [0, -1, 1.5, True, None])
def test_what_is_no_length_of_a_context_is_refused(n0):
    assert "no counts of tokens" in pairs.problem_of({**RUN[0], "n0": n0, "cached": [1] * 4})


@pytest.mark.parametrize("counts", [[0] * 4, (1, 2, 3, 4)])
def test_counts_from_zero_on_are_whole(counts):
    assert pairs.problem_of({**RUN[0], "n0": 1, "cached": counts}) is None


def test_two_endings_of_one_token_are_a_whole_row():
    row = {"ind": 0, "label": 1, "lp": (-1, -2.0), "nt": (1, 1)}
    assert pairs.problem_of(row) is None
    assert "label -1" in pairs.problem_of({**row, "label": -1})
    assert "label 2" in pairs.problem_of({**row, "label": 2})
    assert "whole numbers" in pairs.problem_of({**row, "ind": 0.0})
    assert "whole numbers" in pairs.problem_of({**row, "label": True})
    assert "two lists" in pairs.problem_of({**row, "nt": 5})
    assert "belong together" in pairs.problem_of({**row, "cached": [1, 1]})
    assert "not finite" in pairs.problem_of({**row, "lp": [-1.0, "x"]})


@pytest.mark.parametrize(
    ("spoilt_run", "told"),
    [
        ([*RUN, RUN[3]], "more than once in the baseline: item 3"),
        (changed(5, lp=[-1.0] * 5, nt=[1] * 5), "items of the baseline have [4, 5] endings"),
        (changed(5, lp=None), "row 5 of the baseline: item 5"),
        (changed(5, n0=4, cached=[3] * 4), "1 of 1000 items of the baseline"),
    ],
)
def test_what_is_wrong_with_the_baseline_is_told_of_the_baseline(spoilt_run, told):
    with pytest.raises(PairingError) as raised:
        align(spoilt_run, RUN)
    assert told in str(raised.value)


def test_two_endings_are_two_classes():
    two = [
        {**row, "label": i % 2, "lp": [-1.0 - i % 2, -1.5], "nt": [1, 1]}
        for i, row in enumerate(RUN)
    ]
    found = align(two, two)
    assert set(found.labels) == {0, 1}
    assert found.right.mean() == 1.0


def test_shares_from_the_cache_may_be_a_tenth_apart():
    assert align(cached(RUN, share=0.0), cached(RUN, share=0.1)).cached  # a tenth exactly
    half = cached(RUN, share=0.5)
    assert align(half, cached(RUN, share=0.6)).cached  # 24 of 40 tokens against 20
    with pytest.raises(PairingError, match="50% of the baseline's"):
        align(half, cached(RUN, share=0.625))


@pytest.mark.parametrize(
    ("baseline", "candidate", "told"),
    [
        (RUN, RUN[1:], "missing in the candidate: item 0;"),
        (RUN[7:], RUN, "missing in the baseline: items 0, 1, 2, 3, 4 and 2 more;"),
        (RUN, [*RUN, RUN[3]], "more than once in the candidate: item 3;"),
        ([], [], "both runs are empty"),
        (RUN[:99], RUN[:99], "99 items are too few"),
        (RUN, changed(5, label=(RUN[5]["label"] + 1) % 4), "by their labels: item 5 differ"),
        (
            RUN,
            changed(5, nt=[99] * 4),
            "another tokenizer or model, by the endings' tokens: item 5",
        ),
        (
            [{**row, "checksum": "a"} for row in RUN],
            [{**row, "checksum": "b" if i == 9 else "a"} for i, row in enumerate(RUN)],
            "by the checksums of their texts: item 9",
        ),
        (RUN, changed(5, lp=[-1.0, math.nan, -1.0, -1.0]), "item 5: lp is"),
        (RUN, changed(5, lp=[-1.0, math.inf, -1.0, -1.0]), "not finite"),
        (RUN, changed(5, lp=[-1.0, None, -1.0, -1.0]), "not finite"),
        (RUN, changed(5, lp=None), "two lists"),
        (RUN, changed(5, lp=[-1.0]), "two lists"),
        (RUN, changed(5, lp=[-1.0], nt=[1]), "1 endings"),
        (RUN, changed(5, label=4), "label 4"),
        (RUN, changed(5, label="1"), "whole numbers"),
        (RUN, changed(5, ind=True), "whole numbers"),
        (RUN, changed(5, nt=[0, 1, 1, 1]), "counted from 1"),
        (RUN, changed(5, lp=[-1.0] * 5, nt=[1] * 5), "have [4, 5] endings"),
        (RUN, [{}], "no ind, label, lp, nt"),
        (RUN, [7], "an item is an object, found int"),
        (RUN, changed(5, n0=4), "n0 and cached belong together"),
        (RUN, changed(5, n0=4, cached="x"), "no counts of tokens"),
        (RUN, changed(5, n0=4, cached=[3] * 4), "1 of 1000 items of the candidate"),
        (RUN, cached(RUN), "the baseline with the whole prompt"),
        (cached(RUN), RUN, "the candidate with the whole prompt"),
        (cached(RUN), cached(RUN, share=0.0), "90% of the baseline's context tokens"),
        (cached(RUN), cached(RUN, n0=50), "by the contexts' lengths: items 0, 1"),
        ([{**row, "label": 2} for row in RUN], [{**row, "label": 2} for row in RUN], "one class"),
        (
            [{**row, "lp": [-1.0] * 4, "nt": [1] * 4} for row in RUN],
            [{**row, "nt": [1] * 4} for row in RUN],
            "dummy weights",
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_an_error(baseline, candidate, told):
    with pytest.raises(PairingError) as raised:
        align(baseline, candidate)
    assert told in str(raised.value)
    assert outcomes(baseline, candidate) == {"pairing": "error"}


def test_items_are_aligned_by_ind_and_not_by_order():
    assert outcomes(RUN, RUN[::-1]) == HEALTHY
    assert outcomes(cached(RUN), cached(RUN, share=0.85)[::-1]) == HEALTHY


def test_a_checksum_counts_only_where_both_have_it():
    assert outcomes(RUN, [{**row, "checksum": "a"} for row in RUN]) == HEALTHY
