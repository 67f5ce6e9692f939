"""Runs of A and of B, paired, into rows: what differs, by how much, and whether B is worse.

Differences are B minus A throughout. Runs of one side stand in the order in which they were made,
so that the first of A is paired with the first of B.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from servematrix.compare.runs import Cell, Run
from servematrix.exit_codes import Exit
from servematrix.gates import difference, paired
from servematrix.gates.difference import QUANTITIES
from servematrix.gates.verdict import Number, Verdict, worst
from servematrix.records import RecordsError

_OCCUPANCY: Final = "fwd_occupancy.test_fwd_occupancy"
_CONSISTENCY: Final = "decode_consistency.test_decode_matches_prefill"
_HELLASWAG: Final = "hellaswag.test_accuracy_floor"
PLACES: Final[Mapping[str, tuple[str, str]]] = {
    "occupancy": (_OCCUPANCY, "median"),
    "decode_tokens_per_s": (_OCCUPANCY, "decode_tokens_per_s"),
    "stream_tokens_per_s": (_OCCUPANCY, "stream_tokens_per_s"),
    "itl_p50_ms": (_OCCUPANCY, "itl_p50_ms"),
    "ttft_s": (_OCCUPANCY, "ttft_s"),
    "accept_length": (_OCCUPANCY, "accept_length"),
    "consistency_relative": (_CONSISTENCY, "relative"),
    "consistency_p99": (_CONSISTENCY, "p99"),
    "consistency_top1": (_CONSISTENCY, "top1"),
}
"""The test whose verdict has a quantity of `gates.difference`, and the number's name there."""

ITEM_MARGINS: Final[Mapping[str, float]] = {
    "paired_accuracy": paired.MARGIN,
    "gold_logprob": paired.GOLD_MARGIN,
}
"""Margins of what is compared item by item: a share of the items, and nats a token."""

_SAME_DATA: Final = ("checksum_questions", "checksum_shots", "shots")


@dataclass(frozen=True)
class Settings:
    """`accepted` names a change of numerics that is wanted; `margins` replace the stated ones."""

    accepted: str | None = None
    margins: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One line of a comparison; `low` and `high` are the ends of the difference's interval."""

    cell: str
    name: str
    verdict: Verdict
    unit: str = ""
    a: float | str | None = None
    b: float | str | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None


def compare(a: Sequence[Run], b: Sequence[Run], settings: Settings) -> list[Row]:
    """Compare the runs of two sides; each is paired with the one at its place.

    A run that is not whole is an error, and its pair is left out. RecordsError where the sides have
    no cell in common, one is simulated and the other not, or a file cannot be read.
    """
    rows = [
        Row(
            "", f"run of {side}", Verdict("error", "a run is whole", f"{run.folder}: {run.problem}")
        )
        for side, runs in (("A", a), ("B", b))
        for run in runs
        if run.problem
    ]
    pairs = [
        (one, other) for one, other in zip(a, b, strict=False) if not (one.problem or other.problem)
    ]
    if not pairs:
        return rows
    if len({run.simulated for pair in pairs for run in pair}) > 1:
        raise RecordsError(
            "one side is simulated (engine reference) and the other is not: nothing that differs"
            " would say anything of a server"
        )
    for name, first, second in _cells(*pairs[0]):
        both = [pair for pair in pairs if first in pair[0].cells and second in pair[1].cells]
        cells_a = [one.cells[first] for one, _ in both]
        cells_b = [other.cells[second] for _, other in both]
        rows += _cell_rows(name, cells_a, cells_b, settings)
    return rows


def only_one(a: Run, b: Run) -> dict[str, list[str]]:
    """The cells that one side alone has, and that are compared with nothing, by side."""
    compared = _cells(a, b)
    return {
        "A": [name for name in a.cells if name not in {one for _, one, _ in compared}],
        "B": [name for name in b.cells if name not in {other for _, _, other in compared}],
    }


def status(rows: Sequence[Row]) -> Exit:
    """The exit status: a fail and an error are 1; a comparison that tells nothing is not green."""
    outcomes = {row.verdict.outcome for row in rows}
    if outcomes & {"fail", "error"}:
        return Exit.FAILED
    if "inconclusive" in outcomes or "pass" not in outcomes:
        return Exit.INCONCLUSIVE
    return Exit.PASSED


def _cells(a: Run, b: Run) -> list[tuple[str, str, str]]:
    """What to call each pair of cells, and its name in A and in B."""
    common = [name for name in a.cells if name in b.cells]
    if common:
        return [(name, name, name) for name in common]
    if len(a.cells) == len(b.cells) == 1:
        (first,), (second,) = a.cells, b.cells
        return [(f"{first} | {second}", first, second)]
    raise RecordsError(
        f"no cell in common: {a.folder} has {', '.join(a.cells) or 'none'};"
        f" {b.folder} has {', '.join(b.cells) or 'none'}"
    )


def _cell_rows(
    name: str, a: Sequence[Cell], b: Sequence[Cell], settings: Settings
) -> Iterator[Row]:
    """Compare one cell, as many runs of A as of B: items, then numbers, then what tests said."""
    for number, (one, other) in enumerate(zip(a, b, strict=True), start=1):
        which = f" [{number}]" if len(a) > 1 else ""
        yield from _items(name, one, other, settings, which)
    for quantity in QUANTITIES:
        row = _quantity(name, quantity, a, b, settings.margins.get(quantity))
        if row is not None:
            yield row
    yield from _tests(name, a, b)


def _items(name: str, a: Cell, b: Cell, settings: Settings, which: str) -> Iterator[Row]:
    """The gates on pairs of items, where both scored them; `which` tells the pair of runs."""
    rows_a, rows_b = a.items(), b.items()
    if rows_a is None and rows_b is None:
        return
    rule = "both runs scored the same items alike"
    if rows_a is None or rows_b is None:
        reason = f"{'A' if rows_a is None else 'B'} has no items: score them in both"
        yield Row(name, f"hellaswag{which}", Verdict("inconclusive", rule, reason))
        return
    problem = _other_data(a, b)
    if problem is not None:
        yield Row(name, f"hellaswag{which}", Verdict("error", rule, problem))
        return
    margins = {**ITEM_MARGINS, **settings.margins}
    verdicts = paired.judge(
        rows_a,
        rows_b,
        margin=margins["paired_accuracy"],
        gold_margin=margins["gold_logprob"],
        accepted=settings.accepted,
    )
    for gate, verdict in verdicts.items():
        yield _item_row(name, gate, verdict, which)


def _item_row(cell: str, gate: str, verdict: Verdict, which: str) -> Row:
    name, found = f"hellaswag {gate}{which}", verdict.numbers
    if gate == "paired_accuracy" and "loss" in found:
        share = 100 / _value(found, "n")
        return Row(
            cell,
            name,
            verdict,
            "% right",
            a=share * _value(found, "correct_baseline"),
            b=share * _value(found, "correct_candidate"),
            difference=-100 * _value(found, "loss"),
            low=-100 * _value(found, "loss_high"),
            high=-100 * _value(found, "loss_low"),
        )
    if gate == "gold_logprob":
        return Row(
            cell,
            name,
            verdict,
            "nats/token",
            difference=-_value(found, "gold_loss"),
            low=-_value(found, "gold_loss_high"),
            high=-_value(found, "gold_loss_low"),
        )
    if gate == "drift":
        moved = _value(found, "drift_delta_mean")
        return Row(cell, f"{name}, mean |Δ|", verdict, "nats/token", difference=moved)
    return Row(cell, name, verdict)


def _other_data(a: Cell, b: Cell) -> str | None:
    """Why the items of two cells are not the same task, by what the kit says of them."""
    told = [cell.tests[_HELLASWAG].numbers for cell in (a, b) if _HELLASWAG in cell.tests]
    for key in _SAME_DATA:
        values = [numbers[key] for numbers in told if key in numbers]
        if len(set(values)) > 1:
            return f"{key} is {values[0]} in A and {values[1]} in B: score the same data alike"
    return None


def _quantity(
    cell: str, name: str, a: Sequence[Cell], b: Sequence[Cell], margin: float | None
) -> Row | None:
    """One number a run, A against B; None where neither side has it."""
    quantity, (test, key) = QUANTITIES[name], PLACES[name]
    spoiled = [
        f"{side}: {test} ended in error: {one.tests[test].reason.splitlines()[0]}"
        for side, cells in (("A", a), ("B", b))
        for one in cells
        if test in one.tests and one.tests[test].outcome == "error"
    ]
    found_a, found_b = ([_number(one, test, key) for one in cells] for cells in (a, b))
    values_a, values_b = ([x for x in found if x is not None] for found in (found_a, found_b))
    if not values_a and not values_b:
        return None
    rule = f"{name} was measured in every run of A and of B"
    if spoiled:
        # what a broken measurement left behind is no measurement
        return Row(cell, name, Verdict("error", rule, "; ".join(spoiled)), quantity.unit)
    if not values_a or not values_b:
        # there is nothing to lose where A has none; what B lacks may be lost
        verdict = (
            Verdict("inconclusive", rule, "B has none")
            if values_a
            else Verdict("not_applicable", rule, "A has none")
        )
        return Row(cell, name, verdict, quantity.unit, _mean(values_a), _mean(values_b))
    if len(values_a) < len(found_a) or len(values_b) < len(found_b):
        reason = f"{found_a} in the runs of A, {found_b} in those of B"
        return Row(cell, name, Verdict("error", rule, reason), quantity.unit)
    verdict = difference.judge(name, values_a, values_b, margin=margin)
    ends = [_float(verdict.numbers.get(f"difference{end}")) for end in ("", "_low", "_high")]
    return Row(cell, name, verdict, quantity.unit, _mean(values_a), _mean(values_b), *ends)


def _tests(cell: str, a: Sequence[Cell], b: Sequence[Cell]) -> Iterator[Row]:
    """One row for each test that says another thing of B, one for all others together."""
    rule = "every test says of B what it says of A"
    same: Counter[str] = Counter()
    lacking: dict[str, list[str]] = {"A": [], "B": []}
    for test in dict.fromkeys(test for one in (*a, *b) for test in one.tests):
        told_a, told_b = ([one.tests[test] for one in x if test in one.tests] for x in (a, b))
        if len(told_a) < len(a) or len(told_b) < len(b):
            lacking["A" if len(told_a) < len(a) else "B"].append(test)
            continue
        one, other = worst(told_a), worst(told_b)
        if one.outcome == other.outcome and other.outcome != "error":
            same[other.outcome] += 1
            continue
        said_a, said_b = _said(told_a), _said(told_b)
        verdict = Verdict(other.outcome, rule, f"{said_a} in A, {said_b} in B: {other.reason}")
        yield Row(cell, test, verdict, a=said_a, b=said_b)
    for side, tests in lacking.items():
        if tests:
            reason = f"not in every run of {side}: {', '.join(tests)}"
            verdict = Verdict("inconclusive", rule, reason)
            yield Row(cell, f"{_tests_told(len(tests))} not run in {side}", verdict)
    if same:
        counted = ", ".join(f"{count} {outcome}" for outcome, count in sorted(same.items()))
        verdict = Verdict("pass", rule, f"the same of A and of B: {counted}")
        yield Row(cell, f"{_tests_told(same.total())} alike", verdict)


def _tests_told(count: int) -> str:
    return f"{count} test{'s' if count > 1 else ''}"


def _said(told: Sequence[Verdict]) -> str:
    return ", ".join(dict.fromkeys(one.outcome for one in told))


def _number(cell: Cell, test: str, key: str) -> float | None:
    return _float(cell.tests[test].numbers.get(key)) if test in cell.tests else None


def _float(value: Number) -> float | None:
    """A number of a record as one; JSON has NaN as text, which is kept apart from a lack."""
    if value in ("nan", "inf", "-inf"):
        return float(str(value))
    return float(value) if isinstance(value, (int, float)) else None


def _value(found: Mapping[str, Number], key: str) -> float:
    """A number that this verdict always has; TypeError where it is none."""
    value = found[key]
    if not isinstance(value, (int, float)):
        raise TypeError(f"{key} is {value!r}, not a number")
    return float(value)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
