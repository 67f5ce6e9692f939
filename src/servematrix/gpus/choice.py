"""Which of the visible GPUs suit a configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from servematrix.engines.base import EnvironmentProblem
from servematrix.gpus.gpu import GIB, Gpu, dotted, listed


@dataclass(frozen=True)
class Requirement:
    """What a configuration needs of its GPUs. A pretend GPU has whatever is needed."""

    gpus: int = 1
    memory_gib: float | None = None
    """Total memory of each GPU, at least."""
    compute_capability_min: tuple[int, int] | None = None
    """(major, minor), at least. Never met by a GPU that has none (AMD)."""
    compute_capability_exact: tuple[int, int] | None = None
    """(major, minor), exactly. Never met by a GPU that has none (AMD)."""


def candidates(gpus: Sequence[Gpu], wanted: str | None, requires: Requirement) -> tuple[Gpu, ...]:
    """Return all GPUs that fit and are of one kind, so that it does not matter which are taken.

    `wanted` is `--gpus`: positions in the visible list or UUIDs (or their unique beginnings),
    separated by commas; None stands for all. Of several kinds it is the first that has as many as
    are required: what a configuration says may depend on the kind. Raises EnvironmentProblem with
    what was asked for and what is visible.
    """
    pool = list(gpus) if wanted is None else [_named(gpus, name) for name in _names(wanted)]
    if len(set(pool)) < len(pool):
        raise EnvironmentProblem(f"--gpus {wanted} names a GPU twice; visible: {listed(gpus)}")
    fitting = [gpu for gpu in pool if _fits(gpu, requires)]
    numbers = Counter(gpu.kind for gpu in fitting)
    enough = [gpu for gpu in fitting if numbers[gpu.kind] >= requires.gpus]
    if not enough:
        among = "visible" if wanted is None else f"named by --gpus {wanted}"
        mixed = ", and they are of different kinds" if len(fitting) >= requires.gpus else ""
        raise EnvironmentProblem(
            f"{_asked(requires)} needed, but {len(fitting)} of the {len(pool)} {among} "
            f"{'fits' if len(fitting) == 1 else 'fit'}{mixed}; visible: {listed(gpus)}"
        )
    return tuple(gpu for gpu in enough if gpu.kind == enough[0].kind)


def _named(gpus: Sequence[Gpu], name: str) -> Gpu:
    if name.isdecimal():
        matching = [gpu for gpu in gpus if gpu.index == int(name)]
    else:
        matching = [gpu for gpu in gpus if gpu.uuid.startswith(name)]
    if len(matching) == 1:
        return matching[0]
    what = "no visible GPU" if not matching else f"{len(matching)} GPUs"
    raise EnvironmentProblem(f"--gpus: {name!r} names {what}; visible: {listed(gpus)}")


def _names(wanted: str) -> list[str]:
    names = [name.strip() for name in wanted.split(",")]
    if not all(names):
        raise EnvironmentProblem(f"--gpus {wanted!r}: not a list such as 0,2 or of UUIDs")
    return names


def _fits(gpu: Gpu, requires: Requirement) -> bool:
    if gpu.vendor == "pretend":
        return True
    if gpu.parent is not None and requires.gpus > 1:
        return False  # slices do not reach one another
    if requires.memory_gib is not None and gpu.memory_total < requires.memory_gib * GIB:
        return False
    capability = gpu.compute_capability
    least, exact = requires.compute_capability_min, requires.compute_capability_exact
    if least is not None and (capability is None or capability < least):
        return False
    return exact is None or capability == exact


def _asked(requires: Requirement) -> str:
    conditions = []
    if requires.memory_gib is not None:
        conditions.append(f"{requires.memory_gib:g} GiB or more")
    if requires.compute_capability_min is not None:
        conditions.append(f"compute capability {dotted(requires.compute_capability_min)} or newer")
    if requires.compute_capability_exact is not None:
        conditions.append(f"compute capability {dotted(requires.compute_capability_exact)}")
    number, verb = ("1 GPU", "is") if requires.gpus == 1 else (f"{requires.gpus} GPUs", "are")
    with_conditions = f" with {' and '.join(conditions)}" if conditions else ""
    return f"{number}{with_conditions} {verb}"
