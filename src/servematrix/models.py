"""The models of a launch: on disk before a server starts, so that none is started in vain.

Servers that start side by side would each download the same weights, and one that starts twice
would ask the hub both times. A model that is named by a folder is left to the server, and so is one
in another kind of place (`s3://...`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from servematrix.engines.base import Launch, Say
from servematrix.hub import cache, download
from servematrix.hub.cache import Repository, Weights

ELSEWHERE: Final = (
    "SGLANG_USE_MODELSCOPE is set: the server brings its models from ModelScope itself, each for "
    "itself"
)
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_OTHERS: Final = ("speculative-token-map", "lora-paths", "trust-remote-code")
"""Arguments that may name other repositories, which only the server knows of."""
_BY_FORM: Final[dict[str, Weights]] = {
    "auto": "preferred",
    "safetensors": "preferred",
    "dummy": "none",
}
"""What is downloaded for a `load-format`; for another all weights are."""


def is_elsewhere(launch: Launch) -> bool:
    """Whether the server takes its models from another hub, which is none of ours to ask."""
    return cache.is_true({**os.environ, **launch.environment}, "SGLANG_USE_MODELSCOPE")


def needed(launch: Launch) -> list[Repository]:
    """What a launch needs of the hub: model, draft and tokenizer; none for folders."""
    return [] if is_elsewhere(launch) else list(dict.fromkeys(_needed(launch)))


def ensure(launch: Launch, say: Say) -> None:
    """Have the models of a launch on disk; raises as `hub.download.ensure`."""
    for repository in needed(launch):
        download.ensure(repository, {**os.environ, **launch.environment}, say)


def offline(launch: Launch) -> dict[str, str]:
    """The variables of a server that need not ask the hub: all it loads is on disk, as a list says.

    Empty where something may be missing, or where the arguments may name more than we know of.
    """
    variables = {**os.environ, **launch.environment}
    found = needed(launch)
    if not found or any(launch.arguments.get(name) for name in _OTHERS):
        return {}
    folder = cache.folder(variables)
    complete = all(cache.lacks(repository, folder) is None for repository in found)
    return {"HF_HUB_OFFLINE": "1"} if complete else {}


def _needed(launch: Launch) -> Iterator[Repository]:
    given = {name: str(value) for name, value in launch.arguments.items() if value is not False}
    form = given.get("load-format", "auto")
    draft_form = given.get("speculative-draft-load-format", form)
    tokenizer = given.get("tokenizer-path")
    if _is_on_hub(launch.model):
        revision = given.get("revision", "main")
        yield Repository("model", launch.model, revision, _BY_FORM.get(form, "all"))
    if launch.draft_model is not None and _is_on_hub(launch.draft_model):
        revision = given.get("speculative-draft-model-revision", "main")
        weights = _BY_FORM.get(draft_form, "all")
        yield Repository("model", launch.draft_model, revision, weights)
    if tokenizer is not None and _is_on_hub(tokenizer) and tokenizer != launch.model:
        yield Repository("model", tokenizer, weights="none")


def _is_on_hub(model: str) -> bool:
    return _HUB_ID.fullmatch(model) is not None and not Path(model).exists()
