"""The pytest plugin: configurations become cells, cells become servers, verdicts become records.

It does nothing in a pytest run that neither collects a suite nor names a configuration.
"""

from __future__ import annotations

from typing import Any

import pytest

from servematrix.options import OPTIONS
from servematrix.suite import SESSION, suite_of

# any of these asks for a run of the matrix
_TELLTALE = (
    "servematrix_config",
    "servematrix_set",
    "base_url",
    "server_python",
    "sglang",
    "gpus",
    "model",
    "resume",
    "shard",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the matrix."""
    group = parser.getgroup("servematrix", "servematrix: a test matrix for LLM servers")
    for name, settings in OPTIONS:
        group.addoption(name, **settings)


def pytest_configure(config: pytest.Config) -> None:
    """Resolve what was asked for before anything is collected or started."""
    config.addinivalue_line("markers", "suite(name): a suite that configurations name in `suites`")
    option = config.option
    if (
        option.help
        or option.version
        or option.markers
        or not any(getattr(option, name) for name in _TELLTALE)
    ):
        return
    from servematrix.interrupts import end_in_good_order, end_with

    worker: dict[str, Any] | None = getattr(config, "workerinput", None)
    # before all that takes long to import
    if worker is None:
        end_in_good_order()
    else:
        end_with(worker["servematrix_controller"])
    from servematrix import fixtures, run
    from servematrix.config import ConfigError
    from servematrix.engines.base import EnvironmentProblem
    from servematrix.records import RecordsError
    from servematrix.session import MatrixSession
    from servematrix.terminal import shown

    try:
        config.pluginmanager.register(MatrixSession(config), SESSION)
        config.pluginmanager.register(fixtures)
    except (ConfigError, EnvironmentProblem, RecordsError) as problem:
        secrets = run.secrets(option.servematrix_set, option.api_key_env)
        raise pytest.UsageError(shown(secrets.redact(str(problem)))) from problem


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """`-n auto` is a worker for each visible GPU; without a GPU, or a matrix, xdist decides."""
    if not config.option.servematrix_config:
        return None
    from servematrix import gpus
    from servematrix.engines.base import EnvironmentProblem

    try:
        return len(gpus.visible()) or None
    except EnvironmentProblem as problem:
        raise pytest.UsageError(str(problem)) from problem


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse to run a suite when nobody said which server it is for."""
    if config.pluginmanager.has_plugin(SESSION):
        return
    suites = [item for item in items if suite_of(getattr(item, "cls", None)) is not None]
    if not suites:
        return
    from servematrix import config as configs

    directory = configs.find_directory(config.rootpath, config.option.servematrix_configs)
    raise pytest.UsageError(
        f"{suites[0].nodeid}: say which server to test: --config NAME, one of "
        f"{', '.join(configs.names(directory))}, or all"
    )
