"""What stands between HTTP and the schedulers: prompts become sequences, ranks share them out.

With ``--dp-size`` N there are N schedulers, each with its own device, cache and metrics, and
requests go round in turn, as with SGLang's round-robin balancing.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import time
import uuid
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from servematrix.engines.reference import arguments
from servematrix.engines.reference.device import Device, Setup
from servematrix.engines.reference.faults import models, setups
from servematrix.engines.reference.faults.accounts import FaultyLedger
from servematrix.engines.reference.faults.catalogue import Faults
from servematrix.engines.reference.faults.scheduling import FaultyScheduler
from servematrix.engines.reference.faults.speculation import FaultySpeculator
from servematrix.engines.reference.ledger import Ledger
from servematrix.engines.reference.scheduler import Limits, Scheduler
from servematrix.engines.reference.schemas import BadRequestError
from servematrix.engines.reference.sequence import Sampling, Sequence, Transcript
from servematrix.engines.reference.speculation import Speculator
from servematrix.engines.reference.telemetry import Telemetry

if TYPE_CHECKING:
    from servematrix.engines.reference.language import LanguageModel

PROBE_SECONDS = 20.0  # as long as SGLang waits for the token of a health check
LARGEST_BATCH = 4_096  # sequences in one request
MOST_TOP_LOGPROBS = 128  # a few are wanted; all of the vocabulary would stop the event loop


class Service:
    """The model, its schedulers and the requests that are under way."""

    def __init__(
        self,
        options: argparse.Namespace,
        model: LanguageModel,
        draft: LanguageModel | None = None,
    ) -> None:
        self.options = options
        self.faults: Faults = options.fault
        self.model = models.put_into(model, self.faults)
        self.started = time.time()
        context = options.context_length or arguments.DEFAULT_CONTEXT
        self.limits = Limits(
            context=context,
            capacity=options.max_total_tokens or arguments.DEFAULT_CAPACITY,
            running=options.max_running_requests or arguments.DEFAULT_RUNNING,
            chunk=options.chunked_prefill_size if options.chunked_prefill_size > 0 else context,
            prefix_cache=not options.disable_radix_cache,
        )
        timer = arguments.device_timer() and "timer-off" not in self.faults
        self.telemetry = (
            Telemetry(options.served_model_name, ranks=options.dp_size, device_timer=timer)
            if options.enable_metrics and "metrics-off" not in self.faults
            else None
        )
        self.schedulers = [self._scheduler(rank, draft, timer) for rank in range(options.dp_size)]
        self._turns = itertools.cycle(range(options.dp_size))
        self._random = random.Random(options.random_seed)
        self.tasks: list[asyncio.Task[None]] = []  # the schedulers' loops

    def _scheduler(self, rank: int, draft: LanguageModel | None, timer: bool) -> Scheduler:
        options, faults = self.options, self.faults
        if "speculation-off" in faults:
            draft = None
        steps = options.speculative_num_steps if draft is not None else 0
        device = Device(
            setups.put_into(
                Setup(
                    overlap=not options.disable_overlap_schedule,
                    graphs=not options.disable_cuda_graph,
                    graph_max_batch=options.cuda_graph_max_bs_decode,
                    draft_steps=steps,
                    time_scale=options.time_scale,
                    seed=options.random_seed + rank,
                ),
                faults,
                rank,
            )
        )
        metrics = self.telemetry.ranks[rank] if self.telemetry is not None else None
        make_ledger = partial(FaultyLedger, faults) if faults else Ledger
        ledger = make_ledger(
            metrics, interval=options.decode_log_interval, device_timer=timer, draft_tokens=steps
        )
        if metrics is not None:
            metrics.set("max_total_num_tokens", self.limits.capacity)
            metrics.set("num_pages", self.limits.capacity)
            metrics.set("page_size", 1)
            metrics.set("context_len", self.limits.context)
            metrics.set("spec_num_steps", steps)
            metrics.set("spec_num_draft_tokens", steps + 1 if steps else 0)
        speculator: Speculator | None = None
        if draft is not None:
            make_speculator = partial(FaultySpeculator, faults=faults) if faults else Speculator
            speculator = make_speculator(self.model, draft, steps)
        make_scheduler = partial(FaultyScheduler, faults) if faults else Scheduler
        return make_scheduler(self.model, device, ledger, self.limits, speculator)

    # ---------------------------------------------------------------- life
    def start(self) -> None:
        """Starts the schedulers' loops in the running event loop."""
        self.tasks = [asyncio.create_task(scheduler.run()) for scheduler in self.schedulers]

    async def stop(self) -> list[BaseException]:
        """Aborts everything, waits until the loops have ended; returns what made them fail."""
        for scheduler in self.schedulers:
            scheduler.stop()
        results = await asyncio.gather(*self.tasks, return_exceptions=True)
        return [result for result in results if result is not None]

    @property
    def alive(self) -> bool:
        """Whether every scheduler's loop runs."""
        return bool(self.tasks) and not any(task.done() for task in self.tasks)

    async def probe(self) -> bool:
        """Generates one token on every rank; False if one does not come in time."""
        if not self.alive:
            return False
        probes = []
        for rank, scheduler in enumerate(self.schedulers):
            probe = self.sequence([self.model.tokenizer.eos], Sampling(1, temperature=0.0))
            probe.rid = f"HEALTH_CHECK_{rank}_{probe.rid}"
            probe.internal = True
            scheduler.submit(probe)
            probes.append(probe)
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                for probe in probes:
                    await probe.wait_finished()
        except TimeoutError:
            self.abort(probes)
            return False
        return all(probe.output for probe in probes)

    # ---------------------------------------------------------------- requests
    def sequence(
        self,
        prompt: list[int],
        sampling: Sampling,
        *,
        rid: str | None = None,
        logprobs: bool = False,
        logprob_start: int = -1,
        top_count: int = 0,
    ) -> Sequence:
        """A checked sequence, not yet submitted; raises BadRequestError if it cannot fit."""
        vocabulary = self.model.tokenizer.vocabulary_size
        if not prompt:
            raise BadRequestError("input_ids cannot be empty.")
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise BadRequestError(
                f"The input_ids hold values outside the vocabulary ({vocabulary})."
            )
        if not 0 <= top_count <= MOST_TOP_LOGPROBS:
            raise BadRequestError(
                f"top_logprobs_num must be in [0, {MOST_TOP_LOGPROBS}], got {top_count}."
            )
        if logprob_start > len(prompt):
            raise BadRequestError(
                f"logprob_start_len={logprob_start} is higher than the number of input tokens "
                f"({len(prompt)})."
            )
        sampling = self._fit(len(prompt), sampling)
        seed = self._random.getrandbits(64) if sampling.seed is None else sampling.seed
        return Sequence(
            rid=rid or uuid.uuid4().hex,
            prompt=prompt,
            sampling=sampling,
            transcript=Transcript(self.model.tokenizer, sampling.stop, sampling.keep_stop),
            logprobs=logprobs,
            logprob_start=logprob_start if logprobs else -1,
            top_count=top_count if logprobs else 0,
            random=random.Random(seed),
        )

    def _fit(self, length: int, sampling: Sampling) -> Sampling:
        """The sampling parameters with a limit that context and cache can hold."""
        context, most = self.limits.context, sampling.max_new_tokens
        if length >= context:
            raise BadRequestError(
                f"The input ({length} tokens) is longer than the model's context length "
                f"({context} tokens)."
            )
        if most >= 0 and length + most > context:
            raise BadRequestError(
                f"Requested token count exceeds the model's maximum context length of {context} "
                f"tokens. You requested a total of {length + most} tokens: {length} tokens from "
                f"the input messages and {most} tokens for the completion. Please reduce the "
                "number of tokens in the input messages or the completion to fit within the "
                "limit."
            )
        if length >= self.limits.longest_input:
            raise BadRequestError(
                f"Input length ({length} tokens) exceeds the maximum allowed length "
                f"({self.limits.longest_input} tokens). Use a shorter input."
            )
        room = min(context, self.limits.capacity) - length - 1
        if most < 0 or most > room:
            return sampling.limited(room)
        return sampling

    @staticmethod
    def check_size(sequences: int) -> None:
        """Raises BadRequestError for a request of too many sequences."""
        if sequences > LARGEST_BATCH:
            raise BadRequestError(f"A request may hold {LARGEST_BATCH} sequences at most.")

    async def submit(self, sequences: list[Sequence], rank: int | None = None) -> None:
        """Queues the sequences of one request, on ``rank`` if that is named.

        Raises BadRequestError for a request id in use, and for a rank that is not there.

        Where several continue the same prompt (``n``), the prompt is computed once first, so
        that all of them find it in the cache; SGLang does the same.
        """
        if rank is not None and not 0 <= rank < len(self.schedulers):
            raise BadRequestError(f"routed_dp_rank={rank} is out of range.")
        known = {sequence.rid for sequence in self.live}
        for sequence in sequences:
            if sequence.rid in known:
                raise BadRequestError(f"Duplicate request ID detected: {sequence.rid}")
            known.add(sequence.rid)
        turn = next(self._turns) if rank is None else rank
        shared = {id(item.prompt): item for item in sequences if item.sampling.n > 1}
        first = [self.sequence(item.prompt, Sampling(max_new_tokens=0)) for item in shared.values()]
        for sequence in first:
            sequence.internal = True
            self.schedulers[turn].submit(sequence)
        for sequence in first:
            await sequence.wait_finished()
        for number, sequence in enumerate(sequences):
            if number and not first and rank is None:
                turn = next(self._turns)
            if len(self.schedulers) > 1:
                sequence.rank = turn
            sequence.dispatched = time.time()
            self.schedulers[turn].submit(sequence)

    @property
    def live(self) -> list[Sequence]:
        """Every sequence that runs or waits, on any rank."""
        return [item for scheduler in self.schedulers for item in scheduler.sequences]

    def abort(self, sequences: Iterable[Sequence]) -> None:
        """Ends the given sequences now."""
        wanted = list(sequences)
        for scheduler in self.schedulers:
            scheduler.abort(wanted)

    def abort_named(self, rid: str, *, everything: bool) -> None:
        """Aborts all sequences, or those whose request id begins with ``rid``."""
        self.abort(
            item
            for item in self.live
            if everything or (rid and item.rid.startswith(rid) and not item.internal)
        )

    def flush(self) -> bool:
        """Empties the prefix caches if all ranks are idle; says whether it did."""
        if not all(scheduler.idle for scheduler in self.schedulers):
            return False
        return all(scheduler.flush() for scheduler in self.schedulers)
