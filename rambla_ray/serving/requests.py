"""The OpenAI API as it is accepted: what a request may hold, and the errors it may get.

Nothing that is asked for is left out in silence: what cannot be done is refused, naming the parameter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import GenerationOptions, Message, Request

T = TypeVar("T", bound="Call")
MOST_INPUTS = 2048  # The OpenAI API takes so many texts in one call.
MOST_STOPS = 4  # It takes so many texts that end an answer.
MOST_PARTS = 2048  # A conversation may have so many turns, and a turn so many parts.
MOST_FAULTS = 100  # With more, none is named: pydantic puts millions into words for a minute, and in gigabytes.
LARGEST_COUNT = 2**31 - 1


class ApiError(Exception):
    """A reply that is an error, in the OpenAI API's shape.

    Args:
        status: of HTTP.
        message: for the reader; holds no key and no prompt.
        kind: the API's `type`.
        code: the API's `code`.
        param: the parameter that is wrong.
        retry_after_s: when it may be tried again, in seconds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


_UPSTREAM = (502, "server_error", "bad_gateway")
_STATUS: Mapping[ErrorKind, tuple[int, str, str | None]] = {  # HTTP status, type, code
    ErrorKind.TOO_LONG: (400, "invalid_request_error", "context_length_exceeded"),
    ErrorKind.REFUSED: (400, "invalid_request_error", "content_filter"),
    ErrorKind.BAD_REQUEST: (400, "invalid_request_error", None),
    ErrorKind.RATE_LIMITED: (429, "rate_limit_error", "rate_limit_exceeded"),
    ErrorKind.QUOTA: (429, "insufficient_quota", "insufficient_quota"),
    ErrorKind.TIMEOUT: (504, "server_error", "timeout"),
    ErrorKind.CONNECTION: _UPSTREAM,
    ErrorKind.SERVER: _UPSTREAM,
    ErrorKind.GARBAGE: _UPSTREAM,
    ErrorKind.OVERSIZED: _UPSTREAM,
    ErrorKind.AUTH: _UPSTREAM,  # The key that was turned away is ours, not the client's.
    ErrorKind.UNSUPPORTED: _UPSTREAM,
    ErrorKind.NOT_FOUND: _UPSTREAM,
    ErrorKind.UNAVAILABLE: (503, "server_error", "unavailable"),
    ErrorKind.DIED: (503, "server_error", "unavailable"),
    ErrorKind.LOAD: (503, "server_error", "unavailable"),  # Its engine has died since it was loaded.
}


def api_error(error: CallError) -> ApiError:
    """The reply to a client whose call gave no answer."""
    status, kind, code = _STATUS.get(error.kind, (500, "server_error", str(error.kind)))
    return ApiError(status, error.message, kind=kind, code=code, retry_after_s=error.retry_after_s)


def _only(*values: object) -> AfterValidator:
    """Accepts a parameter only where it changes nothing."""

    def check(value: object) -> object:
        if value not in values:
            raise ValueError(f"is not supported here, other than as {json.dumps(values[-1])}; leave it out")
        return value

    return AfterValidator(check)


Off = Annotated[Any, _only(None, False)]
Zero = Annotated[Any, _only(None, 0)]
One = Annotated[Any, _only(None, 1)]
Nothing = Annotated[Any, _only({}, [], None)]


class RequestPart(BaseModel):
    """A part of a request; a field that is not declared is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Item = TypeVar("Item")
Parts = Annotated[list[Item], Field(max_length=MOST_PARTS, fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]
Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]


class TextPart(RequestPart):
    """A part of a message's content; images, audio and files have another type."""

    type: Literal["text"]
    text: str


class Turn(RequestPart):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Parts[TextPart]
    name: Nothing = None
    tool_calls: Nothing = None
    function_call: Nothing = None
    refusal: Nothing = None
    audio: Nothing = None
    annotations: Nothing = None

    @property
    def message(self) -> Message:
        """The turn in the models' terms."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class StreamOptions(RequestPart):
    """What a stream holds beside the text."""

    include_usage: bool | None = None
    include_obfuscation: Off = None


class Call(RequestPart):
    """What every endpoint takes: the model, and the user, who changes nothing."""

    path: ClassVar[str]
    model: str
    user: str | None = None


class Generation(Call):
    """What both endpoints that generate text take."""

    max_tokens: Count | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | Texts | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: One = None
    frequency_penalty: Zero = None
    presence_penalty: Zero = None
    logit_bias: Nothing = None

    @property
    def options(self) -> GenerationOptions:
        """The options that the request sets in place of the model config's own. Raises ApiError."""
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options is for streams: set stream to true", param="stream_options")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if "" in stop or len(stop) > MOST_STOPS:
            raise ApiError(400, f"stop takes up to {MOST_STOPS} texts, none of them empty", param="stop")
        return GenerationOptions(self.longest, self.temperature, self.top_p, self.seed, stop)

    @property
    def longest(self) -> int | None:
        """The longest answer that is asked for, in tokens."""
        return self.max_tokens

    @property
    def usage_is_asked(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def requests(self) -> list[Request]:
        """What the model is to answer. Raises ApiError."""
        raise NotImplementedError


class ChatCall(Generation):
    """`POST /v1/chat/completions`."""

    path = "/v1/chat/completions"
    messages: Parts[Turn] = Field(min_length=1)
    max_completion_tokens: Count | None = None
    logprobs: Off = None
    top_logprobs: Zero = None
    tools: Nothing = None
    tool_choice: Annotated[Any, _only(None, "auto", "none")] = None
    parallel_tool_calls: Annotated[Any, _only(None, True, False)] = None  # There are no tools to call.
    functions: Nothing = None
    function_call: Annotated[Any, _only(None, "auto", "none")] = None
    response_format: Annotated[Any, _only(None, {"type": "text"})] = None
    modalities: Annotated[Any, _only(None, ["text"])] = None
    audio: Nothing = None
    store: Off = None
    metadata: Any = None  # It is for the store, and nothing is stored.

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def requests(self) -> list[Request]:
        return [Request("", messages=tuple(turn.message for turn in self.messages), options=self.options)]


class CompletionCall(Generation):
    """`POST /v1/completions`: the prompt is continued as it stands."""

    path = "/v1/completions"
    prompt: str | Texts
    best_of: One = None
    echo: Off = None
    logprobs: Nothing = None
    suffix: Annotated[Any, _only(None, "")] = None

    def requests(self) -> list[Request]:
        prompts = _texts(self.prompt, "prompt")
        if self.stream and len(prompts) > 1:
            raise ApiError(400, "a stream answers one prompt", param="prompt")
        return [Request(prompt, verbatim=True, options=self.options) for prompt in prompts]


class EmbeddingsCall(Call):
    """`POST /v1/embeddings`."""

    path = "/v1/embeddings"
    input: str | Texts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Nothing = None

    def requests(self) -> list[Request]:
        """What the model is to answer. Raises ApiError."""
        return [Request(text) for text in _texts(self.input, "input")]


def _texts(value: str | list[str], param: str) -> list[str]:
    """The texts in a parameter that takes one or several. Raises ApiError."""
    texts = [value] if isinstance(value, str) else value
    if not 1 <= len(texts) <= MOST_INPUTS or "" in texts:
        raise ApiError(400, f"{param} takes 1 to {MOST_INPUTS} texts, none of them empty", param=param)
    return texts


def parse(kind: type[T], body: bytes) -> T:
    """A request's body. Raises ApiError, naming the parameter that is wrong."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(kind, error) from None


def _refusal(kind: type[Call], error: ValidationError) -> ApiError:
    """The first fault of a request in words; never with what was sent, which may be a patient's."""
    if (count := error.error_count()) > MOST_FAULTS:
        return ApiError(400, f"the body has {count} faults; see the OpenAI API's reference of {kind.path}")
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    # Of a union's branches, the one that came farthest.
    fault = max(faults, key=lambda fault: (len(fault["loc"]), fault["type"] == "too_long"))
    if fault["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {fault['msg'].removeprefix('Invalid JSON: ')}")
    if not fault["loc"]:
        return ApiError(400, "the body is not a JSON object")
    place = [fault["loc"][0], *(part for part in fault["loc"][1:] if not _is_branch(part))]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    match fault["type"]:
        case "missing":
            reason = f"parameter {param} is missing"
        case "extra_forbidden":
            reason = f"parameter {param} is not known at {kind.path}"
        case "value_error":
            reason = f"parameter {param} {fault['msg'].removeprefix('Value error, ')}"
        case _:
            reason = f"parameter {param}: {fault['msg']}"
    return ApiError(400, reason, param=param)


def _is_branch(part: int | str) -> bool:
    """Whether a part of a location names a branch of a union, and not a key."""
    return isinstance(part, str) and (part == "str" or part.startswith("list["))
