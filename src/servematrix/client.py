"""The HTTP calls to a server under test: the only place that knows endpoint paths."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from servematrix.transport import (
    BadStatus,
    ClientError,
    Event,
    MalformedAnswer,
    TimedOut,
    Transport,
    Unreachable,
)

__all__ = [
    "BadStatus",
    "Client",
    "ClientError",
    "Event",
    "MalformedAnswer",
    "TimedOut",
    "Unreachable",
]

MIB = 1024 * 1024
_MORE_EVENTS = 64
"""Events of a stream beside twice those of its tokens, so that a stream without an end is none."""
_MOST_TOKENS = 10**9
_MOST_VALUES = 10**6
"""Values of an answer: a batch of 64 HellaSwag items has 40,000. Ten million brackets, which the
largest body may hold, take half a gigabyte and seconds to parse."""
_DEEPEST = 64
"""Levels of JSON; a server's answers have fewer than ten."""

Json = dict[str, Any]


class Client:
    """Calls one server. Safe to share between threads; each keeps one connection alive.

    `timeout` is the total time in seconds that a call may take unless the call names its own;
    `max_body` the most bytes of one answer; the largest of a whole run was 145 KB, a batch of
    HellaSwag endings. The API key is sent as a bearer token and shown in no message. Every call
    raises `ClientError`: `Unreachable` (nobody answers; `TimedOut` where it was not in time),
    `BadStatus`, or `MalformedAnswer`. Only what a method says of its answer is checked; the rest
    is as the server wrote it (`kits.answers` has models of it).
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        max_body: int = 16 * MIB,
    ) -> None:
        self._transport = Transport(
            base_url, api_key=api_key, max_body=max_body, max_event=min(max_body, MIB)
        )
        self._timeout = timeout

    def health(self, *, timeout: float | None = None) -> None:
        """Ask whether the server is up; any other status than 200 raises `BadStatus`."""
        self._call("GET", "/health", timeout=timeout)

    def health_generate(self, *, timeout: float | None = None) -> None:
        """Ask the server to generate one token for itself; raises as `health` does."""
        self._call("GET", "/health_generate", timeout=timeout)

    def server_info(self, *, old_path: bool = False) -> Json:
        """Return the server's arguments and state; `old_path` asks `/get_server_info`.

        The arguments hold the server's API key where it has one.
        """
        return self._object("GET", "/get_server_info" if old_path else "/server_info")

    def model_info(self, *, old_path: bool = False) -> Json:
        """Return what is served; `old_path` asks `/get_model_info`."""
        return self._object("GET", "/get_model_info" if old_path else "/model_info")

    def models(self) -> Json:
        """Return the OpenAI listing of models, `{"object": "list", "data": [...]}`."""
        return self._object("GET", "/v1/models")

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int,
        ignore_eos: bool = False,
        logprobs: bool = False,
        rid: str | None = None,
        stop: str | None = None,
        dp_rank: int | None = None,
        timeout: float | None = None,
    ) -> Json:
        """Continue one prompt, text or token ids, greedily through `/generate`.

        `rid` names the request for `abort`; `stop` is a text at which the answer is to end;
        `dp_rank` the data-parallel rank that is to serve it, `ignore_eos` lets it go on to its last
        token. The answer has `text` and `meta_info`, with counts of tokens. With `logprobs`,
        `meta_info.output_token_logprobs` has an entry [log-probability (nats), token id, text or
        null] for each new token.
        """
        body = {**_prompt(prompt), **_greedy(max_new_tokens, ignore_eos)}
        if logprobs:
            body["return_logprob"] = True
        if rid is not None:
            body["rid"] = rid
        if stop is not None:
            body["sampling_params"]["stop"] = stop
        if dp_rank is not None:
            body["routed_dp_rank"] = dp_rank
        return self._object("POST", "/generate", body, timeout)

    def generate_batch(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        ignore_eos: bool = False,
        timeout: float | None = None,
    ) -> list[Json]:
        """Continue several prompts in one `/generate` request, answers in their order.

        Each is as that of `generate`; another number of answers is a malformed one.
        """
        body = {**_prompts(prompts), **_greedy(max_new_tokens, ignore_eos)}
        return self._answers(body, len(prompts), timeout)

    def generate_stream(
        self,
        text: str,
        *,
        max_new_tokens: int,
        ignore_eos: bool = False,
        timeout: float | None = None,
    ) -> Iterator[Event]:
        """Stream a greedy answer of `/generate` over a connection of its own, event by event.

        An event ends with its blank line; bytes after the last blank line come as a last event
        without one. Nothing is parsed. `timeout` bounds the whole stream; an event over 1 MiB, or
        many more events than tokens, are a malformed answer.
        """
        body = {**_prompt(text), **_greedy(max_new_tokens, ignore_eos), "stream": True}
        most = 2 * max_new_tokens + _MORE_EVENTS
        return self._transport.events("/generate", body, self._ends(timeout), most=most)

    def score(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        starts: Sequence[int] | None = None,
        *,
        top: int = 0,
        timeout: float | None = None,
    ) -> list[Json]:
        """Process prompts in one `/generate` request without generating, answers in their order.

        Prompts are texts or token ids. With `starts`, a token index for each prompt,
        `meta_info.input_token_logprobs` holds the log-probabilities from there on; its first entry
        is null. With `top` beside it, `meta_info.input_top_logprobs` has the `top` likeliest
        tokens of each place.
        """
        body = {**_prompts(prompts), **_greedy(0)}
        if starts is not None:
            body |= {"return_logprob": True, "logprob_start_len": list(starts)}
            if top:
                body["top_logprobs_num"] = top
        return self._answers(body, len(prompts), timeout)

    def chat(self, body: Mapping[str, Any], *, timeout: float | None = None) -> Json:
        """Ask for an OpenAI chat completion; `body` is the request as OpenAI has it."""
        return self._object("POST", "/v1/chat/completions", body, timeout)

    def completion(self, body: Mapping[str, Any], *, timeout: float | None = None) -> Json:
        """Ask for an OpenAI completion; `body` is the request as OpenAI has it."""
        return self._object("POST", "/v1/completions", body, timeout)

    def tokenize(self, text: str, *, model: str = "default") -> int:
        """Count the tokens of a text as the server counts those of a prompt.

        Raises `MalformedAnswer` where the answer has no count; older servers have no such route.
        """
        path = "/tokenize"
        count = self._object("POST", path, {"model": model, "prompt": text}).get("count")
        if type(count) is not int or not 0 <= count <= _MOST_TOKENS:
            raise MalformedAnswer(f"{self._transport.at(path)} gave no 'count' of tokens")
        return count

    def metrics_text(self, *, timeout: float | None = None) -> str:
        """Return the Prometheus exposition as text, for `metrics.read`.

        A server without metrics answers 404: `BadStatus`.
        """
        return self._call("GET", "/metrics", timeout=timeout).decode("utf-8", "replace")

    def abort(self, rid: str, *, timeout: float | None = None) -> None:
        """End the requests whose `rid` begins so; they answer with what they have decoded.

        A server that guards this with an admin key of its own answers 401 or 403.
        """
        self._call("POST", "/abort_request", {"rid": rid}, timeout)

    def flush_cache(self) -> None:
        """Empty the prefix cache; `BadStatus` where the server has requests running."""
        self._call("POST", "/flush_cache", {})

    def excerpt(self, body: object) -> str:
        """Show an answer for a message: cut, and without the API key."""
        return self._transport.excerpt(body)

    def _answers(self, body: Json, count: int, timeout: float | None) -> list[Json]:
        path = "/generate"
        answers = self._json("POST", path, body, timeout)
        at = self._transport.at(path)
        if not isinstance(answers, list) or not all(isinstance(one, dict) for one in answers):
            raise MalformedAnswer(f"{at} gave no list of answers to a list of prompts")
        if len(answers) != count:
            raise MalformedAnswer(f"{at} gave {len(answers)} answers to {count} prompts")
        return answers

    def _object(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Json:
        answer = self._json(method, path, body, timeout)
        if not isinstance(answer, dict):
            at = self._transport.at(path)
            raise MalformedAnswer(f"{at} gave no JSON object: {self.excerpt(answer)}")
        return answer

    def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout: float | None
    ) -> Any:
        data = self._call(method, path, body, timeout)
        at = self._transport.at(path)
        if sum(map(data.count, (b",", b"[", b"{"))) > _MOST_VALUES:
            raise MalformedAnswer(f"{at} gave JSON of over {_MOST_VALUES} values")
        try:
            answer = json.loads(data.decode())  # bytes would be taken for UTF-16 too
        except (ValueError, RecursionError) as error:
            text = self.excerpt(data.decode("utf-8", "replace"))
            why = "nested too deep" if isinstance(error, RecursionError) else f"{error}"
            raise MalformedAnswer(f"{at} gave no JSON ({why:.80}): {text!r}") from None
        if not _shallow(answer):
            raise MalformedAnswer(f"{at} gave JSON that is nested over {_DEEPEST} deep")
        return answer

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> bytes:
        return self._transport.call(method, path, body, self._ends(timeout))

    def _ends(self, timeout: float | None) -> float:
        return time.monotonic() + (self._timeout if timeout is None else timeout)


def _shallow(answer: Any) -> bool:
    """Whether an answer is nested no deeper than what walks over it by recursion can go."""
    level = [answer]
    for _ in range(_DEEPEST):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return True
    return False


def _prompt(prompt: str | Sequence[int]) -> Json:
    return {"text": prompt} if isinstance(prompt, str) else {"input_ids": list(prompt)}


def _prompts(prompts: Sequence[str] | Sequence[Sequence[int]]) -> Json:
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    return {"text": texts} if texts else {"input_ids": [list(prompt) for prompt in prompts]}


def _greedy(max_new_tokens: int, ignore_eos: bool = False) -> Json:
    sampling: Json = {"temperature": 0.0, "max_new_tokens": max_new_tokens}
    if ignore_eos:
        sampling["ignore_eos"] = True
    return {"sampling_params": sampling}
