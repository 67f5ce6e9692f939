"""A log that is bounded and holds no secret, whatever the borders of its chunks."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servematrix.engines.log import BoundedLog, Redactor, last_lines

TEXTS = st.text("abx\n", max_size=60)


def fed(redactor: Redactor, data: bytes, cuts: list[int]) -> bytes:
    borders = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(borders)]
    return b"".join([redactor.feed(piece) for piece in pieces] + [redactor.close()])


@given(before=TEXTS, after=TEXTS, cuts=st.lists(st.integers(0, 500)))
def test_a_secret_is_redacted_wherever_the_chunks_end(
    before: str, after: str, cuts: list[int]
) -> None:
    data = f"{before}S3CRET{after}S3CRET".encode()
    expected = f"{before}<KEY redacted>{after}<KEY redacted>".encode()
    assert fed(Redactor([("KEY", "S3CRET")]), data, cuts) == expected


@given(text=st.text("abc", max_size=40), cuts=st.lists(st.integers(0, 500)))
def test_no_secret_is_left_where_secrets_overlap(text: str, cuts: list[int]) -> None:
    secrets = {"ONE": "abab", "TWO": "ababab", "THREE": "bca"}
    told = fed(Redactor(secrets.items()), text.encode(), cuts).decode()
    assert not [value for value in secrets.values() if value in told]


@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 500)))
def test_without_a_secret_nothing_changes(data: bytes, cuts: list[int]) -> None:
    assert fed(Redactor([("UNSET", "")]), data, cuts) == data


def test_other_spellings_of_a_secret_are_redacted() -> None:
    value = 'pass"word/ü\\x'
    redactor = Redactor([("KEY", value)])
    for spelling in (value, json.dumps(value), repr(value), "pass%22word%2F%C3%BC%5Cx"):
        told = redactor.feed(spelling.encode()) + redactor.close()
        assert told.strip(b"\"'") == b"<KEY redacted>"


def test_a_secret_that_is_cut_off_is_redacted() -> None:
    redactor = Redactor([("KEY", "hunter2hunter2")])
    assert redactor.feed(b"key: hunter2hun") == b"key: "
    assert redactor.close() == b"<KEY redacted>"
    assert redactor.feed(b"such a hu") + redactor.close() == b"such a hu"


def test_what_cannot_be_a_secret_is_not_held_back() -> None:
    redactor = Redactor([("KEY", "hunter2")])
    assert redactor.feed(b"the server is ready\n") == b"the server is ready\n"


def test_a_log_keeps_its_head_and_its_tail(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    log = BoundedLog(path, 4096)
    lines = [f"line {number}\n".encode() for number in range(5000)]
    for line in lines:
        log.write(line)
        assert path.stat().st_size <= 4096
    log.close()
    kept = path.read_bytes()
    head, _, rest = kept.partition(b"\n[... ")
    left_out, _, tail = rest.partition(b" bytes left out ...]\n")
    whole = b"".join(lines)
    assert whole.startswith(head)
    assert whole.endswith(tail)
    assert len(head) + int(left_out) + len(tail) == len(whole)
    assert len(head) == 1024
    assert len(tail) >= 2048
    assert list(tmp_path.iterdir()) == [path]


def test_one_chunk_may_be_larger_than_the_log(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    log = BoundedLog(path, 1024)
    log.write(b"a" * 10_000 + b"the end")
    log.close()
    assert path.stat().st_size <= 1024
    assert path.read_bytes().endswith(b"the end")


def test_a_short_log_is_kept_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    log = BoundedLog(path, 1024)
    log.write(b"ready\n")
    log.close()
    assert path.read_bytes() == b"ready\n"


def test_a_full_disk_loses_output_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    log = BoundedLog(path, 4096)

    class Full:
        def write(self, _: bytes) -> int:
            raise OSError(28, "No space left on device")

    file, log._file = log._file, Full()  # type: ignore[assignment]
    log.write(b"lost")
    log._file = file
    log.write(b"found\n")
    log.close()
    assert path.read_text() == "\n[... 4 bytes lost, the disk was full ...]\nfound\n"


def test_a_log_that_cannot_be_shortened_stays_bounded(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    path = folder / "server.log"
    log = BoundedLog(path, 1024)
    path.unlink()
    folder.rmdir()
    for _ in range(100):
        log.write(b"x" * 100)
    assert log._size <= 1024
    log.close()


def test_a_limit_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too small"):
        BoundedLog(tmp_path / "server.log", 100)


def test_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    assert last_lines(path, 3) == ""
    path.write_bytes(b"one\ntwo\nthree\xff\nfour")
    assert last_lines(path, 2) == "three\ufffd\nfour"
    assert last_lines(path, 99, window=4) == "four"
