"""Downloads files of one repository: run as a process of its own, so that it can be ended.

`python -m servematrix.hub.fetch REQUEST ANSWER`: the request is JSON, and so is the answer, which
is written to the file of that name: `commit` and `files`, or `problem` (one of `PROBLEMS`) and
`told`, what the hub or the machine said. The environment says which hub, which cache, which token.
"""

from __future__ import annotations

import errno
import glob
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from servematrix import folders

PROBLEMS: Final = ("gated", "missing", "revision", "disk", "nothing", "unreachable", "cut", "other")
"""`unreachable` and `cut` may go well the next time."""
_FORMS: Final = (("*.safetensors",), ("*.bin",), ("*.pt", "*.pth"), ("*.gguf",))
"""Of weights, those that SGLang prefers first."""
_OTHERS: Final = ("*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.ot", "*.tflite", "*.mlmodel")
"""Weights that SGLang never loads."""
_COPIES: Final = ("original/*", "consolidated*", "metal/*")
"""The same weights once more, as their makers keep them."""
_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def wanted(names: Sequence[str], weights: str, only: Sequence[str] = ()) -> list[str]:
    """The names of the files to download, of all that a repository has.

    >>> wanted(["config.json", "model.safetensors", "pytorch_model.bin"], "preferred")
    ['config.json', 'model.safetensors']
    """
    if only:
        return [name for name in names if _is(name, only)]
    left = [name for name in names if not _is(name, _OTHERS)]
    # a copy is the model itself where there is no other
    if weights != "all" and any(_is(name, sum(_FORMS, ())) for name in _without_copies(left)):
        left = _without_copies(left)
    if weights == "all":
        return left
    preferred = next((form for form in _FORMS if any(_is(name, form) for name in left)), ())
    taken = preferred if weights == "preferred" else ()
    return [name for name in left if _is(name, taken) or not _is(name, sum(_FORMS, ()))]


def _without_copies(names: Sequence[str]) -> list[str]:
    return [name for name in names if not _is(name, _COPIES)]


def _is(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def main() -> None:
    """Download what the request asks for, and write the answer."""
    request, answer = json.loads(sys.argv[1]), Path(sys.argv[2])
    folders.write_whole(answer, json.dumps(fetch(**request)))


def fetch(
    kind: str, name: str, revision: str, weights: str, only: Sequence[str]
) -> Mapping[str, Any]:
    """The answer to a request."""
    from huggingface_hub import HfApi, snapshot_download

    begun = False
    try:
        found: Any = HfApi().repo_info(name, repo_type=kind, revision=revision)
        names = wanted([one.rfilename for one in found.siblings or ()], weights, only)
        if not names:
            return {"problem": "nothing", "told": f"it has no file {' or '.join(only) or 'at all'}"}
        begun = True
        patterns = [glob.escape(one) for one in names]
        # by its name: a revision given as a commit would leave no trace of the name in the cache
        folder = Path(
            snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=patterns)
        )
        return {
            "commit": folder.name,
            "files": {one: (folder / one).stat().st_size for one in names},
        }
    except Exception as error:  # the hub's own, those of three HTTP libraries, and the system's
        return {"problem": problem_of(error, begun=begun), "told": _told(error)}


def problem_of(error: BaseException, *, begun: bool) -> str:
    """One of `PROBLEMS`; `begun` tells that the hub had answered before."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "gated"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "missing"
    if isinstance(error, errors.RevisionNotFoundError):
        return "revision"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return "gated"
    if any(isinstance(one, OSError) and one.errno in _DISK for one in _causes(error)):
        return "disk"
    # an HTTP library's errors, where they are no OSError; those of xet are RuntimeErrors
    by_http = type(error).__module__.partition(".")[0].startswith("httpx")
    if isinstance(error, OSError) or by_http or (begun and isinstance(error, RuntimeError)):
        return "cut" if begun else "unreachable"
    return "other"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _told(error: Exception) -> str:
    """What went wrong in one line: what the hub said where it did."""
    said = getattr(error, "server_message", None) or str(error) or type(error).__name__
    return f"{type(error).__name__}: {' '.join(str(said).split())}"


if __name__ == "__main__":
    main()
