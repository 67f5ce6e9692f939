"""Engine `sglang-cpu`: the real SGLang on the CPU, so that the kits meet it without a GPU.

What every server without a GPU needs is added here; a configuration may set it otherwise. What
only some need, such as the size of the KV cache, belongs into the configuration.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from servematrix.engines.base import Launch, Say
from servematrix.engines.sglang import SglangEngine
from servematrix.engines.sglang_cpu.model import packaged

STANDINS = Path(__file__).with_name("standins")
ARGUMENTS: dict[str, str | int | float | bool] = {
    "device": "cpu",
    "attention-backend": "torch_native",
    "sampling-backend": "pytorch",
    # xgrammar's kernels end the server at the first request for JSON
    "grammar-backend": "llguidance",
    # on a CPU nothing runs beside the scheduler
    "disable-overlap-schedule": True,
    # an idle scheduler would keep a core busy that the client needs
    "sleep-on-idle": True,
}
VARIABLES = {
    "SGLANG_USE_CPU_ENGINE": "1",
    # with more threads a batch of one is a little faster, and a batch of eight slower
    "OMP_NUM_THREADS": "1",
    # PyTorch would compile small functions in C++ at the first requests, with Triton in its way
    "TORCHDYNAMO_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class SglangCpuEngine(SglangEngine):
    """Runs SGLang without a GPU, with the Python that was chosen for it."""

    name = "sglang-cpu"
    note = (
        "real SGLang on the CPU: occupancy is the share of wall time in synchronous forward "
        "passes, not a GPU's"
    )

    def prepare(self, launch: Launch, say: Say) -> None:
        """Make the server's environment and the model's folder where they are not there yet."""
        super().prepare(launch, say)
        model = packaged(launch.model)
        if model is not None:
            model.make(self.python, say)

    def command(self, launch: Launch) -> list[str]:
        """Return the command line; port 0 stands for one that is chosen at the start."""
        arguments = {**ARGUMENTS, **launch.arguments}
        model = packaged(launch.model)
        path = launch.model if model is None else str(model.folder)
        return super().command(replace(launch, model=path, arguments=arguments))

    def environment(self, launch: Launch) -> dict[str, str]:
        """Return the configuration's variables over those of every server on a CPU."""
        local = packaged(launch.model) is not None or Path(launch.model).is_dir()
        # no hub is asked about a model that lies here
        offline = {"HF_HUB_OFFLINE": "1"} if local else {}
        variables = {**VARIABLES, **offline, **super().environment(launch)}
        inherited = variables.get("PYTHONPATH", os.environ.get("PYTHONPATH"))
        paths = [str(STANDINS), *([inherited] if inherited else [])]
        return {**variables, "PYTHONPATH": os.pathsep.join(paths)}
