"""The embedded server through the same door as a real one."""

from __future__ import annotations

from typing import Any

import pytest

from servematrix.engines.base import ServerFailed
from servematrix.engines.embedded import EmbeddedEngine


def test_it_starts_and_says_what_it_is(fakes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret-key")
    arguments = {"cuda-graph-max-bs": 4, "enable-metrics": True}
    engine = EmbeddedEngine("a test")
    launch = fakes.launch(arguments=arguments, api_key_env="MY_KEY")
    engine.prepare(launch, print)
    server = engine.start(launch)
    try:
        assert list(server.versions()) == ["reference"]
        assert server.died() is None
    finally:
        server.stop()
    assert not fakes.processes()


def test_a_flag_that_it_does_not_know_ends_it(fakes: Any) -> None:
    with pytest.raises(ServerFailed) as failure:
        EmbeddedEngine("a test").start(fakes.launch(arguments={"no-such-flag": 1}))
    assert "the reference server of fake[1] died after" in str(failure.value)
    assert "exit status 2" in str(failure.value)
    assert "--no-such-flag" in str(failure.value)
