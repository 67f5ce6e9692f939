"""The list of faults, and the configurations that come of it."""

from __future__ import annotations

import json

import pytest

from servematrix import config as configs
from servematrix.cli import main
from servematrix.config import ConfigError, Place
from servematrix.engines.reference.faults.catalogue import CATALOGUE, UnknownFaultError, parse
from servematrix.faults import cells, known
from servematrix.faults.known import KITS, Fault, Known

REFERENCE = Place("reference")


def test_every_fault_has_an_incident_and_something_that_must_catch_it():
    found = known.load()
    assert {fault.name for fault in found.fault} == set(CATALOGUE)
    assert len(CATALOGUE) >= 28
    assert len({fault.thread for fault in found.fault}) == len(CATALOGUE)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"name": "overlap-list"}, "did you mean 'overlap-lost'?"),
        ({"caught_by": ["fwd_ocupancy"]}, "did you mean 'fwd_occupancy'?"),
        ({"caught_by": []}, "caught_by"),
        ({"thread": "somewhere"}, "thread"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_is_wrong_with_a_fault_is_told(changed, told):
    raw = {"name": "overlap-lost", "incident": "x", "thread": "a/b#1", "caught_by": ["launch"]}
    assert configs.checked(Fault, raw, "here").kits == KITS[:1]
    with pytest.raises(ConfigError, match="here") as problem:
        configs.checked(Fault, raw | changed, "here")
    assert told in str(problem.value)


def test_a_fault_that_is_missing_is_told():
    raw = known.load().model_dump()
    raw["fault"].pop()
    with pytest.raises(ConfigError, match="stands here 0 times"):
        configs.checked(Known, raw, "here")


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["overlap-lost"], {"overlap-lost": 0.0}),
        (["errors"], {"errors": 0.01}),
        (
            ["errors=0.5,gauge-nan", "hang-above=9"],
            {"errors": 0.5, "gauge-nan": 0, "hang-above": 9},
        ),
        ([], {}),
    ],
)
def test_faults_are_named_with_or_without_a_value(texts, found):
    assert parse(texts) == found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("eror", "there are: overlap-lost"),
        ("errrors", "did you mean errors?"),
        ("overlap-lost=2", "takes no value"),
        ("errors=many", "is no number"),
        ("errors=-1", "is no number"),
        ("errors=nan", "is no number"),
    ],
)
def test_a_fault_that_is_not_there_is_told(text, told):
    with pytest.raises(UnknownFaultError, match="fault") as problem:
        parse([text])
    assert told in str(problem.value)


def test_each_fault_becomes_a_configuration_with_a_cell_for_each_kit(tmp_path, configs_directory):
    found = known.load()
    folder = tmp_path / "configs"
    cells.write(folder, found, found.fault, configs_directory, quick=False, healthy=25)
    assert set(configs.names(folder)) == {*CATALOGUE, *cells.HEALTHY}
    errors = configs.load(folder, "errors")
    assert errors.axis == {"kit": list(KITS)}
    one = configs.resolve(errors, {"kit": "hellaswag"}, REFERENCE)
    assert (one.suites, one.arguments["fault"]) == (["only_hellaswag"], "errors")
    assert configs.load(folder, "start-slow").axis == {"kit": [KITS[0]]}
    runs = [len(configs.load(folder, name).axis["run"]) for name in cells.HEALTHY]
    assert sum(runs) == 25
    assert all("fault" not in configs.load(folder, name).arguments for name in cells.HEALTHY)


def test_a_quick_matrix_has_one_cell_for_each_fault(tmp_path, configs_directory):
    found = known.load()
    cells.write(tmp_path / "c", found, found.fault, configs_directory, quick=True, healthy=0)
    for fault in found.fault:
        (kits,) = configs.load(tmp_path / "c", fault.name).axis.values()
        assert len(kits) == 1
    assert configs.load(tmp_path / "c", "looping").axis == {"kit": ["decode_correctness"]}


def test_the_faults_are_listed_with_the_incidents(capsys):
    assert main(["faults"]) == 0
    shown = capsys.readouterr().out
    assert "sgl-project/sglang#14096" in shown
    assert main(["faults", "errors", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["value"], row["caught_by"]) == (0.01, ["scheduler_stress"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing"], "there are: overlap-lost"),
        (["--run", "--matrix", "x"], "leave one out"),
        (["--json", "--markdown"], "leave one out"),
        (["--matrix", "nowhere"], "cannot read nowhere"),
    ],
)
def test_bad_usage_is_told(capsys, arguments, told):
    assert main(["faults", *arguments]) == 4
    assert told in capsys.readouterr().err
