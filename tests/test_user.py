"""Whose process this is, also where the system has no name for it."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator

import pytest

from servematrix import user


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    user.name.cache_clear()
    yield
    user.name.cache_clear()


def test_a_user_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    assert user.name() == "ada"


@pytest.mark.parametrize("refusal", [KeyError("no entry"), OSError("no entry")])
def test_one_without_a_name_is_told_by_number(
    monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    def refusing() -> str:
        raise refusal

    monkeypatch.setattr(getpass, "getuser", refusing)
    assert user.name() == str(os.getuid())
