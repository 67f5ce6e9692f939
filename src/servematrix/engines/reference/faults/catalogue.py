"""Which faults there are, and what was asked for on the command line."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Faults = Mapping[str, float]
"""The active faults by name, each with its value; 0 for one that takes none."""


class UnknownFaultError(ValueError):
    """There is no such fault, or its value is not one; the message says what there is."""


@dataclass(frozen=True)
class Fault:
    """One way to be wrong: its name, what the server then does, and what its value means."""

    name: str
    does: str
    value: float | None = None
    """The value where none is given; None for a fault that takes none."""
    meaning: str = ""


CATALOGUE = {
    fault.name: fault
    for fault in (
        Fault("overlap-lost", "the host's work is no longer hidden behind the device's"),
        Fault("graphs-lost", "CUDA graphs are claimed, and no forward pass uses one"),
        Fault(
            "graphs-lost-above",
            "CUDA graphs run for small batches only, though larger ones are claimed",
            2,
            "largest batch that still has a graph",
        ),
        Fault("rank-slow", "one data-parallel rank waits for its host", 1, "the rank"),
        Fault("gauge-frozen", "the occupancy gauge keeps its first value while steps stall"),
        Fault("gauge-nan", "the occupancy gauge is never a number"),
        Fault("gauge-flattering", "overlap is lost, and the occupancy gauge shows a healthy value"),
        Fault("metrics-off", "there is no /metrics, though it was asked for"),
        Fault("timer-off", "the device timer is off, so /metrics has no occupancy"),
        Fault("speculation-off", "no drafts are made, though speculation is claimed"),
        Fault("drafts-rejected", "every draft is wrong, so that none is accepted"),
        Fault(
            "drafts-unverified",
            "some draft tokens are let through that the target would not have said",
            0.05,
            "share of the wrong drafts let through",
        ),
        Fault("accept-miscounted", "the account of accepted drafts says that all were"),
        Fault(
            "kv-corrupted",
            "decoding loses what lies further back; prefill does not",
            16,
            "tokens from one loss to the next",
        ),
        Fault(
            "prefix-mixed",
            "the prefix cache hands out tokens beyond the prefix that two requests share",
            64,
            "tokens of the other request",
        ),
        Fault("weights-random", "each token's weight is that of another one"),
        Fault(
            "accuracy-loss",
            "every log-probability is off by a little, always the same: 2 points of accuracy",
            0.14,
            "standard deviation in nats",
        ),
        Fault(
            "greedy-random",
            "temperature 0 takes the second-best token now and then",
            0.1,
            "share of the tokens",
        ),
        Fault("stop-strings-ignored", "generation does not end at a stop string"),
        Fault("single-token-empty", "a request for one new token gets none"),
        Fault("max-tokens-ignored", "twice as many tokens come as were asked for"),
        Fault("looping", "an answer repeats its last four tokens from the ninth on"),
        Fault("answers-swapped", "two requests of one batch continue each other's prompt"),
        Fault("stream-truncated", "a stream is cut in the middle of its third event"),
        Fault("stream-misframed", "the blank line after an event is missing"),
        Fault("stream-unfinished", "a stream ends without [DONE]"),
        Fault("stream-garbled", "a streamed text lacks a character of the whole answer"),
        Fault("errors", "some requests are answered with status 500", 0.01, "share of them"),
        Fault("field-missing", "OpenAI answers have no usage"),
        Fault(
            "hang-above",
            "the scheduler hangs for good once there are too many requests at once",
            4,
            "requests that it still bears",
        ),
        Fault(
            "long-prompt-crash",
            "a long prompt ends the scheduler",
            4096,
            "longest prompt in tokens that it bears",
        ),
        Fault("generation-dead", "/health answers 200, and nothing is generated from the start"),
        Fault(
            "generation-stops",
            "after some requests nothing is generated any more, while /health answers 200",
            1,
            "requests that are still served",
        ),
        Fault("death-after", "the scheduler dies", 24, "tokens decoded before that"),
        Fault("start-slow", "the server takes long to start", 60, "seconds"),
        Fault("never-ready", "/health answers 503 for good"),
        Fault("dies-at-start", "the server ends while it loads, for want of memory"),
        Fault("memory-kept", "shared memory stays when the server is gone", 16, "MiB"),
    )
}


def parse(texts: Sequence[str]) -> dict[str, float]:
    """The faults that ``NAME``, ``NAME=VALUE``, or several with commas between them, ask for.

    Raises UnknownFaultError.
    """
    found: dict[str, float] = {}
    for text in (part.strip() for given in texts for part in given.split(",")):
        name, separator, value = text.partition("=")
        fault = CATALOGUE.get(name)
        if fault is None:
            close = difflib.get_close_matches(name, CATALOGUE, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise UnknownFaultError(f"no fault {name!r}{hint}; there are: {', '.join(CATALOGUE)}")
        if not separator:
            found[name] = fault.value or 0.0
        elif fault.value is None:
            raise UnknownFaultError(f"fault {name} takes no value, and {value!r} was given")
        else:
            found[name] = _number(name, value)
    return found


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UnknownFaultError(f"fault {name}: {text!r} is no number of 0 or more")
    return value
