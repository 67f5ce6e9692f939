"""The shapes of a server's answers as pydantic models: types, content, usage that adds up.

Fields that are not named here may be there too; a version that adds one breaks no contract.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MOST_TOKENS = 10**9
LARGEST_LOGPROB = 0.1
"""Nats; rounding may lift the likeliest token a little above 0."""
_SMALLEST_LOGPROB = -1e9
_MOST_FAULTS = 5

Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(max_length=200)]
Count = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
Whole = Annotated[int, Field(ge=0, le=MOST_TOKENS)]
Positive = Annotated[float, Field(ge=0, le=MOST_TOKENS, allow_inf_nan=False)]


class Answer(BaseModel):
    """Base of all: strict types, unknown fields allowed."""

    model_config = ConfigDict(extra="allow", strict=True)


class ServerInfo(Answer):
    """`/server_info`: the server's arguments, its version and the state of its schedulers."""

    model_path: Text
    version: Text
    internal_states: Annotated[list[dict[str, Any]], Field(min_length=1)]


class ModelInfo(Answer):
    """`/model_info`: what is served."""

    model_path: Text
    is_generation: bool


class ListedModel(Answer):
    """One model of `/v1/models`; `max_model_len` is the context in tokens."""

    id: Text
    object: Literal["model"]
    max_model_len: Count | None = None


class ModelListing(Answer):
    """`/v1/models`."""

    object: Literal["list"]
    data: Annotated[list[ListedModel], Field(min_length=1)]


class Usage(Answer):
    """Tokens of an OpenAI answer."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.prompt_tokens + self.completion_tokens != self.total_tokens:
            raise ValueError(
                f"{self.prompt_tokens} prompt and {self.completion_tokens} completion tokens"
                f" do not make {self.total_tokens}"
            )
        return self


class OpenAIAnswer(Answer):
    """What chat and plain completions share."""

    id: Text
    created: Annotated[int, Field(ge=1, lt=2**53)]
    model: Text
    usage: Usage


class ChatMessage(Answer):
    """What the model said."""

    role: Literal["assistant"]
    content: Text


class ChatChoice(Answer):
    """One choice of a chat completion."""

    index: int
    message: ChatMessage
    finish_reason: Text


class ChatCompletion(OpenAIAnswer):
    """`/v1/chat/completions`."""

    object: Literal["chat.completion"]
    choices: Annotated[list[ChatChoice], Field(min_length=1)]


class CompletionChoice(Answer):
    """One choice of a completion."""

    index: int
    text: Text
    finish_reason: Text


class Completion(OpenAIAnswer):
    """`/v1/completions`."""

    object: Literal["text_completion"]
    choices: Annotated[list[CompletionChoice], Field(min_length=1)]


class GenerateMeta(Answer):
    """`meta_info` of `/generate`, as far as the kits need it."""

    prompt_tokens: Count
    completion_tokens: Whole
    cached_tokens: Whole = 0


class Finish(Answer):
    """Why a request ended."""

    type: Name


class Account(Answer):
    """`meta_info` of a request, as far as it tells what was decoded, and with which drafts.

    0.5.16 has two names for some of the drafts' numbers, older versions the first only.
    """

    completion_tokens: Whole | None = None
    finish_reason: Finish | Name | None = None
    spec_verify_ct: Whole | None = None
    spec_accept_length: Positive | None = None
    spec_accept_rate: Positive | None = None
    spec_accept_histogram: list[Whole] | None = None
    spec_correct_drafts_histogram: list[Whole] | None = None
    spec_accepted_drafts: Whole | None = None
    spec_num_correct_drafts: Whole | None = None
    spec_proposed_drafts: Whole | None = None
    spec_num_proposed_drafts: Whole | None = None


class Settings(Answer):
    """What kits read of `/server_info` to know what they measure; all of it may be missing."""

    version: Name | None = None
    device: Name | None = None
    dtype: Name | None = None
    kv_cache_dtype: Name | None = None
    speculative_algorithm: Name | None = None
    decode_log_interval: Annotated[int, Field(ge=1, le=10**6)] | None = None
    dp_size: Annotated[int, Field(ge=1, le=1024)] | None = None


class Generated(Answer):
    """`/generate` of one prompt."""

    text: str
    meta_info: GenerateMeta


A = TypeVar("A", bound=Answer)


def parse(model: type[A], body: object) -> A | str:
    """Check an answer against its model; return it, or a clause that names each wrong field."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        faults = error.errors()
        told = [
            f"{'.'.join(str(part) for part in fault['loc']) or 'the answer':.200}: {fault['msg']}"
            + _found(fault["input"])
            for fault in faults[:_MOST_FAULTS]
        ]
        if len(faults) > _MOST_FAULTS:
            told.append(f"and {len(faults) - _MOST_FAULTS} more")
        return "; ".join(told)


def logprob(value: object) -> float | None:
    """Return a token's log-probability in nats, None where the value cannot be one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if _SMALLEST_LOGPROB <= value <= LARGEST_LOGPROB else None


def _found(value: object) -> str:
    """Show the value that was found where it is small; a missing field shows its whole parent."""
    return "" if isinstance(value, dict | list) else f" (found {value!r:.80})"
