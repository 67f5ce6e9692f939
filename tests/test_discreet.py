"""Reports of pytest without secrets, for every plugin that is handed one."""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any

import pytest

from servematrix.discreet import DiscreetReports, DiscreetStream
from servematrix.redaction import Secrets

KEY = "planted-key-1"


def after(hook: Generator[None, Any, Any], report: Any) -> Any:
    next(hook)
    with pytest.raises(StopIteration) as ended:
        hook.send(report)
    return ended.value.value


@pytest.mark.parametrize("longrepr", [f"it is {KEY}", ("file", 1, f"it is {KEY}"), None])
def test_a_report_has_no_secret(longrepr: Any) -> None:
    report = pytest.TestReport(
        "id", ("file", 1, "test"), {}, "failed", longrepr, "call",
        sections=[("Captured stdout call", f"prints {KEY}")],
        user_properties=[("reason", f"{KEY} was refused"), ("n", 1), (f"kit.{KEY}[1]", 2)],
    )  # fmt: skip
    told = after(DiscreetReports(Secrets([KEY])).pytest_runtest_makereport(), report)
    assert KEY not in str(vars(told))
    assert told.user_properties == [
        ("reason", "*** was refused"),
        ("n", 1),
        ("kit.***[1]", 2),
    ]
    assert told.sections == [("Captured stdout call", "prints ***")]


def test_a_report_without_a_secret_keeps_its_colours() -> None:
    shown: Any = object()
    report = pytest.CollectReport("id", "failed", shown, [])
    told = after(DiscreetReports(Secrets([KEY])).pytest_make_collect_report(), report)
    assert told.longrepr is shown


def test_a_report_of_collection_has_no_secret() -> None:
    report = pytest.CollectReport("id", "failed", f"it is {KEY}", [])  # type: ignore[arg-type]
    told = after(DiscreetReports(Secrets([KEY])).pytest_make_collect_report(), report)
    assert told.longrepr == "it is ***"


def test_a_stream_is_one_in_all_else(capsys: pytest.CaptureFixture[str]) -> None:
    stream = DiscreetStream(sys.stdout, Secrets([KEY]))
    assert stream.write(f"{KEY}\n") == 4
    stream.flush()
    assert capsys.readouterr().out == "***\n"
    assert stream.encoding == sys.stdout.encoding
