"""When a server counts as ready: it says that it is healthy, and it generates.

A server that loads answers `/health` with 503 or not at all; one that is up may still be unable to
generate, or refuse our key. So one token is asked for too, which is also the cheapest proof that
the model is there.
"""

from __future__ import annotations

import time

from servematrix.client import BadStatus, Client, ClientError, TimedOut, Unreachable

HEALTH_TIMEOUT_SECONDS = 25.0
"""`/health` of SGLang takes 1.0 s by design and answers 503 itself after 20 s of a stuck engine."""


class RefusedError(Exception):
    """The server is up and refuses to generate; waiting does not help."""


def check(base_url: str, api_key: str | None, deadline: float) -> str | None:
    """Return None when the server is ready, else what it lacks so far, as one clause.

    `deadline` is in `time.monotonic()` seconds; no request outlasts it. Raises RefusedError for an
    answer that will not change.
    """
    try:
        remaining = max(0.05, deadline - time.monotonic())
        Client(base_url, timeout=min(remaining, HEALTH_TIMEOUT_SECONDS)).health()
    except TimedOut:
        return "it accepts connections, but /health does not answer"
    except Unreachable as error:
        return str(error)
    except BadStatus as error:
        return f"/health answers {error.status}"
    except ClientError as error:
        return f"/health gives no usable answer ({error})"
    try:
        remaining = max(0.05, deadline - time.monotonic())
        client = Client(base_url, api_key=api_key, timeout=remaining)
        client.generate("1", max_new_tokens=1)
    except BadStatus as error:
        if 400 <= error.status < 500:
            raise RefusedError(_refusal(error)) from error
        return f"it is healthy, but a request for one token was answered with {error.status}"
    except ClientError as error:
        return f"it is healthy, but a request for one token failed ({error})"
    return None


def _refusal(error: BadStatus) -> str:
    if error.status in (401, 403):
        return f"it refuses the API key (status {error.status}); check --api-key-env"
    return f"it refuses to generate one token (status {error.status}): {error.body[:300]}"
