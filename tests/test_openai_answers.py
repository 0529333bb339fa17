"""What the answers of many endpoints mean: how they end, what is a text, what was charged, how often is asked."""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from typing import Any

import openai_models
import pytest
from faults import Fault
from openai_models import Chat, Completion, Embeddings, answer, ask, build, error
from openai_server import OpenAIServer, embedding

from rambla_ray.actors.api.retry import RetryPolicy
from rambla_ray.actors.base import RunContext
from rambla_ray.actors.openai import OpenAIModel
from rambla_ray.errors import CallError, Draining, ErrorKind
from rambla_ray.schema import Request, Response

only_a_key = openai_models.only_a_key  # It runs by itself before each test of this file.

USAGE = {"prompt_tokens": 100, "completion_tokens": 800}
REFUSED, GARBAGE, SERVER = ErrorKind.REFUSED, ErrorKind.GARBAGE, ErrorKind.SERVER
TRIES = 2


class TriesTwice(Chat):
    retry = RetryPolicy(attempts=TRIES, first_pause_s=0.001, longest_pause_s=0.001)


class CompletesTwice(Completion):
    retry = TriesTwice.retry


def end_of(body: Any, kind: type[OpenAIModel] = TriesTwice) -> tuple[Any, int]:
    """What becomes of a call that always gets this body, and how many there were."""
    fault = Fault("reply", body=json.dumps(body).encode(), times=-1)
    with OpenAIServer(faults=[fault]) as server:
        (end,) = ask(build(server, kind), "hello")
        return end, len(server.requests)


def choice(reason: Any = "stop", usage: Any = USAGE, **members: Any) -> dict[str, Any]:
    """A body with one choice."""
    return {"choices": [{"index": 0, "finish_reason": reason, **members}], "usage": usage}


def chat(content: Any, reason: Any = "stop", usage: Any = USAGE, **message: Any) -> dict[str, Any]:
    return choice(reason, usage, message={"role": "assistant", "content": content, **message})


THINKING = {"completion_tokens_details": {"reasoning_tokens": 800}}
THOUGHT = [{"type": "thinking", "thinking": [{"type": "text", "text": "Perhaps yes."}]}]

# A body, the text, the finish reason: one call, and its tokens are counted.
EMPTY: list[tuple[Any, str, str]] = [
    (chat(None, "length"), "", "length"),
    (chat("", "length"), "", "length"),
    (chat(None, "MAX_TOKENS"), "", "length"),
    (choice("length", message={"role": "assistant"}), "", "length"),
    (choice("length", message=None), "", "length"),
    (choice("length"), "", "length"),
    (chat(None, reasoning_content="Perhaps yes."), "", "length"),
    (chat("", reasoning="Perhaps yes."), "", "length"),
    (chat("\n", reasoning="Perhaps yes."), "\n", "length"),
    (chat(None, reasoning_details=[{"type": "reasoning.text", "text": "Perhaps"}]), "", "length"),
    (choice("stop", message={"role": "assistant", "reasoning_content": "Perhaps yes."}), "", "length"),
    (chat(None, usage={**USAGE, **THINKING}), "", "length"),
    (chat(THOUGHT), "", "length"),
    (chat([{"text": "Perhaps yes.", "thought": True}]), "", "length"),
    (chat(None, native_finish_reason="x"), "", "stop"),
    (chat(None, "tool_calls", tool_calls=[{"id": "1"}], reasoning_content="I call a tool."), "", "tool_calls"),
    (chat("", "stop", usage=None), "", "stop"),
    (choice("stop", native_finish_reason="MAX_TOKENS", message={"content": None}), "", "length"),
]
TEXTS: list[tuple[Any, str, str]] = [
    (chat([{"type": "text", "text": "Ye"}, {"type": "text", "text": "s"}]), "Yes", "stop"),
    (chat([*THOUGHT, {"type": "text", "text": "Yes"}]), "Yes", "stop"),
    (
        chat([{"type": "thinking", "thinking": "No?", "signature": "x"}, {"type": "text", "text": "Yes"}]),
        "Yes",
        "stop",
    ),
    (chat([{"text": "No?", "thought": True}, {"text": "Yes"}]), "Yes", "stop"),
    (chat([{"type": "output_text", "text": "Yes"}, {"type": "reference", "reference_ids": [1]}]), "Yes", "stop"),
    (chat("Yes", reasoning_content="No? Yes."), "Yes", "stop"),
    (chat("Yes, bec", "MAX_TOKENS"), "Yes, bec", "length"),
    (chat("Yes, bec", "max_output_tokens"), "Yes, bec", "length"),
    (chat("Yes, bec", "content_filter"), "Yes, bec", "content_filter"),
    (chat("Yes, bec", "SAFETY"), "Yes, bec", "content_filter"),
    (chat("Yes", "end_turn"), "Yes", "end_turn"),
    (chat("Yes", "STOP"), "Yes", "STOP"),
    (chat("Yes", None), "Yes", "stop"),
    ({**chat("Yes"), "error": None}, "Yes", "stop"),
    ({**chat("Yes"), "message": "All is well.", "code": 0}, "Yes", "stop"),
]


@pytest.mark.parametrize(("body", "text", "finish_reason"), [*EMPTY, *TEXTS])
def test_an_answer_is_asked_once_and_its_tokens_are_counted(body: Any, text: str, finish_reason: str) -> None:
    end, calls = end_of(body)
    assert isinstance(end, Response), end
    assert (end.text, end.finish_reason, calls, end.trace.attempts) == (text, finish_reason, 1, 1)
    usage = body["usage"] or {"prompt_tokens": 0, "completion_tokens": 0}
    assert (end.prompt_tokens, end.completion_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert (end.trace.failed_prompt_tokens, end.trace.failed_completion_tokens) == (0, 0)


def test_a_completion_cut_off_before_its_text_is_an_empty_answer() -> None:
    end, calls = end_of(choice("length", text=None), CompletesTwice)
    assert (end.text, end.finish_reason, end.completion_tokens, calls) == ("", "length", 800, 1)


FILTER = {"hate": {"filtered": False, "severity": "safe"}, "violence": {"filtered": True, "severity": "high"}}
FILTERED = [
    choice("content_filter"),
    choice("content_filter", message=None),
    choice("content_filter", message={"role": "assistant"}),
    choice("stop", message={"role": "assistant"}, content_filter_results=FILTER),
    chat("", None, refusal="I cannot."),
    chat([{"type": "refusal", "refusal": "I cannot."}]),
    choice("stop", native_finish_reason="SAFETY", message={"content": None}),
    {"choices": [], "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usage": USAGE},
    {"choices": None, "prompt_feedback": {"block_reason": "SAFETY"}, "usage": USAGE},
    {"choices": [], "prompt_filter_results": [{"content_filter_results": FILTER}], "usage": USAGE},
    *(
        chat(None, reason)
        for reason in (
            *("content_filter", "content_filter: violence", "CONTENT_FILTERED", "SAFETY", "RECITATION", "BLOCKLIST"),
            *("PROHIBITED_CONTENT", "SPII", "refusal", "guardrail_intervened", "FinishReason.SAFETY", "sensitive"),
        )
    ),
]
BROKEN_OFF = [
    *(
        chat("Yes, bec", reason)
        for reason in (
            *("error", "ERROR", "abort", "aborted", "cancelled", "canceled", "network_error", "timeout"),
            "insufficient_system_resource",
        )
    ),
    chat(None, "error"),
    choice("error", message={"content": "Yes"}, error={"code": 502, "message": "Provider disconnected"}),
    choice("stop", message={"content": "Yes"}, error={"code": 502, "message": "Provider disconnected"}),
    {**chat("Yes", "error"), "error": {"message": "Provider disconnected"}},
]
NO_ANSWER = [
    chat(None, usage={"prompt_tokens": 100, "completion_tokens": 0}),
    chat(None, None),
    chat(7),
    chat(["Yes"]),
    chat([{"type": "text", "text": None}]),
    choice(message={}),
    choice(None),
    {"choices": [], "usage": USAGE},
    {"choices": [], "promptFeedback": {}, "usage": USAGE},
]


@pytest.mark.parametrize(
    ("body", "kind", "calls"),
    [(body, REFUSED, 1) for body in FILTERED]
    + [(body, SERVER, TRIES) for body in BROKEN_OFF]
    + [(body, GARBAGE, TRIES) for body in NO_ANSWER],
)
def test_what_is_no_answer_has_its_kind_and_all_that_was_charged_is_counted(
    body: Any, kind: ErrorKind, calls: int
) -> None:
    end, made = end_of(body)
    assert isinstance(end, CallError)
    assert (end.kind, made, end.trace.attempts) == (kind, calls, calls)
    usage = body["usage"]
    charged = (end.trace.failed_prompt_tokens, end.trace.failed_completion_tokens)
    assert charged == (calls * usage["prompt_tokens"], calls * usage["completion_tokens"])


def test_an_answer_that_is_broken_off_is_asked_again_and_what_it_cost_stays_counted() -> None:
    broken = Fault("reply", body=json.dumps(chat("Yes, bec", "abort")).encode(), times=2)
    with OpenAIServer(answer=str.upper, faults=[broken]) as server:
        response = answer(build(server), "hello")
    assert (response.text, response.trace.attempts, response.prompt_tokens) == ("HELLO", 3, 1)
    assert (response.trace.failed_prompt_tokens, response.trace.failed_completion_tokens) == (200, 1600)


class Interrupted(Chat):
    """Its run is stopped as soon as a call has failed."""

    async def call(self, request: Request) -> Response:
        try:
            return await super().call(request)
        except CallError:
            self.drain()
            raise


def test_what_a_request_has_cost_is_not_lost_when_the_run_is_stopped_before_it_is_tried_again() -> None:
    with OpenAIServer(faults=[Fault("reply", body=json.dumps(chat(None, "error")).encode(), times=-1)]) as server:
        end = error(build(server, Interrupted))
    assert (end.kind, end.trace.attempts) == (SERVER, 1)
    assert (end.trace.failed_prompt_tokens, end.trace.failed_completion_tokens) == (100, 800)


def test_a_request_that_has_cost_nothing_stays_open_when_the_run_is_stopped() -> None:
    with OpenAIServer(faults=[Fault("500", times=-1)]) as server, pytest.raises(Draining):
        answer(build(server, Interrupted), "hello")


def test_the_endpoint_s_words_about_what_broke_off_are_kept() -> None:
    end, _ = end_of(choice("error", message=None, error={"code": 502, "message": "Provider disconnected"}))
    assert end.message == "HTTP 200 502: Provider disconnected the answer ended with finish_reason error"


def test_what_broke_off_because_of_a_limit_is_a_rate_limit() -> None:
    body = choice("error", message={"content": "Yes"}, error={"code": 429, "message": "Slow down."})
    with OpenAIServer(answer=str.upper, faults=[Fault("reply", body=json.dumps(body).encode())]) as server:
        response = answer(build(server), "hello")
    assert [attempt.reason.partition(":")[0] for attempt in response.trace.tries] == ["rate_limited", ""]


# Vectors


def vector_body(*vectors: Any) -> dict[str, Any]:
    return {"data": [{"index": 0, "embedding": vector} for vector in vectors], "usage": {"prompt_tokens": 7}}


def packed(*numbers: float) -> str:
    return b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


class EmbedsTwice(Embeddings):
    retry = TriesTwice.retry


ODD_TEXTS = ["", "AAAA", "AAA", "====", "a", "Yes, no", "\u00e9", packed(1.0)[:-2]]
ODD_NUMBERS = [packed(float("nan")), packed(float("inf")), [float("nan")], [1e999], [10**400]]
NO_NUMBERS = [["x"], [None], [[1.0]], {}, {"a": 1}, None, 7, []]


@pytest.mark.parametrize("vector", [*ODD_TEXTS, *ODD_NUMBERS, *NO_NUMBERS])
def test_a_vector_that_is_none_is_garbage(vector: Any) -> None:
    end, calls = end_of(vector_body(vector), EmbedsTwice)
    assert isinstance(end, CallError)
    assert (end.kind, calls, end.trace.failed_prompt_tokens) == (GARBAGE, TRIES, TRIES * 7)


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": "Unknown parameter: 'encoding_format'.", "code": "unknown_parameter"}},
        {"detail": [{"type": "extra_forbidden", "loc": ["body", "encoding_format"], "msg": "Extra inputs"}]},
        {"message": "encoding_format must be one of ['float']"},
    ],
)
def test_an_endpoint_that_refuses_an_encoding_is_asked_for_numbers_from_then_on(status: int, error: Any) -> None:
    refusal = Fault("reply", match="hello", status=status, body=json.dumps(error).encode())
    notes: list[str] = []
    with OpenAIServer(faults=[refusal]) as server:
        model = build(server, Embeddings)
        model.attach(RunContext(notes.append))
        before = model.identity()
        first, second = (answer(model, prompt) for prompt in ("hello", "and more"))
        assert [json.loads(response.text) for response in (first, second)] == [
            list(struct.unpack("<16f", embedding(prompt))) for prompt in ("hello", "and more")
        ]
        assert (first.trace.attempts, len(server.requests)) == (1, 3)
        assert notes == [f"{server.base_url} refuses encoding_format: vectors are asked for as lists of numbers"]
    assert model.identity() == before


def test_another_bad_request_for_vectors_is_not_asked_again() -> None:
    refusal = Fault("reply", status=400, body=b'{"error": {"message": "input must be a string"}}', times=-1)
    with OpenAIServer(faults=[refusal]) as server:
        (end,) = ask(build(server, Embeddings), "hello")
        assert (end.kind, len(server.requests)) == (ErrorKind.BAD_REQUEST, 1)
