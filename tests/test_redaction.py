"""What counts as secret, and that none of its spellings is left in a text."""

from __future__ import annotations

import base64
import html
import json
import string
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servematrix.redaction import (
    MARK,
    Secrets,
    credentials,
    is_secret,
    is_secret_flag,
    of_variables,
    spellings,
)

ANY_KEY = st.text(string.printable.strip() + "é/+ü ", min_size=12, max_size=40)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("HF_TOKEN", True),
        ("HUGGING_FACE_HUB_TOKEN", True),
        ("hf_token", True),
        ("OPENAI_API_KEY", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("AWS_ACCESS_KEY_ID", True),
        ("DB_PASSWORD", True),
        ("APIKEY", True),
        # settings of servers, whose values would blank the numbers of every text
        ("TOKENIZERS_PARALLELISM", False),
        ("SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION", False),
        ("HF_TOKEN_PATH", False),
        ("KEYBOARD", False),
        ("PATH", False),
    ],
)
def test_names_of_secret_variables(name: str, secret: bool) -> None:
    assert is_secret(name) is secret


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("api-key", True),
        ("admin_api_key", True),
        ("ssl-keyfile-password", True),
        ("ssl-keyfile", False),
        ("speculative-token-map", False),
        ("max-total-tokens", False),
        ("tokenizer-path", False),
    ],
)
def test_names_of_secret_flags(name: str, secret: bool) -> None:
    assert is_secret_flag(name) is secret


@given(key=ANY_KEY, before=st.binary(max_size=5), after=st.binary(max_size=5))
def test_no_spelling_of_a_key_is_left(key: str, before: bytes, after: bytes) -> None:
    secrets = Secrets([key])
    written = [
        key,
        json.dumps(key),
        json.dumps(key, ensure_ascii=False),
        repr(key),
        quote(key),
        quote(key, safe=""),
        quote_plus(key),
        html.escape(key),
    ]
    for one in written:
        assert secrets.redact(f"<{one}>").strip("<\"'>") == MARK
    # in base64 the characters at the borders are made of others too
    within = base64.b64encode(before + key.encode() + after).decode()
    told = secrets.redact(within)
    assert MARK in told
    assert max(map(len, told.split(MARK))) <= 4 * (len(before + after) + 4) / 3


@given(key=ANY_KEY, length=st.integers(8, 11), text=st.text(max_size=20))
def test_a_key_that_was_cut_off_is_not_left(key: str, length: int, text: str) -> None:
    secrets = Secrets([key])
    for end in ("", "… (1,234 characters)"):
        assert key[:length] not in secrets.redact(f"{text} {key[:length]}{end}")


def test_what_only_looks_like_a_beginning_is_left() -> None:
    secrets = Secrets(["servematrix-key-1"])
    assert secrets.redact("in servematrix now… and servematrix again") == (
        "in servematrix now… and servematrix again"
    )


def test_no_url_has_a_password() -> None:
    secrets = Secrets()
    assert secrets.redact("GET http://me:p@ss@host:80/x?a=b@c") == "GET http://***@host:80/x?a=b@c"
    assert secrets.redact("me@example.org, http://host/@x") == "me@example.org, http://host/@x"


def test_credentials_of_a_url() -> None:
    found = credentials("https://me:pa%2Fss@host/simple")
    assert set(found) == {"me:pa%2Fss", "me:pa/ss", "pa%2Fss", "pa/ss"}
    for other in ("https://me@host", "https://host/a@b", "me:secret@host", "http://[::1", ""):
        assert credentials(other) == []


def test_secrets_that_are_inherited() -> None:
    found = dict(
        of_variables(
            {"A_KEY": "long-enough", "B_KEY": "on", "X": "http://me:hunter2@proxy", "Y": "harmless"}
        )
    )
    assert found == {"A_KEY": "long-enough", "X": found["X"]}
    assert found["X"] in ("me:hunter2", "hunter2")


def test_data_is_redacted_wherever_it_has_text() -> None:
    plain = Secrets(["hunter2-hunter2"]).plain(
        {"hunter2-hunter2": [("x", "is hunter2-hunter2"), float("nan")], "n": 2, "t": True}
    )
    assert plain == {"***": [["x", "is ***"], "nan"], "n": 2, "t": True}


def test_an_empty_value_is_no_secret() -> None:
    assert spellings("") == set()
    assert Secrets(["", "x"]).redact("a text") == "a te***t"


def test_a_secret_may_be_learnt_later() -> None:
    secrets = Secrets(["one-secret"])
    secrets.add(["another-one"])
    assert secrets.redact("one-secret, another-one") == "***, ***"
