"""Lets SGLang be imported without packages that serving text on a CPU never calls.

Python imports this file in every process of the server, before anything else, because its folder
is on PYTHONPATH. SGLang imports these packages when it is loaded; torchvision and Triton belong to
PyTorch's GPU builds and weigh 1 GB, the others are for notebooks and sound. A package that is
installed is left alone: the finder below is asked last.
"""

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable
from typing import Any

PACKAGES = ("IPython", "soundfile", "torchvision", "triton")


class Missing(type):
    """The type of everything that a missing package would have held.

    It can be named, subclassed, annotated with and used as a key, as modules do while they are
    imported. To call it is an error: a server must never go on with a made-up answer.
    """

    def __getattr__(cls, name: str) -> "Missing":
        if name.startswith("__"):
            raise AttributeError(name)
        return Missing(f"{cls.__name__}.{name}", (), {})

    def __call__(cls, *_: object, **__: object) -> Any:
        """Refuse."""
        raise NotImplementedError(
            f"{cls.__name__} was called: the CPU server's environment has only a stand-in for it"
        )


class MissingModule(types.ModuleType):
    """A module of a missing package; every name is in it, and of no use."""

    __version__ = "0.0.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = Missing(f"{self.__name__}.{name}", (), {})
        setattr(self, name, found)
        return found


class Kernel:
    """A Triton kernel: it can be defined, and not be launched."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__name__ = getattr(function, "__name__", "unnamed")

    def __getitem__(self, grid: object) -> Any:
        raise NotImplementedError(f"the Triton kernel {self.__name__} cannot run on a CPU")

    def __call__(self, *_: object, **__: object) -> Any:
        """Refuse."""
        return self[None]


def decorator(function: Any = None, *_: object, **__: object) -> Any:
    """`triton.jit` and its like, given a function or only arguments."""
    return Kernel(function) if callable(function) else Kernel


def value(*arguments: object, **_: object) -> Any:
    """`triton.Config` and `tl.constexpr`, which are called while kernels are defined."""
    return arguments[0] if arguments else None


USED_AT_START: dict[str, dict[str, Any]] = {
    "triton": {"jit": decorator, "autotune": decorator, "heuristics": decorator, "Config": value},
    "triton.language": {"constexpr": value},
    # without hooks on the loading of kernels, as some builds of Triton are (SGLang 0.5.20)
    "triton.knobs": {"runtime": types.SimpleNamespace()},
}


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the missing packages and any module in them."""

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Answer for the missing packages only."""
        if fullname.split(".")[0] not in PACKAGES:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Make the module; no file is behind it."""
        return MissingModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Add what SGLang uses while it starts."""
        vars(module).update(USED_AT_START.get(module.__name__, {}))


sys.meta_path.append(Finder())
