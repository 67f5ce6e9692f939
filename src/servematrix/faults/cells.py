"""Faults as configurations: one file a fault, one cell a kit, so that the matrix can run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import tomli_w

from servematrix import config as configs
from servematrix.config import Configuration, Place
from servematrix.faults.known import KITS, Fault, Known

HEALTHY: Final[Mapping[str, tuple[str, tuple[str, ...], int]]] = {
    "healthy": ("baseline", (), 6),
    "healthy-eagle3": ("eagle3", (), 3),
    "healthy-ranks": ("baseline", ("arguments.dp-size=2",), 1),
}
"""Servers without a fault: configuration, changes, and how many of ten healthy runs are theirs."""
_ENGINE: Final = Place("reference")


def write(
    folder: Path, known: Known, faults: Sequence[Fault], source: Path, *, quick: bool, healthy: int
) -> None:
    """Write configurations into `folder`: one for each fault, and those of `healthy` servers.

    `source` has the configurations that they start from. With `quick` a fault meets only the first
    of what must catch it.
    """
    folder.mkdir(parents=True)
    for fault in faults:
        kits = [fault.caught_by[0]] if quick and fault.caught_by[0] in KITS else fault.kits
        timeouts = [f"kits.{kit}.timeout={fault.timeout}" for kit in KITS]
        base = _base(source, fault.config, [*known.settings, *fault.set, *timeouts])
        base["description"] = fault.injected.does
        base["arguments"]["fault"] = fault.name
        base |= {"suites": ["only_{kit}"], "axis": {"kit": list(kits)}}
        _store(folder / f"{fault.name}.toml", base)
    for name, (config, changes, share) in HEALTHY.items():
        runs = list(range(1, 1 + _share(healthy, share)))
        if runs:
            base = _base(source, config, [*known.settings, *changes])
            _store(folder / f"{name}.toml", base | {"axis": {"run": runs}})


def _base(source: Path, name: str, changes: Sequence[str]) -> dict[str, Any]:
    config = configs.resolve(configs.load(source, name), {}, _ENGINE, changes)
    found = config.model_dump(exclude_none=True, exclude_unset=True, exclude={"name"})
    # kits of a project's own are not beside the configurations that are written
    kept = {kit: keys for kit, keys in found.get("kits", {}).items() if kit in KITS}
    return found | {"kits": kept}


def _share(healthy: int, of_ten: int) -> int:
    """This many tenths of the healthy runs; what is left over goes to the largest share."""
    shares = [share for _, _, share in HEALTHY.values()]
    left = healthy - sum(healthy * share // 10 for share in shares)
    return healthy * of_ten // 10 + (left if of_ten == max(shares) else 0)


def _store(path: Path, content: Mapping[str, Any]) -> None:
    Configuration.model_validate({**content, "name": path.stem})
    path.write_text(tomli_w.dumps(content), encoding="utf-8")
