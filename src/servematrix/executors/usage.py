"""What `--executor ray` cannot be asked for: what Ray decides, and secrets on a command line."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec

from servematrix import changes
from servematrix.engines.base import EnvironmentProblem

_DECIDED_BY_RAY = {
    "gpus": ("--gpus", "Ray assigns GPUs; set CUDA_VISIBLE_DEVICES where a node's Ray is started"),
    "port": ("--port", "several servers may share a node"),
    "base_url": ("--base-url", "a server that runs already is on no node of Ray's choice"),
    "numprocesses": ("-n", "Ray runs the cells side by side"),
    "usepdb": ("--pdb", "tests run on other machines"),
}


def check(option: argparse.Namespace) -> None:
    """Refuse options that contradict the executor; EnvironmentProblem says which, and why."""
    if option.executor == "local":
        for name, given in (("--ray-address", option.ray_address), ("--ray-wait", option.ray_wait)):
            if given:
                raise EnvironmentProblem(f"{name} is about --executor ray; give that too")
        return
    for key, (name, why) in _DECIDED_BY_RAY.items():
        if getattr(option, key, None):
            raise EnvironmentProblem(f"{name} with --executor ray: {why}; leave one out")
    if option.engine == "auto":
        raise EnvironmentProblem(
            "--executor ray: name the engine (--engine sglang, sglang-cpu or reference); auto asks "
            "what this machine has, and the cells run on others"
        )
    if option.ray_wait < 0:
        raise EnvironmentProblem(f"--ray-wait {option.ray_wait:g}: must not be under 0 s")
    for change in option.servematrix_set:
        if changes.told(change) != change:
            key = change.partition("=")[0]
            raise EnvironmentProblem(
                f"--set {changes.told(change)} with --executor ray: a secret would stand on "
                "command lines of other machines; export it as a variable here and where each "
                f"node's Ray is started, and give {key}@=VARIABLE"
            )
    if find_spec("ray") is None:
        raise EnvironmentProblem(
            '--executor ray needs Ray, which is not installed here: pip install "servematrix[ray]"'
        )


def address(option: argparse.Namespace) -> str | None:
    """The cluster that was named: `--ray-address`, else RAY_ADDRESS; None for one of our own."""
    named: str | None = option.ray_address or os.environ.get("RAY_ADDRESS") or None
    if named is not None and "://" in named:
        raise EnvironmentProblem(
            f"--ray-address {named}: results are not streamed through Ray's client; start the run "
            "on a machine of the cluster and give HOST:PORT or auto (docs/cluster.md)"
        )
    return None if named == "local" else named
