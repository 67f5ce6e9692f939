"""One sequence from its arrival to its last token: what was asked, what came out, when.

The scheduler writes to a sequence, the HTTP side waits on it and reads. Text is decoded
incrementally, so that a token costs the same however long the text already is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servematrix.engines.reference.language import State, Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
LONGEST_CHARACTER = 4  # bytes of a character in UTF-8, so the most byte tokens it can take

Logprob = tuple[float | None, int]
Top = list[tuple[float, int]] | None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to continue a prompt; every field is checked already."""

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    ignore_eos: bool = False
    keep_stop: bool = False
    stream_interval: int = 1
    n: int = 1

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken each time."""
        return self.temperature < 1e-6 or self.top_k == 1

    def limited(self, tokens: int) -> Sampling:
        """The same with at most ``tokens`` new tokens."""
        return replace(self, max_new_tokens=tokens, min_new_tokens=min(self.min_new_tokens, tokens))


class Transcript:
    """Tokens into text, one at a time, watching for stop strings.

    ``text`` is what may be shown. A tail that could still become a stop string, or half a
    character, is held back until it is decided; so shown text only ever grows.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Tokens[str], keep_stop: bool) -> None:
        self.text = ""
        self._held = ""
        self._undecoded: list[int] = []
        self._tokenizer = tokenizer
        self._stop = stop
        self._keep_stop = keep_stop

    def push(self, token: int) -> str | None:
        """Adds a token; returns the stop string that it completed, if any."""
        self._undecoded.append(token)
        piece = self._tokenizer.decode(self._undecoded)
        if piece.endswith(REPLACEMENT) and len(self._undecoded) < LONGEST_CHARACTER:
            return None
        self._undecoded.clear()
        return self._show(piece)

    def finish(self) -> None:
        """Shows what was held back: no further token will decide it."""
        self.text += self._held + self._tokenizer.decode(self._undecoded)
        self._held = ""
        self._undecoded.clear()

    def _show(self, piece: str) -> str | None:
        if not self._stop:
            self.text += piece
            return None
        tail = self._held + piece
        found = min(
            ((at, stop) for stop in self._stop if (at := tail.find(stop)) >= 0), default=None
        )
        if found is not None:
            at, stop = found
            self.text += tail[: at + len(stop)] if self._keep_stop else tail[:at]
            self._held = ""
            return stop
        keep = max(_overlap(tail, stop) for stop in self._stop)
        self.text += tail[: len(tail) - keep]
        self._held = tail[len(tail) - keep :]
        return None


@dataclass(eq=False, slots=True)
class Sequence:
    """A prompt and its continuation. ``states[i]`` is the model's state after token ``i``."""

    rid: str
    prompt: list[int]
    sampling: Sampling
    transcript: Transcript
    logprobs: bool = False
    logprob_start: int = -1  # first prompt token whose log-probability is wanted; -1: none
    top_count: int = 0
    rank: int | None = None  # data-parallel rank, where there are several
    internal: bool = False  # health checks and warm-ups: not counted as requests

    output: list[int] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    prefilled: int = 0
    cached: int = 0
    started: float = 0.0  # when the prefix cache was asked and prefill began; 0: not yet
    input_logprobs: list[Logprob] = field(default_factory=list)
    input_top: list[Top] = field(default_factory=list)
    output_logprobs: list[Logprob] = field(default_factory=list)
    output_top: list[Top] = field(default_factory=list)
    finish: dict[str, Any] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    random: Random = field(default_factory=Random)
    draft_state: State | None = None
    draft_seen: int = 0  # tokens that the draft's state has taken
    verify_steps: int = 0
    correct_drafts: int = 0
    proposed_drafts: int = 0
    accepted: list[int] = field(default_factory=list)  # histogram of correct drafts per round

    received: float = field(default_factory=time.time)
    dispatched: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    finished: float = 0.0

    def push(self, token: int, state: State, eos: int) -> None:
        """Takes the next token, the state after it, and sets ``finish`` if it was the last."""
        self.output.append(token)
        self.states.append(state)
        sampling = self.sampling
        count = len(self.output)
        matched: int | str | None = None
        if count > sampling.min_new_tokens:
            if token in sampling.stop_tokens or (token == eos and not sampling.ignore_eos):
                matched = token
            else:
                matched = self.transcript.push(token)
        else:
            self.transcript.push(token)
        if matched is not None:
            self.end({"type": "stop", "matched": matched})
        elif count >= sampling.max_new_tokens:
            self.end({"type": "length", "length": count})

    def end(self, reason: dict[str, Any]) -> None:
        """Marks the sequence as finished; ``reason`` is the protocol's ``finish_reason``."""
        if reason["type"] != "stop" or not isinstance(reason["matched"], str):
            self.transcript.finish()
        self.finish = reason
        self.finished = time.time()

    async def wait_finished(self) -> None:
        """Returns when the sequence has its last token, or was aborted."""
        while self.finish is None:
            self.changed.clear()
            await self.changed.wait()


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` that is a proper beginning of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
