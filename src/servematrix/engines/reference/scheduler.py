"""Continuous batching: one loop that prefills what waits and decodes what runs.

Prefill goes first, in chunks, as long as there is room; otherwise every running sequence gets
its next token. The model's work for a forward is done before the device's time is waited for,
so that on a fast host it hides in the simulated step.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from servematrix.engines.reference.cache import RadixCache
from servematrix.engines.reference.device import Device
from servematrix.engines.reference.ledger import Ledger
from servematrix.engines.reference.sequence import Sequence
from servematrix.engines.reference.speculation import Speculator

if TYPE_CHECKING:
    from servematrix.engines.reference.language import LanguageModel, State

ABORTED = {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
RESAMPLE_LIMIT = 16  # draws before an end that comes too early is replaced by the likeliest token


@dataclass(frozen=True, slots=True)
class Limits:
    """The sizes that the scheduler keeps to, in tokens and sequences."""

    context: int = 16_384
    capacity: int = 262_144  # tokens that the KV cache can hold
    running: int = 256
    chunk: int = 8_192  # prompt tokens of one prefill forward
    prefix_cache: bool = True

    @property
    def longest_input(self) -> int:
        """The longest prompt that is taken; SGLang keeps 6 tokens back (8,186 of 8,192)."""
        return min(self.context, self.capacity) - 6


class Scheduler:
    """Owns the waiting queue, the running batch, the prefix cache and the simulated device."""

    def __init__(
        self,
        model: LanguageModel,
        device: Device,
        ledger: Ledger,
        limits: Limits,
        speculator: Speculator | None = None,
    ) -> None:
        self.model = model
        self.device = device
        self.ledger = ledger
        self.limits = limits
        self.cache: RadixCache[State] = RadixCache(limits.capacity if limits.prefix_cache else 0)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._speculator = speculator
        self._work = asyncio.Event()
        self._stopped = False

    # ---------------------------------------------------------------- from the HTTP side
    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self.waiting and not self.running

    @property
    def sequences(self) -> list[Sequence]:
        """Everything that runs or waits."""
        return [*self.running, *self.waiting]

    @property
    def used_tokens(self) -> int:
        """Tokens of the running sequences, which cannot be evicted."""
        return sum(len(sequence.states) for sequence in self.running)

    def submit(self, sequence: Sequence) -> None:
        """Queues a sequence; its owner waits on ``changed`` or ``wait_finished``."""
        self.waiting.append(sequence)
        if self._stopped:
            self.abort([sequence])
        self._work.set()

    def abort(self, sequences: Iterable[Sequence]) -> None:
        """Ends the given sequences now, whether they run or wait."""
        for sequence in sequences:
            if sequence.finish is None:
                sequence.end(dict(ABORTED))
                self.ledger.aborted(sequence)
                sequence.changed.set()
        self._drop_finished()

    def flush(self) -> bool:
        """Empties the prefix cache if the server is idle; says whether it did."""
        if self.idle:
            self.cache.clear()
            self.ledger.reset()
        return self.idle

    def stop(self) -> None:
        """Aborts everything and ends ``run``."""
        self._stopped = True
        self.abort(self.sequences)
        self._work.set()

    # ---------------------------------------------------------------- the loop
    async def run(self) -> None:
        """Serves until ``stop``; one iteration is one forward pass."""
        while not self._stopped:
            if self.idle:
                self.ledger.idle(self)
                self._work.clear()
                await self._work.wait()
                self.device.resume()
                self.ledger.resume()
                continue
            batch = self._prefill_batch()
            if batch:
                await self._prefill(batch)
            else:
                await self._decode()

    def _prefill_batch(self) -> list[tuple[Sequence, int]]:
        """The sequences to prefill in the next forward, each with its number of tokens."""
        batch: list[tuple[Sequence, int]] = []
        budget = self.limits.chunk
        slots = self.limits.running - len(self.running)
        room = self.limits.capacity - sum(_reserved(sequence) for sequence in self.running)
        for sequence in self.waiting:
            room -= _reserved(sequence)
            if budget <= 0 or slots <= 0 or room < 0:
                break
            if not sequence.started:
                self._look_up(sequence)
            tokens = min(budget, len(sequence.prompt) - sequence.prefilled)
            batch.append((sequence, tokens))
            budget -= tokens
            slots -= 1
        return batch

    def _look_up(self, sequence: Sequence) -> None:
        """Takes the known prefix from the cache, at most up to where the model must compute."""
        sequence.started = time.time()
        states = self.cache.match(sequence.prompt)
        most = len(sequence.prompt) - 1
        if sequence.logprobs and sequence.logprob_start >= 0:
            most = min(most, sequence.logprob_start)
        sequence.cached = sequence.prefilled = min(len(states), most)
        # States beyond that were computed before as well: reused, yet not counted as cached.
        sequence.states = states

    async def _prefill(self, batch: list[tuple[Sequence, int]]) -> None:
        for sequence, count in batch:
            self._extend(sequence, count)
        complete = [item for item, _ in batch if item.prefilled == len(item.prompt)]
        first = {
            id(item): self._pick(item, item.states[-1], 0)
            for item in complete
            if item.sampling.max_new_tokens > 0
        }
        new = sum(count for _, count in batch)
        record = await self.device.complete(self.device.plan_prefill(new))
        self.ledger.prefill(record, self, batch)
        for sequence in complete:
            if sequence.finish is not None:
                continue  # aborted while the device computed
            self._remember(sequence, len(sequence.prompt))
            if id(sequence) in first:
                self.running.append(sequence)
                self._push(sequence, first[id(sequence)])
            else:
                sequence.end({"type": "length", "length": 0})
            self._deliver(sequence, 1)
        done = {id(sequence) for sequence in complete}
        self.waiting = deque(item for item in self.waiting if id(item) not in done)
        self._drop_finished()

    def _extend(self, sequence: Sequence, tokens: int) -> None:
        """Computes ``tokens`` further prompt tokens: states, and log-probabilities if asked."""
        model, states, prompt = self.model, sequence.states, sequence.prompt
        start, end = sequence.prefilled, sequence.prefilled + tokens
        for position in range(len(states), end):
            before = states[-1] if states else model.start()
            states.append(model.advance(before, prompt[position]))
        sequence.prefilled = end
        first = sequence.logprob_start
        if not sequence.logprobs or first < 0:
            return
        for position in range(max(start, first), end):
            token = prompt[position]
            if position == first:
                sequence.input_logprobs.append((None, token))
                if sequence.top_count:
                    sequence.input_top.append(None)
                continue
            state = states[position - 1]
            sequence.input_logprobs.append((model.logprob(state, token), token))
            if sequence.top_count:
                sequence.input_top.append(model.top(state, sequence.top_count))

    async def _decode(self) -> None:
        batch = list(self.running)
        if self._speculator is None:
            rounds = [[self._pick(item, item.states[-1], len(item.output))] for item in batch]
        else:
            rounds = [self._speculator.run(item, self._pick) for item in batch]
        record = await self.device.complete(self.device.plan_decode(len(batch)))
        tokens = 0
        for sequence, chosen in zip(batch, rounds, strict=True):
            if sequence.finish is not None:
                continue
            if self._speculator is not None:
                self._speculator.count(sequence, len(chosen) - 1)
            taken = 0
            for token in chosen:
                self._push(sequence, token)
                taken += 1
                if sequence.finish is not None:
                    break
            tokens += taken
            self._deliver(sequence, taken)
        self.ledger.decode(record, self, batch, tokens, sum(map(len, rounds)))
        self._drop_finished()

    def _pick(self, sequence: Sequence, state: State, count: int) -> int:
        """The next token of ``sequence`` in ``state``, after ``count`` outputs."""
        sampling = sequence.sampling
        if count >= sampling.min_new_tokens:
            banned: frozenset[int] = frozenset()
        else:
            banned = sampling.stop_tokens | {self.model.tokenizer.eos}
        if not sampling.greedy:
            for _ in range(RESAMPLE_LIMIT):
                token = self.model.sample(
                    state,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    top_k=sampling.top_k,
                    rng=sequence.random,
                )
                if token not in banned:
                    return token
        likeliest = self.model.top(state, 1 + len(banned))
        return next(token for _, token in likeliest if token not in banned)

    def _push(self, sequence: Sequence, token: int) -> None:
        state = sequence.states[-1]
        if sequence.logprobs:
            sequence.output_logprobs.append((self.model.logprob(state, token), token))
            if sequence.top_count:
                sequence.output_top.append(self.model.top(state, sequence.top_count))
        sequence.push(token, self.model.advance(state, token), self.model.tokenizer.eos)

    def _deliver(self, sequence: Sequence, tokens: int) -> None:
        """Tells the sequence's owner, and keeps the books of a sequence that ended."""
        self.ledger.delivered(sequence, tokens)
        if sequence.finish is not None and sequence.output:
            self._remember(sequence, len(sequence.prompt) + len(sequence.output) - 1)
        interval = sequence.sampling.stream_interval
        if sequence.finish is not None or len(sequence.output) % interval == 0:
            sequence.changed.set()

    def _remember(self, sequence: Sequence, length: int) -> None:
        """Puts the first ``length`` tokens into the prefix cache."""
        tokens = (sequence.prompt + sequence.output)[:length]
        self.ledger.evicted(self.cache.insert(tokens, sequence.states[:length]))

    def _drop_finished(self) -> None:
        self.running = [item for item in self.running if item.finish is None]
        if any(item.finish is not None for item in self.waiting):
            self.waiting = deque(item for item in self.waiting if item.finish is None)


def _reserved(sequence: Sequence) -> int:
    """The tokens for which a sequence must find room before it starts."""
    return len(sequence.prompt) + sequence.sampling.max_new_tokens
