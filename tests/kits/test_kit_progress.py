"""What kits tell whoever waits, and that they need nobody for it."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest

from servematrix.gates import occupancy
from servematrix.gates.sequential import Decision
from servematrix.gates.verdict import Verdict
from servematrix.gates.windows import RankReading, Scrape
from servematrix.kits import FwdOccupancyMixin, HellaswagMixin, fwd_occupancy
from servematrix.kits.base import Kit, VerdictFailed, concludes


class Waiting:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str]] = []
        self.ended: list[str] = []

    def now(self, kit: str, phase: str, detail: str) -> None:
        self.told.append((kit, phase, detail))

    def over(self, kit: str) -> None:
        self.ended.append(kit)


@pytest.fixture
def waiting() -> Waiting:
    return Waiting()


def test_hellaswag_tells_its_items_and_the_accuracy_so_far(run_kit, scripted, tmp_path, waiting):
    path = tmp_path / "items.jsonl"
    rows = [
        {"ind": i, "activity_label": "a", "ctx": f"number {i}", "label": "1"}
        | {"endings": ["a wrong one", "the right one", "one wrong", "two wrong"]}
        for i in range(40)
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    scripted.context = None
    # every second item is understood
    scripted.logprob = lambda context, ending: (
        -1.0 if ("right" in ending) == (int(context.split()[-1]) % 2 == 0) else -2.0
    )
    run_kit(
        HellaswagMixin,
        "test_accuracy_floor",
        hellaswag_path=str(path),
        hellaswag_num_questions=12,
        hellaswag_num_shots=5,
        hellaswag_batch_items=4,
        hellaswag_parallel=1,
        progress=waiting,
    )
    batches = [detail for _, phase, detail in waiting.told if phase == "items in batches"]
    assert batches == [
        "0 of 12",
        "4 of 12, accuracy so far 0.500",
        "8 of 12, accuracy so far 0.500",
        "12 of 12, accuracy so far 0.500",
    ]
    single = [detail for _, phase, detail in waiting.told if phase == "items one by one"]
    assert len(single) == 13
    assert single[1] == "1 of 12, accuracy so far 1.000"
    assert waiting.ended == ["hellaswag"]


def test_occupancy_tells_its_windows_and_how_the_decision_stands(run_kit, monkeypatch, waiting):
    monkeypatch.setattr(fwd_occupancy, "_TELL_SECONDS", 0.0)
    run_kit(
        FwdOccupancyMixin,
        "test_fwd_occupancy",
        fwd_occupancy_max_new_tokens=400,
        fwd_occupancy_scrape_interval=0.005,
        fwd_occupancy_counter_tolerance=25.0,
        fwd_occupancy_startup_seconds=0.0,
        fwd_occupancy_block_windows=1,
        fwd_occupancy_stop_early=False,
        progress=waiting,
    )
    phases = list(dict.fromkeys(phase for _, phase, _ in waiting.told))
    assert phases == ["warms up", "one long request", "one short stream"]
    shape = re.compile(r"(\d+) windows in \d\.\d s, (\d+) of (\d+) blocks above 95 %, (.*)")
    found = [match for _, _, detail in waiting.told if (match := shape.fullmatch(detail))]
    assert found, waiting.told
    windows = [int(match[1]) for match in found]
    assert windows == sorted(windows)
    assert found[0][4] == "not clear yet"
    assert found[-1][4] == "clear"
    assert waiting.ended == ["fwd_occupancy"]


LIMITS = occupancy.Limits(95, 5, 40, 3, startup_seconds=0, block_windows=2)


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """What the kit takes for the time, in seconds."""
    found = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(fwd_occupancy, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


def scrapes(windows: int) -> list[Scrape]:
    """So many fresh windows after one that is stale, half a second apart."""
    return [
        Scrape(0.5 * i, 0.0, True, {"0": RankReading("0", 1.0, 0.0, 97.0 + i / 100)})
        for i in range(windows + 1)
    ]


def test_windows_are_told_at_once_and_then_each_half_second(waiting, clock):
    """To tell them all scrapes are read, which takes the time of the next scrape."""
    kit = FwdOccupancyMixin()
    kit.progress = waiting
    each = kit._FwdOccupancyMixin__each(LIMITS)
    for windows, clock.now in enumerate([1000.0, 1000.25, 1000.5, 1000.75, 1001.25], start=1):
        each(scrapes(windows))
    assert [(phase, detail.split(" in ")[0]) for _, phase, detail in waiting.told] == [
        ("one long request", "1 windows"),
        ("one long request", "3 windows"),
        ("one long request", "5 windows"),
    ]


def test_nothing_is_told_before_the_first_window(waiting, clock):
    kit = FwdOccupancyMixin()
    kit.progress = waiting
    kit._FwdOccupancyMixin__each(LIMITS)(scrapes(0))
    assert waiting.told == []


def test_windows_are_not_looked_at_where_nobody_waits(clock):
    FwdOccupancyMixin()._FwdOccupancyMixin__each(LIMITS)(None)


@pytest.mark.parametrize(
    ("outcome", "clear"), [("pass", "clear"), ("fail", "clear"), (None, "not clear yet")]
)
def test_how_a_decision_stands_is_told_in_one_line(outcome, clear):
    told = fwd_occupancy._so_far(Decision(outcome, 2.06, windows=9, good=1, bad=2), 97.5)
    assert told == f"9 windows in 2.1 s, 1 of 3 blocks above 97.5 %, {clear}"


class Own(Kit):
    kit = "own"
    outcome = "pass"

    @concludes("own")
    def test_own(self):
        self.progressed("thinks", "1 of 2")
        if self.outcome == "raises":
            raise RuntimeError("no")
        return Verdict(self.outcome, "a rule", "it is so")


@pytest.mark.parametrize(
    ("outcome", "raised"), [("pass", None), ("fail", VerdictFailed), ("raises", RuntimeError)]
)
def test_a_test_is_over_however_it_ends(waiting, outcome, raised):
    own = Own()
    own.progress, own.outcome = waiting, outcome
    if raised is None:
        own.test_own()
    else:
        with pytest.raises(raised):
            own.test_own()
    assert waiting.told == [("own", "thinks", "1 of 2")]
    assert waiting.ended == ["own"]


def test_a_phase_needs_no_detail(waiting):
    own = Own()
    own.progress = waiting
    own.progressed("thinks")
    assert waiting.told == [("own", "thinks", "")]


def test_a_kit_without_anybody_who_waits_prints_nothing_of_it(capsys):
    Own().test_own()
    assert capsys.readouterr().out == "own.test_own: pass: it is so\n"
