"""A Ray cluster: its nodes, and tasks on them. The only place that imports Ray.

Ray decides which node and which GPUs a task gets. A task is a generator: each thing that it yields
comes here at once. Ray's own retries are off: after one it would take what the second attempt
yields for what the first had yielded, which holds only for tasks that always yield the same.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from servematrix.engines.base import EnvironmentProblem
from servematrix.executors import quiet
from servematrix.interrupts import end_in_good_order

STORE_BYTES: Final = 200 * 2**20
"""Ray's memory for objects on a node that we start ourselves; what is streamed is small."""
_NOT_SENT: Final = (".git", ".nox", ".venv", ".mutants", "__pycache__", "*.egg-info", ".*_cache")
_ACCELERATOR: Final = "accelerator_type:"
_TOLD: Final = 600
"""Characters of a message of Ray's; some have the end of a log of its own."""

Task = Any
"""Ray has no public name for what a streaming task returns."""
Event = Mapping[str, Any]


@dataclass(frozen=True)
class Demand:
    """What a task needs of its node."""

    gpus: int = 0
    accelerator: str | None = None
    """A name of `ray.util.accelerators`, such as `H100`."""
    cpus: int = 1

    def resources(self) -> dict[str, float]:
        """The demand in the terms of Ray's nodes."""
        found = {"CPU": float(self.cpus), "GPU": float(self.gpus)}
        if self.accelerator and self.gpus:
            found[f"{_ACCELERATOR}{self.accelerator}"] = 0.001
        return found

    def told(self) -> str:
        """In words."""
        gpus = {0: "no GPU", 1: "1 GPU"}.get(self.gpus, f"{self.gpus} GPUs")
        on = f" ({self.accelerator})" if self.accelerator and self.gpus else ""
        return f"{self.cpus} CPU and {gpus}{on}"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster that is alive."""

    address: str
    host: str
    resources: Mapping[str, float]
    """All that it has, whoever uses it now."""

    def takes(self, demand: Demand) -> bool:
        """Whether a task with this demand can ever run here."""
        return all(self.resources.get(name, 0) >= n for name, n in demand.resources().items())

    def told(self) -> str:
        """In words."""
        kinds = [one.removeprefix(_ACCELERATOR) for one in self.resources if _ACCELERATOR in one]
        gpus = f"{self.resources.get('GPU', 0):g} GPU"
        kind = f" ({', '.join(sorted(kinds))})" if kinds else ""
        return f"{self.host} ({self.address}): {self.resources.get('CPU', 0):g} CPU, {gpus}{kind}"


@dataclass(frozen=True)
class News:
    """The next thing that became known of a task: one of these."""

    task: Task
    event: Event | None = None
    """It yielded this."""
    lost: str | None = None
    """Its node or its process is gone; it may run again elsewhere."""
    failed: str | None = None
    """It ended in an error that would come again."""

    @property
    def over(self) -> bool:
        """Whether nothing more will come of the task."""
        return self.event is None


class Cluster:
    """A connection to a Ray cluster; EnvironmentProblem where there is none at the address."""

    def __init__(self, address: str | None, root: Path, results: Path) -> None:
        """`address` None starts a Ray of this run's own, on this machine.

        The nodes of any other are sent the files of `root`, without those under `results`.
        """
        import ray

        self._ray = ray
        self.address = address or "a Ray of this run's own"
        self.version = str(ray.__version__)
        self.sends = address is not None
        settings: dict[str, Any] = {}
        if address is None:
            # a run of tests reports nothing to anybody, unless it is asked to
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            settings = {"include_dashboard": False, "object_store_memory": STORE_BYTES}
        else:
            excludes = list(_NOT_SENT)
            with suppress(ValueError):
                excludes.append(f"/{results.resolve().relative_to(root.resolve())}")
            settings["runtime_env"] = {"working_dir": str(root), "excludes": excludes}
        try:
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **settings,
            )
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            named = f"--ray-address {address}" if address else "--executor ray"
            raise EnvironmentProblem(
                f"{named}: cannot use Ray there: {_told(error)}; `ray status --address HOST:PORT` "
                "tells whether a cluster answers"
            ) from error
        # Ray has put its own end in the place of ours
        end_in_good_order()
        quiet.begin()

    def nodes(self) -> list[Node]:
        """The nodes that are alive now."""
        return [
            Node(one["NodeManagerAddress"], one["NodeManagerHostname"], dict(one["Resources"]))
            for one in self._ray.nodes()
            if one["Alive"]
        ]

    def submit(
        self,
        function: Callable[[Mapping[str, Any]], Iterator[Event]],
        argument: Mapping[str, Any],
        demand: Demand,
        name: str,
    ) -> Task:
        """Hand a task to Ray, which runs it once a node has what it needs."""
        kind = (
            {"accelerator_type": demand.accelerator} if demand.accelerator and demand.gpus else {}
        )
        task = self._ray.remote(function).options(
            name=name,
            num_cpus=demand.cpus,
            num_gpus=demand.gpus,
            num_returns="streaming",
            max_retries=0,
            **kind,
        )
        return task.remote(argument)

    def next(self, tasks: Sequence[Task], seconds: float) -> News | None:
        """Wait for the next news of any of these tasks; None where there was none in that time."""
        errors = self._ray.exceptions
        # a test that ran here has put pytest's stream back
        quiet.begin()
        ready, _ = self._ray.wait(list(tasks), num_returns=1, timeout=seconds)
        if not ready:
            return None
        task = ready[0]
        try:
            return News(task, event=self._ray.get(next(task)))
        except StopIteration:
            return News(task)
        except (
            errors.NodeDiedError,
            errors.LocalRayletDiedError,
            errors.WorkerCrashedError,
            errors.OutOfMemoryError,
            errors.ObjectLostError,
        ) as error:
            # the sentences behind are general advice
            return News(task, lost=_told(error).partition(". ")[0])
        except errors.RayError as error:
            return News(task, failed=_told(error))

    def cancel(self, task: Task) -> None:
        """Interrupt a task where it runs; one that waits never starts."""
        with suppress(self._ray.exceptions.RayError, ValueError):
            self._ray.cancel(task, force=False)

    def close(self) -> None:
        """Leave the cluster; one that was started for this run ends."""
        # at its end Ray prints, from this thread too, what it had held back
        with redirect_stdout(io.StringIO()):
            self._ray.shutdown()
        quiet.end()


def whereabouts() -> dict[str, str]:
    """Where this task runs, and which GPUs Ray gave it; for tasks alone."""
    import ray

    context = ray.get_runtime_context()
    return {
        "node": ray.util.get_node_ip_address(),
        "node_id": context.get_node_id(),
        "assigned": ",".join(context.get_accelerator_ids().get("GPU", ())),
    }


def _told(error: BaseException) -> str:
    """The error's own words: of one that passed through Ray without the tracebacks, and cut."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = (lines[-1] if "Traceback" in str(error) else " ".join(lines)) if lines else ""
    return f"{type(error).__name__}: {text[:_TOLD]}"
