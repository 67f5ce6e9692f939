"""The shapes of a server's answers as pydantic models: types, content, usage that adds up.

Fields that are not named here may be there too; a version that adds one breaks no contract.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]


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
    created: Count
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
    completion_tokens: Annotated[int, Field(ge=0)]
    cached_tokens: int = 0


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
        return "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'the answer'}: {fault['msg']}"
            + _found(fault["input"])
            for fault in error.errors(include_url=False)
        )


def _found(value: object) -> str:
    """Show the value that was found where it is small; a missing field shows its whole parent."""
    return "" if isinstance(value, dict | list) else f" (found {value!r:.80})"
