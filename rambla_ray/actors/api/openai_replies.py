"""What the replies of OpenAI-compatible endpoints mean: errors, numbers of tokens, vectors."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from typing import Any

from rambla_ray.actors.api.http import HttpReply
from rambla_ray.actors.api.waits import requested_wait_s
from rambla_ray.errors import CallError, ErrorKind

LONGEST_VECTOR = 100_000  # A vector with more numbers is no embedding.


def status_error(reply: HttpReply, redacted: Callable[[str], str]) -> CallError:
    """What a status other than 2xx means; the message is the endpoint's own, made safe by `redacted` and cut short."""
    status, code, text = reply.status, "", ""
    try:
        body = json.loads(reply.body)
        error = body.get("error", body)
        if isinstance(error, dict):
            code = str(error.get("code") or error.get("type") or "")
            text = str(error.get("message") or "")
        else:
            text = str(error)
    except (ValueError, AttributeError, RecursionError):
        pass  # It is a proxy's page, mostly.
    if 300 <= status < 400:
        text = f"the endpoint redirects to {reply.headers.get('location')}, which is not followed; correct base_url"
    message = redacted(f"HTTP {status}{f' {code}' if code else ''}{f': {text}' if text else ''}")
    words = text.lower()
    if status == 413 or "context_length" in code or "context length" in words or "context size" in words:
        return CallError(ErrorKind.TOO_LONG, message)
    if code in ("content_filter", "content_policy_violation"):
        return CallError(ErrorKind.REFUSED, message)
    if code in ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active"):
        return CallError(ErrorKind.QUOTA, message)
    kinds = {401: ErrorKind.AUTH, 403: ErrorKind.AUTH, 404: ErrorKind.NOT_FOUND, 429: ErrorKind.RATE_LIMITED}
    if status in kinds:
        return CallError(kinds[status], message, retry_after_s=requested_wait_s(reply.headers))
    if status in (408, 409) or status >= 500:
        return CallError(ErrorKind.SERVER, message, retry_after_s=requested_wait_s(reply.headers))
    return CallError(ErrorKind.NOT_FOUND if 300 <= status < 400 else ErrorKind.BAD_REQUEST, message)


def token_count(usage: Any, name: str) -> int:
    """A number of tokens in a reply's `usage`; 0 where that is no such number."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and 0 <= count < 2**31 else 0


def vectors(body: Any, count: int) -> list[list[float]]:
    """The embeddings in a parsed body. Raises CallError (`garbage`) if there are not `count`, or one is no embedding.

    What the body lacks raises the error that the look-up raises.
    """
    embeddings = [_vector(item["embedding"]) for item in body["data"]]
    if len(embeddings) != count:
        raise CallError(ErrorKind.GARBAGE, f"the reply has {len(embeddings)} vectors for {count} texts")
    if not all(0 < len(vector) <= LONGEST_VECTOR for vector in embeddings):
        raise CallError(ErrorKind.GARBAGE, "the reply has an empty vector, or one that is no embedding")
    return embeddings


def _vector(value: Any) -> list[float]:
    """An embedding as a list of numbers, or as the package asks for it: base64 of little-endian float32."""
    if isinstance(value, str):
        packed = base64.b64decode(value, validate=True)
        return [number for (number,) in struct.iter_unpack("<f", packed)]
    return [float(number) for number in value]
