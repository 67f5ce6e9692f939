"""Does speculative decoding pay: tokens gained by each verifying forward pass of one request."""

from __future__ import annotations

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
    speculation is `required`.
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
