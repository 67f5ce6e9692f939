"""`servematrix replay`: its options, and the way from files to verdicts and an exit status."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from servematrix import config as configs
from servematrix.config import ConfigError
from servematrix.exit_codes import Exit
from servematrix.redaction import Secrets
from servematrix.replay import judging, reading
from servematrix.replay.judging import Judged, Settings
from servematrix.replay.reading import Items, RecordingError
from servematrix.terminal import line, say

_ENGINE = "sglang"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="recordings, plain or gzip")
    add("--baseline", type=Path, metavar="FILE", help="HellaSwag items to compare with")
    add("--accept", metavar="NAME", help="a change of numerics that is wanted, such as 'fp8 KV'")
    add("--config", metavar="NAME", help="whose limits; without it the kits' own")
    add("--engine", choices=configs.LAUNCHED, help=f"for its overrides ({_ENGINE})")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a limit")


def replay(options: argparse.Namespace) -> Exit:
    """Judge every file and print the verdicts; one that cannot be judged keeps no other from it.

    The last line and what is wrong with files go to stderr, so that stdout is verdicts alone.
    """
    settings = _settings(options)
    baseline = _baseline(options)
    counts: Counter[str] = Counter()
    unread = 0
    for path in options.files:
        try:
            for one in _judged(path, baseline, options, settings):
                counts[one.verdict.outcome] += 1
                print(_json(one, settings) if options.json else _line(one), flush=True)
        except RecordingError as problem:
            unread += 1
            say(str(problem))
    status = _status(counts, unread)
    told = [f"{number} {name}" for name, number in sorted(counts.items())]
    if unread:
        told.append(f"{unread} of {len(options.files)} files not judged")
    say(f"exit {int(status)} ({status.meaning}): {', '.join(told)}; limits: {settings.source}")
    return status


def _settings(options: argparse.Namespace) -> Settings:
    if options.config is None:
        for name in ("engine", "set", "configs"):
            if getattr(options, name):
                raise ConfigError(f"--{name} is about a configuration: name it with --config NAME")
        return Settings()
    folder = configs.find_directory(Path.cwd(), options.configs, shipped=True)
    return Settings.of(folder, options.config, options.engine or _ENGINE, options.set)


def _baseline(options: argparse.Namespace) -> Items | None:
    if options.baseline is None:
        if options.accept is not None:
            raise ConfigError("--accept is about a comparison: name the other run with --baseline")
        return None
    if options.accept is not None and not options.accept.strip():
        raise ConfigError("--accept: the change has a name, such as 'fp8 KV cache'")
    found = reading.read(options.baseline)
    if not isinstance(found, Items):
        raise RecordingError(
            f"--baseline {options.baseline}: holds {found.form}; expected HellaSwag items, the only"
            " recordings that are compared"
        )
    return found


def _judged(
    path: Path, baseline: Items | None, options: argparse.Namespace, settings: Settings
) -> Iterator[Judged]:
    recording = reading.read(path)
    if baseline is None:
        return judging.judge(path, recording, settings)
    if not isinstance(recording, Items):
        raise RecordingError(
            f"{path}: holds {recording.form}; expected HellaSwag items like --baseline"
            f" {options.baseline}, or replay it without a baseline"
        )
    return judging.compare(path, baseline, recording, options.accept)


def _json(one: Judged, settings: Settings) -> str:
    verdict = one.verdict
    row = {
        "file": str(one.file),
        "request": one.request,
        "gate": one.gate,
        "verdict": verdict.outcome,
        "reason": verdict.reason,
        "rule": verdict.rule,
        "numbers": verdict.numbers,
        "alpha": verdict.alpha,
        "power": verdict.power,
        "limits": settings.source,
    }
    return json.dumps(Secrets().plain(row), allow_nan=False)


def _line(one: Judged) -> str:
    request = "" if one.request is None else f", request {one.request}"
    return line(f"{one.verdict.outcome}: {one.gate}: {one.file}{request}: {one.verdict.reason}")


def _status(counts: Counter[str], unread: int) -> Exit:
    if unread:
        return Exit.USAGE
    if counts["fail"] or counts["error"]:
        return Exit.FAILED
    if counts["inconclusive"] or not counts["pass"]:
        return Exit.INCONCLUSIVE
    return Exit.PASSED
