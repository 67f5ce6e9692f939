"""Kits of one cell that run side by side, where neither changes what the other finds.

A test says so itself (`concludes(…, beside_others=True)`); those of occupancy, throughput, CUDA
graphs and of whatever compares batches have the server to themselves. When the first such test of a
cell is reached, all of them begin, one thread a kit; when pytest comes to the others, it waits for
what their thread has found. So pytest reports them one by one and in its order, as ever.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest

from servematrix import records
from servematrix.gates.verdict import Number, Verdict
from servematrix.kits.base import Reporter
from servematrix.records import RecordsError, Run
from servematrix.reporter import give_up
from servematrix.suite import suite_of
from servematrix.verdicts import SERVED, TOOK, cell_of, kit_of

Bind = Callable[[pytest.Item, Any], None]
"""Gives an instance of a suite its server, its limits and its reporter, for one test."""


class Abandoned(Exception):
    """The run ends before this test has: what it finds now is not of a server that serves."""


@dataclass
class _Ended:
    """How a test ended in its thread."""

    printed: list[str] = field(default_factory=list)
    problem: BaseException | None = None


class SideBySide:
    """Hooks that begin such tests ahead of their turn."""

    def __init__(self, bind: Bind, records: Run) -> None:
        self._bind = bind
        self._records = records
        self._items: Sequence[pytest.Item] = ()
        self._ahead: dict[str, Future[_Ended]] = {}
        self._over = threading.Event()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note the tests that will be run."""
        self._items = session.items

    def has_begun(self, item: pytest.Item) -> bool:
        """Whether a test began ahead, so that its thread tells how it ends."""
        return item.nodeid in self._ahead

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        """End a test as its thread has ended it; None for one that is run as ever."""
        if not _may_share(pyfuncitem):
            # it may have the server to itself
            for future in self._ahead.values():
                self._wait(future)
            return None
        if pyfuncitem.nodeid not in self._ahead and not self._begin(pyfuncitem):
            return None
        ended = self._wait(self._ahead[pyfuncitem.nodeid])
        for line in ended.printed:
            print(line)
        if ended.problem is not None:
            raise ended.problem
        return True

    def pytest_keyboard_interrupt(self) -> None:
        """Record nothing more: servers are stopped now."""
        self._over.set()

    def _wait(self, future: Future[_Ended]) -> _Ended:
        try:
            return future.result()
        except KeyboardInterrupt:
            self._over.set()
            raise

    def _begin(self, first: pytest.Function) -> bool:
        """Begin all tests that share the server with this one; False where no other kit does."""
        cell = cell_of(first)
        judged = self._judged()
        mine = [
            item
            for item in self._items
            if _may_share(item)
            and cell_of(item) == cell
            and (item is first or item.nodeid not in judged)
        ]
        by_kit: dict[str, list[pytest.Function]] = defaultdict(list)
        for item in mine:
            assert isinstance(item, pytest.Function)
            by_kit[kit_of(item)].append(item)
        if len(by_kit) < 2:
            return False
        self._ahead |= {item.nodeid: Future() for item in mine}
        served = first.stash[SERVED]
        for items in by_kit.values():
            for item in items:
                item.stash[SERVED] = served
            threading.Thread(target=self._run, args=(items,), daemon=True).start()
        return True

    def _judged(self) -> set[str]:
        """The tests that have a verdict: a worker of xdist may go on where another one died."""
        try:
            found = records.standing(records.read(self._records.folder))
        except RecordsError as error:
            give_up(error)
        return {one["nodeid"] for one in found if one["kind"] == "verdict"}

    def _run(self, items: Sequence[pytest.Function]) -> None:
        for item in items:
            ended = _Ended()
            began = time.monotonic()
            try:
                self._run_one(item, ended.printed)
            except BaseException as problem:  # pytest tells it when the test has its turn
                ended.problem = problem
            item.stash[TOOK] = time.monotonic() - began
            self._ahead[item.nodeid].set_result(ended)

    def _run_one(self, item: pytest.Function, printed: list[str]) -> None:
        assert item.cls is not None, "a suite is a class"
        instance = item.cls()
        self._bind(item, instance)
        instance.reporter = _UntilOver(instance.reporter, self._over)
        instance._kit_tell = printed.append
        getattr(instance, item.originalname)()


class _UntilOver:
    """Reports as long as the run goes on."""

    def __init__(self, reporter: Reporter, over: threading.Event) -> None:
        self._reporter = reporter
        self._over = over

    def measurement(self, kit: str, name: str, value: Number, unit: str) -> None:
        self._going_on().measurement(kit, name, value, unit)

    def attachment(self, kit: str, name: str, payload: object) -> None:
        self._going_on().attachment(kit, name, payload)

    def verdict(self, kit: str, test: str, verdict: Verdict) -> None:
        self._going_on().verdict(kit, test, verdict)

    def _going_on(self) -> Reporter:
        if self._over.is_set():
            raise Abandoned
        return self._reporter


def _may_share(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function) or suite_of(item.cls) is None:
        return False
    # one that asks for fixtures is pytest's to run
    alone = list(inspect.signature(item.function).parameters) != ["self"]
    return getattr(item.function, "beside_others", False) and not alone
