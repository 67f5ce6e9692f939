"""Scoring the endings of multiple-choice items by the log-probability of their tokens.

The context goes first, alone, which fills the prefix cache and tells its length in tokens; then the
four endings, scored from the context's end on. So each context is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from servematrix.client import Client
from servematrix.data import Item
from servematrix.kits import logprobs
from servematrix.kits.answers import MOST_TOKENS, logprob
from servematrix.kits.logprobs import NoLogprobs


class ScoringError(Exception):
    """An answer that cannot be scored; the message names the item and what is wrong."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The endings of one item.

    `lp` are sums of token log-probabilities (natural logarithm), `nt` the endings' tokens, `cached`
    the prompt tokens that came from the cache, `n0` the context's tokens, `checksum` that of the
    item's text. `joined` is True where an ending changed how the context's last token was cut, so
    that the two cannot be told apart.
    """

    ind: int
    label: int
    lp: tuple[float, ...]
    nt: tuple[int, ...]
    cached: tuple[int, ...]
    n0: int
    joined: bool
    checksum: str

    @property
    def prediction(self) -> int:
        """The ending that is taken for the server's answer."""
        return likeliest(self.lp, self.nt)

    def row(self) -> dict[str, Any]:
        """Return the item as a JSON-able row, as `gates.pairs` compares them."""
        return {
            "ind": self.ind,
            "label": self.label,
            "lp": [round(lp, 6) for lp in self.lp],
            "nt": list(self.nt),
            "cached": list(self.cached),
            "n0": self.n0,
            "checksum": self.checksum,
        }


def likeliest(lp: Sequence[float], nt: Sequence[int]) -> int:
    """Return the ending with the largest mean log-probability of its tokens; the first of equals.

    `lp` are sums over an ending's tokens (natural logarithm), `nt` how many those are.
    """
    means = [total / tokens for total, tokens in zip(lp, nt, strict=True)]
    return means.index(max(means))


def examples(shots: Sequence[Item]) -> str:
    """Return the text that shows solved items, to stand before each question."""
    return "".join(f"{_question(shot)} {shot.endings[shot.label]}\n\n" for shot in shots)


def score(
    client: Client,
    items: Sequence[Item],
    prefix: str,
    *,
    batch_items: int,
    parallel: int,
    timeout: float,
) -> list[Scored]:
    """Score items after `prefix`, `batch_items` of them a request, from `parallel` threads.

    `timeout` is in seconds for one request. Raises `ClientError`, `NoLogprobs` or `ScoringError`;
    then batches that have not begun are given up.
    """
    batches = [items[i : i + batch_items] for i in range(0, len(items), batch_items)]
    pool = ThreadPoolExecutor(parallel, thread_name_prefix="score")
    try:
        futures = [pool.submit(_batch, client, batch, prefix, timeout) for batch in batches]
        return [scored for future in futures for scored in future.result()]
    finally:
        pool.shutdown(cancel_futures=True)


def _question(item: Item) -> str:
    return f"{item.activity_label}: {item.ctx}"


def _batch(client: Client, items: Sequence[Item], prefix: str, timeout: float) -> list[Scored]:
    contexts = [prefix + _question(item) for item in items]
    lengths = [
        _length(answer, item)
        for answer, item in zip(client.score(contexts, timeout=timeout), items, strict=True)
    ]
    # the blank belongs to the ending: tokenizers cut before it, so the context's tokens stay
    texts = [
        f"{context} {ending}"
        for context, item in zip(contexts, items, strict=True)
        for ending in item.endings
    ]
    starts = [n0 - 1 for n0, item in zip(lengths, items, strict=True) for _ in item.endings]
    with logprobs.told():
        answers = iter(client.score(texts, starts, timeout=timeout))
    return [_scored(item, n0, answers) for item, n0 in zip(items, lengths, strict=True)]


def _length(answer: dict[str, Any], item: Item) -> int:
    n0 = _meta(answer, item).get("prompt_tokens")
    if type(n0) is not int or not 1 <= n0 <= MOST_TOKENS:
        raise ScoringError(f"item {item.ind}: its context has prompt_tokens {n0!r:.80}")
    return n0


def _scored(item: Item, n0: int, answers: Iterator[dict[str, Any]]) -> Scored:
    lp: list[float] = []
    nt: list[int] = []
    cached: list[int] = []
    last_tokens = set()
    for number in range(len(item.endings)):
        meta = _meta(next(answers), item)
        entries = meta.get("input_token_logprobs")
        length = meta.get("prompt_tokens")
        where = f"item {item.ind}, ending {number}"
        if entries is None:
            raise NoLogprobs("its answers to return_logprob have no input_token_logprobs")
        from_cache = meta.get("cached_tokens") or 0
        if not isinstance(entries, list) or type(length) is not int:
            raise ScoringError(
                f"{where}: the answer's log-probabilities or prompt_tokens are broken"
            )
        if len(entries) != length - n0 + 1 or len(entries) < 2:
            raise ScoringError(
                f"{where}: {len(entries)} log-probabilities for {length} tokens after a context of"
                f" {n0}, {length - n0 + 1} (two or more) were expected"
            )
        if type(from_cache) is not int or not 0 <= from_cache <= length:
            raise ScoringError(f"{where}: cached_tokens {from_cache!r:.80} of {length} tokens")
        try:
            values = [logprob(entry[0]) for entry in entries[1:]]
            last_tokens.add(entries[0][1])
        except (TypeError, IndexError, KeyError):
            values = [None]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            raise ScoringError(f"{where}: a log-probability is missing or no number")
        lp.append(math.fsum(known))
        nt.append(len(entries) - 1)
        cached.append(from_cache)
    joined = len(last_tokens) > 1
    return Scored(
        ind=item.ind,
        label=item.label,
        lp=tuple(lp),
        nt=tuple(nt),
        cached=tuple(cached),
        n0=n0,
        joined=joined,
        checksum=item.checksum,
    )


def _meta(answer: dict[str, Any], item: Item) -> dict[str, Any]:
    meta = answer.get("meta_info")
    if not isinstance(meta, dict):
        raise ScoringError(f"item {item.ind}: the answer has no meta_info: {answer!r:.200}")
    return meta
