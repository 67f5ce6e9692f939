"""Does the server keep its HTTP contract: health, information, and the OpenAI routes."""

from __future__ import annotations

from typing import Any, ClassVar

from servematrix.gates.verdict import Verdict
from servematrix.kits import answers
from servematrix.kits.base import Kit, concludes

_KIT = "api_contract"
_MAX_TOKENS = 16


class BasicAPIContractMixin(Kit):
    """Health endpoints, information endpoints, and the OpenAI `/v1` surface.

    The timeout, in seconds, ends every request that generates.
    """

    kit: ClassVar[str] = _KIT
    api_contract_timeout: float = 60.0
    """Seconds that one request may take."""

    @concludes(_KIT, beside_others=True)
    def test_health(self) -> Verdict:
        """Guards against a server whose HTTP front is up and answers /health with an error."""
        self.client.health()
        return Verdict("pass", "/health answers 200", "status 200")

    @concludes(_KIT, beside_others=True)
    def test_health_generate(self) -> Verdict:
        """Guards against a scheduler that accepts work and cannot finish a single token."""
        self.client.health_generate(timeout=self.api_contract_timeout)
        return Verdict("pass", "/health_generate answers 200", "status 200")

    @concludes(_KIT, beside_others=True)
    def test_server_info(self) -> Verdict:
        """Guards against a server that hides its arguments or version from its operators."""
        return self.__conforms("/server_info", answers.ServerInfo, self.client.server_info())

    @concludes(_KIT, beside_others=True)
    def test_get_server_info(self) -> Verdict:
        """Guards against losing the older path of the server's information."""
        info = self.client.server_info(old_path=True)
        return self.__conforms("/get_server_info", answers.ServerInfo, info)

    @concludes(_KIT, beside_others=True)
    def test_model_info(self) -> Verdict:
        """Guards against a server that does not say which model it serves."""
        return self.__conforms("/model_info", answers.ModelInfo, self.client.model_info())

    @concludes(_KIT, beside_others=True)
    def test_get_model_info(self) -> Verdict:
        """Guards against losing the older path of the model's information."""
        info = self.client.model_info(old_path=True)
        return self.__conforms("/get_model_info", answers.ModelInfo, info)

    @concludes(_KIT, beside_others=True)
    def test_model_listing(self) -> Verdict:
        """Guards against OpenAI clients that find no model to ask for."""
        return self.__conforms("/v1/models", answers.ModelListing, self.client.models())

    @concludes(_KIT, beside_others=True)
    def test_openai_chat_completion(self) -> Verdict:
        """Guards against a chat route, or a chat template, that gives no usable message."""
        body = self.client.chat(
            {
                "model": self.served_model_name,
                "messages": [{"role": "user", "content": "Greet me with one word."}],
                "temperature": 0.0,
                "max_tokens": _MAX_TOKENS,
            },
            timeout=self.api_contract_timeout,
        )
        return self.__completes("/v1/chat/completions", answers.ChatCompletion, body)

    @concludes(_KIT, beside_others=True)
    def test_openai_completion(self) -> Verdict:
        """Guards against a completion route that drifts from the published schema."""
        body = self.client.completion(
            {
                "model": self.served_model_name,
                "prompt": "The capital of France is",
                "temperature": 0.0,
                "max_tokens": _MAX_TOKENS,
            },
            timeout=self.api_contract_timeout,
        )
        return self.__completes("/v1/completions", answers.Completion, body)

    def __completes(self, path: str, model: type[answers.OpenAIAnswer], body: Any) -> Verdict:
        """Check a completion, which must also keep to the tokens it was allowed."""
        parsed = answers.parse(model, body)
        if isinstance(parsed, answers.OpenAIAnswer):
            self.measure("completion_tokens", parsed.usage.completion_tokens, "tokens")
            if parsed.usage.completion_tokens > _MAX_TOKENS:
                parsed = (
                    f"usage.completion_tokens: {parsed.usage.completion_tokens} where max_tokens"
                    f" allows {_MAX_TOKENS}"
                )
        return self.__judged(path, model, parsed, body)

    def __conforms(self, path: str, model: type[answers.Answer], body: Any) -> Verdict:
        return self.__judged(path, model, answers.parse(model, body), body)

    def __judged(
        self, path: str, model: type[answers.Answer], parsed: answers.Answer | str, body: Any
    ) -> Verdict:
        rule = f"{path} answers 200 with a well-formed {model.__name__}"
        if not isinstance(parsed, str):
            return Verdict("pass", rule, "all fields as expected")
        reason = f"{path}: {parsed}; the answer was {self.client.excerpt(body)}"
        return Verdict("fail", rule, reason)
