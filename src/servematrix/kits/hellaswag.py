"""Does the model still understand: HellaSwag accuracy, scored in batches and one by one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import ClassVar

from rich.table import Table

from servematrix import data
from servematrix.gates import accuracy, paired
from servematrix.gates.pairs import Row
from servematrix.gates.verdict import Number, Verdict, worst
from servematrix.kits import logprobs
from servematrix.kits.base import Kit, concludes
from servematrix.kits.logprobs import NoLogprobs
from servematrix.kits.scoring import Scored, ScoringError, examples, likeliest, score
from servematrix.terminal import console

_KIT = "hellaswag"


class HellaswagMixin(Kit):
    """Accuracy of choosing the right of four endings by mean log-probability of its tokens.

    The first `hellaswag_num_questions` items are asked; the `hellaswag_num_shots` after them stand
    solved before each question, so no example is ever asked. `hellaswag_path` is a local file;
    `hellaswag_packaged` takes the project's own small set; else the hub's data set is used.
    Accuracies are fractions; 0.60 is the published floor. The timeout, in seconds, ends every
    request, of which `hellaswag_parallel` run at a time with `hellaswag_batch_items` items each.
    """

    kit: ClassVar[str] = _KIT
    hellaswag_accuracy_threshold: float = 0.60
    """The floor: a fraction of right answers, below which a server fails."""
    hellaswag_num_questions: int = 200
    """Items that are asked."""
    hellaswag_num_shots: int = 20
    """Solved examples before each question."""
    hellaswag_path: str | None = None
    """A local file of items; None takes the hub's data set."""
    hellaswag_packaged: bool = False
    """Whether the project's own small set is asked, which needs no hub."""
    hellaswag_batch_items: int = 16
    """Items whose endings are scored by one request."""
    hellaswag_parallel: int = 4
    """Such requests in flight at once."""
    hellaswag_timeout: float = 300.0
    """Seconds that one request may take."""
    hellaswag_baseline: Sequence[Row] | None = None
    """The same items as an earlier run of this server scored them; None compares with nothing."""
    hellaswag_margin: float = paired.MARGIN
    """Loss of accuracy against the baseline, a fraction, that is to be excluded."""
    hellaswag_accepted: str | None = None
    """Name of a change of numerics since the baseline that is wanted."""

    @concludes(_KIT, faults="error", beside_others=True)
    def test_accuracy_floor(self) -> Verdict:
        """Guards against damage that every single prompt survives and that costs understanding."""
        try:
            items = data.load(self.hellaswag_path, packaged=self.hellaswag_packaged)
            questions, shots = items.split(self.hellaswag_num_questions, self.hellaswag_num_shots)
        except data.DataError as error:
            return Verdict("error", "the items are there and whole", str(error))
        try:
            batch, batch_s = self.__score(questions, shots, self.hellaswag_batch_items)
            single, single_s = self.__score(questions, shots, 1)
        except NoLogprobs as problem:
            return Verdict("not_applicable", logprobs.RULE, str(problem))
        except ScoringError as error:
            return Verdict("error", "every ending has finite token log-probabilities", str(error))
        self.attach("items", [scored.row() for scored in batch])
        self.attach("items_single", [scored.row() for scored in single])
        n, right, right_single = len(batch), _right(batch), _right(single)
        verdicts = [
            accuracy.floor(right, n, threshold=self.hellaswag_accuracy_threshold),
            accuracy.agreement(right, right_single, n),
        ]
        if self.hellaswag_baseline is not None:
            rows = [scored.row() for scored in batch]
            compared = paired.judge(
                self.hellaswag_baseline,
                rows,
                margin=self.hellaswag_margin,
                accepted=self.hellaswag_accepted,
            )
            verdicts += compared.values()
            if "pairing" not in compared:
                self.attach("flips", _flips(questions.items, self.hellaswag_baseline, rows))
        verdict = worst(verdicts)
        numbers = {
            **verdict.numbers,
            **_numbers(batch, single),
            "shots": len(shots.items),
            "seconds_batch": batch_s,
            "seconds_single": single_s,
            "items_per_second": n / batch_s,
            "data_source": items.source,
            "checksum_questions": questions.checksum,
            "checksum_shots": shots.checksum,
        }
        self.__report(numbers)
        return replace(verdict, numbers=numbers)

    def __score(
        self, questions: data.ItemSet, shots: data.ItemSet, batch_items: int
    ) -> tuple[list[Scored], float]:
        """Score all questions and return them with the seconds it took.

        One by one means one item at a time: with a batch of one there is one thread as well.
        """
        phase = "items in batches" if batch_items > 1 else "items one by one"
        right = n = 0

        def each(some: Sequence[Scored]) -> None:
            nonlocal right, n
            right, n = right + _right(some), n + len(some)
            done = f"{n} of {len(questions.items)}"
            self.progressed(phase, f"{done}, accuracy so far {right / n:.3f}")

        self.progressed(phase, f"0 of {len(questions.items)}")
        start = time.monotonic()
        scored = score(
            self.client,
            questions.items,
            examples(shots.items),
            batch_items=batch_items,
            parallel=self.hellaswag_parallel if batch_items > 1 else 1,
            timeout=self.hellaswag_timeout,
            each=each,
        )
        return scored, time.monotonic() - start

    def __report(self, numbers: dict[str, Number]) -> None:
        """Print the numbers and hand them on, before anything concludes; none is asserted here."""
        table = Table("HellaSwag", "value", "unit", title="Accuracy and latency")
        for name, unit in _UNITS.items():
            value = numbers[name]
            table.add_row(
                name.replace("_", " "),
                f"{value:.4g}" if isinstance(value, float) else str(value),
                unit,
            )
            self.measure(name, value, unit)
        for name in ("data_source", "checksum_questions", "checksum_shots"):
            self.measure(name, numbers[name], "")
        console().print(table)


def _flips(
    items: Sequence[data.Item], baseline: Sequence[Row], candidate: Sequence[Row]
) -> dict[str, object]:
    """Return the items whose answer is another than the baseline's, with their texts.

    `baseline` and `candidate` are the numbers of the endings that were chosen.
    """
    before, after = (
        {row["ind"]: likeliest(row["lp"], row["nt"]) for row in rows}
        for rows in (baseline, candidate)
    )
    found = [
        {**asdict(item), "baseline": before[item.ind], "candidate": after[item.ind]}
        for item in items
        if before[item.ind] != after[item.ind]
    ]
    return {"count": len(found), "items": found[:_MOST_FLIPS]}


_MOST_FLIPS = 200
"""Items whose texts are kept, some 60 KB; a healthy server has one in a thousand."""

_UNITS = {
    "n": "items",
    "shots": "items",
    "accuracy_batch": "share",
    "accuracy_single": "share",
    "accuracy_low": "share",
    "accuracy_high": "share",
    "standard_error": "share",
    "flips": "items",
    "cached_share": "share of context tokens",
    "joined": "items",
    "seconds_batch": "s",
    "seconds_single": "s",
    "items_per_second": "items/s",
}


def _right(scored: Sequence[Scored]) -> int:
    return sum(one.prediction == one.label for one in scored)


def _numbers(batch: Sequence[Scored], single: Sequence[Scored]) -> dict[str, Number]:
    """Count what describes the scoring: predictions that differ, cached and joined contexts."""
    context = sum(one.n0 * len(one.cached) for one in batch)
    return {
        "flips": sum(a.prediction != b.prediction for a, b in zip(batch, single, strict=True)),
        "cached_share": sum(sum(one.cached) for one in batch) / context,
        "joined": sum(one.joined for one in batch),
    }
