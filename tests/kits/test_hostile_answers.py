"""Every test of every kit against every malformed answer: a verdict, in time, and never a pass."""

from __future__ import annotations

import itertools
import json
import time
import unittest
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from malforming import (
    UNREADABLE,
    UNUSABLE,
    WRONG_SAMPLES,
    WRONG_VALUES,
    Proxy,
    Spoil,
    whole,
)
from servematrix import metrics
from servematrix.client import Client
from servematrix.engines.base import Launch
from servematrix.engines.embedded import EmbeddedEngine
from servematrix.gates.verdict import Verdict
from servematrix.kits import MIXINS, FwdOccupancyMixin, answers, scrapes
from servematrix.kits.base import Kit

SMALL: dict[str, Any] = {
    "scheduler_stress_long_prompt_tokens": 256,
    "scheduler_stress_requests": 20,
    "spec_decoding_tokens": 64,
    "decode_consistency_prompts": {"1": 1, "3": 3},
    "decode_consistency_tokens": 208,
    "decode_consistency_cache_tokens": 40,
    "cuda_graph_tokens": 64,
    "fwd_occupancy_max_new_tokens": 1600,
    "fwd_occupancy_scrape_interval": 0.01,
    "fwd_occupancy_min_samples": 2,
    "fwd_occupancy_stream_max_new_tokens": 32,
    "fwd_occupancy_threshold": 1.0,
    "fwd_occupancy_startup_seconds": 0.0,
    "fwd_occupancy_block_windows": 1,
    "fwd_occupancy_counter_tolerance": 100.0,
    "hellaswag_packaged": True,
    "hellaswag_num_questions": 24,
    "hellaswag_num_shots": 2,
    "hellaswag_accuracy_threshold": 0.05,
}
"""Settings with which a healthy server passes fast, and so easily that only refusal is left."""
SECONDS = 0.5
"""Deadline of each call to a spoiled route that may hang."""
PATIENCE = 60.0
"""Seconds for one test of a kit, whatever it meets; most take a hundredth."""
TESTS = [
    pytest.param(mixin, name, id=f"{mixin.kit}.{name}")
    for mixin in MIXINS
    for name in sorted(vars(mixin))
    if name.startswith("test_")
]
HANGING = ("stalled header", "stalled body", "dribbled", "continued", "endless")
LIVE = "test_fwd_occupancy"
"""Needs a server that decodes while it is watched, and no other request at the time."""
UNREAD = ("/health", "/health_generate", "/flush_cache")
"""Routes whose body nobody reads, so that any will do."""
OPTIONAL = {("/server_info", "object"), ("/v1/models", "object")}
"""What a server need not tell, so that a test which does not judge it may pass without."""


@pytest.fixture(scope="module")
def proxy(tmp_path_factory) -> Iterator[Proxy]:
    """A proxy before a healthy server that speculates and is faster than any real one."""
    launch = Launch(
        cell="healthy",
        model="test/model",
        draft_model="test/draft",
        arguments={
            "enable-metrics": True,
            "cuda-graph-max-bs": 2,
            "speculative-algorithm": "EAGLE3",
            "speculative-num-steps": 3,
            "speculative-eagle-topk": 1,
            "speculative-num-draft-tokens": 4,
            "time-scale": 20,
        },
        environment={"SGLANG_ENABLE_METRICS_DEVICE_TIMER": "1"},
        gpus=(),
        host="127.0.0.1",
        port=0,
        api_key_env=None,
        log=tmp_path_factory.mktemp("healthy") / "server.log",
        deadline_seconds=60.0,
    )
    server = EmbeddedEngine("a test").start(launch)
    front = Proxy(server.base_url)
    yield front
    front.close()
    server.stop()


@pytest.fixture(scope="module", autouse=True)
def no_long_waits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TIMEOUT", "SILENCE"):
            patch.setattr(scrapes, name, 1.0)
        yield


class Recorder:
    """A reporter that keeps verdicts, and encodes the rest as records are."""

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []

    def measurement(self, kit: str, name: str, value: Any, unit: str) -> None:
        assert value is None or isinstance(value, str | int | float)

    def attachment(self, kit: str, name: str, payload: object) -> None:
        json.dumps(payload)

    def verdict(self, kit: str, test: str, verdict: Verdict) -> None:
        json.dumps(dict(verdict.numbers))
        self.verdicts.append(verdict)


def concluded(mixin: type[Kit], test: str, url: str, seconds: float = 10.0) -> Verdict:
    """Run one test; anything but its one verdict is an error here."""
    reporter = Recorder()
    limits = {f"{one.kit}_timeout": seconds for one in MIXINS if hasattr(one, f"{one.kit}_timeout")}
    client = Client(url, timeout=seconds)
    attributes = {"base_url": url, "_kit_client": client, "reporter": reporter}
    instance = type("Case", (mixin,), {**attributes, **SMALL, **limits})()
    told = ""
    began = time.monotonic()
    try:
        getattr(instance, test)()
    except (AssertionError, unittest.SkipTest) as error:
        told = str(error)
    assert told.isprintable()
    assert time.monotonic() - began < PATIENCE
    (verdict,) = reporter.verdicts
    return verdict


NUMBERS = itertools.count()


def run_of(test: str) -> str:
    """A new name for a run."""
    return f"{'live' if test == LIVE else test}-{next(NUMBERS)}"


def routes_of(proxy: Proxy, mixin: type[Kit], test: str) -> list[str]:
    """The routes that a test asks on the healthy server, which it passes."""
    if test not in proxy.routes:
        run = run_of(test)
        verdict = concluded(mixin, test, f"{proxy.url}/{run}")
        assert verdict.outcome == "pass", verdict.reason
        proxy.routes[test] = sorted(set(proxy.paths(run)))
    return proxy.routes[test]


@pytest.mark.parametrize(("mixin", "test"), TESTS)
def test_no_test_passes_on_an_answer_that_is_of_no_use(proxy, mixin, test):
    routes = routes_of(proxy, mixin, test)

    def check(route: str, name: str, spoil: Spoil) -> str | None:
        url = proxy.spoil(run_of(test), route, spoil)
        try:
            verdict = concluded(mixin, test, url, SECONDS if name in HANGING else 10.0)
        except Exception as error:
            return f"{name} on {route}: {type(error).__name__}: {error}"
        if verdict.outcome == "pass" and (route, name) not in OPTIONAL:
            return f"{name} on {route}: a pass"
        return None

    every = [
        (route, name, spoil)
        for route in routes
        for name, spoil in {**UNREADABLE, **({} if route in UNREAD else UNUSABLE)}.items()
    ]
    hanging = [one for one in every if one[1] in HANGING]
    with ThreadPoolExecutor(8) as many, ThreadPoolExecutor(1 if test == LIVE else 8) as pool:
        told = [*many.map(lambda one: check(*one), hanging)]
        told += pool.map(lambda one: check(*one), [one for one in every if one not in hanging])
    told = [one for one in told if one]
    assert not told, "\n".join(told)


# -- one wrong value in an answer that is whole -------------------------------------------------


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value; of lists the first and the last."""
    yield at
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*at, key))
    elif isinstance(value, list):
        for index in sorted({0, len(value) - 1} & set(range(len(value)))):
            yield from places(value[index], (*at, index))


def changed(value: Any, at: tuple[Any, ...], wrong: Any) -> Any:
    """A JSON value with another value at one place; `...` leaves the place out."""
    if not at:
        return None if wrong is ... else wrong
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(at) == 1 and wrong is ...:
        del copy[at[0]]
    else:
        copy[at[0]] = changed(value[at[0]], at[1:], wrong)
    return copy


def spoiled_json(body: bytes, pick: int, wrong: Any) -> bytes:
    value = json.loads(body)
    every = list(places(value))
    if pick % 4:  # an answer has hundreds of values, of which few are read
        every = [at for at in every if at and at[-1] in READ] or every
    return json.dumps(changed(value, every[pick % len(every)], wrong)).encode()


def spoiled_events(body: bytes, pick: int, wrong: Any) -> bytes:
    frames = body.split(b"\n\n")
    index = pick % (len(frames) - 2)  # neither [DONE] nor what follows it
    event = spoiled_json(frames[index].removeprefix(b"data: "), pick // 7, wrong)
    frames[index] = b"data: " + event
    return b"\n\n".join(frames)


def spoiled_metrics(body: bytes, pick: int) -> bytes:
    wanted = [line for line in body.decode().split("\n") if line.startswith(metrics._WANTED)]
    line = wanted[pick % len(wanted)]
    series, _, _ = line.rpartition(" ")
    wrong = WRONG_SAMPLES[pick // 7 % len(WRONG_SAMPLES)]
    return body.replace(line.encode(), f"{series} {wrong}".encode())


def spoiled(body: bytes, pick: int, wrong: Any) -> list[bytes]:
    """An answer with one wrong value; `pick` chooses which."""
    if body.startswith(b"data: "):
        return whole(spoiled_events(body, pick, wrong))
    if body.startswith(b"# HELP"):
        return whole(spoiled_metrics(body, pick))
    return whole(spoiled_json(body, pick, wrong)) if body else whole(body)


READ = {
    *answers.Settings.model_fields,
    *answers.Account.model_fields,
    *answers.GenerateMeta.model_fields,
    *("text", "count", "max_model_len", "internal_states", "cuda_graph_config", "max_bs"),
    *("input_token_logprobs", "output_token_logprobs", "input_top_logprobs", 0, 1),
}
EXAMPLES = settings.default.max_examples
WRONG = st.integers(0, 10**4), st.sampled_from((..., *WRONG_VALUES))


def check_value(proxy: Proxy, mixin: type[Kit], test: str, data: st.DataObject) -> None:
    routes = [path for path in routes_of(proxy, mixin, test) if path not in UNREAD]
    if routes:
        route = data.draw(st.sampled_from(routes))
        pick, wrong = (data.draw(strategy) for strategy in WRONG)
        after = data.draw(st.sampled_from((0, 0, 1, 2)))
        run = run_of(test)
        url = proxy.spoil(run, route, lambda body: spoiled(body, pick, wrong), after, framed=True)
        concluded(mixin, test, url)


@settings(max_examples=5 * EXAMPLES, suppress_health_check=list(HealthCheck))
@given(one=st.sampled_from([one for one in TESTS if one.values[1] != LIVE]), data=st.data())
def test_one_wrong_value_ends_in_a_verdict(proxy, one, data):
    check_value(proxy, *one.values, data)


@settings(max_examples=EXAMPLES // 4, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_one_wrong_value_while_a_server_is_watched_ends_in_a_verdict(proxy, data):
    check_value(proxy, FwdOccupancyMixin, LIVE, data)
