"""Does speculative decoding pay: tokens gained by each verifying forward pass of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from servematrix.gates.verdict import Number, Verdict

_AGREEMENT = 0.02
"""Largest relative gap between our accept length and the server's own before neither is believed.

Recorded runs agree to seven digits; the room is for a version that counts the prefill's token
otherwise, which is one token in a request of some hundred.
"""


def judge(
    *,
    algorithm: str | None,
    completion_tokens: int | None,
    verify_passes: int | None,
    reported: float | None,
    threshold: float,
    required: bool = False,
) -> Verdict:
    """Demand an accept length above `threshold` tokens a pass, where the server speculates.

    The accept length is that of one request: `completion_tokens` over `verify_passes`
    (`spec_verify_ct`). `reported` is what the server says of the same request. `algorithm` is the
    configured one, None where speculation is off; then the rule does not apply, or it fails where
    speculation is `required`. The published `threshold` is 1.8.
    """
    rule = f"accept length of this request > {threshold:g} tokens a verifying pass"
    if algorithm is None and verify_passes is None:
        if required:
            reason = (
                "the server does not speculate although it was asked to: look at its command line"
                " and at what its log says of the draft model"
            )
            return Verdict("fail", rule, reason, {"spec_algorithm": None})
        return Verdict("not_applicable", rule, "the server does not speculate")
    name = algorithm or "speculation"
    if not verify_passes or completion_tokens is None:
        reason = (
            f"the server is configured for {name}, but its answer carries no spec_verify_ct:"
            " the request was decoded without drafts, or this version does not report it"
        )
        return Verdict("error", rule, reason, {"spec_algorithm": name})
    length = completion_tokens / verify_passes
    numbers: dict[str, Number] = {
        "spec_algorithm": name,
        "accept_length": length,
        "accept_length_reported": reported,
        "accept_length_threshold": threshold,
        "verify_passes": verify_passes,
    }
    found = f"accept length {length:.3f} over {verify_passes} passes"
    if reported is not None and abs(reported - length) > _AGREEMENT * length:
        reason = (
            f"{found}, but the server reports {reported:.3f} for the same request;"
            " find out what this version counts before either is used"
        )
        return Verdict("inconclusive", rule, reason, numbers)
    if length > threshold:
        return Verdict("pass", rule, found, numbers)
    advice = f"{name} hardly accepts: check that the draft belongs to this model"
    return Verdict("fail", rule, f"{found}: not above {threshold:g}; {advice}", numbers)


@dataclass(frozen=True, slots=True)
class Drafts:
    """One request's account of its drafts, as `meta_info` has it; None for what it leaves out.

    `histogram[i]` are the verifying passes that let `i` drafted tokens through; `length` and `rate`
    are the accept length and the share of drafted tokens let through, as the server reports them.
    """

    completion_tokens: int
    verify_passes: int
    histogram: tuple[int, ...] | None = None
    correct: int | None = None
    proposed: int | None = None
    length: float | None = None
    rate: float | None = None

    @property
    def contradictions(self) -> list[str]:
        """Where the account does not add up.

        The prefill gives one token of its own, and the last pass may go beyond what was asked for;
        so tokens may differ from the histogram's by the longest chain of drafts and one.
        """
        found: list[str] = []
        measured = self.completion_tokens / self.verify_passes
        if self.length is not None and abs(self.length - measured) > _AGREEMENT * measured:
            found.append(f"accept length {self.length:.3f}, its tokens and passes {measured:.3f}")
        if self.correct is not None and self.proposed and self.rate is not None:
            share = self.correct / self.proposed
            if abs(self.rate - share) > _AGREEMENT:
                found.append(f"accept rate {self.rate:.3f}, its drafts {share:.3f}")
        if self.histogram is None:
            return found
        drafted = sum(i * passes for i, passes in enumerate(self.histogram))
        if sum(self.histogram) != self.verify_passes:
            found.append(f"{self.verify_passes} passes, {sum(self.histogram)} in the histogram")
        elif abs(drafted + self.verify_passes - self.completion_tokens) > len(self.histogram):
            tokens = drafted + self.verify_passes
            found.append(f"{self.completion_tokens} tokens, {tokens} by the histogram")
        if self.correct is not None and self.correct != drafted:
            found.append(f"{self.correct} correct drafts, {drafted} in the histogram")
        return found


def judge_requests(requests: Sequence[Drafts], *, algorithm: str, threshold: float) -> Verdict:
    """Demand a pooled accept length above `threshold`, from accounts that add up.

    A request without verifying passes was decoded without drafts: it counts against the rule.
    """
    rule = (
        f"accept length over all requests > {threshold:g} tokens a verifying pass, and each"
        " request's length, rate, histogram and token count agree"
    )
    numbers: dict[str, Number] = {"spec_algorithm": algorithm, "requests": len(requests)}
    undrafted = sum(one.verify_passes < 1 for one in requests)
    if not requests or undrafted:
        reason = (
            f"{undrafted} of {len(requests)} requests were decoded without drafts (no"
            f" spec_verify_ct) although the server is configured for {algorithm}: look in its log"
            " for what switched speculation off"
        )
        return Verdict("fail" if requests else "error", rule, reason, numbers)
    lengths = sorted(one.completion_tokens / one.verify_passes for one in requests)
    tokens = sum(one.completion_tokens for one in requests)
    passes = sum(one.verify_passes for one in requests)
    proposed = sum(one.proposed or 0 for one in requests)
    correct = sum(one.correct or 0 for one in requests)
    numbers |= {
        "accept_length": tokens / passes,
        "accept_length_lowest": lengths[0],
        "accept_length_highest": lengths[-1],
        "accept_rate": correct / proposed if proposed else None,
        "accept_length_threshold": threshold,
        "verify_passes": passes,
        "histograms": sum(one.histogram is not None for one in requests),
    }
    found = f"accept length {tokens / passes:.3f} over {len(requests)} requests, {passes} passes"
    wrong = [
        f"request {i}: {told}" for i, one in enumerate(requests) for told in one.contradictions
    ]
    if wrong:
        reason = (
            f"{found}, but the server contradicts itself: {'; '.join(wrong)}; find out what this"
            " version counts before any of it is used"
        )
        return Verdict("inconclusive", rule, reason, numbers)
    if tokens / passes > threshold:
        return Verdict("pass", rule, found, numbers)
    advice = f"{algorithm} hardly accepts: check that the draft belongs to this model"
    return Verdict("fail", rule, f"{found}: not above {threshold:g}; {advice}", numbers)
