"""What of a repository is on disk: in the cache that every library of the hub shares.

The cache says which files of a repository are there, not which should be: a download that was cut
looks like one of a smaller repository. So a list of files with their sizes is left beside those
that were seen whole. Without one, what looks like a whole model may still lack a chat template.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Literal

from servematrix import folders, outside

Weights = Literal["preferred", "all", "none"]
"""Which weights: in the form that SGLang loads by itself, in every form, or none."""
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_TRUE: Final = ("1", "on", "yes", "true")
_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_WEIGHTS: Final = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")


@dataclass(frozen=True)
class Repository:
    """Files of a repository on the hub: those that match `only`, or those of a model to serve."""

    kind: Literal["model", "dataset"]
    name: str
    revision: str = "main"
    weights: Weights = "preferred"
    only: tuple[str, ...] = ()

    def __str__(self) -> str:
        what = "data set" if self.kind == "dataset" else "model"
        return f"{what} {self.name} (revision {self.revision[:12]})"

    @property
    def key(self) -> str:
        """A word that no other repository or revision has, as a file's name."""
        return f"{self._folder}-{_digest(self.revision)}"

    def within(self, cache: Path) -> Path:
        """Its folder in a cache."""
        return cache / self._folder

    @property
    def _folder(self) -> str:
        return f"{self.kind}s--{self.name.replace('/', '--')}"

    def snapshot(self, cache: Path) -> Path | None:
        """The folder of its files at this revision, None where there is none."""
        commit: str | None = self.revision
        if not _COMMIT.fullmatch(self.revision):
            try:
                commit = (self.within(cache) / "refs" / self.revision).read_text().strip()
            except (OSError, ValueError):
                return None
        folder = self.within(cache) / "snapshots" / str(commit)
        return folder if commit and folder.is_dir() else None


def folder(variables: Mapping[str, str] = os.environ) -> Path:
    """The hub's cache that a program with these variables uses, by the hub's own rules."""
    above = variables.get("XDG_CACHE_HOME", "~/.cache")
    home = variables.get("HF_HOME", f"{above}/huggingface")
    named = variables.get("HUGGINGFACE_HUB_CACHE", f"{home}/hub")
    return Path(os.path.expandvars(variables.get("HF_HUB_CACHE", named))).expanduser().absolute()


def is_true(variables: Mapping[str, str], *names: str) -> bool:
    """Whether the first of these variables that is not empty says yes."""
    given = next((variables[name] for name in names if variables.get(name)), "")
    return given.lower() in _TRUE


def is_offline(variables: Mapping[str, str]) -> bool:
    """Whether a program with these variables asks no hub, by the hub's own rules."""
    return is_true(variables, "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def lacks(wanted: Repository, cache: Path) -> str | None:
    """What is not known to be there, as a clause; None where every file was seen whole, and is."""
    snapshot = wanted.snapshot(cache)
    if snapshot is None:
        return "nothing of it is there"
    listed = _listed(wanted, cache, snapshot.name)
    if listed is None:
        return "it is not known which files belong to it"
    for name, size in listed.items():
        if _size(snapshot / name) != size:
            return f"{name} is missing or cut"
    return None


def looks_whole(wanted: Repository, cache: Path) -> bool:
    """Whether what is there, without a list of what should be, looks like all of it.

    A model has a configuration and all the weights that its index names; a data set has a file.
    """
    snapshot = wanted.snapshot(cache)
    if snapshot is None:
        return False
    if wanted.only:
        return bool(files(wanted, cache))
    if not (snapshot / "config.json").is_file():
        return wanted.weights == "none" and any((snapshot / one).is_file() for one in _TOKENIZERS)
    return wanted.weights == "none" or _has_weights(snapshot)


def files(wanted: Repository, cache: Path) -> list[Path]:
    """The files there that match `only`, sorted."""
    snapshot = wanted.snapshot(cache)
    found = sorted(snapshot.rglob("*")) if snapshot else []
    return [
        path
        for path in found
        if path.is_file()
        and any(fnmatchcase(str(path.relative_to(snapshot or path)), one) for one in wanted.only)
    ]


def keep_list(wanted: Repository, cache: Path, commit: str, listed: Mapping[str, int]) -> None:
    """Leave the list of files, with their sizes in bytes; OSError."""
    path = _list_of(wanted, cache, commit)
    path.parent.mkdir(exist_ok=True)
    folders.write_whole(path, json.dumps({"files": dict(sorted(listed.items()))}, indent=1))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _list_of(wanted: Repository, cache: Path, commit: str) -> Path:
    return wanted.within(cache) / "servematrix" / f"{commit}-{_digest(asdict(wanted))}.json"


def _listed(wanted: Repository, cache: Path, commit: str) -> dict[str, int] | None:
    try:
        listed = json.loads(outside.raw(_list_of(wanted, cache, commit)))["files"]
        return {str(name): int(size) for name, size in listed.items()} or None
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return None


def _has_weights(snapshot: Path) -> bool:
    index = snapshot / "model.safetensors.index.json"
    try:
        named = set(json.loads(outside.raw(index))["weight_map"].values())
        return all((snapshot / str(name)).is_file() for name in named)
    except FileNotFoundError:
        return any(path.is_file() for one in _WEIGHTS for path in snapshot.glob(one))
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return False
