"""What goes wrong at the fake endpoint: scripted faults, and the errors that OpenAI's API has for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from aiohttp import web

Json = dict[str, Any]
ErrorKind = Literal["401", "429", "quota", "500", "503", "context_length", "content_filter"]
FaultKind = Literal[
    ErrorKind,
    "reset",  # the connection is dropped with no reply
    "hang",  # no reply until the client goes away
    "garbage",  # 200, said to be JSON but cut short
    "no_choices",  # 200, an empty list of choices (embeddings: of data)
    "null_content",  # 200, null content (embeddings: null vectors)
    "filtered_finish",  # 200, empty content, finish_reason content_filter (embeddings: empty vectors)
    "none",  # no fault: the answer, with the fault's headers
    "reply",  # the fault's status and body
    "endless",  # 200, spaces without end
]
# Status, type, code, message.
ERRORS: dict[FaultKind, tuple[int, str | None, str | None, str]] = {
    "401": (401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    "429": (429, "requests", "rate_limit_exceeded", "Rate limit reached for requests."),
    "quota": (429, "insufficient_quota", "insufficient_quota", "You exceeded your current quota."),
    "500": (500, "server_error", None, "The server had an error while processing your request."),
    "503": (503, "server_error", None, "The engine is currently overloaded."),
    "context_length": (400, "invalid_request_error", "context_length_exceeded", "The context is too long."),
    "content_filter": (400, None, "content_filter", "The prompt triggered the content management policy."),
}


@dataclass(frozen=True)
class Fault:
    """One scripted failure; of several that could strike a request, the first listed does.

    It strikes requests whose prompt contains `match`: the first `times` of each such prompt (-1: all) or,
    where `every` is k > 0, those that are the k-th, 2k-th, ... request with a prompt that the server gets. An
    error reply carries `retry_after` as its Retry-After header, and `headers`. In `body`, `{key}` and `{prompt}`
    become the key and the prompt of the request, as the inside of a JSON string.
    """

    kind: FaultKind
    match: str = ""
    times: int = 1
    every: int = 0
    retry_after: float | None = None
    headers: tuple[tuple[str, str], ...] = ()
    status: int = 200
    body: bytes = b""

    def __post_init__(self) -> None:
        """Refuse a misspelt kind where it is written: struck, it would pass for an answer."""
        if self.kind not in get_args(FaultKind):
            raise ValueError(f"unknown fault kind {self.kind!r}")


class APIError(Exception):
    """An error reply, in the shape OpenAI gives it."""

    def __init__(self, status: int, kind: str | None, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.error: Json = {"message": message, "type": kind, "param": None, "code": code}
        self.headers: dict[str, str] = {}

    def response(self) -> web.Response:
        return web.json_response({"error": self.error}, status=self.status, headers=self.headers)


def bad_request(message: str, status: int = 400, code: str | None = None) -> APIError:
    return APIError(status, "invalid_request_error", code, message)
