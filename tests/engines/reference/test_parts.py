"""The parts by themselves: prefix cache, device, transcript."""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Sequence

import pytest

from servematrix.engines.reference import device as simulated
from servematrix.engines.reference.cache import RadixCache
from servematrix.engines.reference.device import Device, Setup
from servematrix.engines.reference.sequence import Transcript


class Bytes:
    """Tokens are bytes; the smallest tokenizer with characters of several tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")


def test_the_cache_finds_every_known_prefix() -> None:
    numbers = random.Random(1)
    cache: RadixCache[str] = RadixCache(10**6)
    known: list[list[int]] = []
    for _ in range(200):
        base = numbers.choice(known)[: numbers.randint(0, 12)] if known else []
        tokens = base + [numbers.randint(0, 3) for _ in range(numbers.randint(1, 12))]
        expected = max(
            (
                next((i for i, (a, b) in enumerate(zip(one, tokens, strict=False)) if a != b),
                     min(len(one), len(tokens)))
                for one in known
            ),
            default=0,
        )  # fmt: skip
        found = cache.match(tokens)
        assert found == [str(tokens[: end + 1]) for end in range(expected)]
        cache.insert(tokens, [str(tokens[: end + 1]) for end in range(len(tokens))])
        known.append(tokens)
    prefixes = {tuple(one[: end + 1]) for one in known for end in range(len(one))}
    assert cache.size == len(prefixes)


def test_the_cache_keeps_to_its_size_and_forgets_the_oldest() -> None:
    cache: RadixCache[int] = RadixCache(100)
    forgotten = 0
    for start in range(50):
        tokens = [start, *range(1000, 1009)]
        forgotten += cache.insert(tokens, tokens)
        cache.match([0, *range(1000, 1009)])  # the first one stays in use
        assert cache.size <= 100
    assert forgotten + cache.size == 500
    assert len(cache.match([0, *range(1000, 1009)])) == 10
    assert cache.match([1, *range(1000, 1009)]) == []
    assert len(cache.match([49, *range(1000, 1009)])) == 10
    cache.clear()
    assert cache.size == 0
    assert cache.match([49]) == []


def test_a_cache_without_room_keeps_nothing() -> None:
    cache: RadixCache[int] = RadixCache(0)
    assert cache.insert([1, 2], [1, 2]) == 0
    assert cache.match([1, 2]) == []


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def settle(device: Device, clock: Clock, late: float, count: int) -> tuple[float, float]:
    """Device seconds and elapsed seconds of ``count`` decode forwards that come ``late``."""

    async def forwards() -> tuple[float, float]:
        busy = elapsed = 0.0
        for _ in range(count):
            forward = device.plan_decode(1)
            clock.now += forward.seconds + late
            record = await device.complete(forward)
            busy += record.device_seconds
            elapsed += record.elapsed
            assert record.device_seconds + record.host_seconds == pytest.approx(record.elapsed)
        return busy, elapsed

    return asyncio.run(forwards())


@pytest.mark.parametrize("late", [0.0, 0.3])
def test_seconds_are_those_of_the_wall_however_late(late: float) -> None:
    clock = Clock()
    device = Device(Setup(time_scale=1e6), clock)
    start = clock.now
    busy, elapsed = settle(device, clock, late, 400)
    assert elapsed == pytest.approx(clock.now - start)
    assert 0.990 < busy / elapsed < 0.996


@pytest.mark.parametrize(
    ("setup", "low", "high"),
    [
        (Setup(), 99.2, 99.4),
        (Setup(overlap=False), 74.5, 78.5),
        (Setup(graphs=False), 90.1, 90.7),
        (Setup(draft_steps=3), 98.1, 98.8),
    ],
)
def test_occupancy_is_at_the_recorded_level(setup: Setup, low: float, high: float) -> None:
    device = Device(setup)
    shares = [100 * device.plan_decode(1).share for _ in range(40 * 400)]
    assert low < statistics.median(shares) < high


def test_graphs_are_used_up_to_the_largest_batch() -> None:
    device = Device(Setup(graph_max_batch=4))
    inside, outside = device.plan_decode(4), device.plan_decode(5)
    assert (inside.graph, outside.graph) == (True, False)
    assert outside.seconds > 7 * inside.seconds
    assert not Device(Setup(graphs=False)).plan_decode(1).graph


def test_categories_share_the_whole_forward() -> None:
    for steps in (0, 3):
        forward = Device(Setup(draft_steps=steps)).plan_decode(1)
        assert sum(share for _, share in forward.categories) == pytest.approx(1)


def test_the_noise_has_the_recorded_spread() -> None:
    device = Device(Setup(seed=2))
    shares = [100 * device.plan_decode(1).share for _ in range(40 * 2_000)]
    drawn = sorted(set(shares))
    low, high = drawn[len(drawn) // 10], drawn[-len(drawn) // 10]
    spread = simulated.SPREAD["healthy"]
    assert high - low == pytest.approx(spread[6] - spread[2], rel=0.2)


def transcribe(text: str, stop: Sequence[str], keep: bool = False) -> tuple[list[str], str | None]:
    transcript = Transcript(Bytes(), stop, keep)  # type: ignore[arg-type]
    shown = []
    for token in text.encode():
        matched = transcript.push(token)
        shown.append(transcript.text)
        if matched is not None:
            return shown, matched
    transcript.finish()
    return [*shown, transcript.text], None


def test_text_is_shown_in_whole_characters() -> None:
    shown, _ = transcribe("a\N{SNOWMAN}b", ())
    assert shown == ["a", "a", "a", "a\N{SNOWMAN}", "a\N{SNOWMAN}b", "a\N{SNOWMAN}b"]


def test_bytes_that_are_no_character_are_shown_in_the_end() -> None:
    transcript = Transcript(Bytes(), (), False)  # type: ignore[arg-type]
    for token in (0xF0, 0x9F):
        transcript.push(token)
    assert transcript.text == ""
    transcript.finish()
    assert "\N{REPLACEMENT CHARACTER}" in transcript.text


@pytest.mark.parametrize(
    ("text", "stop", "expected", "matched"),
    [
        ("one two", ["tw"], "one ", "tw"),
        ("aab", ["ab"], "a", "ab"),
        ("abcd", ["cd", "bc"], "a", "bc"),
        ("ab", ["abc"], "ab", None),
        ("xyz", ["q"], "xyz", None),
    ],
)
def test_stops_are_found_and_never_shown(
    text: str, stop: list[str], expected: str, matched: str | None
) -> None:
    shown, found = transcribe(text, stop)
    assert found == matched
    assert shown[-1] == expected
    assert all(expected.startswith(part) for part in shown)
    if matched:
        assert transcribe(text, stop, keep=True)[0][-1] == expected + matched
