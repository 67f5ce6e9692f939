"""A launch as a command line, in SGLang's spelling, which the embedded server shares."""

from __future__ import annotations

from servematrix.engines.base import Launch

LAUNCH_WITH_KEY = (
    "import os, runpy, sys; module, name = sys.argv[1:3]; "
    "sys.argv[1:] = [*sys.argv[3:], '--api-key=' + os.environ[name]]; "
    "runpy.run_module(module, run_name='__main__', alter_sys=True)"
)
"""For `python -c`: runs a module with `--api-key`, whose value it takes from a variable.

The servers take the key as a flag only. This way it is on no command line that others can read
and in no file; the arguments are the module, the variable's name and the module's own flags.
"""


def as_flags(launch: Launch) -> list[str]:
    """Return model, address and arguments as flags: True is a bare flag, False leaves it out."""
    flags = flag("model-path", launch.model)
    if launch.draft_model is not None:
        flags += flag("speculative-draft-model-path", launch.draft_model)
    flags += ["--host", launch.host, "--port", str(launch.port)]
    for name, value in launch.arguments.items():
        if value is True:
            flags.append(f"--{name}")
        elif value is not False:
            flags += flag(name, str(value))
    return flags


def flag(name: str, value: str) -> list[str]:
    """Return a flag with its value, which is never taken for another flag.

    >>> flag("dtype", "half"), flag("model-path", "--trust-remote-code")
    (['--dtype', 'half'], ['--model-path=--trust-remote-code'])
    """
    return [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]
