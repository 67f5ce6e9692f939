"""Is a streamed answer well framed, growing, and the one that was given without streaming?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from servematrix.gates.text import contains, first_line, quote
from servematrix.gates.verdict import Verdict, worst

_PREFIX = b"data: "
_DONE = b"[DONE]"


@dataclass(frozen=True)
class Framed:
    """Server-sent events taken apart: the texts of the events, and the first fault if any.

    Texts are those before the fault; `fault` is a clause for a reason, None where all is right.
    """

    texts: tuple[str, ...]
    fault: str | None


def unframe(blocks: Sequence[bytes]) -> Framed:
    """Take server-sent events apart, strictly as SGLang writes them.

    `blocks` are the stream's bytes split after each blank line. Each must be one line
    `data: {…}` with a string `text`, the last one `data: [DONE]`, and nothing may follow it.
    """
    texts: list[str] = []
    for index, block in enumerate(blocks, start=1):
        where = f"event {index}"
        if not block.endswith(b"\n\n"):
            return Framed(tuple(texts), f"{where} does not end with a blank line: {_cut(block)}")
        line = block[:-2]
        if b"\n" in line or not line.startswith(_PREFIX):
            return Framed(tuple(texts), f"{where} is not one 'data: …' line: {_cut(block)}")
        payload = line[len(_PREFIX) :]
        if payload == _DONE:
            if index < len(blocks):
                rest = b"".join(blocks[index:])
                return Framed(tuple(texts), f"something follows [DONE]: {_cut(rest)}")
            return Framed(tuple(texts), None)
        try:
            event = json.loads(payload)
        except (ValueError, RecursionError):
            return Framed(tuple(texts), f"{where} is not JSON: {_cut(payload)}")
        text = event.get("text") if isinstance(event, dict) else None
        if not isinstance(text, str):
            return Framed(tuple(texts), f"{where} has no string 'text': {_cut(payload)}")
        texts.append(text)
    return Framed(tuple(texts), "the stream ended without [DONE]")


def judge(blocks: Sequence[bytes], *, whole: str, expected: str | None) -> Verdict:
    """Judge a streamed greedy answer.

    `blocks` are the stream's bytes split after each blank line; `whole` is the answer to the same
    question without streaming; `expected` must be in the answer unless it is None.
    """
    framed = unframe(blocks)
    framing = _framing(framed)
    if framing.outcome != "pass":
        return framing
    verdicts = [framing, _growth(framed.texts), _agreement(framed.texts[-1], whole)]
    if expected is not None:
        verdicts.append(contains(framed.texts[-1], expected))
    return worst(verdicts)


def _framing(framed: Framed) -> Verdict:
    rule = "every event is one 'data: …' line and a blank line, [DONE] is last, two events or more"
    numbers = {"events": len(framed.texts)}
    if framed.fault is not None:
        return Verdict("fail", rule, f"{framed.fault}; look at the streaming route", numbers)
    if len(framed.texts) < 2:
        reason = f"{len(framed.texts)} events for a whole answer: it was not streamed"
        return Verdict("fail", rule, reason, numbers)
    return Verdict("pass", rule, f"{len(framed.texts)} events", numbers)


def _growth(texts: Sequence[str]) -> Verdict:
    rule = "the text of each event continues that of the one before"
    for index in range(1, len(texts)):
        before, after = texts[index - 1], texts[index]
        if not after.startswith(before):
            reason = (
                f"event {index + 1} reads {quote(after)} after {quote(before)}; look at the"
                " detokeniser (a server that streams increments instead cannot pass)"
            )
            return Verdict("fail", rule, reason)
    return Verdict("pass", rule, f"grew to {len(texts[-1])} characters")


def _agreement(streamed: str, whole: str) -> Verdict:
    rule = "streamed and not streamed, the greedy answer is the same up to the first newline"
    one, two = first_line(streamed), first_line(whole)
    if one == two and one:
        return Verdict("pass", rule, f"both {quote(one)}")
    reason = f"streamed {quote(one)}, not streamed {quote(two)}; look at the streaming route"
    return Verdict("fail", rule, reason)


def _cut(data: bytes) -> str:
    return quote(data.decode("utf-8", "replace"), 120)
