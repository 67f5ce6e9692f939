"""Sequences into the JSON of ``/generate``: whole answers, and streamed ones piece by piece.

A streamed event carries the whole text and all token ids so far: that is the protocol. Its
JSON is therefore kept as growing strings; only the new piece is encoded for each event, so a
long stream costs copying, not encoding.
"""

from __future__ import annotations

import json
import time
from typing import Any

from servematrix.engines.reference.language import Tokenizer
from servematrix.engines.reference.sequence import Logprob, Sequence, Top

WEIGHT_VERSION = "default"


def dumps(content: Any) -> bytes:
    """Compact JSON in UTF-8; half a surrogate pair, which UTF-8 lacks, becomes a question mark."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace")


def answer(sequence: Sequence, tokenizer: Tokenizer, *, with_text: bool) -> dict[str, Any]:
    """The answer to a finished sequence; ``with_text``: token texts in the log-probabilities."""
    meta = _progress(sequence) | {"e2e_latency": sequence.finished - sequence.received}
    if sequence.logprobs:
        meta = _insert_logprobs(meta, logprob_fields(sequence, tokenizer, with_text=with_text))
    meta |= _speculation(sequence) | {
        "request_received_ts": sequence.received,
        "api_server_dispatch_finish_ts": sequence.dispatched,
        "request_finished_ts": sequence.finished,
    }
    meta |= _throughput(sequence) | {"response_sent_to_client_ts": time.time()}
    return {
        "text": sequence.transcript.text,
        "output_ids": sequence.output,
        "meta_info": meta,
    }


class EventStream:
    """The server-sent events of one streamed sequence; ``index`` where there are several."""

    def __init__(
        self, sequence: Sequence, tokenizer: Tokenizer, *, with_text: bool, index: int | None
    ) -> None:
        self.sequence = sequence
        self.complete = False
        self._tokenizer = tokenizer
        self._with_text = with_text
        self._index = "" if index is None else f',"index":{index}'
        self._text = ""
        self._ids = ""
        self._shown = 0
        self._sent = 0
        self._first_sent = 0.0

    @property
    def pending(self) -> bool:
        """Whether there is something that was not sent."""
        ended = self.sequence.finish is not None and not self.complete
        return ended or len(self.sequence.output) > self._sent

    def event(self) -> bytes:
        """The next event: everything so far."""
        sequence = self.sequence
        fresh = sequence.transcript.text[self._shown :]
        self._shown += len(fresh)
        self._text += json.dumps(fresh, ensure_ascii=False)[1:-1]
        ids = ",".join(map(str, sequence.output[self._sent :]))
        self._ids += f",{ids}" if self._ids and ids else ids
        self._sent = len(sequence.output)
        self.complete = sequence.finish is not None
        meta = json.dumps(self._meta(), ensure_ascii=False, separators=(",", ":"))
        event = (
            f'data: {{"text":"{self._text}","output_ids":[{self._ids}],'
            f'"meta_info":{meta}{self._index}}}\n\n'
        )
        return event.encode("utf-8", "replace")

    def _meta(self) -> dict[str, Any]:
        sequence = self.sequence
        meta = _progress(sequence)
        if sequence.logprobs:
            fields = logprob_fields(sequence, self._tokenizer, with_text=self._with_text)
            meta = _insert_logprobs(meta, fields)
        if self.complete:
            meta |= {"e2e_latency": sequence.finished - sequence.received}
            meta |= _speculation(sequence)
            meta |= {
                "request_received_ts": sequence.received,
                "api_server_dispatch_finish_ts": sequence.dispatched,
            }
        if not self._first_sent:
            self._first_sent = time.time()
            meta["response_sent_to_client_ts"] = self._first_sent
        elif self.complete:
            meta["response_sent_to_client_ts"] = self._first_sent
        if self.complete:
            meta |= {"request_finished_ts": sequence.finished} | _throughput(sequence)
        return meta


def logprob_fields(sequence: Sequence, tokenizer: Tokenizer, *, with_text: bool) -> dict[str, Any]:
    """The log-probabilities in the protocol's triples [log-probability, token, text or null]."""

    def entry(pair: Logprob) -> list[Any]:
        value, token = pair
        return [value, token, tokenizer.token_text(token) if with_text else None]

    def entries(top: Top) -> list[list[Any]] | None:
        return None if top is None else [entry(pair) for pair in top]

    fields: dict[str, Any] = {
        "input_token_logprobs": [entry(pair) for pair in sequence.input_logprobs],
        "output_token_logprobs": [entry(pair) for pair in sequence.output_logprobs],
        "output_token_logprobs_length": len(sequence.output_logprobs),
    }
    if sequence.top_count:
        fields["input_top_logprobs"] = [entries(top) for top in sequence.input_top]
        fields["output_top_logprobs"] = [entries(top) for top in sequence.output_top]
    return fields


def _progress(sequence: Sequence) -> dict[str, Any]:
    cached = sequence.cached
    return {
        "id": sequence.rid,
        "finish_reason": sequence.finish,
        "prompt_tokens": len(sequence.prompt),
        "weight_version": WEIGHT_VERSION,
        "num_retractions": 0,
        "queue_time": 0.0,
        "reasoning_tokens": 0,
        "completion_tokens": len(sequence.output),
        "cached_tokens": cached,
        "cached_tokens_details": {"device": cached, "host": 0} if cached else None,
        "dp_rank": sequence.rank,
    }


def _insert_logprobs(meta: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Puts the log-probabilities where SGLang has them: behind the queue time."""
    items = list(meta.items())
    at = list(meta).index("queue_time") + 1
    return dict([*items[:at], *fields.items(), *items[at:]])


def _throughput(sequence: Sequence) -> dict[str, float]:
    seconds = sequence.last_token - sequence.first_token
    if len(sequence.output) < 2 or seconds <= 0:
        return {}
    return {"decode_throughput": (len(sequence.output) - 1) / seconds}


def _speculation(sequence: Sequence) -> dict[str, Any]:
    if not sequence.verify_steps:
        return {}
    histogram = list(sequence.accepted)
    while not histogram[-1]:
        histogram.pop()
    correct, proposed = sequence.correct_drafts, sequence.proposed_drafts
    return {
        "spec_accept_rate": correct / proposed,
        "spec_accept_length": len(sequence.output) / sequence.verify_steps,
        "spec_num_correct_drafts": correct,
        "spec_num_proposed_drafts": proposed,
        "spec_verify_ct": sequence.verify_steps,
        "spec_accepted_drafts": correct,
        "spec_proposed_drafts": proposed,
        "spec_correct_drafts_histogram": histogram,
        "spec_accept_histogram": histogram,
    }
