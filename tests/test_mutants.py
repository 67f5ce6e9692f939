"""What is mutated of the project, and how what survives is judged."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from benchmarks.mutants import survivors, workspace
from benchmarks.mutants.survivors import Change, Mutant

EXPLAINED = Path(workspace.__file__).with_name("explained.toml")


def source(text: str) -> str:
    return textwrap.dedent(text).lstrip()


def left_alone(code: str) -> list[str]:
    """The texts that mutmut is told to leave as they are."""
    lines = workspace.without_texts(code).splitlines()
    return [line.split("  # pragma")[0].strip() for line in lines if "# pragma: no mutate" in line]


# -- the copy that is mutated -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "texts"),
    [
        ('reason = "look at the log"', ['"look at the log"']),
        ('raise ValueError(f"{n} is none of {names!r}")', ['f"{n} is none of {names!r}"']),
        ('name = f"item{number} {rest}"', ['f"item{number} {rest}"']),
        ('told = "; ".join(x for x in found)', ['"; ".join(x for x in found)']),
        ('only = "" if alone else " (others hold)"', ['"" if alone else " (others hold)"']),
        ('found = left + f" ({told})"', ['left + f" ({told})"']),
        ('self.measure("tokens", len(ids), "nats")', ['"nats"']),
        ('table = Table("row", "unit")', ['Table("row", "unit")']),
        ("table.add_row(name, str(value))", ["table.add_row(name, str(value))"]),
        ('reason = (\n    "one "\n    "two"\n)', ['"one "', '"two"']),
        ('f(a, "é ö", b)', ['"é ö"']),
        # what decides is mutated: outcomes, keys, names, routes
        ('Verdict("error", rule, reason, {"spec_algorithm": name})', []),
        ('numbers[f"graph_passes_at_{one.batch}"] = one.graph', []),
        ('self.client.get("/get_model_info")', []),
        ('sum(" " <= c <= "~" or c in "\\n\\t" for c in text)', []),
    ],
)
def test_texts_for_people_are_left_alone_and_strings_that_decide_are_not(code, texts):
    assert left_alone(code + "\n") == texts


def test_a_docstring_needs_no_mark():
    assert left_alone('def f():\n    """Two words."""\n') == []


def test_code_without_texts_computes_the_same():
    code = source(
        """
        def told(n, good):
            found = f"{n} of " + ("many good" if good else "many bad")
            return found, ["a b", "c", {"d e": "; ".join(map(str, range(n)))}], "é ö" "ü"
        """
    )
    before, after = {}, {}
    exec(code, before)
    exec(workspace.without_texts(code), after)
    assert after["told"](3, True) == before["told"](3, True)


def test_a_decorated_function_passes_on_to_one_that_is_not():
    code = source(
        """
        import functools

        def wrap(method):
            @functools.wraps(method)
            def inner(self, value: int) -> int:
                return method(self, value) + 1
            return inner

        class One:
            @property
            def two(self) -> int:
                \"\"\"Two.\"\"\"
                return 2

            @wrap
            def plus(
                self, value: int
            ) -> int:
                # a comment
                return value + self.two

            @staticmethod
            def three() -> int:
                return 3

            @functools.cache
            def nothing(self) -> None:
                self.done = True
        """
    )
    found: dict[str, object] = {}
    exec(workspace.undecorated(code), found)
    one = found["One"]()
    assert (one.two, one.plus(5), one.three(), one.nothing(), one.done) == (2, 8, 3, None, True)
    assert (one.undecorated_two(), one.undecorated_plus(5)) == (2, 7)
    assert type(one).two.__doc__ == "Two."
    assert not hasattr(one, "undecorated_three")


def test_what_cannot_be_passed_on_is_refused():
    with pytest.raises(ValueError, match="f: only plain parameters"):
        workspace.undecorated("@wrap\ndef f(*more):\n    return more\n")


def test_the_copy_holds_what_the_tests_need_and_keeps_the_time_of_what_is_the_same(tmp_path):
    workspace.make(tmp_path, "\n[tool.x]\n")
    gate = tmp_path / "src" / "servematrix" / "gates" / "text.py"
    written = gate.stat().st_mtime_ns
    workspace.make(tmp_path, "\n[tool.y]\n")
    assert gate.stat().st_mtime_ns == written
    assert (tmp_path / "pyproject.toml").read_text().endswith("[tool.y]\n")
    assert (tmp_path / "tests" / "numeric_client.py").exists()
    for path in tmp_path.rglob("*.py"):
        compile(path.read_text(), path, "exec")


# -- how it is judged ---------------------------------------------------------------------------

DIFF = """--- src/servematrix/gates/text.py
+++ src/servematrix/gates/text.py
@@ -1,3 +1,3 @@
 def readable(text):
-    if share > LEAST:
+    if share >= LEAST:
"""
CHANGE = Change("gates.text.readable", "if share > LEAST:", "if share >= LEAST:")


def test_a_change_is_known_by_its_code():
    assert survivors.change_of("gates.text.readable", DIFF, workspace.OPENS) == CHANGE


def test_a_text_in_a_change_is_three_dots():
    diff = f'a\nb\n-    return V("fail", {workspace.OPENS}\n+    return V("XX", {workspace.OPENS}\n'
    found = survivors.change_of("x", diff, workspace.OPENS)
    assert found == Change("x", 'return V("fail", …', 'return V("XX", …')
    assert survivors.change_of("x", "a\nb\n-    ), n)\n+    ))\n", "(  # text").before == "…, n)"


def mutant(status: str, change: Change | None = None) -> Mutant:
    return Mutant("gates.text", "readable", status, change)


@pytest.mark.parametrize("status", ["killed", "caught by type check", "timeout"])
def test_the_dead_are_good(status):
    judged = survivors.judge([mutant(status)], {})
    assert judged.good
    assert not judged.explained


@pytest.mark.parametrize("status", ["survived", "no tests"])
def test_a_survivor_needs_an_explanation(status):
    alive = mutant(status, CHANGE)
    judged = survivors.judge([alive, mutant("killed")], {})
    assert not judged.good
    assert judged.unexplained == [CHANGE]
    judged = survivors.judge([alive, alive], {CHANGE: "equivalent"})
    assert judged.good
    assert judged.explained == {"equivalent": 2}
    assert not judged.outlived


@pytest.mark.parametrize("status", ["suspicious", "not checked", "segfault", "skipped"])
def test_an_end_that_says_nothing_is_not_good(status):
    judged = survivors.judge([mutant(status)], {})
    assert not judged.good
    assert judged.unclear == [mutant(status)]


def test_an_explanation_that_no_survivor_needs_is_named_where_its_function_was_run():
    other = Change("gates.text.same", "a", "b")
    judged = survivors.judge([mutant("killed")], {CHANGE: "equivalent", other: "speed"})
    assert judged.outlived == [CHANGE]
    assert judged.good


EXPLANATION = """
[[explained]]
where = "gates.text.readable"
kind = "{kind}"
why = "{why}"
changes = [["if share > LEAST:", "if share >= LEAST:"]]
"""


def test_explanations_are_read(tmp_path):
    path = tmp_path / "explained.toml"
    path.write_text(EXPLANATION.format(kind="equivalent", why="no share lies there"))
    assert survivors.explanations(path) == {CHANGE: "equivalent"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (EXPLANATION.format(kind="unlikely", why="so"), "give a reason"),
        (EXPLANATION.format(kind="speed", why=" "), "give a reason"),
        (EXPLANATION.format(kind="speed", why="so") * 2, "explained twice"),
    ],
)
def test_an_explanation_that_is_none_is_refused(tmp_path, text, told):
    path = tmp_path / "explained.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=told):
        survivors.explanations(path)


def test_the_explanations_of_the_project_are_whole_and_of_functions_that_exist():
    for change in survivors.explanations(EXPLAINED):
        part, module, *function = change.where.split(".")
        path = workspace.ROOT / "src" / "servematrix" / part / f"{module}.py"
        assert f"def {function[-1]}(" in path.read_text(), change
