"""A scheduler that hangs, dies, or computes what it should not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence as Tokens
from dataclasses import replace
from typing import TYPE_CHECKING

from servematrix.engines.reference.cache import RadixCache
from servematrix.engines.reference.device import Device
from servematrix.engines.reference.faults.catalogue import Faults
from servematrix.engines.reference.ledger import Ledger
from servematrix.engines.reference.scheduler import Limits, Scheduler
from servematrix.engines.reference.sequence import Sequence, Transcript
from servematrix.engines.reference.speculation import Speculator

if TYPE_CHECKING:
    from servematrix.engines.reference.language import LanguageModel, State

_REMEMBERED = 2
"""Tokens that a corrupted state still knows."""
_LOOP = 4
_LOOP_FROM = 8
_STALL_FORWARDS = 40
_STALL_SECONDS = 0.05


class SchedulerDiedError(Exception):
    """The scheduler came to an end, as its fault demands."""


class FaultyScheduler(Scheduler):
    """A scheduler with the faults that concern it."""

    def __init__(
        self,
        faults: Faults,
        model: LanguageModel,
        device: Device,
        ledger: Ledger,
        limits: Limits,
        speculator: Speculator | None = None,
    ) -> None:
        super().__init__(model, device, ledger, limits, speculator)
        if "prefix-mixed" in faults:
            extra = int(faults["prefix-mixed"])
            self.cache: RadixCache[State] = _MixingCache(self.cache.capacity, extra)
        self._faults = faults
        self._random = random.Random(0)
        self._requests = 0
        self._decoded = 0
        self._forwards = 0
        self._unpaired: Sequence | None = None
        self._hangs = "generation-dead" in faults

    def submit(self, sequence: Sequence) -> None:
        """Queues a sequence, its sampling parameters changed where a fault ignores some."""
        if not sequence.internal:
            self._requests += 1
            self._hangs |= self._requests > self._faults.get("generation-stops", self._requests)
            self._change(sequence)
        super().submit(sequence)
        self._hangs |= len(self.sequences) > self._faults.get("hang-above", len(self.sequences))

    def _change(self, sequence: Sequence) -> None:
        sampling = sequence.sampling
        if "stop-strings-ignored" in self._faults:
            sampling = replace(sampling, stop=())
            sequence.transcript = Transcript(self.model.tokenizer, (), sampling.keep_stop)
        if "single-token-empty" in self._faults and sampling.max_new_tokens == 1:
            sampling = sampling.limited(0)
        if "max-tokens-ignored" in self._faults:
            room = self.limits.context - len(sequence.prompt) - 1
            most = min(2 * sampling.max_new_tokens, room)
            sampling = replace(sampling, max_new_tokens=most)
        sequence.sampling = sampling

    # ---------------------------------------------------------------- forward passes
    async def _prefill(self, batch: list[tuple[Sequence, int]]) -> None:
        await self._hang()
        await super()._prefill(batch)

    async def _decode(self) -> None:
        await self._hang()
        self._forwards += 1
        if "gauge-frozen" in self._faults and self._forwards % _STALL_FORWARDS == 0:
            await asyncio.sleep(_STALL_SECONDS)
        self._decoded += len(self.running)
        if self._decoded > self._faults.get("death-after", self._decoded):
            raise SchedulerDiedError(f"after {self._decoded} tokens (fault death-after)")
        await super()._decode()

    async def _hang(self) -> None:
        while self._hangs and not self._stopped:
            self._work.clear()
            await self._work.wait()

    def _extend(self, sequence: Sequence, tokens: int) -> None:
        longest = self._faults.get("long-prompt-crash")
        if longest is not None and len(sequence.prompt) > longest:
            length = len(sequence.prompt)
            raise SchedulerDiedError(f"prompt of {length} tokens (fault long-prompt-crash)")
        super()._extend(sequence, tokens)
        if "answers-swapped" in self._faults and sequence.prefilled == len(sequence.prompt):
            self._swap(sequence)

    def _swap(self, sequence: Sequence) -> None:
        """Lets this sequence and the one before it go on from each other's end, if both run."""
        if sequence.internal or not sequence.sampling.max_new_tokens:
            return
        other, self._unpaired = self._unpaired, sequence
        if other is not None and other.finish is None:
            other.states[-1], sequence.states[-1] = sequence.states[-1], other.states[-1]
            self._unpaired = None

    # ---------------------------------------------------------------- tokens
    def _pick(self, sequence: Sequence, state: State, count: int) -> int:
        if "looping" in self._faults and count > _LOOP_FROM and not sequence.internal:
            return sequence.output[count - _LOOP]
        token = super()._pick(sequence, state, count)
        share = self._faults.get("greedy-random", 0.0)
        if sequence.sampling.greedy and self._random.random() < share:
            return self.model.top(state, 2)[1][1]
        return token

    def _push(self, sequence: Sequence, token: int) -> None:
        super()._push(sequence, token)
        every = self._faults.get("kv-corrupted")
        if every and len(sequence.output) % int(every) == 0:
            sequence.states[-1] = self._forgetful(sequence)

    def _forgetful(self, sequence: Sequence) -> State:
        """The state as if the sequence began a few tokens ago."""
        state = self.model.start()
        for token in sequence.output[-_REMEMBERED:]:
            state = self.model.advance(state, token)
        return state


class _MixingCache(RadixCache["State"]):
    """Counts some tokens of another sequence to the prefix that it shares with this one."""

    def __init__(self, capacity: int, extra: int) -> None:
        super().__init__(capacity)
        self._extra = extra

    def match(self, tokens: Tokens[int]) -> list[State]:
        """The states after the known prefix, and those of a few tokens that do not belong."""
        states = super().match(tokens)
        if not states:
            return states
        foreign = self._beyond(tokens, len(states))
        room = len(tokens) - len(states)
        return states + foreign[: min(self._extra, room)]

    def _beyond(self, tokens: Tokens[int], matched: int) -> list[State]:
        """The states that follow the matched tokens in the sequence that they were found in."""
        node, position = self._root, 0
        while position < matched:
            child = node.children[tokens[position]]
            if position + len(child.key) > matched:
                return child.states[matched - position :]
            position += len(child.key)
            node = child
        other = next(iter(node.children.values()), None)
        return [] if other is None else other.states
