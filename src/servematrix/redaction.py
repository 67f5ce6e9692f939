"""What is secret, and how it is kept out of everything that a run shows or leaves.

A name tells that a value is secret: that of an environment variable, or of a flag of the server.
Values are then searched for in whatever is written, in the spellings that programs give them. Only
the standard library is imported; the guard of a server runs this in a process of its own.
"""

from __future__ import annotations

import base64
import html
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote, quote_plus, unquote, urlsplit

MARK = "***"
SHORTEST_INHERITED = 8
"""Characters of a variable that nobody named to us from which it counts: `FEATURE_KEY=on` would
blank half of every text."""
SHORTEST_PASSWORD = 4
"""Characters of a URL's password from which it counts without its user too."""
SHORTEST_BEGINNING = 8
"""Characters of a secret's beginning that are taken out where a text was cut within the secret."""
CUT = "…"
"""Stands where a text was cut."""

_WORDS = "SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL"
_VARIABLE = re.compile(rf"{_WORDS}|(TOKEN|KEY)(_|$)", re.IGNORECASE)
_PLACE = re.compile(r"_(PATH|FILE|DIR)$", re.IGNORECASE)
_FLAG = re.compile(rf"{_WORDS}|(TOKEN|KEY)$", re.IGNORECASE)
_USERINFO = re.compile(r"""(?<=://)[^\s/?#"'<>]*@""")
_BASE64_NOISE = 8
"""Characters below which a piece of base64 is found in any text."""


def is_secret(variable: str) -> bool:
    """Whether the name of an environment variable says that its value is secret.

    >>> is_secret("HF_TOKEN"), is_secret("SGLANG_MAX_NEW_TOKENS"), is_secret("HF_TOKEN_PATH")
    (True, False, False)
    """
    return _VARIABLE.search(variable) is not None and not _PLACE.search(variable)


def is_secret_flag(name: str) -> bool:
    """Whether the name of a server's argument, with dashes or underscores, says so.

    >>> is_secret_flag("admin-api-key"), is_secret_flag("speculative-token-map")
    (True, False)
    """
    return _FLAG.search(name) is not None


def of_variables(variables: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names and secret values of an environment that is inherited: by name, and within URLs.

    A proxy or a package index is often `https://user:password@host`.
    """
    for name, value in variables.items():
        if is_secret(name) and len(value) >= SHORTEST_INHERITED:
            yield name, value
        for secret in credentials(value):
            yield name, secret


def credentials(text: str) -> list[str]:
    """User and password of a URL, and the password alone; empty where a text is no such URL."""
    if "://" not in text or "@" not in text:
        return []
    try:
        parts = urlsplit(text)
    except ValueError:
        return []
    userinfo, _, _ = parts.netloc.rpartition("@")
    password = userinfo.partition(":")[2]
    if not password:
        return []
    alone = {password, unquote(password)}
    return [userinfo, unquote(userinfo), *(one for one in alone if len(one) >= SHORTEST_PASSWORD)]


def within_json(text: str) -> list[str]:
    """Secret values in a JSON object, as some flags of servers take; empty for any other text."""
    if not text.lstrip().startswith("{"):
        return []
    pairs: list[tuple[str, object]] = []
    try:
        json.loads(text, object_pairs_hook=pairs.extend)
    except (ValueError, RecursionError):
        return []
    return [value for name, value in pairs if is_secret_flag(name) and isinstance(value, str)]


def without_credentials(text: str) -> str:
    """A text in which no URL has a user or a password.

    >>> without_credentials("cannot reach https://me:hunter2@host/v1")
    'cannot reach https://***@host/v1'
    """
    return _USERINFO.sub(f"{MARK}@", text)


def spellings(value: str) -> set[str]:
    """A value as it is, and as JSON, Python, URLs, HTML and base64 write it; empty for none."""
    if not value:
        return set()
    raw = os.fsencode(value)
    quoted = {quote(raw), quote(raw, safe=""), quote_plus(raw)}
    return {
        value,
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        repr(value)[1:-1],
        html.escape(value),
        *quoted,
        *(re.sub("%..", lambda match: match.group().lower(), one) for one in quoted),
        *_within_base64(raw),
    }


def _within_base64(raw: bytes) -> Iterator[str]:
    """What base64 makes of a value wherever it stands in what is encoded, such as `user:key`.

    Three bytes become four characters, so there are three ways; characters that depend on what
    stands before or behind are left out.
    """
    for before in range(3):
        written = base64.b64encode(b"\0" * before + raw).decode().rstrip("=")
        own = written[-(-8 * before // 6) : (before + len(raw)) * 8 // 6]
        if len(own) >= _BASE64_NOISE:
            yield own
            yield own.replace("+", "-").replace("/", "_")


class Secrets:
    """Values that must not be shown: `***` takes their place in texts, and in data for JSON.

    The user and password of any URL are taken out as well.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._spellings: list[str] = []
        self._heads: set[str] = set()
        self.add(values)

    @classmethod
    def inherited(cls, variables: Mapping[str, str] = os.environ) -> Secrets:
        """The secrets of this process's environment."""
        return cls(value for _, value in of_variables(variables))

    def add(self, values: Iterable[str]) -> None:
        """Hide these values too."""
        known = {*self._spellings, *(one for value in values for one in spellings(value))} - {MARK}
        # the longest first, so that no secret survives as the rest of a shorter one
        self._spellings = sorted(known, key=len, reverse=True)
        long = (one for one in known if len(one) > SHORTEST_BEGINNING)
        self._heads = {one[:SHORTEST_BEGINNING] for one in long}

    def redact(self, text: str) -> str:
        """A text without any of the values, nor the beginning of one where the text was cut."""
        if "@" in text:
            text = without_credentials(text)
        for one in self._spellings:
            if one in text:
                text = text.replace(one, MARK)
        if any(head in text for head in self._heads):
            text = CUT.join(map(self._without_beginning, text.split(CUT)))
        return text

    def plain(self, value: object) -> object:
        """A value as JSON has it: what it has no form for as text, and every text redacted."""
        if isinstance(value, float):
            return value if math.isfinite(value) else repr(value)
        if value is None or isinstance(value, bool | int):
            return value
        if isinstance(value, Mapping):
            return {self.redact(str(key)): self.plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.plain(item) for item in value]
        return self.redact(str(value))

    def _without_beginning(self, part: str) -> str:
        """A part of a text that may have been cut at its end, within a secret."""
        longest = len(self._spellings[0])
        for start in range(max(0, len(part) - longest), len(part) - SHORTEST_BEGINNING + 1):
            if part[start : start + SHORTEST_BEGINNING] in self._heads:
                end = part[start:]
                if any(one.startswith(end) for one in self._spellings):
                    return part[:start] + MARK
        return part
