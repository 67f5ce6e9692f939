"""The table at the end: cells, kits, and the worst of each."""

from __future__ import annotations

import pytest

from malforming import LOUD
from servematrix import overview
from servematrix.overview import Overview

KITS = (
    "api_contract",
    "decode_correctness",
    "scheduler_stress",
    "decode_consistency",
    "cuda_graph",
    "fwd_occupancy",
    "hellaswag",
    "spec_decoding",
)
WORDS = ("pass", "fail", "error", "inconclusive", "waived", "not_applicable")


def drawn(found: Overview, *, width: int = 80, colours: bool = False, encoding: str = "utf-8"):
    return found.drawn(width=width, colours=colours, encoding=encoding).splitlines()


def made(cells: int) -> Overview:
    """All kits in some cells; the third fails in one and is not clear in another."""
    found = Overview()
    for cell in range(cells):
        for kit in KITS:
            word = {2: "fail", 5: "inconclusive"}.get(cell, "pass") if kit == KITS[2] else "pass"
            found.count(f"cuda_graph(max_bs={cell})", kit, word, 0.25)
            found.count(f"cuda_graph(max_bs={cell})", kit, "pass", 1.0)
    return found


def test_nothing_is_drawn_of_nothing():
    assert Overview().drawn(width=80, colours=False, encoding="utf-8") == ""


def test_a_row_for_each_kit():
    found = Overview()
    for word in ("pass", "fail", "pass"):
        found.count("baseline", "api_contract", word, 1.25)
    found.count("baseline", "hellaswag", "pass", 60.0)
    lines = drawn(found)
    assert lines[0].split() == ["cell", "kit", "verdict", "tests", "seconds"]
    assert lines[2].split() == ["baseline", "api_contract", "✗", "fail", "1", "of", "3", "3.8"]
    assert lines[3].split() == ["hellaswag", "✓", "pass", "1", "60.0"]


def test_a_row_for_each_cell_where_there_are_many():
    lines = drawn(made(10))
    assert lines[0].split() == ["cell", "seconds", "kits"]
    rows = {line.split()[0]: line for line in lines[2:] if "cuda_graph" in line}
    assert len(rows) == 10
    assert rows["cuda_graph(max_bs=2)"].endswith("✗ scheduler_stress fail, ✓ 7 pass")
    assert "? scheduler_stress inconclusive" in " ".join(lines)
    assert rows["cuda_graph(max_bs=3)"].split()[1:] == ["10.0", "✓", "8", "pass"]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("cells", [1, 10])
def test_no_line_is_wider_than_the_terminal(width, cells):
    lines = drawn(made(cells), width=width)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines), "what is long is folded, and not cut"


def test_words_say_what_colours_do():
    found = Overview()
    for word in WORDS:
        found.count("baseline", f"kit_{word}", word, 0.0)
    plain, coloured = drawn(found), drawn(found, colours=True)
    assert not any("\x1b" in line for line in plain)
    assert any("\x1b[1;31m" in line for line in coloured)
    for word in WORDS:
        assert sum(word.replace("_", " ") in line.partition("kit_")[2] for line in plain) >= 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "no-such"])
def test_ascii_alone_where_the_encoding_has_no_symbols(encoding):
    for cells in (1, 10):
        lines = drawn(made(cells), encoding=encoding)
        assert "".join(lines).isascii()
        assert any("+ pass" in line or "+ 8 pass" in line for line in lines)


def test_what_was_kept_has_no_seconds():
    found = Overview()
    found.count("baseline", "api_contract", "pass", None)
    found.count("baseline", "hellaswag", "pass", None)
    found.count("baseline", "hellaswag", "pass", 2.0)
    lines = drawn(found)
    assert lines[2].split()[-2:] == ["1", "-"]
    assert lines[3].endswith("2.0")


def test_names_are_shown_as_they_stand():
    found = Overview()
    found.count(f"[red]{LOUD}[/]", LOUD, LOUD, 1.0)
    found.count("b", "k", "pass", 1.0)
    text = "\n".join(drawn(found, width=200))
    assert text.replace("\n", "").isprintable()
    assert "[red]" in text


def test_the_worst_of_some_verdicts():
    assert overview.worst(["pass", "waived", "not_applicable"]) == "waived"
    assert overview.worst(["inconclusive", "waived"]) == "inconclusive"
    assert overview.worst(["fail", "error"]) == "fail"
    assert overview.worst(["fail", "unheard of"]) == "unheard of"
