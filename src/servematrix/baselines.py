"""Baselines: what repeats of one healthy server measured, in a file that later runs are held to.

`<root>/<cell>/<hardware>.json` has the numbers of N runs with everything that says which server
they are of, and `<hardware>.items.json.gz` beside it the HellaSwag items of one of them. Files are
written by `servematrix calibrate` and by nobody else: each top-level key has its checksum, and a
file in which one does not match is refused.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from servematrix import config as configs
from servematrix import outside
from servematrix.config import ConfigError, Scalar
from servematrix.gates import throughput
from servematrix.records import RecordsError, file_name
from servematrix.redaction import is_secret

FORMAT: Final = 1
_BAND: Final = {"bound", "unit", "better"}
FOLDER: Final = "baselines"
"""Beside `configs/`."""
TESTS: Final[Mapping[str, str]] = {
    name: "hellaswag.test_accuracy_floor"
    if name == "accuracy"
    else "fwd_occupancy.test_fwd_occupancy"
    for name in throughput.QUANTITIES
}
"""The test, as `kit.test`, whose verdict has each quantity; others have numbers of that name."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
Quantity = Annotated[str, Field(pattern=f"^({'|'.join(throughput.QUANTITIES)})$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class BaselineError(RecordsError):
    """A baseline cannot be read or written, or is not as it was written; says which file, why."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Provenance(_Table):
    """Which server the runs are of, and when they were made (ISO 8601)."""

    cell: str
    parameters: dict[str, Scalar]
    engine: str
    simulated: bool
    versions: dict[str, str]
    hardware: str
    gpus: list[str]
    """Names of the GPUs that the server had."""
    drivers: list[str]
    model: str
    dtype: str
    commits: list[str]
    first: str
    last: str
    runs: list[str] = Field(min_length=throughput.FEWEST_RUNS)


class Scoring(_Table):
    """How HellaSwag was scored: data, counts of items, and what the log-probabilities are of."""

    checksum_questions: Sha256
    checksum_shots: Sha256
    items: int = Field(ge=1)
    shots: int = Field(ge=0)
    method: str


class Threshold(_Table):
    """A prediction bound of the next run; None where all runs were alike."""

    unit: str
    better: Literal["higher", "lower"]
    bound: Finite | None
    alpha: Finite = Field(gt=0, lt=0.5)
    extrapolated: bool


class KnownBad(_Table):
    """A run of a broken server: its numbers beyond the thresholds, and the gates on items it fails.

    There is at least one of either.
    """

    run: str
    beyond: dict[str, Finite]
    failed: list[str]


class Items(_Table):
    """The file beside this one with the HellaSwag items of one run, and the sha256 of its bytes."""

    file: str = Field(pattern=r"^[^/]+$")
    sha256: Sha256
    run: str


class Baseline(_Table):
    """The content of a baseline file."""

    format: int = Field(ge=1, le=FORMAT)
    provenance: Provenance
    serving: dict[str, Any]
    """Model, arguments, environment and kit settings: what a later run must share."""
    serving_digest: Sha256
    scoring: Scoring | None
    distributions: dict[Quantity, list[Finite]]
    """Values by quantity, one for each of `provenance.runs`."""
    assumption: str
    thresholds: dict[Quantity, Threshold] = Field(min_length=1)
    known_bad_checked: list[KnownBad]
    items: Items | None
    checksums: dict[str, Sha256]

    @property
    def alpha(self) -> float:
        """The risk of each threshold; one for all."""
        return next(iter(self.thresholds.values())).alpha


def serving(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the numbers in a configuration: all but its gates, and no secret of it.

    A fault of the embedded server is left out: it is what such a server is to be caught with.

    Takes a configuration as records have it, and as `model_dump(exclude_none=True)` gives it.
    """
    environment = configuration.get("environment", {})
    arguments = configuration.get("arguments", {})
    kept = {
        "model": configuration["model"],
        "arguments": {name: arguments[name] for name in arguments if name != "fault"},
        "environment": {k: v for k, v in environment.items() if not is_secret(k)},
        "kits": {kit: values for kit, values in configuration.get("kits", {}).items() if values},
    }
    plain: dict[str, Any] = json.loads(_canonical(kept))
    return plain


def digest(value: object) -> str:
    """sha256 over a value's canonical JSON."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def hardware(engine: str, gpus: Sequence[str]) -> str:
    """What a server ran on, as a file's name: its GPUs, or the engine where it had none.

    >>> hardware("sglang", ["NVIDIA H200"])
    'nvidia-h200'
    """
    if not gpus:
        return file_name(engine)
    count = f"{len(gpus)}x-" if len(gpus) > 1 else ""
    return file_name(count + "+".join(sorted(set(gpus)))).lower()


def place(root: Path, cell: str, on: str) -> Path:
    """The file of a cell's baseline on this hardware."""
    return root / file_name(cell) / f"{on}.json"


def write(path: Path, content: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] | None) -> None:
    """Write a baseline, and its items beside it; `content` is one without items and checksums."""
    items = None
    packed = gzip.compress(json.dumps(rows).encode(), mtime=0)
    beside = path.with_name(f"{path.stem}.items.json.gz")
    if rows is not None:
        sha256 = hashlib.sha256(packed).hexdigest()
        items = {"file": beside.name, "sha256": sha256, "run": content["provenance"]["runs"][0]}
    whole: dict[str, Any] = {"format": FORMAT, **content, "items": items}
    whole["checksums"] = {key: digest(value) for key, value in whole.items()}
    _checked(whole, path)
    written = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if rows is not None:
            beside.write_bytes(packed)
        else:
            beside.unlink(missing_ok=True)
        written.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        written.replace(path)
    except OSError as error:
        raise BaselineError(f"cannot write {path}: {error.strerror}") from error


def load(path: Path) -> Baseline:
    """Read a baseline; BaselineError names file and key where it is not as it was written."""
    try:
        raw = json.loads(outside.raw(path))
    except (OSError, ValueError, RecursionError) as error:
        raise BaselineError(f"cannot read {path}: {error}") from error
    if isinstance(raw, dict) and isinstance(raw.get("format"), int) and raw["format"] > FORMAT:
        raise BaselineError(
            f"{path}: key 'format': written by a newer servematrix ({raw['format']}, this one reads"
            f" up to {FORMAT}); install that version to read it"
        )
    baseline = _checked(raw, path)
    for key in Baseline.model_fields:
        if key != "checksums" and baseline.checksums.get(key) != digest(raw[key]):
            raise BaselineError(
                f"{path}: key {key!r}: not as it was written, its checksum differs; a baseline is"
                " never edited by hand, calibrate again or restore the file"
            )
    return baseline


def rows(path: Path, baseline: Baseline) -> list[dict[str, Any]] | None:
    """The HellaSwag items of a baseline; None where it has none."""
    if baseline.items is None:
        return None
    beside = path.with_name(baseline.items.file)
    try:
        packed = outside.raw(beside)
    except (OSError, ValueError) as error:
        raise BaselineError(f"{path}: key 'items': cannot read {beside}: {error}") from error
    if hashlib.sha256(packed).hexdigest() != baseline.items.sha256:
        raise BaselineError(
            f"{path}: key 'items.sha256': {beside} is not as it was written; calibrate again or"
            " restore the file"
        )
    try:
        found: list[dict[str, Any]] = json.loads(outside.unpacked(packed))
    except (OSError, ValueError, EOFError, RecursionError, zlib.error) as error:
        raise BaselineError(f"{path}: key 'items': cannot read {beside}: {error}") from error
    return found


@dataclass(frozen=True)
class Found:
    """The baseline that a cell is held to, and its items, None where it has none."""

    path: Path
    baseline: Baseline
    rows: Sequence[Mapping[str, Any]] | None

    def attributes(self) -> dict[str, Any]:
        """Kit attributes, as `config.attributes` gives those of a configuration."""
        values = self.baseline.distributions
        kept: dict[str, Any] = {
            "fwd_occupancy_baseline": throughput.Baseline(values, self.baseline.alpha)
        }
        if self.rows is not None:
            kept["hellaswag_baseline"] = self.rows
        return kept

    def record(self) -> dict[str, str]:
        """What a run's records say of it."""
        content = self.baseline.model_dump(mode="json")
        return {"file": str(self.path), "sha256": digest(content["checksums"])}

    def band(self) -> dict[str, dict[str, Any]]:
        """What its runs measured, by quantity: values, bound, unit and which way is better."""
        thresholds = self.baseline.thresholds
        return {
            name: {"values": values, **thresholds[name].model_dump(include=_BAND)}
            for name, values in self.baseline.distributions.items()
            if name in thresholds
        }

    def described(self) -> str:
        """One line for people: where it stands, of what, and its thresholds."""
        provenance = self.baseline.provenance
        versions = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
        limits = [
            f"{name} {'≥' if one.better == 'higher' else '≤'} {one.bound:.4g}"
            for name, one in self.baseline.thresholds.items()
            if one.bound is not None and throughput.QUANTITIES[name].judged
        ]
        shown = ", ".join(limits) or "none, all runs alike"
        beyond = (
            ", extrapolated"
            if any(one.extrapolated for one in self.baseline.thresholds.values())
            else ""
        )
        return (
            f"baseline {self.path}: {len(provenance.runs)} runs of {provenance.cell} on"
            f" {versions or provenance.engine}, {provenance.hardware},"
            f" {provenance.first[:10]}; thresholds (risk {self.baseline.alpha:g}{beyond}): {shown}"
            f"{'; HellaSwag item by item' if self.rows is not None else ''}"
        )

    def changed(self, versions: Mapping[str, str], drivers: Sequence[str]) -> str | None:
        """What has changed since the baseline and need not matter; None where nothing has."""
        then = self.baseline.provenance
        told = []
        if dict(versions) != then.versions:
            told.append(f"server {_listed(versions)}, baseline {_listed(then.versions)}")
        if sorted(set(drivers)) != then.drivers:
            told.append(
                f"driver {', '.join(sorted(set(drivers))) or 'none'}, baseline"
                f" {', '.join(then.drivers) or 'none'}"
            )
        return "; ".join(told) or None


def find(root: Path, cell: str, on: str, configuration: Mapping[str, Any]) -> Found | str | None:
    """The baseline of a cell on this hardware; None where there is no file.

    A text says why the one there does not apply: it is of another configuration. BaselineError
    where it is damaged.
    """
    path = place(root, cell, on)
    if not path.exists():
        return None
    found = at(path)
    now = serving(configuration)
    if digest(now) != found.baseline.serving_digest:
        told = "; ".join(differences(found.baseline.serving, now))
        return f"baseline {path} is not used, it is of another configuration: {told}"
    return found


def at(path: Path) -> Found:
    """The baseline in a file, with its items; BaselineError where one is damaged."""
    baseline = load(path)
    return Found(path, baseline, rows(path, baseline))


def differences(
    one: Mapping[str, Any],
    other: Mapping[str, Any],
    at: str = "",
    *,
    places: tuple[str, str] = ("there", "here"),
) -> list[str]:
    """Where two nested tables differ, a clause each: `arguments.dtype: auto there, half here`."""
    told: list[str] = []
    for key in sorted({*one, *other}):
        name = f"{at}{key}"
        was, now = one.get(key, "not set"), other.get(key, "not set")
        if isinstance(was, Mapping) or isinstance(now, Mapping):
            # a table that only one side has differs key by key too
            was, now = one.get(key, {}), other.get(key, {})
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            told += differences(was, now, f"{name}.", places=places)
        elif was != now:
            told.append(f"{name}: {was} {places[0]}, {now} {places[1]}")
    return told


def _checked(raw: Any, path: Path) -> Baseline:
    try:
        return configs.checked(Baseline, raw, str(path))
    except ConfigError as error:
        raise BaselineError(str(error)) from error


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "unknown"
