"""Does speculation pay, and does it let only through what the target would have said."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import ClassVar

from servematrix.client import MalformedAnswer
from servematrix.gates import consistency
from servematrix.gates.accept_length import Drafts, judge_requests
from servematrix.gates.verdict import Verdict, worst
from servematrix.kits import answers, logprobs
from servematrix.kits.base import Kit, concludes
from servematrix.kits.decode_consistency import dtype_of, limits_for
from servematrix.kits.logprobs import NoLogprobs
from servematrix.kits.long_request import latency

_KIT = "spec_decoding"
_PROMPTS = (
    "Write the numbers from one to fifty in words.",
    "Describe how to make a paper boat, step by step.",
    "Write a Python function that sorts a list, and explain it.",
    "Tell the story of a fox who wanted to fly.",
    "Explain what a contract is, and give an example.",
    "List the planets with one sentence about each.",
)


class SpecDecodingMixin(Kit):
    """Accept length by request, and every token let through against the target's own prefill.

    Lengths in tokens, accept length in tokens a verifying pass, speed in tokens a second, the
    timeout in seconds. `spec_decoding_near_tie` (nats) is how far below prefill's likeliest token
    another may lie; None takes the limit of the server's dtype. Set `spec_decoding_required` where
    speculation is configured: a server without it then fails.
    """

    kit: ClassVar[str] = _KIT
    spec_decoding_acc_length_threshold: float = 1.8
    """Least accept length of the requests, in tokens a verifying pass."""
    spec_decoding_required: bool = False
    """Whether a server that does not speculate fails; set it where speculation is configured."""
    spec_decoding_near_tie: float | None = None
    """Nats by which a token may lie below prefill's likeliest; None takes the limit of the
    dtype."""
    spec_decoding_auto_dtype: str = "bfloat16"
    """What dtype `auto` means for this model."""
    spec_decoding_tokens: int = 192
    """Tokens of each request."""
    spec_decoding_timeout: float = 120.0
    """Seconds that one request may take."""
    accept_length_thres: float | None = None
    """The published name of the accept length's threshold; it wins where it is set."""
    bs_1_speed_thres: float | None = None
    """The published floor on tokens a second of one request; not judged where it is None."""

    @concludes(_KIT)
    def test_accept_length(self) -> Verdict:
        """Guards against drafts that are never accepted, and figures that contradict each other."""
        algorithm = self.__algorithm()
        if isinstance(algorithm, Verdict):
            return algorithm
        requests = [self.__drafts(text) for text in _PROMPTS]
        self.attach("drafts", [asdict(one) for one in requests])
        threshold = self.accept_length_thres or self.spec_decoding_acc_length_threshold
        verdict = judge_requests(requests, algorithm=algorithm, threshold=threshold)
        speed = latency(
            self.client, _PROMPTS[0], self.spec_decoding_tokens, self.spec_decoding_timeout
        ).decode_tokens_per_s
        verdict = replace(verdict, numbers={**verdict.numbers, "decode_tokens_per_s": speed})
        for name in ("accept_length", "accept_rate", "decode_tokens_per_s"):
            self.measure(name, verdict.numbers.get(name), _UNITS[name])
        if self.bs_1_speed_thres is None:
            return verdict
        return worst([verdict, _fast_enough(speed, self.bs_1_speed_thres)])

    @concludes(_KIT)
    def test_accepted_tokens_are_top1(self) -> Verdict:
        """Guards against drafts accepted wrongly, which read well and are another model's text."""
        algorithm = self.__algorithm()
        if isinstance(algorithm, Verdict):
            return algorithm
        client, timeout = self.client, self.spec_decoding_timeout
        try:
            decoded = logprobs.decode(
                client,
                logprobs.prompts(client, _PROMPTS, timeout),
                tokens=self.spec_decoding_tokens,
                concurrency=len(_PROMPTS),
                timeout=timeout,
            )
            compared = logprobs.compare(client, decoded, timeout)
        except NoLogprobs as problem:
            return Verdict("not_applicable", logprobs.RULE, str(problem))
        dtype = dtype_of(self._kit_server_info(), self.spec_decoding_auto_dtype)
        near_tie = self.spec_decoding_near_tie or limits_for(dtype, {}).largest_gap
        verdict = consistency.verified(compared, near_tie=near_tie, dtype=dtype)
        self.measure("near_ties", verdict.numbers.get("near_ties"), "tokens")
        self.measure("largest_gap", verdict.numbers.get("largest_gap"), "nats")
        self.attach("gaps", {one.name: [round(gap, 6) for gap in one.gaps] for one in compared})
        return verdict

    def __algorithm(self) -> str | Verdict:
        """Return how the server speculates, or the verdict on one that does not."""
        algorithm = self._kit_server_info().get("speculative_algorithm")
        if algorithm:
            return str(algorithm)
        rule = "the server speculates (speculative_algorithm in /server_info)"
        reason = "the server does not speculate"
        if not self.spec_decoding_required:
            return Verdict("not_applicable", rule, reason)
        advice = "although it was asked to: look at its command line and at its log on the draft"
        return Verdict("fail", rule, f"{reason} {advice}")

    def __drafts(self, text: str) -> Drafts:
        answer = self.client.generate(
            text,
            max_new_tokens=self.spec_decoding_tokens,
            ignore_eos=True,
            timeout=self.spec_decoding_timeout,
        )
        meta = answers.parse(answers.Account, answer.get("meta_info"))
        if isinstance(meta, str):
            raise MalformedAnswer(f"/generate: meta_info: {meta}")
        if meta.completion_tokens is None:
            raise MalformedAnswer(
                f"/generate: no completion_tokens in {self.client.excerpt(answer)}"
            )
        return _drafts(meta, meta.completion_tokens)


_UNITS = {
    "accept_length": "tokens/pass",
    "accept_rate": "share of drafted tokens",
    "decode_tokens_per_s": "tokens/s",
}


def _drafts(meta: answers.Account, tokens: int) -> Drafts:
    histogram = meta.spec_accept_histogram or meta.spec_correct_drafts_histogram
    correct, proposed = meta.spec_accepted_drafts, meta.spec_proposed_drafts
    return Drafts(
        completion_tokens=tokens,
        verify_passes=meta.spec_verify_ct or 0,
        histogram=tuple(histogram) if histogram else None,
        correct=meta.spec_num_correct_drafts if correct is None else correct,
        proposed=meta.spec_num_proposed_drafts if proposed is None else proposed,
        length=meta.spec_accept_length,
        rate=meta.spec_accept_rate,
    )


def _fast_enough(speed: float | None, floor: float) -> Verdict:
    rule = f"one request decodes at more than {floor:g} tokens a second"
    if speed is None:
        return Verdict("error", rule, "too few events came to tell the speed")
    if speed > floor:
        return Verdict("pass", rule, f"{speed:.1f} tokens a second")
    return Verdict("fail", rule, f"{speed:.1f} tokens a second")
