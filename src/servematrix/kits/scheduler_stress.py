"""Does the server stay right under streaming, concurrency and a very long prompt?"""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

from servematrix.client import BadStatus, ClientError, MalformedAnswer
from servematrix.gates import load, stream
from servematrix.gates.text import first_line
from servematrix.gates.verdict import Verdict
from servematrix.kits import answers
from servematrix.kits.base import Kit, concludes

_KIT = "scheduler_stress"
_PARIS = "Q: What is the capital of France?\nA:"
_SHARED = (
    "Q: What is the capital of Norway?\nA: Oslo\n\nQ: What is the capital of Canada?\nA: Ottawa\n\n"
)
"""Two solved questions: even a model of 135M parameters answers in their form."""
_CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Spain": "Madrid",
    "Egypt": "Cairo",
    "Russia": "Moscow",
    "Greece": "Athens",
}
_FILLER = (
    "The ferry leaves the harbour at seven and reaches the island before noon. "
    "Gulls follow it for the first mile, then turn back to the quay. "
    "On deck somebody reads a newspaper, somebody else sleeps in the sun. "
    "The captain has made this crossing four times a day for eleven years. "
)
_CONTEXT_SHARE = 0.75
_AT_ONCE = 16
"""Requests at once while many are sent; a small batch for any GPU."""
_ENOUGH = 32
"""Unserved requests after which the rest is not sent: each may have taken the whole timeout."""


class BasicSchedulerStressMixin(Kit):
    """Streaming, eight questions at once, many requests, and a prompt longer than one chunk.

    `scheduler_stress_requests` is how many small requests must all be served.
    `scheduler_stress_long_prompt_tokens` is the length of the long prompt where the server's
    context allows it; the timeout, in seconds, ends every request.
    `scheduler_stress_knows_capitals` is False for a model that cannot name them: its answers are
    then compared with its own instead.
    """

    kit: ClassVar[str] = _KIT
    scheduler_stress_long_prompt_tokens: int = 8192
    """Length of the long prompt in tokens, where the server's context allows it."""
    scheduler_stress_requests: int = 700
    """Small requests that must all be served."""
    scheduler_stress_knows_capitals: bool = True
    """Whether the model can name capitals; where not, its answers are compared with its own."""
    scheduler_stress_timeout: float = 120.0
    """Seconds that one request may take."""
    sanity_max_new_tokens_short: int = 64
    """Most tokens of a short answer."""

    @concludes(_KIT)
    def test_streaming_response(self) -> Verdict:
        """Guards against broken event framing and a detokeniser that garbles streamed text."""
        limit, timeout = self.sanity_max_new_tokens_short, self.scheduler_stress_timeout
        whole = self.__generate(_PARIS, limit)
        events = self.client.generate_stream(_PARIS, max_new_tokens=limit, timeout=timeout)
        blocks = [event.raw for event in events]
        self.measure("stream_events", len(blocks), "events")
        expected = "paris" if self.scheduler_stress_knows_capitals else None
        return stream.judge(blocks, whole=whole.text, expected=expected)

    @concludes(_KIT)
    def test_concurrent_requests(self) -> Verdict:
        """Guards against a scheduler that hangs under load and prefixes that leak into others.

        Eight questions share a prefix, which sends them through one branch of the prefix cache.
        """
        expected = dict(_CAPITALS)
        if not self.scheduler_stress_knows_capitals:
            for country in expected:
                expected[country] = first_line(self.__ask(country))
        with ThreadPoolExecutor(len(expected), thread_name_prefix="question") as pool:
            asked = {country: pool.submit(self.__answer, country) for country in expected}
            answers = {country: future.result() for country, future in asked.items()}
        verdict = load.at_once(answers, expected)
        self.measure("concurrent_missed", verdict.numbers["missed"], "answers")
        self.measure("concurrent_unanswered", verdict.numbers["unanswered"], "answers")
        return verdict

    @concludes(_KIT)
    def test_long_prompt(self) -> Verdict:
        """Guards against chunked prefill that crashes or loses its place after the first chunk.

        The prompt is new in every run, so that the prefix cache cannot answer in its place.
        """
        context = self.__context()
        aimed = self.scheduler_stress_long_prompt_tokens
        if context is not None:
            aimed = min(aimed, int(context * _CONTEXT_SHARE))
        prompt = self.__long_prompt(aimed)
        answer = self.__generate(prompt, self.sanity_max_new_tokens_short)
        meta = answer.meta_info
        self.measure("long_prompt_tokens", meta.prompt_tokens, "tokens")
        self.measure("long_prompt_answer_right", "paris" in answer.text.lower(), "")
        return load.long_prompt(
            answer.text,
            prompt_tokens=meta.prompt_tokens,
            aimed=aimed,
            cached_tokens=meta.cached_tokens,
            context=context,
        )

    @concludes(_KIT)
    def test_many_requests(self) -> Verdict:
        """Guards against a server that answers nearly every request, and drops some under load."""
        problems: list[str] = []

        def ask(number: int) -> bool:
            if len(problems) >= _ENOUGH:
                return False
            try:
                self.__generate(f"Request {number}: {_PARIS}", 1)
            except ClientError as error:
                problems.append(str(error))
            return True

        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="request") as pool:
            asked = sum(pool.map(ask, range(self.scheduler_stress_requests)))
        self.measure("many_requests", asked, "requests")
        self.measure("many_unanswered", len(problems), "requests")
        return load.all_served(problems, asked)

    def __ask(self, country: str) -> str:
        prompt = f"{_SHARED}Q: What is the capital of {country}?\nA:"
        return self.__generate(prompt, self.sanity_max_new_tokens_short).text

    def __answer(self, country: str) -> str | load.Unanswered:
        """Ask for one capital; return the first line of the answer, or why there is none."""
        try:
            return first_line(self.__ask(country))
        except ClientError as error:
            return load.Unanswered(str(error))

    def __context(self) -> int | None:
        """Return the server's context in tokens, None where it does not tell."""
        listing = answers.parse(answers.ModelListing, self.client.models())
        return None if isinstance(listing, str) else listing.data[0].max_model_len

    def __long_prompt(self, tokens: int) -> str:
        """Build a prompt of about `tokens` tokens as the server counts them.

        The filler repeats, so its tokens grow evenly: two short prompts tell how much one round of
        it adds, and what the rest of the prompt takes.
        """
        nonce = uuid.uuid4().hex[:12]
        few, many = 2, 6
        base = self.__count(_around(nonce, few))
        each = (self.__count(_around(nonce, many)) - base) / (many - few)
        if each <= 0:
            raise MalformedAnswer("the server counts no more tokens for a longer prompt")
        return _around(nonce, max(1, few + round((tokens - base) / each)))

    def __count(self, text: str) -> int:
        """Count the tokens of a prompt with /tokenize, else with a request for one token."""
        try:
            return self.client.tokenize(text, model=self.served_model_name)
        except BadStatus as error:
            if error.status not in (404, 405, 501):
                raise
        return self.__generate(text, 1).meta_info.prompt_tokens

    def __generate(self, prompt: str, max_new_tokens: int) -> answers.Generated:
        return self._kit_generate(prompt, max_new_tokens, self.scheduler_stress_timeout)


def _around(nonce: str, rounds: int) -> str:
    # solved questions: after so much prose a small model is as likely to end as to answer
    return f"Voyage {nonce}. Read this log.\n{_FILLER * rounds}\n{_SHARED}{_PARIS}"
