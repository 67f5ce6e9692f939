"""Does decoding compute what prefill computes, alone, in batches, and behind a shared prefix?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import ClassVar

from rich.table import Table

from servematrix.gates import consistency
from servematrix.gates.consistency import Compared, Limits, Summary
from servematrix.gates.verdict import Verdict
from servematrix.kits import logprobs
from servematrix.kits.base import Kit, concludes
from servematrix.kits.logprobs import Decoded, NoLogprobs, Prompt
from servematrix.terminal import console

_KIT = "decode_consistency"
_READERS = (
    "a child",
    "a student",
    "a pilot",
    "a cook",
    "a nurse",
    "a farmer",
    "a judge",
    "a clown",
)
_SUBJECTS = (
    "how tides come about",
    "why bread rises",
    "what a bank does",
    "how a lock keeps a boat level",
    "why leaves turn red",
    "how to find north at night",
    "what makes a bridge stand",
    "where rivers begin",
)
_PASSAGE = (
    "The harbour office keeps a list of every boat that came in this year. The oldest is a cutter"
    " with grey sails, built by two brothers on the north shore. In spring she carried salt and"
    " rope, in summer she took visitors to the lighthouse, and in autumn she lay on the slip while"
    " her planks were tarred. Next to her stands a ferry that has crossed the sound four times a"
    " day for eleven years. Its captain reads the weather from the gulls, and he has been wrong"
    " only once. The third is a small steamer. Nobody knows who owns her, but somebody polishes her"
    " brass every Sunday before the bells ring, and the children say that it is the baker. Behind"
    " the steamer there are nets, barrels and a row of lamps that are lit when fog comes in. "
)
"""What the prompts of the cache test share; about 170 tokens."""
_QUESTIONS = (
    "Tell me more about the cutter.",
    "Who reads the weather, and how?",
    "Which boat would you take to the lighthouse?",
    "Write a short poem about the steamer.",
    "List what stands behind the steamer.",
    "What do the children say?",
)
_SHARERS = ("Count the boats.", "Translate this.", "How old is the ferry?", "Name a bird.")
_COLUMNS = ("tokens", "relative", "mean", "p99", "largest", "top1", "largest_gap", "worst_sequence")
_UNITS = {
    "relative": "nats/(1 - p)",
    "mean": "nats",
    "p99": "nats",
    "top1": "share of tokens",
    "largest_gap": "nats",
}
_DTYPES = {"half": "float16", "float": "float32"}
"""SGLang's other names of dtypes."""


class DecodeConsistencyMixin(Kit):
    """Log-probabilities of decoded tokens against the same server's prefill of the same tokens.

    `decode_consistency_prompts` says how many prompts are decoded at which concurrency, each by
    `decode_consistency_tokens` tokens. Limits (nats) are those of `gates.consistency.LIMITS` for
    the dtype that the server computes in, with what `decode_consistency_bfloat16`, `_float16` and
    `_float32` change; `decode_consistency_auto_dtype` is what dtype `auto` means for this model.
    The timeout, in seconds, ends every request.
    """

    kit: ClassVar[str] = _KIT
    decode_consistency_prompts: Mapping[str, int] = {"1": 8, "4": 24, "16": 16}
    """How many prompts are decoded at which concurrency."""
    decode_consistency_tokens: int = 192
    """Tokens that each prompt is decoded by."""
    decode_consistency_cache_tokens: int = 48
    """Tokens of each answer behind a shared prefix."""
    decode_consistency_auto_dtype: str = "bfloat16"
    """What dtype `auto` means for this model."""
    decode_consistency_bfloat16: Mapping[str, float] = {}
    """Limits to change where the server computes in bfloat16, by name."""
    decode_consistency_float16: Mapping[str, float] = {}
    """Limits to change where the server computes in float16, by name."""
    decode_consistency_float32: Mapping[str, float] = {}
    """Limits to change where the server computes in float32, by name."""
    decode_consistency_timeout: float = 120.0
    """Seconds that one request may take."""

    @concludes(_KIT)
    def test_decode_matches_prefill(self) -> Verdict:
        """Guards against a decode path that computes other numbers than prefill.

        An accuracy check that scores prompts never decodes, so it cannot see one.
        """
        return self.__unless_impossible(self.__decode_parts)

    @concludes(_KIT)
    def test_prefix_cache_isolation(self) -> Verdict:
        """Guards against a prefix cache that hands a request the state of another.

        The same prompts are decoded from an empty cache, one by one, and again all at once after
        other requests that share their beginning up to different places.
        """
        return self.__unless_impossible(self.__cache_parts)

    def __unless_impossible(self, judge: Callable[[], Verdict]) -> Verdict:
        try:
            return judge()
        except NoLogprobs as problem:
            return Verdict("not_applicable", logprobs.RULE, str(problem))

    def __decode_parts(self) -> Verdict:
        client, timeout = self.client, self.decode_consistency_timeout
        load = {int(key): count for key, count in self.decode_consistency_prompts.items() if count}
        asked = logprobs.prompts(client, _texts(sum(load.values())), timeout)
        decoded: dict[int, list[Decoded]] = {}
        start = time.monotonic()
        for concurrency, count in sorted(load.items()):
            decoded[concurrency] = logprobs.decode(
                client,
                asked[:count],
                tokens=self.decode_consistency_tokens,
                concurrency=concurrency,
                timeout=timeout,
            )
            del asked[:count]
        between = time.monotonic()
        parts = {
            f"concurrency {concurrency}": logprobs.compare(client, some, timeout)
            for concurrency, some in decoded.items()
        }
        self.measure("decode_seconds", between - start, "s")
        self.measure("prefill_seconds", time.monotonic() - between, "s")
        return self.__judged(parts)

    def __cache_parts(self) -> Verdict:
        client, timeout = self.client, self.decode_consistency_timeout
        texts = [f"{_PASSAGE}\n\n{question}" for question in _QUESTIONS]
        words = _PASSAGE.split()
        sharers = [
            f"{' '.join(words[: len(words) * (i + 1) // len(_SHARERS)])} {question}"
            for i, question in enumerate(_SHARERS)
        ]
        asked = logprobs.prompts(client, [*texts, *sharers], timeout)
        asked, others = asked[: len(texts)], asked[len(texts) :]
        cold: list[Decoded] = []
        for prompt in asked:
            logprobs.flush(client)
            cold += self.__continue([prompt])
        logprobs.flush(client)
        self.__continue(others)
        warm = self.__continue(asked)
        cached = sum(one.cached for one in warm)
        self.measure("cached_tokens", cached, "tokens")
        if not cached:
            rule = "requests that share a prefix take it from the cache"
            why = (
                "radix cache off"
                if self._kit_server_info().get("disable_radix_cache")
                else "cached_tokens 0"
            )
            return Verdict("not_applicable", rule, f"nothing came from the prefix cache: {why}")
        return self.__judged(
            {
                "empty cache": logprobs.compare(client, cold, timeout),
                "shared prefix": logprobs.compare(client, warm, timeout),
            }
        )

    def __continue(self, prompts: Sequence[Prompt]) -> list[Decoded]:
        return logprobs.decode(
            self.client,
            prompts,
            tokens=self.decode_consistency_cache_tokens,
            concurrency=len(prompts),
            timeout=self.decode_consistency_timeout,
        )

    def __judged(self, parts: Mapping[str, Sequence[Compared]]) -> Verdict:
        info = self._kit_server_info()
        dtype = dtype_of(info, self.decode_consistency_auto_dtype)
        known = dtype in consistency.LIMITS  # the server may name anything
        changes = getattr(self, f"decode_consistency_{dtype}") if known else {}
        limits = limits_for(dtype, changes)
        summaries = {name: consistency.summarise(some) for name, some in parts.items()}
        self.__report(parts, summaries, info)
        kv = info.get("kv_cache_dtype")
        context = f"the KV cache is {kv}" if kv not in (None, "auto") else ""
        return consistency.judge(summaries, limits, dtype=dtype, context=context)

    def __report(
        self,
        parts: Mapping[str, Sequence[Compared]],
        summaries: Mapping[str, Summary],
        info: Mapping[str, object],
    ) -> None:
        """Print a table, and keep every token's difference in the form of recordings."""
        table = Table("decode - prefill", *_COLUMNS, title="Log-probabilities, nats")
        for name, summary in summaries.items():
            values = (getattr(summary, column) for column in _COLUMNS)
            table.add_row(name, *(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values))
            for column, unit in _UNITS.items():
                self.measure(f"{column}, {name}", getattr(summary, column), unit)
        console(width=110).print(table)
        self.attach(
            (self._kit_test()[1]).removeprefix("test_"),
            {
                "server": {key: info.get(key) for key in ("version", "dtype", "kv_cache_dtype")},
                "concurrency": {
                    name.removeprefix("concurrency "): {
                        "summary": asdict(summaries[name]),
                        "delta_logprob": [[round(d, 6) for d in one.delta] for one in some],
                        "logprob": [[round(p, 6) for p in one.prefill] for one in some],
                        "gap": [[round(g, 6) for g in one.gaps] for one in some],
                    }
                    for name, some in parts.items()
                },
            },
        )


def dtype_of(info: Mapping[str, object], auto: str) -> str:
    """The dtype that a server computes in, as `/server_info` tells; `auto` for what it leaves."""
    named = str(info.get("dtype") or "auto")
    return auto if named == "auto" else _DTYPES.get(named, named)


def limits_for(dtype: str, changes: Mapping[str, float]) -> Limits:
    """The limits of a dtype with some changed; those of bfloat16 for one that has none."""
    limits = consistency.LIMITS.get(dtype, consistency.LIMITS["bfloat16"])
    return Limits(**{**asdict(limits), **changes})


def _texts(count: int) -> list[str]:
    """`count` different prompts, neighbours unlike each other."""
    pairs = [
        (_READERS[(i + i // len(_SUBJECTS)) % len(_READERS)], _SUBJECTS[i % len(_SUBJECTS)])
        for i in range(len(_READERS) * len(_SUBJECTS))
    ]
    return [
        f"{'Once more: ' * (i // len(pairs))}Explain to {pairs[i % len(pairs)][0]}"
        f" {pairs[i % len(pairs)][1]}."
        for i in range(count)
    ]
