"""What the OpenAI-compatible endpoints send back.

Replies are plain dicts, and the tests check them against `openai.types`: to build a chunk of a stream takes 4 µs of
CPU as a dict, and 82 µs with `model_construct` and `model_dump` of those types; a whole reply 5 µs, and 115 µs. Their
own validation, 7 µs a chunk, would reject what other APIs give as the reason why an answer ended.
"""

from __future__ import annotations

import base64
import json
import struct
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rambla_ray.schema import Response
from rambla_ray.serving.requests import ChatCall, EmbeddingsCall, Generation

DONE = b"data: [DONE]\n\n"


class ReplyFrame:
    """What all pieces of an answer have in common: its id, when it was made, the model's name.

    Args:
        call: the request.
    """

    def __init__(self, call: Generation) -> None:
        self._is_chat = isinstance(call, ChatCall)
        self._usage_is_asked = call.usage_is_asked
        prefix = "chatcmpl" if self._is_chat else "cmpl"
        self._frame = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": call.model}

    def whole(self, responses: Sequence[Response]) -> dict[str, Any]:
        """All answers in one body."""
        choice: Callable[[int, Response], dict[str, Any]] = self._message if self._is_chat else self._text
        return {
            **self._frame,
            "object": "chat.completion" if self._is_chat else "text_completion",
            "choices": [choice(index, response) for index, response in enumerate(responses)],
            "usage": usage(responses),
        }

    def first(self) -> bytes:
        """The event that a stream begins with."""
        return self._event(delta={"role": "assistant", "content": ""}) if self._is_chat else b""

    def piece(self, text: str) -> bytes:
        """The event of a piece of text."""
        return self._event(delta={"content": text}) if self._is_chat else self._event(text=text)

    def last(self, response: Response) -> bytes:
        """The events that a stream ends with."""
        own: dict[str, Any] = {"delta": _reasoning(response)} if self._is_chat else {"text": ""}
        end = self._event(**own, finish_reason=response.finish_reason)
        if self._usage_is_asked:
            end += sse({**self._frame, "object": self._chunk, "choices": [], "usage": usage([response])})
        return end + DONE

    @property
    def _chunk(self) -> str:
        return "chat.completion.chunk" if self._is_chat else "text_completion"

    def _event(self, *, finish_reason: str | None = None, **own: Any) -> bytes:
        choice = {"index": 0, **own, "logprobs": None, "finish_reason": finish_reason}
        frame: dict[str, Any] = {**self._frame, "object": self._chunk, "choices": [choice]}
        return sse({**frame, "usage": None} if self._usage_is_asked else frame)

    @staticmethod
    def _message(index: int, response: Response) -> dict[str, Any]:
        message = {"role": "assistant", "content": response.text, "refusal": None, **_reasoning(response)}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": response.finish_reason}

    @staticmethod
    def _text(index: int, response: Response) -> dict[str, Any]:
        return {"index": index, "text": response.text, "logprobs": None, "finish_reason": response.finish_reason}


def embeddings(call: EmbeddingsCall, responses: Sequence[Response]) -> dict[str, Any]:
    """The body of `/v1/embeddings`, from responses whose texts are vectors."""
    data = []
    for index, response in enumerate(responses):
        vector = json.loads(response.text)
        if call.encoding_format == "base64":
            vector = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = sum(response.prompt_tokens for response in responses)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": call.model, "usage": usage}


def models(created: Mapping[str, int]) -> dict[str, Any]:
    """The body of `/v1/models`, from when each was loaded, in Unix seconds."""
    return {"object": "list", "data": [model(name, at) for name, at in created.items()]}


def model(name: str, created: int) -> dict[str, Any]:
    """The body of `/v1/models/NAME`."""
    return {"id": name, "object": "model", "created": created, "owned_by": "rambla_ray"}


def usage(responses: Sequence[Response]) -> dict[str, Any]:
    """The tokens of some prompts and of their answers, and how many of those went into reasoning, where any did."""
    prompt = sum(response.prompt_tokens for response in responses)
    completion = sum(response.completion_tokens for response in responses)
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    reasoning = sum(response.details.reasoning_tokens for response in responses)
    return {**counts, "completion_tokens_details": {"reasoning_tokens": reasoning}} if reasoning else counts


def _reasoning(response: Response) -> dict[str, str]:
    """What a model behind an endpoint thought, as a field beside the content; none where it is not known."""
    return {"reasoning_content": response.details.reasoning} if response.details.reasoning else {}


def sse(value: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: %b\n\n" % json.dumps(value).encode()
