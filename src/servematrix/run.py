"""One run: what was asked for, resolved into cells that are ready to launch.

The pytest plugin runs a plan and `servematrix plan` prints it; both get it here, so that what is
printed is what would be done.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from servematrix import changes, durations, gpus, matrix, shards
from servematrix import config as configs
from servematrix.config import Configuration, Place
from servematrix.durations import Duration
from servematrix.engines import choice
from servematrix.engines.base import Engine, EnvironmentProblem, Launch
from servematrix.engines.embedded import SIMULATED
from servematrix.gpus import Gpu, Requirement
from servematrix.gpus.pretend import NUMBER
from servematrix.matrix import Cell
from servematrix.records import file_name
from servematrix.redaction import Secrets
from servematrix.shards import Dealt


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    selections: Sequence[str]
    configs_directory: Path
    engine: str = "auto"
    base_url: str | None = None
    server_python: str | None = None
    sglang: str | None = None
    model: str | None = None
    draft_model: str | None = None
    changes: Sequence[str] = ()
    gpus: str | None = None
    port: int = 0
    start_deadline: float | None = None
    gpu_deadline: float = 3600.0
    """Seconds that a cell may wait for its GPUs."""
    retry_errors: int = 0
    """How often a launch is tried again that failed because of the machine."""
    api_key_env: str | None = None
    hellaswag: str | None = None
    shard: str | None = None
    cell_durations: str | None = None
    dry: bool = False
    """Nothing will be started: where no GPU is visible, cells are planned without one."""
    executor: str = "local"
    """Where cells run; where that is not here, the GPUs of this machine are not looked at."""

    @classmethod
    def read(cls, found: argparse.Namespace, **named: Any) -> Options:
        """Take from parsed arguments those that are called as here, the others as `named`."""
        own = {one.name for one in fields(cls)} - named.keys()
        return cls(**{name: getattr(found, name) for name in own if hasattr(found, name)}, **named)

    @property
    def elsewhere(self) -> bool:
        """Whether the cells run on other machines, which decide on their GPUs themselves."""
        return self.executor != "local"

    @property
    def assignments(self) -> list[str]:
        """`--model`, `--draft-model` and `--set` as one list of configuration changes."""
        short = {"model.path": self.model, "model.draft": self.draft_model}
        named = [changes.assigned(key, value) for key, value in short.items() if value]
        return [*named, *self.changes]

    def api_key(self) -> str | None:
        """The key itself, from the variable that `--api-key-env` names."""
        if self.api_key_env is None:
            return None
        value = os.environ.get(self.api_key_env)
        if not value:
            raise EnvironmentProblem(
                f"--api-key-env {self.api_key_env}: that variable is not set or empty; "
                f"export {self.api_key_env} first"
            )
        if not (value.isascii() and value.isprintable()) or " " in value:
            raise EnvironmentProblem(
                f"--api-key-env {self.api_key_env}: its value has a character that no header "
                "carries, such as a line break at the end"
            )
        return value


@dataclass(frozen=True)
class PlannedCell:
    """A cell with everything decided: where it runs and what is started."""

    cell: Cell
    config: Configuration
    gpus: tuple[Gpu, ...]
    """As many as it needs: the first that fit, and those of its lease once it has one."""
    candidates: tuple[Gpu, ...] = ()
    """All that fit and are of the same kind: the lease may be of any of them."""
    unfit: str | None = None
    """Why this cell cannot run here: the engine or the GPUs do not suit it; None where it can."""
    broken: str | None = None
    """How its run on another machine ended before all its tests had a verdict."""

    @property
    def id(self) -> str:
        """The cell's name."""
        return self.cell.id

    @property
    def slug(self) -> str:
        """The cell's name as a file's name."""
        return file_name(self.id)

    def launch(self, options: Options, *, log: Path, deadline: float) -> Launch:
        """What the engine is asked to start."""
        return Launch(
            cell=self.id,
            model=self.config.model.path,
            draft_model=self.config.model.draft,
            arguments=self.config.arguments,
            environment=self.config.environment,
            gpus=self.gpus,
            host="127.0.0.1",
            port=options.port,
            api_key_env=options.api_key_env,
            log=log,
            deadline_seconds=deadline,
            secret_variables=changes.secret_variables(options.changes),
        )


@dataclass(frozen=True)
class Plan:
    """The cells of a run and the engine that serves them."""

    options: Options
    engine: Engine
    cells: Sequence[PlannedCell]
    visible: Sequence[Gpu] = field(default_factory=list)
    durations: Mapping[str, Duration] = field(default_factory=dict)
    """What each cell will take."""
    dealt: Dealt | None = None
    """Which of the cells that were asked for these are, with `--shard`."""

    @property
    def simulated(self) -> bool:
        """Whether the answers come from the embedded server and say nothing of a real one."""
        return self.engine.name == "reference"

    @property
    def start_deadline(self) -> float:
        """Seconds a server may take to start: a download of weights fits, a hang does not."""
        if self.options.start_deadline is not None:
            return self.options.start_deadline
        return 30.0 if self.simulated else 900.0

    def secrets(self) -> Secrets:
        """All that is secret in this run, as far as is known before a server answers."""
        found = secrets(self.options.changes, self.options.api_key_env)
        for cell in self.cells:
            found.add([*configs.secrets(cell.cell.config), *configs.secrets(cell.config)])
        return found

    def subject(
        self,
        answered: Collection[str] = (),
        *,
        simulated: bool = False,
        gpus: Collection[str] = (),
    ) -> str:
        """What is going to answer, in words; `answered` is what did, as the servers themselves say.

        `simulated` tells that an attached server turned out to be the embedded one, `gpus` what
        other machines used.
        """
        note = SIMULATED if simulated else self.engine.note
        label = f" ({note})" if note else ""
        if not self.cells:
            return f"engine {self.engine.name}{label}; no cell"
        models = sorted({f"model {cell.config.model.path}" for cell in self.cells})
        if self.engine.name == "attach":
            models = [f"what {self.options.base_url} serves"]
        used = sorted({*gpus, *(gpu.name for cell in self.cells for gpu in cell.gpus)})
        assigned = self.options.elsewhere and self.engine.name == "sglang"
        shown = ", ".join(used) or ("as Ray assigns them" if assigned else "none")
        if self.engine.name == "attach":
            here = ", ".join(sorted({gpu.name for gpu in self.visible}))
            shown = f"unknown (on this machine: {here})" if here else "unknown"
        return (
            f"engine {self.engine.name}{label}; "
            f"{', '.join(sorted(answered) or models)}; "
            f"GPU {shown}; HellaSwag data: {self._items(simulated or self.simulated)}"
        )

    def _items(self, simulated: bool) -> str:
        if self.options.hellaswag:
            return self.options.hellaswag
        packaged = [cell.config.kits.hellaswag.packaged for cell in self.cells]
        own = [simulated if one is None else one for one in packaged]
        return ", ".join(
            name
            for name, is_used in (
                ("packaged reference items", any(own)),
                ("Rowan/hellaswag", not all(own)),
            )
            if is_used
        )


def secrets(given: Sequence[str], api_key_env: str | None = None) -> Secrets:
    """What is secret in the environment and in changes, and the API key."""
    found = Secrets.inherited()
    found.add(changes.secrets(given))
    found.add([os.environ.get(api_key_env, "")] if api_key_env else [])
    return found


def plan(options: Options, *, machine: Sequence[Gpu] | None = None) -> Plan:
    """Decide which engine serves, and resolve every selected cell for the GPUs it would get.

    Nothing is started. `machine` are the GPUs to plan for, this machine's by default.
    EnvironmentProblem when no selected cell fits any visible GPU; a cell that does not fit while
    others do is planned as unfit, with the reason. A shard may have no cell at all.
    """
    _check(options)
    cells = matrix.select(options.configs_directory, options.selections)
    here = options.base_url is None or _is_here(options.base_url)
    visible = machine
    if visible is None:
        visible = gpus.visible() if here and not options.elsewhere else []
    engine = _engine(options, visible)
    cells = matrix.for_engine(options.configs_directory, cells, engine.name)
    configured = {cell.id: _resolved(cell, options, Place(engine.name)) for cell in cells}
    source = durations.path(options.configs_directory, options.cell_durations)
    kept = durations.read(source).get(engine.name, {})
    dealt = None
    if options.shard is not None:
        dealt = _dealt(options.shard, configured, kept, source, engine)
        chosen = set(dealt.cells)
        cells = [cell for cell in cells if cell.id in chosen]
    planned = [_planned(cell, configured[cell.id], options, engine, visible) for cell in cells]
    unfit = [cell.unfit for cell in planned if cell.unfit]
    if planned and len(unfit) == len(planned):
        raise EnvironmentProblem(unfit[0])
    estimates = {cell.id: cell.config.estimated_seconds for cell in planned}
    expected = durations.expected(kept, estimates)
    return Plan(options, engine, planned, visible, expected, dealt)


def _dealt(
    named: str,
    configured: Mapping[str, Configuration],
    kept: Mapping[str, float],
    source: Path,
    engine: Engine,
) -> Dealt:
    """Deal the cells that the engine can serve on some machine; no GPU of this one is asked.

    The other jobs of a workflow, on their machines, must deal alike.
    """
    shard = shards.parse(named)
    misfits = {cell: misfit(config, engine.name) for cell, config in configured.items()}
    estimates = {
        cell: config.estimated_seconds
        for cell, config in configured.items()
        if misfits[cell] is None
    }
    expected = durations.expected(kept, estimates)
    cells = shards.deal(expected, shard.shards)[shard.number - 1]
    left_out = [f"{cell}: {why}" for cell, why in misfits.items() if why is not None]
    return Dealt(shard, cells, expected, source, left_out)


def _engine(options: Options, visible: Sequence[Gpu]) -> Engine:
    python, version = options.server_python, options.sglang
    if options.elsewhere:
        return choice.assume(options.engine, server_python=python, sglang_version=version)
    decide = choice.intend if options.dry else choice.choose
    return decide(
        options.engine,
        base_url=options.base_url,
        server_python=python,
        sglang_version=version,
        gpus=visible,
    )


def _is_here(base_url: str) -> bool:
    return urlsplit(base_url).hostname in ("127.0.0.1", "localhost", "::1")


def _check(options: Options) -> None:
    """Refuse what could only fail later, or would be ignored in silence."""
    if not 0 <= options.port <= 65535:
        raise EnvironmentProblem(
            f"--port {options.port}: ports are 1 to 65535, or 0 for a free one"
        )
    if options.start_deadline is not None and options.start_deadline <= 0:
        raise EnvironmentProblem(f"--start-deadline {options.start_deadline:g}: must be over 0 s")
    if options.gpu_deadline < 0:
        raise EnvironmentProblem(f"--gpu-deadline {options.gpu_deadline:g}: must not be below 0 s")
    if options.retry_errors < 0:
        raise EnvironmentProblem(f"--retry-errors {options.retry_errors}: a number from 0")
    if options.hellaswag is not None and not Path(options.hellaswag).is_file():
        raise EnvironmentProblem(f"--hellaswag {options.hellaswag}: no such file")
    if options.base_url is None:
        pretend = options.engine == "reference" and NUMBER in os.environ
        if options.gpus and options.engine in ("sglang-cpu", "reference") and not pretend:
            raise EnvironmentProblem(
                f"--gpus is about GPUs, and --engine {options.engine} uses none; leave one out"
            )
        return
    ignored = {
        "--port": options.port,
        "--gpus": options.gpus,
        "--model": options.model,
        "--draft-model": options.draft_model,
        "--start-deadline": options.start_deadline,
    }
    given = [name for name, value in ignored.items() if value]
    server = ("arguments", "environment", "model")
    named = [change for change in options.changes if change.split(".")[0] in server]
    given += [f"--set {changes.told(change)}" for change in named]
    if given:
        raise EnvironmentProblem(
            f"{given[0]} is about starting a server, and --base-url names one that runs already; "
            "leave one out"
        )


def _resolved(cell: Cell, options: Options, place: Place) -> Configuration:
    return configs.resolve(cell.config, cell.axis, place, options.assignments)


def _planned(
    cell: Cell, config: Configuration, options: Options, engine: Engine, visible: Sequence[Gpu]
) -> PlannedCell:
    """A cell for the GPUs that it would get; `config` is resolved for none in particular."""
    problem = misfit(config, engine.name)
    if problem:
        return PlannedCell(cell, config, (), unfit=f"{cell.id}: {problem}")
    unseen = (options.dry or options.elsewhere) and not visible
    if unseen or not _takes_gpus(engine, config, visible):
        return PlannedCell(cell, config, ())
    try:
        fitting = gpus.candidates(visible, options.gpus, requirement(config))
    except EnvironmentProblem as refused:
        return PlannedCell(cell, config, (), unfit=f"{cell.id}: {refused}")
    # overrides may depend on the GPU, whose kind is known only now
    config = _resolved(cell, options, _place(engine.name, fitting))
    return PlannedCell(cell, config, fitting[: config.requires.gpus], fitting)


def _takes_gpus(engine: Engine, config: Configuration, visible: Sequence[Gpu]) -> bool:
    """Whether a cell takes GPUs; the embedded server takes pretend ones, so that it shows how."""
    pretend = any(gpu.vendor == "pretend" for gpu in visible)
    return engine.name == "sglang" or (
        engine.name == "reference" and pretend and config.requires.gpus > 0
    )


def misfit(config: Configuration, engine: str) -> str | None:
    """Why an engine cannot serve a configuration on any machine, as one clause."""
    needed = config.requires.gpus
    if engine == "sglang" and needed == 0:
        return "it is for engines without a GPU (requires.gpus = 0), and engine sglang has one"
    if engine != "sglang-cpu":
        return None
    if needed:
        return (
            f"{needed} GPU{'s are' if needed > 1 else ' is'} needed, and engine sglang-cpu has "
            "none; take a configuration with requires.gpus = 0, or name one for it with "
            "instead.sglang-cpu"
        )
    if "speculative-algorithm" in config.arguments:
        return "speculation needs compiled kernels, and engine sglang-cpu has none"
    return None


def requirement(config: Configuration) -> Requirement:
    """What a configuration needs of its GPUs, as they are selected by."""
    requires = config.requires
    exact = requires.compute_capability and not requires.compute_capability.startswith(">=")
    capability = configs.capability(requires.compute_capability)
    return Requirement(
        gpus=requires.gpus,
        memory_gib=requires.memory_gib,
        compute_capability_min=None if exact else capability,
        compute_capability_exact=capability if exact else None,
    )


def _place(engine: str, gpus: Sequence[Gpu]) -> Place:
    gpu = gpus[0]
    if gpu.vendor == "pretend":
        return Place(engine)
    capability = gpu.compute_capability
    return Place(
        engine=engine,
        vendor=gpu.vendor,
        gpu_name=gpu.name,
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
    )
