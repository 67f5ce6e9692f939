"""Request bodies, and what is wrong with them.

Types are checked with pydantic, so a wrong type is reported entry by entry in the shape that
SGLang's FastAPI gives it; values are checked by hand, with the recorded messages. What this
server cannot do (images, grammars, penalties) is refused rather than ignored. Other fields
that it does not know are ignored, as SGLang ignores them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from servematrix.engines.reference.sequence import Sampling

BodyT = TypeVar("BodyT", bound=BaseModel)


class BadRequestError(Exception):
    """The request is understood and cannot be served; status 400 with this message."""


class UnknownParameterError(Exception):
    """A name in ``sampling_params`` that does not exist; SGLang answers it with a bare 500."""


class InvalidBodyError(Exception):
    """The body has the wrong shape; ``errors`` as FastAPI lists them."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__(str(errors))
        self.errors = errors


class UnreadableBodyError(Exception):
    """The body is no text, or nested too deeply to read."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore")


class GenerateBody(_Body):
    """POST /generate."""

    text: str | list[str] | None = None
    input_ids: list[int] | list[list[int]] | None = None
    sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None
    rid: str | list[str] | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: int | list[int] | None = None
    top_logprobs_num: int | list[int] | None = None
    return_text_in_logprobs: bool = False
    routed_dp_rank: int | None = None
    stream: bool = False
    input_embeds: Any = None
    image_data: Any = None
    video_data: Any = None
    audio_data: Any = None
    token_ids_logprob: Any = None
    lora_path: Any = None
    return_hidden_states: Any = None

    def refuse_unsupported(self) -> None:
        """Raises BadRequestError for what only a real server can do."""
        for name in (
            "input_embeds", "image_data", "video_data", "audio_data", "token_ids_logprob",
            "lora_path", "return_hidden_states",
        ):  # fmt: skip
            if getattr(self, name):
                raise BadRequestError(f"{name} is not supported by the reference server.")


class StreamOptions(_Body):
    """``stream_options`` of the OpenAI routes."""

    include_usage: bool | None = False


class _OpenAIBody(_Body):
    model: str = "default"
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    top_k: int = -1
    min_p: float = 0.0
    n: int = 1
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    min_tokens: int = 0
    no_stop_trim: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    frequency_penalty: float | None = 0.0
    presence_penalty: float | None = 0.0
    repetition_penalty: float | None = 1.0

    def sampling(self, max_new_tokens: int | None) -> dict[str, Any]:
        """The same request in the words of /generate."""
        return {
            "max_new_tokens": max_new_tokens,
            "min_new_tokens": self.min_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "n": self.n,
            "sampling_seed": self.seed,
            "stop": self.stop,
            "stop_token_ids": self.stop_token_ids,
            "ignore_eos": self.ignore_eos,
            "no_stop_trim": self.no_stop_trim,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "repetition_penalty": self.repetition_penalty,
        }


class TextPart(_Body):
    """A piece of a message's content; only text is supported."""

    type: Literal["text"]
    text: str


class Message(_Body):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatBody(_OpenAIBody):
    """POST /v1/chat/completions."""

    messages: list[Message]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None


class CompletionBody(_OpenAIBody):
    """POST /v1/completions."""

    prompt: list[int] | list[list[int]] | str | list[str]
    max_tokens: int | None = 16
    echo: bool = False
    logprobs: int | None = None


class AbortBody(_Body):
    """POST /abort_request."""

    rid: str = ""
    abort_all: bool = False


class TokenizeBody(_Body):
    """POST /tokenize."""

    model: str = "default"
    prompt: str | list[str]


class DetokenizeBody(_Body):
    """POST /detokenize."""

    model: str = "default"
    tokens: list[int] | list[list[int]]


def read(kind: type[BodyT], raw: bytes) -> BodyT:
    """The body as ``kind``; raises InvalidBodyError or UnreadableBodyError."""
    try:
        content = json.loads(raw)
    except (UnicodeDecodeError, RecursionError):
        raise UnreadableBodyError("There was an error parsing the body") from None
    except json.JSONDecodeError as error:
        raise InvalidBodyError([_json_error(error)]) from None
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        raise InvalidBodyError(
            [dict(entry) | {"loc": ("body", *entry["loc"])} for entry in errors]
        ) from None


def _json_error(error: json.JSONDecodeError) -> dict[str, Any]:
    return {
        "type": "json_invalid",
        "loc": ("body", error.pos),
        "msg": "JSON decode error",
        "input": {},
        "ctx": {"error": error.msg},
    }


_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "min_p": (None, 0),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "stop_regex": (None, [], ""),
    "json_schema": (None,),
    "regex": (None,),
    "ebnf": (None,),
    "structural_tag": (None,),
    "custom_params": (None, {}),
    "logit_bias": (None, {}),
}
"""Parameters of SGLang's that this server does not have, with the values that ask for nothing."""

_INERT = ("skip_special_tokens", "spaces_between_special_tokens")
_DEFAULTS: Mapping[str, Any] = {
    "max_new_tokens": 128,
    "min_new_tokens": 0,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "n": 1,
    "stop": None,
    "stop_token_ids": None,
    "ignore_eos": False,
    "no_stop_trim": False,
    "sampling_seed": None,
    "stream_interval": None,
}


def check_sampling(given: Mapping[str, Any], stream_interval: int = 1) -> Sampling:
    """Sampling parameters from their JSON; raises UnknownParameterError or BadRequestError."""
    for name, value in given.items():
        if name in _NEUTRAL:
            if value not in _NEUTRAL[name]:
                raise BadRequestError(f"{name} is not supported by the reference server.")
        elif name not in _DEFAULTS and name not in _INERT:
            raise UnknownParameterError(name)
    values = {name: given.get(name, default) for name, default in _DEFAULTS.items()}
    for name in ("temperature", "top_p", "top_k", "min_new_tokens", "n", "ignore_eos"):
        if values[name] is None:
            values[name] = _DEFAULTS[name]
    try:
        return _checked(values, stream_interval)
    except (TypeError, ValueError) as error:
        raise BadRequestError(f"sampling_params: {error}") from None


def _checked(values: Mapping[str, Any], stream_interval: int) -> Sampling:
    temperature, top_p, top_k = values["temperature"], values["top_p"], values["top_k"]
    most, least, n = values["max_new_tokens"], values["min_new_tokens"], values["n"]
    if not math.isfinite(temperature) or temperature < 0:
        raise BadRequestError(
            f"temperature must be a non-negative finite number, got {temperature}."
        )
    if not 0 < top_p <= 1:
        raise BadRequestError(f"top_p must be in (0, 1], got {top_p}.")
    if top_k != -1 and top_k < 1:
        raise BadRequestError(f"top_k must be -1 (disable) or at least 1, got {top_k}.")
    if least < 0:
        raise BadRequestError(f"min_new_tokens must be in [0, max_new_tokens], got {least}.")
    if most is not None and most < 0:
        raise BadRequestError(f"max_new_tokens must be at least 0, got {most}.")
    if most is not None and least > most:
        raise BadRequestError(
            f"min_new_tokens must be in [0, max_new_tokens({most})], got {least}."
        )
    if n < 1:
        raise BadRequestError(f"n must be at least 1, got {n}.")
    stop = values["stop"] or ()
    return Sampling(
        max_new_tokens=-1 if most is None else int(most),
        min_new_tokens=int(least),
        temperature=float(temperature),
        top_p=float(top_p),
        top_k=int(top_k),
        seed=None if values["sampling_seed"] is None else int(values["sampling_seed"]),
        stop=(stop,) if isinstance(stop, str) else tuple(str(text) for text in stop if text),
        stop_tokens=frozenset(int(token) for token in values["stop_token_ids"] or ()),
        ignore_eos=bool(values["ignore_eos"]),
        keep_stop=bool(values["no_stop_trim"]),
        stream_interval=int(values["stream_interval"] or stream_interval),
        n=int(n),
    )
