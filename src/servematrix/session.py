"""One pytest session of the matrix: which cells it has, and their servers.

Registered by the plugin when a run names a configuration. Under pytest-xdist every worker has one
for the cells that it is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from servematrix import baselines, own_kits, progress, run, waivers
from servematrix import config as configs
from servematrix.baselines import Found
from servematrix.discreet import DiscreetReports
from servematrix.engines.base import EnvironmentProblem, ServerFailed
from servematrix.executors import dispatch, usage
from servematrix.exit_codes import Exit
from servematrix.launching import Launched, Launcher
from servematrix.progress import Progress, tell
from servematrix.recording import Recording
from servematrix.records import RecordsError, Run
from servematrix.redaction import Secrets
from servematrix.reporter import give_up
from servematrix.served import ServedCell
from servematrix.side_by_side import SideBySide
from servematrix.suite import suite_of
from servematrix.terminal import shown
from servematrix.verdicts import SERVED, Verdicts


class MatrixSession:
    """Hooks of a pytest session that runs cells, and what its fixtures need."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.options = _options(config)
        self._api_key = self.options.api_key()
        self.plan = run.plan(self.options)
        own_kits.make_importable(self.options.configs_directory)
        self._secrets = self.plan.secrets()
        config.pluginmanager.register(DiscreetReports(self._secrets))
        self._progress = Progress(self._secrets)
        config.pluginmanager.register(self._progress, progress.PLUGIN)
        self._baselines = _baselines(config, self.plan, self._secrets)
        self._waivers = waivers.find(
            self.options.configs_directory,
            config.option.servematrix_waivers,
            ignored=config.option.no_waivers,
        )
        self._suites_met: set[str] = set()
        self._side_by_side: SideBySide | None = None
        self._check_workers()
        found = {cell.id: self._held_to(cell) for cell in self.plan.cells}
        held_to = {cell: one.record() for cell, one in found.items() if one is not None}
        elsewhere = dispatch.connect(config) if self.options.elsewhere else None
        told = elsewhere.described() if elsewhere else None
        recording = Recording(config, self.plan, held_to, self._secrets, self._waivers, told)
        config.pluginmanager.register(recording)
        self._records, self._kept = recording.records, recording.kept
        if self._records is not None:
            during = self._progress.during
            self._launcher = Launcher(self.plan, self._records, self._say, during)
            self._verdicts = Verdicts(self._records, self._waivers)
            config.pluginmanager.register(self._verdicts)
            # a server on two cores, or one of somebody else, is busy enough with one kit at a time
            if self.plan.engine.name in ("sglang", "reference") and not config.option.maxfail:
                self._side_by_side = SideBySide(self._bind_ahead, self._records)
                config.pluginmanager.register(self._side_by_side)
            if elsewhere is not None:
                config.pluginmanager.register(
                    dispatch.Dispatcher(config, self.plan, self._records, self._kept, elsewhere)
                )
        if self._has_workers():
            from servematrix.scheduling import CellEnds

            config.pluginmanager.register(CellEnds())

    @property
    def records(self) -> Run:
        """The records of this run; a run that only collects has none."""
        assert self._records is not None, "nothing is run"
        return self._records

    def _has_workers(self) -> bool:
        """Whether pytest-xdist hands out the tests, in its controller and in its workers."""
        numprocesses = getattr(self._config.option, "numprocesses", None)
        return bool(numprocesses) or hasattr(self._config, "workerinput")

    def _check_workers(self) -> None:
        """Under pytest-xdist each cell stays on one worker, and leases keep GPUs apart."""
        if not self._has_workers():
            return
        shared = {
            "--port": self.options.port and "workers would meet on one port",
            "--base-url": self.options.base_url and "workers would meet on one server",
            "engine sglang-cpu": self.plan.engine.name == "sglang-cpu"
            and "servers that share cores are not measured for what they are",
        }
        for what, why in shared.items():
            if why:
                raise EnvironmentProblem(f"-n with {what}: {why}; run without -n")

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """Keep a cell on one worker, and start the longest first."""
        from servematrix.scheduling import CellScheduling

        return CellScheduling(config, log, self.plan.durations)

    def pytest_report_header(self) -> list[str]:
        """Say first what will answer, and why."""
        kept = f"records in {self._records.folder}" if self._records else "nothing is run"
        told = [
            f"{self.plan.subject()}; {self.plan.engine.reason}",
            f"cells {', '.join(cell.cell.label for cell in self.plan.cells) or 'none'}; {kept}",
            *(self.plan.dealt.told() if self.plan.dealt else ()),
            *map(_told, self._baselines.values()),
            *self._waivers.summary([cell.id for cell in self.plan.cells]),
        ]
        return [f"servematrix: {shown(one)}" for one in told]

    # -- collection ------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makeitem(self, obj: object) -> list[pytest.Item] | None:
        """Leave out suites that no selected cell names; the others need a server."""
        suite = suite_of(obj)
        if suite is None:
            return None
        self._suites_met.add(suite)
        if not self._cells_of(suite):
            return []
        pytest.mark.usefixtures("server")(obj)
        return None

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config) -> None:
        """Refuse cells that no suite would ever test."""
        for cell in self.plan.cells:
            unknown = sorted(set(cell.config.suites) - self._suites_met)
            # a run of one file does not see the suites of the others
            if unknown and _whole(config):
                met = ", ".join(sorted(self._suites_met)) or "none"
                raise pytest.UsageError(
                    f"{cell.id}: no suite is called {', '.join(unknown)}; suites collected: {met}"
                )

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One parameter a cell; the session scope keeps the tests of a cell together."""
        suite = suite_of(metafunc.cls)
        if suite is not None and "cell" in metafunc.fixturenames:
            cells = self._cells_of(suite)
            ids = [cell.id for cell in cells]
            metafunc.parametrize("cell", cells, ids=ids, indirect=True, scope="session")

    def _cells_of(self, suite: str) -> list[run.PlannedCell]:
        return [cell for cell in self.plan.cells if suite in cell.config.suites]

    # -- servers ---------------------------------------------------------------------------------

    @contextmanager
    def serving(self, cell: run.PlannedCell) -> Iterator[ServedCell]:
        """A server of this cell, for as long as the context lasts."""
        if cell.unfit:
            pytest.skip(cell.unfit)
        if cell.broken:
            raise ServerFailed(cell.broken)
        try:
            launched = self._launcher.launch(cell)
        except EnvironmentProblem as problem:
            pytest.exit(str(problem), returncode=Exit.USAGE)
        except RecordsError as error:
            give_up(error)
        try:
            cell, running = launched.cell, launched.server
            served = ServedCell(cell, running, self._api_key)
            # a server that somebody else started has keys that nobody told us
            self._secrets.add(served.secrets())
            differences = served.differences() if self.options.base_url else []
            another = self._kept.another(cell.id, served.answers)
            if another:
                pytest.exit(another, returncode=Exit.USAGE)
            self._record_cell(served, launched, differences)
            if differences:
                told = f"{running.base_url} is not as configured: {'; '.join(differences)}"
                if cell.cell.axis:
                    pytest.skip(f"{cell.id}: {told}")
                self._say(f"{cell.id}: {told}")
            held_to = self._held_to(cell)
            if held_to is not None:
                drivers = [gpu.driver for gpu in cell.gpus]
                changed = held_to.changed(served.versions, drivers)
                if changed:
                    self._say(f"{cell.id}: warning: {changed}")
            yield served
        finally:
            for left in launched.end():
                self._say(f"{cell.id}: {left}")
                self._verdicts.left(cell.id, left)

    def bind(self, item: pytest.Item, instance: Any, served: ServedCell) -> None:
        """Give a suite's instance its server, its limits and its reporter.

        Raises ServerFailed when the server is known to be dead, but for a test that began before.
        """
        death = served.server.died()
        if death and not (self._side_by_side and self._side_by_side.has_begun(item)):
            raise ServerFailed(death)
        self._equip(item, instance, served)

    def _bind_ahead(self, item: pytest.Item, instance: Any) -> None:
        served = item.stash[SERVED]
        death = served.server.died()
        if death:
            raise ServerFailed(death)
        self._equip(item, instance, served)

    def _equip(self, item: pytest.Item, instance: Any, served: ServedCell) -> None:
        item.stash[SERVED] = served
        instance.base_url = served.server.base_url
        instance.api_key = self._api_key
        instance._kit_secrets = self._secrets
        instance.reporter = self._verdicts.reporter(item)
        instance.progress = self._progress.of(served.planned.id)
        instance.hellaswag_path = self.options.hellaswag
        instance.hellaswag_packaged = served.simulated
        config = served.planned.config
        # what somebody else started may have been started otherwise
        own = {} if self.options.base_url else configs.required(config)
        for name, value in {**own, **configs.attributes(config)}.items():
            setattr(instance, name, value)
        held_to = self._held_to(served.planned)
        for name, value in held_to.attributes().items() if held_to else ():
            setattr(instance, name, value)

    def _held_to(self, cell: run.PlannedCell) -> Found | None:
        """The baseline of a cell, None where there is none that applies."""
        found = self._baselines.get(cell.id)
        return found if isinstance(found, Found) else None

    def _say(self, line: str) -> None:
        tell(self._config, line)

    def _record_cell(self, served: ServedCell, launched: Launched, differences: list[str]) -> None:
        planned = served.planned
        held_to = self._held_to(planned)
        self._record(
            "cell",
            cell=planned.id,
            configuration=planned.config.model_dump(exclude_none=True),
            parameters=dict(planned.cell.axis),
            in_place_of=list(planned.cell.in_place_of),
            gpus=[gpu.uuid for gpu in planned.gpus],
            command=served.server.command,
            environment=self.plan.engine.environment(launched.launch),
            base_url=served.server.base_url,
            startup_seconds=round(served.server.startup_seconds, 3),
            waited_seconds=round(launched.waited, 3),
            launches=launched.attempt,
            versions=served.versions,
            model=served.model,
            simulated=served.simulated,
            note=self.plan.engine.note,
            differences=differences,
            baseline={**held_to.record(), "quantities": held_to.band()} if held_to else None,
        )

    def _record(self, kind: str, **fields: Any) -> None:
        try:
            self.records.write(kind, **fields)
        except RecordsError as error:
            give_up(error)


def _options(config: pytest.Config) -> run.Options:
    option = config.option
    folder = configs.find_directory(config.rootpath, option.servematrix_configs)
    if not option.servematrix_config:
        raise EnvironmentProblem(
            f"say which server to test: --config NAME, one of {', '.join(configs.names(folder))}, "
            "or all"
        )
    usage.check(option)
    return run.Options.read(
        option,
        selections=option.servematrix_config,
        changes=option.servematrix_set,
        configs_directory=folder,
    )


def _baselines(config: pytest.Config, plan: run.Plan, secrets: Secrets) -> dict[str, Found | str]:
    """The baseline of each cell that has one here, or why it does not apply.

    What an attached server runs on is unknown, so it is held to none.
    """
    named: str | None = config.option.baselines
    if config.option.no_baseline:
        if named is not None:
            raise EnvironmentProblem("--baselines and --no-baseline exclude one another")
        return {}
    if plan.engine.name == "attach":
        if named is not None:
            raise EnvironmentProblem(
                "--baselines with --base-url: on what GPU that server runs is unknown, and a"
                " baseline is of one GPU; leave one out"
            )
        return {}
    kept = configs.project(plan.options.configs_directory) / baselines.FOLDER
    root = kept if named is None else Path(named)
    if named is not None and not root.is_dir():
        raise EnvironmentProblem(f"--baselines {named}: no such folder")
    found: dict[str, Found | str] = {}
    for cell in plan.cells:
        on = baselines.hardware(plan.engine.name, [gpu.name for gpu in cell.gpus])
        # as a baseline has it, which was made from records
        configuration: Any = secrets.plain(cell.config.model_dump(exclude_none=True))
        one = None if cell.unfit else baselines.find(root, cell.id, on, configuration)
        if one is not None:
            found[cell.id] = one
    return found


def _told(baseline: Found | str) -> str:
    return baseline if isinstance(baseline, str) else baseline.described()


def _whole(config: pytest.Config) -> bool:
    """Whether folders were asked for, so that every suite was there to be collected."""
    return all(Path(argument).is_dir() for argument in config.args)
